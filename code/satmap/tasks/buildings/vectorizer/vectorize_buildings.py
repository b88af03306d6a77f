"""From probability planes to buildings: footprints with a confidence.

Chips and scenes go the same way: a scene that is read in windows gives what it would give at once
(:mod:`satmap.tasks.buildings.vectorizer.windowed`), so that memory depends on the windows alone.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, MapSource, Scene
from satmap.tasks.buildings.confidence import ConfidenceModel
from satmap.tasks.buildings.settings import BUILDING, BuildingSettings
from satmap.tasks.buildings.vectorizer.candidates import (
    THRESHOLDS,
    find_candidates,
    layer_labels,
    non_maximum_suppression,
)
from satmap.tasks.buildings.vectorizer.instances import blob_bits, find_instances
from satmap.tasks.buildings.vectorizer.polygons import (
    Polygons,
    dilated,
    exact_polygons,
    simplify_outlines,
)
from satmap.tasks.buildings.vectorizer.right_angles import squared_outlines
from satmap.tasks.buildings.vectorizer.tracing import Labels, at_least
from satmap.tasks.buildings.vectorizer.windowed import LARGEST_PX, Crop, blob_crops
from satmap.vectors.buildings import Building

Floats = NDArray[np.float64]

#: What the vectoriser takes.

# Windows of scenes, pixels a side: a few hundred megabytes at work.
_WINDOW_PX = 2048


def vectorize_buildings(
    maps: MapSource,
    settings: BuildingSettings,
    model: ConfidenceModel | None = None,
    *,
    window: int | None = None,
) -> list[Building]:
    """Find the buildings of an image.

    Args:
        maps: at least ``building``; with ``border`` and ``contact`` touching ones come apart.
        settings: thresholds.
        model: what candidates are chosen and rated by; without, the watershed's buildings are
            taken, rated by mean probability x square root of the area.
        window: pixels a side of what is worked on at once, a divisor of ``LARGEST_PX``; the result
            is the same for all. By default planes in memory go at once, a scene in windows.

    Returns:
        In the order of the buildings' first pixels, row by row.
    """
    if isinstance(maps, ProbabilityMaps):
        scene, default = Scene.of(maps), LARGEST_PX
    else:
        scene, default = maps, _WINDOW_PX

    # All that happens at higher thresholds happens within.
    low = min(settings.low, THRESHOLDS[0]) if model else settings.low

    def body(box: Box) -> NDArray[np.bool_]:
        return at_least(scene.read(BUILDING, box), low)

    least = settings.least_iou if model else settings.least_confidence
    found: list[tuple[tuple[float, float, float], Building]] = []
    for crop in blob_crops(body, scene.shape, window or default):
        values = np.stack([scene.read(name, crop.box) for name in scene.names])
        cropped = ProbabilityMaps(scene.names, values, scene.metres_per_pixel)
        find = _by_watershed if model is None else partial(_by_model, model, scene.shape)
        for exact, confidences in find(cropped, crop, settings):
            sure = confidences >= least
            found += _drawn(exact[sure], confidences[sure], crop.box, scene.shape, settings)
    found.sort(key=lambda entry: entry[0])
    return [building for _, building in found]


# Exact outlines in pixels of the crop, and a confidence for each.
_Found = Iterator[tuple[Polygons, Floats]]


def _by_watershed(maps: ProbabilityMaps, crop: Crop, settings: BuildingSettings) -> _Found:
    labels = blob_bits(maps, settings, crop.blobs)
    _drop_others(labels, crop)
    yield exact_polygons(labels), _confidences(maps[BUILDING], labels)


def _by_model(
    model: ConfidenceModel,
    shape: tuple[int, int],
    maps: ProbabilityMaps,
    crop: Crop,
    settings: BuildingSettings,
) -> _Found:
    instances = find_instances(maps, settings)
    _drop_others(instances, crop)
    mine, body = crop.mine[crop.blobs.labels], maps[BUILDING]
    found = find_candidates(body, instances, crop.box, shape, settings.least_px, mine)
    expected = model.expected_iou(found.features)
    best = non_maximum_suppression(expected, found.rivals)
    for layer in np.unique(found.layer[best]).tolist():
        labels = instances if layer == 0 else layer_labels(body, layer)
        chosen = best[found.layer[best] == layer]
        number = np.zeros(int(labels.max()) + 1, np.int32)
        number[found.label[chosen]] = np.arange(1, len(chosen) + 1)
        yield exact_polygons(number.take(labels)), expected[chosen]


def _drop_others(labels: Labels, crop: Crop) -> None:
    """Leave only the instances of a crop's own blobs."""
    if crop.mine[1:].all():
        return
    # By number, for filled holes lie in no blob.
    kept = np.zeros(int(labels.max()) + 1, np.bool_)
    kept[labels[crop.mine[crop.blobs.labels]]] = True
    labels[~kept[labels]] = 0


def _drawn(
    exact: Polygons,
    confidences: Floats,
    box: Box,
    shape: tuple[int, int],
    settings: BuildingSettings,
) -> list[tuple[tuple[float, float, float], Building]]:
    """Buildings in pixels of the scene, each with what orders them: the row and column of the first
    pixel, and of two that start there the larger first."""
    present = exact != np.array(None)
    exact, confidences = exact[present], confidences[present]
    offset = np.array([box.left, box.top])
    exact = shapely.transform(exact, lambda xy: xy + offset)
    exact = dilated(exact, settings.dilate_px, shape)
    # Near 0, numbers are rounded as finely wherever in an image a building lies.
    corners = shapely.bounds(exact)[:, :2]
    outlines = _moved(simplify_outlines(_moved(exact, -corners), settings.simplify_px), corners)
    if settings.right_angles:
        frame = (0, 0, shape[1], shape[0])
        outlines = squared_outlines(exact, outlines, settings.simplify_px, frame)
    # An exact outline starts at its first pixel.
    starts = shapely.get_coordinates(shapely.get_point(shapely.get_exterior_ring(exact), 0))
    columns, rows = starts.T.tolist()
    keys = zip(rows, columns, (-shapely.area(exact)).tolist(), strict=True)
    return list(zip(keys, map(Building, outlines, confidences.tolist()), strict=True))


def _confidences(body: NDArray[np.uint8], labels: Labels) -> Floats:
    """Mean probability x square root of the area, of every label from 1."""
    inside = labels > 0
    label = labels[inside]
    areas = np.bincount(label)
    sums = np.bincount(label, body[inside])
    confidences: Floats = (sums / np.sqrt(np.maximum(areas, 1)) / 255)[1:]
    return confidences


def _moved(polygons: Polygons, by: Floats) -> Polygons:
    points, owner = shapely.get_coordinates(polygons, return_index=True)
    moved: Polygons = shapely.set_coordinates(polygons.copy(), points + by[owner])
    return moved
