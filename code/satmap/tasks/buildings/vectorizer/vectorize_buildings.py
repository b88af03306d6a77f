"""Building vectoriser: from probability maps to footprints with a confidence.

Scenes are read in windows, so memory depends only on the window size. The result is the same as for
the whole scene at once (:mod:`satmap.tasks.buildings.vectorizer.windowed`).
"""

from collections.abc import Iterator, Mapping

import numpy as np
import shapely

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, MapSource, Scene
from satmap.tasks.buildings.selection import SelectionModel
from satmap.tasks.buildings.settings import BUILDING, BuildingSettings
from satmap.tasks.buildings.vectorizer.candidates import (
    FOUND,
    THRESHOLDS,
    Candidates,
    find_candidates,
    layer_labels,
    non_maximum_suppression,
)
from satmap.tasks.buildings.vectorizer.find_instances import find_instances
from satmap.tasks.buildings.vectorizer.polygons import (
    clipped,
    dilated,
    exact_polygons,
    simplify_outlines,
)
from satmap.tasks.buildings.vectorizer.right_angles import squared_outlines
from satmap.tasks.buildings.vectorizer.tracing import (
    Bytes,
    Floats,
    Ints,
    Labels,
    Mask,
    at_least,
)
from satmap.tasks.buildings.vectorizer.windowed import LARGEST_PX, Crop, blob_crops
from satmap.vectors.buildings import Building, Polygons

# Side of the windows of a scene, pixels; takes a few hundred megabytes of memory.
_WINDOW_PX = 2048


def vectorize_buildings(
    maps: MapSource,
    settings: BuildingSettings,
    model: SelectionModel | None = None,
    *,
    window: int | None = None,
) -> list[Building]:
    """Find the buildings of an image, in row-major order of their first pixels.

    The maps are at least ``building``; ``border`` and ``contact`` help to separate touching
    buildings. The model selects and rates candidates; without one, the watershed instances are
    taken and rated by mean probability x square root of the area. ``window``, the side of the
    windows in pixels, divides ``LARGEST_PX`` and does not affect the result. By default, it is
    ``LARGEST_PX`` for maps in memory and 2048 for scenes.
    """
    if isinstance(maps, ProbabilityMaps):
        scene, default = Scene.of(maps), LARGEST_PX
    else:
        scene, default = maps, _WINDOW_PX

    # Regions at higher thresholds lie within those at the lowest.
    low = min(settings.low, THRESHOLDS[0]) if model else settings.low

    def body(box: Box) -> Mask:
        return at_least(scene.read(BUILDING, box), low)

    least = settings.least_iou if model else settings.least_confidence
    found: list[tuple[tuple[float, float, float], Building]] = []
    for crop in blob_crops(body, scene.shape, window or default):
        values = np.stack([scene.read(name, crop.box) for name in scene.names])
        cropped = ProbabilityMaps(scene.names, values, scene.metres_per_pixel)
        for exact, confidences in _outlines(cropped, crop, settings, model, scene.shape):
            sure = confidences >= least
            found += _drawn(
                exact[sure],
                confidences[sure],
                crop.box,
                scene.shape,
                scene.metres_per_pixel,
                settings,
                model is not None,
            )
    found.sort(key=lambda entry: entry[0])
    return [building for _, building in found]


def _outlines(
    maps: ProbabilityMaps,
    crop: Crop,
    settings: BuildingSettings,
    model: SelectionModel | None,
    shape: tuple[int, int],
) -> Iterator[tuple[Polygons, Floats]]:
    """Yield exact outlines of buildings, in pixels of the crop, with a confidence each."""
    body, owned = maps[BUILDING], crop.owned[crop.blobs.labels]
    # With a model, the crop was cut with a lower threshold than ``low``.
    instances = find_instances(maps, settings, None if model else crop.blobs)
    if not crop.owned[1:].all():
        # Keep or drop whole labels: pixels of filled holes belong to no blob.
        kept = np.zeros(int(instances.max()) + 1, np.bool_)
        kept[instances[owned]] = True
        instances[~kept[instances]] = 0
    if model is None:
        yield exact_polygons(instances), _confidences(body, instances)
        return
    found = find_candidates(body, instances, crop.box, shape, settings.least_px, owned)
    expected = model.expected_iou(found.features)
    best = non_maximum_suppression(expected, found.rivals)
    for outlines, chosen in outlines_of_layers(found, best, {0: instances}, body):
        yield outlines, expected[chosen]


def selected_outlines(
    maps: ProbabilityMaps,
    settings: BuildingSettings,
    least_iou: float,
    model: SelectionModel,
    found: tuple[Labels, Floats],
) -> Iterator[tuple[Polygons, Floats]]:
    """Choose among the candidates of probability maps and the buildings of a cascade.

    ``found`` are the buildings 1..n of the cascade, (height, width), and the score of each.

    Yields:
        Exact outlines (n,) and their expected IoU (n,), layer by layer.
    """
    instances = find_instances(maps, settings)
    height, width = maps.shape
    candidates = find_candidates(
        maps[BUILDING], instances, Box(0, 0, width, height), maps.shape, settings.least_px,
        found=found if model.has_score else None,
    )  # fmt: skip
    expected = model.expected_iou(candidates.features)
    best = non_maximum_suppression(expected, candidates.rivals)
    best = best[expected[best] >= least_iou]
    own = {0: instances, FOUND: found[0]}
    for exact, chosen in outlines_of_layers(candidates, best, own, maps[BUILDING]):
        present = exact != np.array(None)
        yield exact[present], expected[chosen][present]


def outlines_of_layers(
    candidates: Candidates, best: Ints, own: Mapping[int, Labels], body: Bytes
) -> Iterator[tuple[Polygons, Ints]]:
    """Yield the exact outlines of the chosen candidates (``best``), layer by layer.

    ``own`` holds the labels of the layers that are no thresholds of the building map ``body``.

    Yields:
        Outlines (n,), None for those without a pixel, and the indices of their candidates.
    """
    for layer in np.unique(candidates.layer[best]).tolist():
        labels = own[layer] if layer in own else layer_labels(body, layer)
        chosen = best[candidates.layer[best] == layer]
        number = np.zeros(int(labels.max()) + 1, np.int32)
        number[candidates.label[chosen]] = np.arange(1, len(chosen) + 1)
        yield exact_polygons(number.take(labels)), chosen


def _drawn(
    exact: Polygons,
    confidences: Floats,
    box: Box,
    shape: tuple[int, int],
    metres_per_pixel: tuple[float, float],
    settings: BuildingSettings,
    rated: bool,
) -> list[tuple[tuple[float, float, float], Building]]:
    """Draw outlines in pixels of the scene, with sort keys: first row, first column, - area.

    ``rated`` says whether the confidences are those of a model.
    """
    present = exact != np.array(None)
    exact, confidences = exact[present], confidences[present]
    # The area of an exact outline is its number of pixels, but for filled holes.
    means: list[float | None] = (confidences / np.sqrt(shapely.area(exact))).clip(0, 1).tolist()
    if rated:
        means = [None] * len(exact)
    exact = shapely.transform(exact, lambda xy: xy + np.array([box.left, box.top]))
    exact = dilated(exact, settings.dilate_px, shape)
    # Shift to the origin, so that rounding does not depend on the position in the image.
    corners = shapely.bounds(exact)[:, :2]
    outlines = _moved(simplify_outlines(_moved(exact, -corners), settings.simplify_px), corners)
    if settings.right_angles:
        outlines = squared_outlines(exact, outlines, settings.simplify_px, shape, metres_per_pixel)
    outlines = clipped(outlines, exact, shape)
    # Sort buildings by their first pixel, where the exact outline starts.
    starts = shapely.get_coordinates(shapely.get_point(shapely.get_exterior_ring(exact), 0))
    columns, rows = starts.T.tolist()
    keys = zip(rows, columns, (-shapely.area(exact)).tolist(), strict=True)
    return list(zip(keys, map(Building, outlines, confidences.tolist(), means), strict=True))


def _confidences(body: Bytes, labels: Labels) -> Floats:
    """Compute mean probability x square root of the area for every label from 1."""
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
