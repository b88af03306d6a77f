"""Building outlines: exact along pixel edges, then simplified with the area preserved.

Contours through pixel centres lose a tenth of a small building's area; polygons along pixel edges
lose none. Douglas-Peucker simplification removes corners and staircases unevenly. The sides of the
simplified outline are therefore offset until its area equals that of the mask, and the result is
accepted only if it still matches the mask.
"""

from typing import NamedTuple

import numpy as np
import shapely

from satmap.tasks.buildings.vectorizer.tracing import Floats, Ints, Labels, trace_rings
from satmap.vectors.buildings import Polygons

# Fractions of the tolerance, tried in this order.
_TOLERANCES = (1.0, 0.75, 0.5)
# Limits for a simplified outline: largest relative change of the area, smallest IoU.
_AREA, _IOU = 0.01, 0.95
# Bound on the error of the estimated IoU.
_MARGIN = 0.005
# Limits mitres: a corner moves at most twice as far as its sides.
_SHARPEST = 0.5
_POLYGON = 3


def exact_polygons(labels: Labels) -> Polygons:
    """Trace the outline of every instance 1..n, each 4-connected, along pixel edges, with holes.

    Return polygons (n,), x = column, y = row, pixel (0, 0) from (0, 0) to (1, 1); None for labels
    that do not occur.
    """
    outlines: Polygons = np.full(int(labels.max(initial=0)), None)
    corners, ring, label = trace_rings(labels)
    if len(label):
        # The first ring of an instance is the outer one: the first pixel lies on it.
        order = np.argsort(label, kind="stable")
        rings = shapely.linearrings(corners, indices=ring)
        present, number = np.unique(label[order], return_inverse=True)
        outlines[present - 1] = shapely.polygons(rings[order], indices=number)
    return outlines


def dilated(exact: Polygons, side: int, shape: tuple[int, int]) -> Polygons:
    """Dilate outlines by a square and clip them to the image, each independently of the others.

    ``side`` is that of the square in pixels; an even one extends one pixel further up and to the
    left. ``shape`` is the height and width of the image.
    """
    if side <= 1 or not len(exact):
        return exact
    steps = np.arange(side) - side // 2
    moved = [shapely.transform(exact, lambda xy, by=(x, y): xy + by) for x in steps for y in steps]
    grown = shapely.union_all(np.stack(moved), axis=0)
    kept: Polygons = shapely.intersection(grown, shapely.box(0, 0, shape[1], shape[0]))
    return kept


def simplify_outlines(exact: Polygons, tolerance: float) -> Polygons:
    """Simplify outlines along pixel edges, keeping the area within 1 % and an IoU of at least 0.95.

    If the Douglas-Peucker tolerance, in pixels, does not fit, smaller ones are tried down to half
    of it; then the outline stays exact.
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
        good = np.abs(drawn - area[waiting]) <= _AREA * area[waiting]
        good &= overlap >= _IOU
        good[good] = shapely.is_valid(drafts[good])
        simple[waiting[good]] = drafts[good]
        waiting = waiting[~good]
    return simple


def clipped(outlines: Polygons, exact: Polygons, shape: tuple[int, int]) -> Polygons:
    """Clip outlines to the image where the exact ones lie within it.

    Moved walls may leave the image by some pixels. ``shape`` is its height and width.
    """
    image = np.array([0, 0, shape[1], shape[0]])
    # Both are positive outside the image.
    beyond, before = (
        ((image - shapely.bounds(polygons).reshape(-1, 4)) * [1, 1, -1, -1]).max(axis=1)
        for polygons in (outlines, exact)
    )
    kept: Polygons = outlines.copy()
    for index in np.flatnonzero((beyond > 0) & (before <= 0)).tolist():
        parts = shapely.get_parts(shapely.intersection(outlines[index], shapely.box(*image)))
        kept[index] = max(parts, key=shapely.area)
    return kept


class _Rings(NamedTuple):
    """Rings of polygons, without the repeated last vertex."""

    # By vertex: x and y, ring (ascending), next and previous vertex in the ring.
    points: Floats
    ring: Ints
    following: Ints
    before: Ints
    # By ring: polygon (ascending) and first vertex.
    polygon: Ints
    first: Ints


def _rings_of(rings: Polygons, polygon: Ints) -> _Rings:
    points, ring = shapely.get_coordinates(rings, return_index=True)
    kept = np.append(ring[1:] == ring[:-1], False)
    points, ring = points[kept], ring[kept]
    first = np.searchsorted(ring, np.arange(len(rings)))
    last = np.append(first[1:], len(ring)) - 1
    following, before = np.arange(1, len(ring) + 1), np.arange(-1, len(ring) - 1)
    following[last], before[first] = first, last
    return _Rings(points, ring, following, before, polygon, first)


def _draft(exact: Polygons, tolerance: float) -> tuple[Polygons, Floats]:
    """Simplify polygons to the same area; the results may be invalid.

    Also return their estimated IoU with the exact ones, 0 where a ring vanished.
    """
    rings, polygon = shapely.get_rings(exact, return_index=True)
    # Vanished holes and self-crossing rings show up later in area and validity.
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
    total = shapely.area(exact) + shapely.area(outlines)
    share = (total - differing) / (total + differing)
    share[lost] = 0
    for unsure in np.flatnonzero((share >= _IOU) & (share < _IOU + _MARGIN)).tolist():
        if shapely.is_valid(outlines[unsure]):
            common = shapely.area(shapely.intersection(outlines[unsure], exact[unsure]))
            share[unsure] = common / (total[unsure] - common)
    return outlines, share


def _grown(rings: _Rings, area: Floats) -> tuple[Floats, Floats]:
    """Offset all sides of each polygon until it has the given area.

    Return the vertices, and the offset of each polygon's sides in pixels, positive outwards.
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
        # With y pointing down, the building is to the right of its rings.
        normal = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.maximum(length, 1e-9)[:, None]
        both = normal + normal[rings.before]
        sharp = np.maximum(1 + (normal * normal[rings.before]).sum(axis=1), _SHARPEST)
        points = points + both * (step[of_point] / sharp)[:, None]
        steps += step
    return points, steps


def _between(true: _Rings, simple: _Rings, step: Floats) -> Floats:
    """Estimate the area between exact outlines and simplified ones with offset sides.

    Between two kept vertices, it is the integral of the exact outline's distance to the offset
    side. Gains and losses where sides meet are ignored: a few hundredths of a pixel per corner.
    """
    # Exact vertices have integer coordinates and occur once per ring.
    span = int(true.points.max(initial=0)) + 2

    def keys(rings: _Rings) -> Ints:
        x, y = rings.points.astype(np.int64).T
        found: Ints = (rings.ring * span + y) * span + x
        return found

    all_keys = keys(true)
    order = np.argsort(all_keys)
    place = order[np.searchsorted(all_keys[order], keys(simple))]
    # The last kept vertex at or before each vertex, cyclically within its ring.
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
