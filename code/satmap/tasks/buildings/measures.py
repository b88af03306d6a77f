"""What the confidence of a building is computed from: its probabilities, its border and its shape.

A building that is there, with the right outline, has high probabilities inside and low ones around
it, up to its walls. The size of the building matters, too: a pixel too much on each side hardly
changes a hall, but halves the intersection over union of a hut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import rasterio.features
import shapely

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, MapSource, Scene
from satmap.tasks.buildings.settings import BORDER, BUILDING
from satmap.tasks.buildings.vectorizer.tracing import Bytes, Floats
from satmap.tasks.calibration import Calibration, log_odds
from satmap.vectors.buildings import Building, Polygons

#: Features of the outline.
SHAPE_FEATURES = ("area", "compactness", "box_fill", "elongation")
#: Features of the map of buildings, and of that of borders.
BODY_FEATURES = ("mean", "low", "around", "edge", "agreement", "at_border")
BORDER_FEATURES = ("border",)
#: What a selection model or a cascade says of a building.
SCORE_FEATURES = ("score",)

# Ground around a building that is looked at, pixels.
_AROUND_PX = 3
# Candidates at these two thresholds agree if they have the same area.
_LOOSE, _STRICT = 0.35, 0.65
# An outline this close to the image's edge is cut there, pixels.
_AT_BORDER_PX = 1.0
# Buildings are measured in groups that start in one square of this side, pixels.
_SQUARE_PX = 2048


def building_features(names: Sequence[str], with_score: bool = False) -> tuple[str, ...]:
    """Return the names of the features for networks with these probability maps.

    ``with_score`` says whether a selection model or a cascade rates the buildings.
    """
    return (
        *SHAPE_FEATURES,
        *(BODY_FEATURES if BUILDING in names else ()),
        *(BORDER_FEATURES if BORDER in names else ()),
        *(SCORE_FEATURES if with_score else ()),
    )


def rate_buildings(
    buildings: Sequence[Building],
    maps: MapSource | None,
    calibration: Calibration,
) -> list[Building]:
    """Return the buildings of an image with their confidence.

    Args:
        buildings: in pixels of the maps.
        maps: the probability maps that they were made of; None if the task has none.
        calibration: computes the confidences from the features that it names.
    """
    found = measure_buildings(buildings, maps, calibration.features)
    confidences = calibration.probability(found).tolist()
    return [
        replace(building, confidence=confidence)
        for building, confidence in zip(buildings, confidences, strict=True)
    ]


def measure_buildings(
    buildings: Sequence[Building],
    maps: MapSource | None,
    features: Sequence[str],
) -> Floats:
    """Measure the features of buildings by their names, float64 (buildings, features).

    Probabilities are log odds, areas logarithms of square pixels. Every building is measured alone,
    so the result does not depend on the others. Arguments are as for :func:`rate_buildings`.
    """
    if not buildings:
        return np.empty((0, len(features)))
    polygons = np.array([building.polygon for building in buildings], np.object_)
    found = _shape_features(polygons)
    found["score"] = np.array([building.score for building in buildings])
    if maps is not None and set(features) & {*BODY_FEATURES, *BORDER_FEATURES}:
        found |= _map_features(polygons, maps)
    return np.stack([found[name] for name in features], axis=1)


def _shape_features(polygons: Polygons) -> dict[str, Floats]:
    areas = np.maximum(shapely.area(polygons), 1e-9)
    boxes = shapely.minimum_rotated_rectangle(polygons)
    # The four corners of a rectangle; less remains of a polygon that is a line.
    corners = np.array(
        [
            xy if len(xy := shapely.get_coordinates(box)) == 5 else np.zeros((5, 2))
            for box in boxes.tolist()
        ]
    )
    sides = np.maximum(np.hypot(*np.diff(corners, axis=1)[:, :2].transpose(2, 0, 1)), 1.0)
    return {
        "area": np.log(np.maximum(areas, 1.0)),
        "compactness": 4 * np.pi * areas / shapely.length(polygons) ** 2,
        "box_fill": areas / np.maximum(shapely.area(boxes), areas),
        "elongation": np.log(sides.max(axis=1) / sides.min(axis=1)),
    }


def _map_features(polygons: Polygons, maps: MapSource) -> dict[str, Floats]:
    scene = Scene.of(maps) if isinstance(maps, ProbabilityMaps) else maps
    names = [name for name in (BUILDING, BORDER) if name in maps]
    height, width = scene.shape
    whole = Box(0, 0, width, height)
    bounds = shapely.bounds(polygons)
    gap = np.minimum(bounds[:, :2], [width, height] - bounds[:, 2:]).min(axis=1)
    found = {"at_border": (gap <= _AT_BORDER_PX).astype(np.float64)}
    low = np.floor(bounds[:, :2]).astype(np.int64) - _AROUND_PX
    high = np.ceil(bounds[:, 2:]).astype(np.int64) + _AROUND_PX
    square = np.clip(low, 0, None) // _SQUARE_PX
    _, group = np.unique(square, axis=0, return_inverse=True)
    for number in range(int(group.max()) + 1):
        members = np.flatnonzero(group == number)
        (left, top), (right, bottom) = low[members].min(axis=0), high[members].max(axis=0)
        read = Box(int(left), int(top), int(right - left), int(bottom - top)).overlap(whole)
        if read is None:
            continue
        values = {name: scene.read(name, read) for name in names}
        for index in members.tolist():
            own = Box(*low[index].tolist(), *(high[index] - low[index]).tolist()).overlap(read)
            if own is None:
                continue
            parts = {name: value[own.within(read)] for name, value in values.items()}
            for name, figure in _map_figures(polygons[index], own, parts).items():
                found.setdefault(name, np.zeros(len(polygons)))[index] = figure
    for name in ("mean", "low", "around", "edge"):
        found[name] = log_odds(found.get(name, np.zeros(len(polygons))))
    return found


def _map_figures(polygon: shapely.Polygon, box: Box, maps: Mapping[str, Bytes]) -> dict[str, float]:
    """Return the features of one building, from maps of the rectangle around it."""
    moved = shapely.transform(polygon, lambda xy: xy - np.array([box.left, box.top]))
    body = maps[BUILDING]
    mask = rasterio.features.rasterize([moved], out_shape=body.shape, dtype="uint8")
    if not mask.any():
        mask = rasterio.features.rasterize(
            [moved], out_shape=body.shape, dtype="uint8", all_touched=True
        )
    kernel = np.ones((3, 3), np.uint8)
    grown = cv2.dilate(mask, kernel, iterations=_AROUND_PX)
    walls = (mask > 0) & (cv2.erode(mask, kernel, borderValue=0) == 0)
    inside = body[mask > 0]
    around = body[(grown > 0) & (mask == 0)]
    loose, strict = (int((body[grown > 0] >= 255 * share).sum()) for share in (_LOOSE, _STRICT))
    figures = {
        "mean": float(inside.mean()) / 255 if len(inside) else 0.0,
        "low": float(np.quantile(inside, 0.1, method="lower")) / 255 if len(inside) else 0.0,
        "around": float(around.mean()) / 255 if len(around) else 0.0,
        "edge": float(body[walls].mean()) / 255 if walls.any() else 0.0,
        "agreement": strict / max(loose, 1),
    }
    if BORDER in maps:
        figures["border"] = float(maps[BORDER][walls].mean()) / 255 if walls.any() else 0.0
    return figures
