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

# Minimum length of a labelled piece at the border of a chip, metres.
_SHORTEST_M = 1.0

# Minimum distance between consecutive vertices, pixels. The official validator rejects duplicates.
_NEAREST_PX = 0.5


@dataclass(frozen=True)
class ChipRoad:
    """Part of a road within a chip.

    Attributes:
        line: float64 (n, 2), pixel coordinates in the chip, x = column and y = row, rounded to
            hundredths.
        length_m: true length, metres.
        edge: the road that it belongs to.
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
    """Clip the roads to the valid part of a chip.

    The image is empty beyond the edge of the swath, so there are no labels either.
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
    # Adding zero turns -0.0 into 0.0, which is written without a sign.
    line = np.round(np.asarray(part.coords) / scale - (window.column, window.row), 2) + 0.0
    kept = [line[0]]
    for point in line[1:-1]:
        if min(np.hypot(*(point - kept[-1])), np.hypot(*(point - line[-1]))) >= _NEAREST_PX:
            kept.append(point)
    line = np.array([*kept, line[-1]])
    steps = np.diff(line, axis=0) * scale
    return ChipRoad(line, float(np.hypot(steps[:, 0], steps[:, 1]).sum()), edge)


def geojson(roads: Iterable[ChipRoad], transform: Affine) -> str:
    """Return the content of SpaceNet 5's label file, with longitude before latitude."""
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
    """Return a chip's rows of the truth CSV: one per road, or one empty row without any."""
    if not roads:
        return [f"{image_id},LINESTRING EMPTY,0,0"]
    return [
        f'{image_id},"LINESTRING ({_wkt(road.line)})",'
        f"{round(road.length_m, 3)},{round(road.travel_time_s, 3)}"
        for road in roads
    ]


def _wkt(line: FloatArray) -> str:
    return ", ".join(f"{x:.2f} {y:.2f}" for x, y in line)
