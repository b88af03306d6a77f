"""From probability planes to buildings: footprints with a confidence.

Chips and scenes go the same way: a scene that is read in windows gives what it would give at once
(:mod:`satmap.buildings.windows`), so that memory depends on the windows alone.
"""

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.buildings.building import Building
from satmap.buildings.instances import in_blobs
from satmap.buildings.parts import Labels, at_least
from satmap.buildings.polygons import Polygons, exact_polygons, simplify_outlines
from satmap.buildings.settings import BuildingSettings
from satmap.buildings.windows import LARGEST_PX, Crop, blob_crops
from satmap.planes import BUILDING, Planes
from satmap.roads.box import Box
from satmap.roads.scene import Scene

#: What the vectoriser takes.
BuildingPlanes = Planes | Scene

# Windows of scenes, pixels a side: a few hundred megabytes at work.
_WINDOW_PX = 2048


def vectorize(
    planes: BuildingPlanes, settings: BuildingSettings, *, window: int | None = None
) -> list[Building]:
    """Find the buildings of an image.

    Args:
        planes: at least ``building``; with ``border`` and ``contact`` touching ones come apart.
        settings: thresholds.
        window: pixels a side of what is worked on at once, a divisor of ``LARGEST_PX``; the result
            is the same for all. By default planes in memory go at once, a scene in windows.

    Returns:
        In the order of the buildings' first pixels, row by row.
    """
    if isinstance(planes, Planes):
        scene, default = Scene.of(planes), LARGEST_PX
    else:
        scene, default = planes, _WINDOW_PX

    def body(box: Box) -> NDArray[np.bool_]:
        return at_least(scene.read(BUILDING, box), settings.low)

    found: list[tuple[tuple[int, int], Building]] = []
    for crop in blob_crops(body, scene.shape, window or default):
        values = np.stack([scene.read(name, crop.box) for name in scene.names])
        cropped = Planes(scene.names, values, scene.metres_per_pixel)
        found += _buildings(cropped, crop, settings)
    found.sort(key=lambda entry: entry[0])
    return [building for _, building in found]


def _buildings(
    planes: Planes, crop: Crop, settings: BuildingSettings
) -> list[tuple[tuple[int, int], Building]]:
    """The buildings of a crop's own blobs in pixels of the scene, and row and column of the first
    pixel of each."""
    labels = in_blobs(planes, settings, crop.blobs)
    if not crop.mine[1:].all():
        # By number, for filled holes lie in no blob.
        kept = np.zeros(int(labels.max()) + 1, np.bool_)
        kept[labels[crop.mine[crop.blobs.labels]]] = True
        kept[0] = True
        labels[~kept[labels]] = 0
    confidences = _confidences(planes[BUILDING], labels)
    exact = exact_polygons(labels)
    present = exact != np.array(None)
    exact, confidences = exact[present], confidences[present]
    # Numbers are rounded as the place in the scene has it, not as the crop does.
    corners = shapely.bounds(exact)[:, :2]
    outlines = simplify_outlines(_moved(exact, -corners), settings.simplify_px)
    offset = np.array([crop.box.left, crop.box.top])
    placed = _moved(outlines, corners + offset)
    # An exact outline starts at its first pixel.
    starts = shapely.get_coordinates(shapely.get_point(shapely.get_exterior_ring(exact), 0))
    columns, rows = (starts + offset).astype(np.int64).T.tolist()
    buildings = map(Building, placed, confidences.tolist())
    return list(zip(zip(rows, columns, strict=True), buildings, strict=True))


def _confidences(body: NDArray[np.uint8], labels: Labels) -> NDArray[np.float64]:
    """Mean probability x square root of the area, of every label from 1."""
    inside = np.flatnonzero(labels)
    label = labels.ravel()[inside]
    areas = np.bincount(label)
    sums = np.bincount(label, body.ravel()[inside])
    confidences: NDArray[np.float64] = (sums / np.sqrt(np.maximum(areas, 1)) / 255)[1:]
    return confidences


def _moved(polygons: Polygons, by: NDArray[np.float64]) -> Polygons:
    points, owner = shapely.get_coordinates(polygons, return_index=True)
    moved: Polygons = shapely.set_coordinates(polygons.copy(), points + by[owner])
    return moved

