"""What the confidence of a building is computed from: its probabilities, its border and its shape.

A building that is there, with the right outline, has high probabilities inside and low ones around
it, up to its walls. The size of the building matters, too: a pixel too much on each side hardly
changes a hall, but halves the intersection over union of a hut.
"""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import rasterio.features
import shapely

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, MapSource, Scene
from satmap.tasks.buildings.settings import BUILDING
from satmap.tasks.buildings.vectorizer.tracing import Bytes, Floats
from satmap.tasks.calibration import Calibration, log_odds
from satmap.vectors.buildings import Building, Polygons

#: Features of the outline.
SHAPE_FEATURES = ("area", "box_fill")
#: Features of the map of buildings. Further ones, of the border map and of the walls, were tried:
#: they helped where the fit had seen the place, and harmed elsewhere.
BODY_FEATURES = ("mean", "around", "agreement", "at_border")
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
    if maps is not None and set(features) & set(BODY_FEATURES):
        found |= _map_features(polygons, maps)
    return np.stack([found[name] for name in features], axis=1)


def _shape_features(polygons: Polygons) -> dict[str, Floats]:
    areas = np.maximum(shapely.area(polygons), 1.0)
    boxes = shapely.area(shapely.minimum_rotated_rectangle(polygons))
    return {"area": np.log(areas), "box_fill": areas / np.maximum(boxes, areas)}


def _map_features(polygons: Polygons, maps: MapSource) -> dict[str, Floats]:
    scene = Scene.of(maps) if isinstance(maps, ProbabilityMaps) else maps
    height, width = scene.shape
    whole = Box(0, 0, width, height)
    bounds = shapely.bounds(polygons)
    gap = np.minimum(bounds[:, :2], [width, height] - bounds[:, 2:]).min(axis=1)
    low = np.floor(bounds[:, :2]).astype(np.int64) - _AROUND_PX
    high = np.ceil(bounds[:, 2:]).astype(np.int64) + _AROUND_PX
    square = np.clip(low, 0, None) // _SQUARE_PX
    _, group = np.unique(square, axis=0, return_inverse=True)
    mean, around, agreement = np.zeros((3, len(polygons)))
    for number in range(int(group.max()) + 1):
        members = np.flatnonzero(group == number)
        (left, top), (right, bottom) = low[members].min(axis=0), high[members].max(axis=0)
        read = Box(int(left), int(top), int(right - left), int(bottom - top)).overlap(whole)
        if read is None:
            continue
        body = scene.read(BUILDING, read)
        for index in members.tolist():
            own = Box(*low[index].tolist(), *(high[index] - low[index]).tolist()).overlap(read)
            if own is not None:
                mean[index], around[index], agreement[index] = _map_figures(
                    polygons[index], own, body[own.within(read)]
                )
    return {
        "mean": log_odds(mean),
        "around": log_odds(around),
        "agreement": agreement,
        "at_border": (gap <= _AT_BORDER_PX).astype(np.float64),
    }


def _map_figures(polygon: shapely.Polygon, box: Box, body: Bytes) -> tuple[float, float, float]:
    """Measure one building; ``body`` is the map of buildings in the rectangle ``box`` around it.

    Returns:
        Mean probability inside and around the outline, and the ratio of the areas with a high and
        with a moderate probability.
    """
    moved = shapely.transform(polygon, lambda xy: xy - np.array([box.left, box.top]))
    mask = rasterio.features.rasterize([moved], out_shape=body.shape, dtype="uint8")
    grown = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=_AROUND_PX)
    inside, ring, near = body[mask > 0], body[(grown > 0) & (mask == 0)], body[grown > 0]
    loose, strict = (int((near >= 255 * share).sum()) for share in (_LOOSE, _STRICT))
    return (
        float(inside.mean()) / 255 if len(inside) else 0.0,
        float(ring.mean()) / 255 if len(ring) else 0.0,
        strict / max(loose, 1),
    )
