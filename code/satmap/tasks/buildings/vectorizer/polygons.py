"""Outlines of buildings: exact along the pixels' edges, then simpler where nothing is lost by it.

Contours through pixel centres lose a tenth of a small building's area and pixel-edge polygons none;
Douglas-Peucker takes off corners and staircases unevenly. So the simplified outline is moved until
its area is the mask's, and taken only if it still covers the mask.
"""

from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.tasks.buildings.vectorizer.tracing import trace_rings
from satmap.vectors.buildings import Polygons

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Shares of the tolerance that are tried, one after the other.
_TOLERANCES = (1.0, 0.75, 0.5)
# What a simplified outline must keep: area within a share, intersection over union.
AREA, IOU = 0.01, 0.95
# The estimate of the intersection over union is off by less.
_MARGIN = 0.005
# A corner moves at most so many times as far as its sides: mitres of at most twice the distance.
_SHARPEST = 0.5
_POLYGON = 3


def exact_polygons(labels: NDArray[np.int32]) -> Polygons:
    """The outline of every instance along its pixels' edges, with holes.

    Args:
        labels: int32 (height, width), 0 outside, instances 1..n, each 4-connected.

    Returns:
        Polygons (n,), x = column and y = row, pixel (0, 0) from (0, 0) to (1, 1); None for numbers
        that do not occur.
    """
    outlines: Polygons = np.full(int(labels.max(initial=0)), None)
    corners, ring, label = trace_rings(labels)
    if len(label):
        # Of each instance the outer ring is found first: its first pixel lies on it.
        order = np.argsort(label, kind="stable")
        rings = shapely.linearrings(corners, indices=ring)
        present, number = np.unique(label[order], return_inverse=True)
        outlines[present - 1] = shapely.polygons(rings[order], indices=number)
    return outlines


def dilated(exact: Polygons, side: int, shape: tuple[int, int]) -> Polygons:
    """Outlines along pixel edges that have grown by a square, and are cut to the image.

    Each for itself, so that it is of no consequence what lies around it.

    Args:
        exact: outlines along pixel edges, (n,).
        side: of the square, pixels; its middle, if even the pixel after it, is where it is put.
        shape: height and width of the image.
    """
    if side <= 1 or not len(exact):
        return exact
    steps = np.arange(side) - side // 2
    moved = [shapely.transform(exact, lambda xy, by=(x, y): xy + by) for x in steps for y in steps]
    grown = shapely.union_all(np.stack(moved), axis=0)
    kept: Polygons = shapely.intersection(grown, shapely.box(0, 0, shape[1], shape[0]))
    return kept


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
        if not len(waiting):
            break
        drafts, overlap = _draft(exact[waiting], tolerance * share)
        drawn = shapely.area(drafts)
        good = np.abs(drawn - area[waiting]) <= AREA * area[waiting]
        good &= overlap >= IOU
        good[good] = shapely.is_valid(drafts[good])
        simple[waiting[good]] = drafts[good]
        waiting = waiting[~good]
    return simple


class _Rings(NamedTuple):
    """Rings of polygons, without their repeated last vertices.

    Attributes:
        points: float64 (vertices, 2).
        ring: int64 (vertices,), ascending.
        polygon: int64 (rings,), ascending.
        first: int64 (rings,), the first vertex of each.
        following: int64 (vertices,), the vertex behind each.
        before: int64 (vertices,), the vertex before each.
    """

    points: Floats
    ring: Ints
    polygon: Ints
    first: Ints
    following: Ints
    before: Ints


def _rings_of(rings: Polygons, polygon: Ints) -> _Rings:
    points, ring = shapely.get_coordinates(rings, return_index=True)
    kept = np.append(ring[1:] == ring[:-1], False)
    points, ring = points[kept], ring[kept]
    first = np.searchsorted(ring, np.arange(len(rings)))
    last = np.append(first[1:], len(ring)) - 1
    following, before = np.arange(1, len(ring) + 1), np.arange(-1, len(ring) - 1)
    following[last], before[first] = first, last
    return _Rings(points, ring, polygon, first, following, before)


def _draft(exact: Polygons, tolerance: float) -> tuple[Polygons, Floats]:
    """Simplified polygons of the same area, and about how much they and the exact ones share.

    Returns:
        Polygons (n,), which may be invalid; intersection over union (n,), 0 where nothing is left.
    """
    rings, polygon = shapely.get_rings(exact, return_index=True)
    # Holes that vanish and rings that cross themselves show in area and validity.
    lines = shapely.simplify(rings, tolerance, preserve_topology=False)
    whole = shapely.get_num_coordinates(lines) > 3
    lost = np.bincount(polygon[~whole], minlength=len(exact)) > 0
    lines[lost[polygon]] = rings[lost[polygon]]
    true, simple = _rings_of(rings, polygon), _rings_of(lines, polygon)
    moved, step = _grown(simple, shapely.area(exact))
    closed = np.concatenate([np.arange(len(moved)), simple.first])
    closed = closed[np.argsort(simple.ring[closed], kind="stable")]
    outlines = shapely.polygons(
        shapely.linearrings(moved[closed], indices=simple.ring[closed]), indices=polygon
    )
    differing = _between(true, simple, step)
    sum_ = shapely.area(exact) + shapely.area(outlines)
    share = (sum_ - differing) / (sum_ + differing)
    share[lost] = 0
    for unsure in np.flatnonzero((share >= IOU) & (share < IOU + _MARGIN)).tolist():
        if shapely.is_valid(outlines[unsure]):
            common = shapely.area(shapely.intersection(outlines[unsure], exact[unsure]))
            share[unsure] = common / (sum_[unsure] - common)
    return outlines, share


def _grown(rings: _Rings, area: Floats) -> tuple[Floats, Floats]:
    """All sides moved outwards, or inwards, until polygons have an area.

    Returns:
        The vertices, and how far the sides of each polygon went, pixels.
    """
    points = rings.points
    of_point = rings.polygon[rings.ring]
    steps = np.zeros(len(area))
    for _ in range(2):
        along = points[rings.following] - points
        length = np.hypot(along[:, 0], along[:, 1])
        turned = (
            points[:, 0] * points[rings.following, 1] - points[:, 1] * points[rings.following, 0]
        )
        drawn = np.bincount(of_point, turned, minlength=len(area)) / 2
        around = np.bincount(of_point, length, minlength=len(area))
        step = (area - drawn) / np.maximum(around, 1e-9)
        # Rings have their building to the right where y points down.
        normal = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.maximum(length, 1e-9)[:, None]
        both = normal + normal[rings.before]
        sharp = np.maximum(1 + (normal * normal[rings.before]).sum(axis=1), _SHARPEST)
        points = points + both * (step[of_point] / sharp)[:, None]
        steps += step
    return points, steps


def _between(true: _Rings, simple: _Rings, step: Floats) -> Floats:
    """About the area between exact outlines and simplified ones whose sides have been moved.

    Between two vertices that stay, it is the integral of the exact outline's distance to the moved
    side. What sides gain or lose where they meet is left out, some hundredths of a pixel a corner.
    """
    # Exact vertices have whole coordinates and occur once a ring.
    span = int(true.points.max(initial=0)) + 2

    def keys(rings: _Rings) -> Ints:
        x, y = rings.points.astype(np.int64).T
        found: Ints = (rings.ring * span + y) * span + x
        return found

    all_keys = keys(true)
    order = np.argsort(all_keys)
    place = order[np.searchsorted(all_keys[order], keys(simple))]
    # The kept vertex at or before each, in its ring's circle.
    begins = np.zeros(len(true.ring), np.int64)
    kept = np.sort(place)
    vertex_at = np.zeros(len(true.ring), np.int64)
    vertex_at[place] = np.arange(len(place))
    begins = np.searchsorted(kept, np.arange(len(true.ring)), side="right") - 1
    last_kept = np.searchsorted(kept, np.append(true.first[1:], len(true.ring))) - 1
    wrapped = (begins < 0) | (true.ring[kept[begins]] != true.ring)
    begins[wrapped] = last_kept[true.ring[wrapped]]
    side = vertex_at[kept[begins]]

    start = simple.points[side]
    along = simple.points[simple.following[side]] - start
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    normal = np.stack([along[:, 1], -along[:, 0]], axis=1)
    shift = step[true.polygon[true.ring]]

    def measured(points: Floats) -> tuple[Floats, Floats]:
        way = points - start
        return (way * along).sum(axis=1), (way * normal).sum(axis=1) - shift

    at, off = measured(true.points)
    next_at, next_off = measured(true.points[true.following])
    both = np.abs(off) + np.abs(next_off)
    crossing = off * next_off < 0
    mean = np.where(crossing, (off**2 + next_off**2) / np.maximum(2 * both, 1e-9), both / 2)
    area = np.bincount(true.polygon[true.ring], mean * np.abs(next_at - at), minlength=len(step))
    return area.astype(np.float64)
