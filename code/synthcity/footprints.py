"""Building labels of a tile: ground footprints as GeoJSON, CSV and COCO."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.warp
import shapely
from numpy.typing import NDArray
from shapely import Polygon, STRtree

from synthcity.plan import FloatArray
from synthcity.solids import Solid
from synthcity.survey import Tile

CSV_HEADER = "ImageId,BuildingId,PolygonWKT_Pix,PolygonWKT_Geo"

# Longitude and latitude on WGS 84, in that order.
_LON_LAT = "OGC:CRS84"

# Minimum area of a label, square pixels. The scorers also drop smaller pieces at tile borders.
_SMALLEST_PX2 = 20.0

# The Mapping Challenge's only category.
_CATEGORY = 100


@dataclass(frozen=True)
class Footprint:
    """Part of a building within a tile.

    Attributes:
        polygon: pixel coordinates in the tile, x = column and y = row, rounded to hundredths, with
            holes.
        geographic: the same polygon in longitude and latitude.
        building: index of the building.
        share: fraction of the building's ground area within the tile, 0..1.
        height_m: height of the building, metres.
    """

    polygon: Polygon
    geographic: Polygon
    building: int
    share: float
    height_m: float


def tile_footprints(solids: Sequence[Solid], tree: STRtree, tile: Tile) -> list[Footprint]:
    """Clip the footprints to the valid part of a tile, ordered by building."""
    scale = np.array((tile.grid.x_m, tile.grid.y_m))
    corner = (tile.window.column, tile.window.row)
    found = []
    for i in sorted(tree.query(tile.seen, predicate="intersects").tolist()):
        solid = solids[i]
        clipped = shapely.intersection(solid.footprint, tile.seen)
        for part in getattr(clipped, "geoms", [clipped]):
            if part.geom_type != "Polygon":
                continue
            pixels = shapely.transform(part, lambda xy: np.round(xy / scale - corner, 2) + 0.0)
            if pixels.area < _SMALLEST_PX2 or not pixels.is_valid:
                continue
            pixels = pixels.normalize()
            share = part.area / solid.footprint.area
            found.append(Footprint(pixels, _geographic(pixels, tile), i, share, solid.height))
    return found


def _geographic(pixels: Polygon, tile: Tile) -> Polygon:
    def place(xy: FloatArray) -> FloatArray:
        x = tile.transform.c + tile.transform.a * xy[:, 0]
        y = tile.transform.f + tile.transform.e * xy[:, 1]
        longitude, latitude = rasterio.warp.transform(tile.crs, _LON_LAT, x, y)[:2]
        return np.round(np.column_stack([longitude, latitude]), 10)

    return shapely.transform(pixels, place)


def geojson(footprints: Sequence[Footprint]) -> str:
    """Return the content of SpaceNet's label file, with longitude before latitude."""
    return json.dumps(
        {
            "type": "FeatureCollection",
            "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
            "features": [
                {
                    "type": "Feature",
                    "properties": {
                        "Id": number,
                        "partialBuilding": float(footprint.share < 1 - 1e-9),
                        "partialDec": round(footprint.share, 6),
                        "height_m": round(footprint.height_m, 2),
                    },
                    "geometry": shapely.geometry.mapping(footprint.geographic),
                }
                for number, footprint in enumerate(footprints, 1)
            ],
        }
    )


def csv_rows(
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
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": _CATEGORY,
                    "iscrowd": 0,
                    "area": round(footprint.polygon.area, 2),
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "segmentation": [
                        np.asarray(part.exterior.coords)[:-1].round(2).ravel().tolist()
                        for part in _without_holes(footprint.polygon)
                    ],
                }
            )
    return json.dumps(
        {
            "info": {"description": "made city"},
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
    halves = (shapely.box(x0, y0, middle, y1), shapely.box(middle, y0, x1, y1))
    pieces = []
    for half in halves:
        cut = shapely.intersection(polygon, half)
        parts = [part for part in getattr(cut, "geoms", [cut]) if part.geom_type == "Polygon"]
        for part in parts:
            pieces += _without_holes(part)
    return pieces
