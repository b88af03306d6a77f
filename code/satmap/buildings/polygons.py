"""Outlines of buildings: exact along the pixels' edges, then simpler where nothing is lost by it.

Contours through pixel centres lose a tenth of a small building's area and pixel-edge polygons none;
Douglas-Peucker takes off corners and staircases unevenly. So the simplified outline is moved until
its area is the mask's, and taken only if it still covers the mask.
"""

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

Polygons = NDArray[np.object_]

# Shares of the tolerance that are tried, one after the other.
_TOLERANCES = (1.0, 0.75, 0.5)
# What a simplified outline must keep: area within a share, intersection over union.
_AREA, _IOU = 0.01, 0.95


def exact_polygons(labels: NDArray[np.int32]) -> Polygons:
    """The outline of every instance along its pixels' edges, with holes.

    Args:
        labels: int32 (height, width), 0 outside, instances 1..n, each 4-connected.

    Returns:
        Polygons (n,), x = column and y = row, pixel (0, 0) from (0, 0) to (1, 1); None for numbers
        that do not occur.
    """
    outlines: Polygons = np.full(int(labels.max(initial=0)), None)
    for geometry, value in rasterio.features.shapes(labels, labels > 0, connectivity=4):
        rings = geometry["coordinates"]
        outlines[int(value) - 1] = shapely.Polygon(rings[0], rings[1:])
    return outlines


def simplify_outlines(exact: Polygons, tolerance: float) -> Polygons:
    """Polygons of fewer vertices with the same area, within 1 %, and place (IoU at least .95).

    Args:
        exact: outlines along pixel edges, (n,).
        tolerance: of Douglas-Peucker, pixels; tried down to its half, then the outline stays.
    """
    simple = exact.copy()
    if tolerance <= 0:
        return simple
    area = shapely.area(exact)
    waiting = np.arange(len(exact))
    for share in _TOLERANCES:
        drafts = shapely.simplify(exact[waiting], tolerance * share, preserve_topology=True)
        drafts = _grown(drafts, area[waiting])
        overlap = shapely.area(shapely.intersection(drafts, exact[waiting]))
        drawn = shapely.area(drafts)
        good = shapely.is_valid(drafts) & (shapely.get_type_id(drafts) == _POLYGON)
        good &= np.abs(drawn - area[waiting]) <= _AREA * area[waiting]
        good &= overlap >= _IOU * (drawn + area[waiting] - overlap)
        simple[waiting[good]] = drafts[good]
        waiting = waiting[~good]
        if not len(waiting):
            break
    return simple


_POLYGON = 3


def _grown(polygons: Polygons, area: NDArray[np.float64]) -> Polygons:
    """Polygons with all sides moved outwards, or inwards, until they have that area."""
    for _ in range(2):
        lacking = area - shapely.area(polygons)
        step = lacking / np.maximum(shapely.length(polygons), 1e-9)
        polygons = shapely.buffer(polygons, step, join_style="mitre", mitre_limit=2.0)
    return polygons
