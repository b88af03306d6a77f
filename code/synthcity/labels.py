"""Road labels of a chip, as GeoJSON and as rows of the truth CSV."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio import Affine
from shapely import LineString, STRtree

from synthcity.network import MPS_PER_MPH, Edge
from synthcity.plan import FloatArray
from synthcity.survey import Survey

CSV_HEADER = "ImageId,WKT_Pix,length_m,travel_time_s"

# Shorter pieces at the border of a chip get no label, metres.
_SHORTEST_M = 1.0

# Vertices nearer to the one before are left out: the official validator rejects twins.
_NEAREST_PX = 0.5


@dataclass(frozen=True)
class ChipRoad:
    """Part of a road within a chip.

    Attributes:
        line: float64 (n, 2), x = column and y = row in the chip's pixels, whole hundredths.
        length_m: true length, metres.
        edge: the road it is a piece of.
    """

    line: FloatArray
    length_m: float
    edge: Edge

    @property
    def travel_time_s(self) -> float:
        """Travel time from end to end, seconds."""
        return self.length_m / (self.edge.speed_mph * MPS_PER_MPH)


def chip_roads(
    edges: tuple[Edge, ...], tree: STRtree, survey: Survey, number: int
) -> list[ChipRoad]:
    """Clip the roads to the part of a chip that has data.

    Beyond the edge of the swath the image is empty, so there are no labels.
    """
    seen = survey.seen(number)
    roads: list[ChipRoad] = []
    for i in sorted(tree.query(seen, predicate="intersects").tolist()):
        clipped = edges[i].line.intersection(seen)
        roads += [
            _road(part, edges[i], survey, number)
            for part in getattr(clipped, "geoms", [clipped])
            if part.geom_type == "LineString" and part.length >= _SHORTEST_M
        ]
    return roads


def _road(part: LineString, edge: Edge, survey: Survey, number: int) -> ChipRoad:
    window, grid = survey.window(number), survey.grid
    scale = np.array((grid.x_m, grid.y_m))
    # Adding zero turns -0.0, which would be written with its sign, into 0.0.
    line = np.round(np.asarray(part.coords) / scale - (window.column, window.row), 2) + 0.0
    kept = [line[0]]
    for point in line[1:-1]:
        if min(np.hypot(*(point - kept[-1])), np.hypot(*(point - line[-1]))) >= _NEAREST_PX:
            kept.append(point)
    line = np.array([*kept, line[-1]])
    steps = np.diff(line, axis=0) * scale
    return ChipRoad(line, float(np.hypot(steps[:, 0], steps[:, 1]).sum()), edge)


def geojson(roads: Iterable[ChipRoad], transform: Affine) -> str:
    """Return SpaceNet 5's label file, longitude before latitude."""
    return json.dumps(
        {
            "type": "FeatureCollection",
            "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
            "features": [_feature(road, transform) for road in roads],
        }
    )


def _feature(road: ChipRoad, transform: Affine) -> dict[str, Any]:
    street = road.edge.street
    mph = road.edge.speed_mph
    places = [(transform.c + transform.a * x, transform.f + transform.e * y) for x, y in road.line]
    return {
        "type": "Feature",
        "properties": {
            "highway": street.highway,
            "lanes": str(street.lanes),
            "surface": "paved" if street.paved else "unpaved",
            "bridge": "yes" if road.edge.bridge else "no",
            "inferred_speed_mph": mph,
            "inferred_speed_mps": round(mph * MPS_PER_MPH, 4),
        },
        "geometry": {
            "type": "LineString",
            "coordinates": [[round(float(lon), 10), round(float(lat), 10)] for lon, lat in places],
        },
    }


def csv_rows(image_id: str, roads: list[ChipRoad]) -> list[str]:
    """Return a chip's rows of the truth CSV: one per road, or one that says there is none."""
    if not roads:
        return [f"{image_id},LINESTRING EMPTY,0,0"]
    return [
        f'{image_id},"LINESTRING ({_wkt(road.line)})",'
        f"{round(road.length_m, 3)},{round(road.travel_time_s, 3)}"
        for road in roads
    ]


def _wkt(line: FloatArray) -> str:
    return ", ".join(f"{x:.2f} {y:.2f}" for x, y in line)
