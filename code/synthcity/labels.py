"""Labels of a tile: its roads and buildings as GeoJSON and CSV, its buildings as COCO.

Road labels have SpaceNet 5's properties, SpaceNet 3's ``bridge_type`` (1 for a bridge, 2 for none)
and OpenStreetMap's ``layer`` and ``tunnel``. Roads on different levels cross without a shared
vertex.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.warp
import shapely
from numpy.typing import NDArray
from shapely import LineString, Polygon, STRtree

from synthcity.network import MPS_PER_MPH, Edge
from synthcity.plan import FloatArray
from synthcity.solids import Solid
from synthcity.survey import Tile

ROADS_HEADER = "ImageId,WKT_Pix,length_m,travel_time_s"
BUILDINGS_HEADER = "ImageId,BuildingId,PolygonWKT_Pix,PolygonWKT_Geo"
# Longitude and latitude on WGS 84, in that order.
_LON_LAT = "OGC:CRS84"
# Minimum length of a labelled piece of road at the border of a chip, metres.
_SHORTEST_M = 1.0
# Minimum distance between consecutive vertices, pixels. The official validator rejects duplicates.
_NEAREST_PX = 0.5
# Minimum area of a building, square pixels. The scorers also drop smaller pieces at tile borders.
_SMALLEST_PX2 = 20.0
# The Mapping Challenge's only category.
_CATEGORY = 100


@dataclass(frozen=True)
class ChipRoad:
    """Part of a road within a chip."""

    # float64 (n, 2), pixel coordinates in the chip, x = column and y = row, rounded to
    # hundredths
    line: FloatArray
    length_m: float  # true length, metres
    edge: Edge  # the road that it belongs to

    @property
    def travel_time_s(self) -> float:
        """Travel time from end to end, seconds."""
        return self.length_m / (self.edge.speed_mph * MPS_PER_MPH)


@dataclass(frozen=True)
class Footprint:
    """Part of a building within a tile."""

    # pixel coordinates in the tile, x = column and y = row, rounded to hundredths, with holes
    polygon: Polygon
    geographic: Polygon  # the same polygon in longitude and latitude
    building: int  # index of the building
    share: float  # fraction of the building's ground area within the tile, 0..1
    height_m: float  # height of the building, metres


def _clipped(shapes: Sequence[Any], tree: STRtree, tile: Tile) -> Iterator[tuple[int, Any]]:
    """Yield the parts of shapes within the swath of a tile with the index of each shape."""
    for i in sorted(tree.query(tile.seen, predicate="intersects").tolist()):
        clipped = shapely.intersection(shapes[i], tile.seen)
        for part in getattr(clipped, "geoms", [clipped]):
            yield i, part


def chip_roads(roads: Sequence[Edge], tree: STRtree, tile: Tile) -> list[ChipRoad]:
    """Clip the roads to the part of a tile within the swath; ``tree`` holds their lines."""
    return [
        _road(part, roads[i], tile)
        for i, part in _clipped([road.line for road in roads], tree, tile)
        if part.geom_type == "LineString" and part.length >= _SHORTEST_M
    ]


def _road(part: LineString, edge: Edge, tile: Tile) -> ChipRoad:
    line = tile.pixels(np.asarray(part.coords))
    kept = [line[0]]
    for point in line[1:-1]:
        if min(np.hypot(*(point - kept[-1])), np.hypot(*(point - line[-1]))) >= _NEAREST_PX:
            kept.append(point)
    line = np.array([*kept, line[-1]])
    steps = np.diff(line, axis=0) * (tile.grid.x_m, tile.grid.y_m)
    return ChipRoad(line, float(np.hypot(steps[:, 0], steps[:, 1]).sum()), edge)


def tile_footprints(solids: Sequence[Solid], tree: STRtree, tile: Tile) -> list[Footprint]:
    """Clip the footprints to the part of a tile within the swath, ordered by building."""
    found = []
    for i, part in _clipped([solid.footprint for solid in solids], tree, tile):
        if part.geom_type != "Polygon":
            continue
        pixels = shapely.transform(part, tile.pixels)
        if pixels.area >= _SMALLEST_PX2 and pixels.is_valid:
            pixels = pixels.normalize()
            geographic = shapely.transform(pixels, lambda xy: _geographic(xy, tile))
            share = part.area / solids[i].footprint.area
            found.append(Footprint(pixels, geographic, i, share, solids[i].height))
    return found


def _geographic(xy: FloatArray, tile: Tile) -> FloatArray:
    """Convert pixels of a tile to longitude and latitude, float64 (n, 2)."""
    x = tile.transform.c + tile.transform.a * xy[:, 0]
    y = tile.transform.f + tile.transform.e * xy[:, 1]
    if tile.crs != "EPSG:4326":
        x, y = rasterio.warp.transform(tile.crs, _LON_LAT, x, y)[:2]
    return np.round(np.column_stack([x, y]), 10)


def road_geojson(roads: Sequence[ChipRoad], tile: Tile) -> str:
    """Return the content of a chip's label file, with longitude before latitude."""
    lines = [LineString(_geographic(road.line, tile)) for road in roads]
    return _geojson([_road_properties(road.edge) for road in roads], lines)


def _road_properties(edge: Edge) -> dict[str, Any]:
    street = edge.street
    return {
        "highway": street.highway,
        "lanes": str(street.lanes),
        "surface": "paved" if street.paved else "unpaved",
        "bridge": "yes" if edge.layer > 0 else "no",
        "bridge_type": "1" if edge.layer > 0 else "2",
        "layer": str(edge.layer),
        "tunnel": "yes" if edge.layer < 0 else "no",
        "inferred_speed_mph": edge.speed_mph,
        "inferred_speed_mps": round(edge.speed_mph * MPS_PER_MPH, 4),
    }


def building_geojson(footprints: Sequence[Footprint]) -> str:
    """Return the content of SpaceNet's label file, with longitude before latitude."""
    properties = [
        {
            "Id": number,
            "partialBuilding": float(footprint.share < 1 - 1e-9),
            "partialDec": round(footprint.share, 6),
            "height_m": round(footprint.height_m, 2),
        }
        for number, footprint in enumerate(footprints, 1)
    ]
    return _geojson(properties, [footprint.geographic for footprint in footprints])


def _geojson(properties: Sequence[dict[str, Any]], shapes: Sequence[LineString | Polygon]) -> str:
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    features = [
        {"type": "Feature", "properties": of, "geometry": shapely.geometry.mapping(shape)}
        for of, shape in zip(properties, shapes, strict=True)
    ]
    return json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})


def road_rows(image_id: str, roads: Sequence[ChipRoad]) -> list[str]:
    """Return a chip's rows of the truth CSV: one per road, or one empty row without any."""
    if not roads:
        return [f"{image_id},LINESTRING EMPTY,0,0"]
    rows = []
    for road in roads:
        line = ", ".join(f"{x:.2f} {y:.2f}" for x, y in road.line)
        spent = f"{round(road.length_m, 3)},{round(road.travel_time_s, 3)}"
        rows.append(f'{image_id},"LINESTRING ({line})",{spent}')
    return rows


def building_rows(
    image_id: str, footprints: Sequence[Footprint], occluded: Collection[int] | None = None
) -> list[str]:
    """Return an image's rows of the truth CSV: one per footprint, or one empty row without any.

    Args:
        image_id: id of the image.
        footprints: footprints of its tile.
        occluded: indices of hidden buildings; None omits SpaceNet 4's column.
    """
    if not footprints:
        ending = "" if occluded is None else ",0"
        return [f"{image_id},-1,POLYGON EMPTY,POLYGON EMPTY{ending}"]
    rows = []
    for number, footprint in enumerate(footprints, 1):
        ending = "" if occluded is None else f",{int(footprint.building in occluded)}"
        pixels, place = _wkt(footprint.polygon, 2), _wkt(footprint.geographic, 10)
        rows.append(f'{image_id},{number},"{pixels}","{place}"{ending}')
    return rows


def _wkt(polygon: Polygon, places: int) -> str:
    text = str(shapely.to_wkt(polygon, rounding_precision=places, trim=False))
    return text.replace(", ", ",")


def hidden(
    footprints: Sequence[Footprint], roof: NDArray[np.int32], valid: NDArray[np.bool_]
) -> set[int]:
    """Return the buildings with less than half of their roof visible in an image.

    Args:
        footprints: footprints of the image's tile.
        roof: int32 (h, w), index of the building whose roof is visible, -1 elsewhere.
        valid: bool (h, w), false where there is no data.
    """
    seen = np.bincount(roof[valid & (roof >= 0)])
    areas: dict[int, float] = {}
    for footprint in footprints:
        areas[footprint.building] = areas.get(footprint.building, 0.0) + footprint.polygon.area
    return {
        building
        for building, area in areas.items()
        if (seen[building] if building < len(seen) else 0) < 0.5 * area
    }


def coco(images: Sequence[tuple[int, str, int, Sequence[Footprint]]]) -> str:
    """Return the content of the Mapping Challenge's annotation file.

    COCO polygons have no holes, so a building with a courtyard is cut into pieces without holes.

    Args:
        images: id, file name, side in pixels and footprints of each image.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, _, _, footprints in images:
        for footprint in footprints:
            x0, y0, x1, y1 = footprint.polygon.bounds
            pieces = [np.asarray(part.exterior.coords)[:-1].round(2).ravel().tolist()
                      for part in _without_holes(footprint.polygon)]  # fmt: skip
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": _CATEGORY,
                    "iscrowd": 0,
                    "area": round(footprint.polygon.area, 2),
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "segmentation": pieces,
                }
            )
    return json.dumps(
        {
            "info": {"description": "synthetic city"},
            "categories": [{"id": _CATEGORY, "name": "building", "supercategory": "building"}],
            "images": [
                {"id": image_id, "file_name": name, "width": side, "height": side}
                for image_id, name, side, _ in images
            ],
            "annotations": annotations,
        }
    )


def _without_holes(polygon: Polygon) -> list[Polygon]:
    """Cut a polygon vertically through the middle of each hole."""
    if not polygon.interiors:
        return [polygon]
    x0, y0, x1, y1 = polygon.bounds
    middle = round(float(Polygon(polygon.interiors[0]).representative_point().x), 2)
    pieces = []
    for half in (shapely.box(x0, y0, middle, y1), shapely.box(middle, y0, x1, y1)):
        cut = shapely.intersection(polygon, half)
        for part in getattr(cut, "geoms", [cut]):
            if part.geom_type == "Polygon":
                pieces += _without_holes(part)
    return pieces
