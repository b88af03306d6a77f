"""Collect what a map shows: roads, the road network, buildings, and a comparison with a truth.

All coordinates are longitude and latitude. The browser gets them as whole numbers of 1e-7 degrees
(1 cm), the precision at which :mod:`satmap.routing` joins roads.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.io.geojson_reader import GeoLine, Surface
from satmap.routing import Network, build_network
from satmap.submissions.formats import Format, detect
from satmap.submissions.vector_maps import confidence_of, find_maps, in_degrees, read_map
from satmap.vectors.georeference import metres_per_degree

Floats = NDArray[np.float64]

# Web Mercator ends at this latitude.
_HIGHEST_LATITUDE = 85.05

# Results farther apart are of different places.
_FARTHEST_KM = 200.0

# What the slider of confidence sorts by: the first of these that any object has, from 0 to 1.
_RATINGS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "Confidence": confidence_of,
    "Expected IoU (uncalibrated)": lambda properties: _share(properties, "expected_iou"),
    "Mean probability (uncalibrated)": lambda properties: _share(properties, "mean_probability"),
}


@dataclass(frozen=True)
class Shapes:
    """Roads or buildings with their properties.

    Attributes:
        parts: coordinates of each, in longitude and latitude: of a road one float64 (n, 2), of a
            building one per ring, the outer ring first.
        properties: of each.
    """

    parts: tuple[tuple[Floats, ...], ...]
    properties: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.parts)

    @cached_property
    def rating(self) -> tuple[str, Floats]:
        """What is known of how certain the objects are: its name, and the value of each.

        It is the calibrated confidence, or else an uncalibrated value, 0 to 1; NaN where it is not
        known.
        """
        for name, value_of in _RATINGS.items():
            values = np.array([value_of(each) for each in self.properties], np.float64)
            if np.isfinite(values).any():
                return name, values
        return "", np.full(len(self.properties), np.nan)

    @cached_property
    def points(self) -> Floats:
        """All coordinates, float64 (n, 2)."""
        return np.concatenate([np.empty((0, 2)), *(ring for rings in self.parts for ring in rings)])


@dataclass(frozen=True)
class MapData:
    """What a map shows.

    Attributes:
        name: title of the map.
        roads: the roads as they are in the files.
        buildings: the buildings.
        network: the roads as a network; None without roads.
        comparison: with a truth; None without.
        empty: results without roads and buildings.
    """

    name: str
    roads: Shapes
    buildings: Shapes
    network: Network | None
    comparison: "Comparison | None" = None
    empty: tuple[Path, ...] = ()

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north of everything."""
        points = np.concatenate([self.roads.points, self.buildings.points])
        return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


@dataclass(frozen=True)
class Spot:
    """A place worth a look.

    Attributes:
        text, detail: what is there.
        points: float64 (n, 2), longitude and latitude, around which the place lies.
        lines: what to highlight.
    """

    text: str
    detail: str
    points: Floats
    lines: tuple[Floats, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A truth, and what a result found, missed, and shows by mistake.

    Attributes:
        truth: what the truth holds.
        score: the score as text.
        found, missed, false: amounts as text, such as ``3.2 km``; ``found`` may be empty.
        missed_roads, false_roads: parts of roads.
        buildings: found, missed and false buildings.
        kinds: int8 (buildings,): 0 found, 1 missed, 2 false.
        spots: the worst places, worst first within each kind.
    """

    truth: MapData
    score: str
    found: str
    missed: str
    false: str
    missed_roads: Shapes
    false_roads: Shapes
    buildings: Shapes
    kinds: NDArray[np.int8]
    spots: tuple[Spot, ...]


def read_results(paths: Sequence[Path], least_confidence: float | None = None) -> MapData:
    """Read the roads and buildings of one or more results as one map.

    Args:
        paths: vector files, or directories of GeoJSON files.
        least_confidence: leave out objects with a lower confidence; None to keep all.

    Raises:
        SatmapError: a result cannot be read or is in pixels, none holds roads or buildings, or two
            results lie far apart.
    """
    roads: list[tuple[Floats, Mapping[str, Any]]] = []
    houses: list[tuple[tuple[Floats, ...], Mapping[str, Any]]] = []
    bounds: list[tuple[Path, Floats]] = []
    empty: list[Path] = []
    for path in paths:
        lines, surfaces = _read(path, least_confidence)
        if not lines and not surfaces:
            empty.append(path)
            continue
        roads += lines
        houses += surfaces
        points = np.concatenate(
            [xy for xy, _ in lines] + [ring for rings, _ in surfaces for ring in rings]
        )
        if np.abs(points[:, 1]).max() > _HIGHEST_LATITUDE:
            raise SatmapError(
                f"{path} reaches beyond {_HIGHEST_LATITUDE} degrees of latitude, where web maps "
                "end. View it in a GIS such as QGIS."
            )
        bounds.append((path, np.concatenate([points.min(axis=0), points.max(axis=0)])))
    if not bounds:
        raise SatmapError(
            f"{' and '.join(map(str, paths))}: no roads and no buildings, so there is nothing to "
            "show. Check that it is the right file."
        )
    _require_one_place(bounds)
    network = None
    if roads:
        network = build_network([GeoLine(xy, properties) for xy, properties in roads])
    return MapData(
        " + ".join(path.resolve().name or str(path) for path in paths),
        Shapes(tuple((xy,) for xy, _ in roads), tuple(each for _, each in roads)),
        Shapes(tuple(rings for rings, _ in houses), tuple(each for _, each in houses)),
        network,
        empty=tuple(empty),
    )


def _read(
    path: Path, least_confidence: float | None
) -> tuple[
    list[tuple[Floats, Mapping[str, Any]]], list[tuple[tuple[Floats, ...], Mapping[str, Any]]]
]:
    """Read the lines and the rings of polygons of a result, in longitude and latitude."""
    kind = detect(path)
    if kind != Format.VECTORS:
        raise SatmapError(
            f"{path} is {kind}, whose coordinates are pixels, so it has no place on a map. Give a "
            "vector file: `satmap predict` and `satmap map` write one with --export map.gpkg."
        )
    lines: list[tuple[Floats, Mapping[str, Any]]] = []
    surfaces: list[tuple[tuple[Floats, ...], Mapping[str, Any]]] = []
    files = find_maps(path) if path.is_dir() else {"": path}
    for image_id, file in files.items():
        try:
            collection = in_degrees(read_map(file, least_confidence))
        except ValueError as error:
            raise SatmapError(
                f"{file}: its coordinates {error}. Check its reference system."
            ) from error
        more = {"image_id": image_id} if image_id else {}
        lines += [(line.xy, more | dict(line.properties)) for line in collection.lines]
        surfaces += [
            (tuple(_rings(surface)), more | dict(surface.properties))
            for surface in collection.surfaces
        ]
    return lines, surfaces


def _rings(surface: Surface) -> list[Floats]:
    polygon = surface.polygon
    return [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]


def _require_one_place(bounds: Sequence[tuple[Path, Floats]]) -> None:
    """Raise SatmapError if results are so far apart that a map could not show them together."""
    first, box = bounds[0]
    for path, other in bounds[1:]:
        gap = np.maximum(np.maximum(other[:2] - box[2:], box[:2] - other[2:]), 0)
        scale = metres_per_degree(float(box[1] + box[3]) / 2)
        distance_km = math.hypot(*(gap * scale)) / 1000
        if distance_km > _FARTHEST_KM:
            raise SatmapError(
                f"{first} and {path} are of different places, {distance_km:,.0f} km apart. View "
                "each on its own."
            )


def _share(properties: Mapping[str, Any], name: str) -> float:
    value = properties.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    return math.nan


def shown_value(value: Any) -> str | float | None:
    """Return a property as a number or as text of limited length; None for no value."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return None
        return float(value) if abs(value) < 2**53 else str(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 1000 else f"{text[:1000]}… ({len(text):,} characters)"
