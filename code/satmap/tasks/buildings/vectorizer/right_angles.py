"""Walls that run along a building's main directions, together with the walls of its neighbours.

Buildings that touch are simplified as one coverage, so that a shared wall stays one line. Seen
along the directions in which most of the walls' length runs, the ends of a wall that is nearly
level get one height, and those of one that is nearly upright get one place: whatever shares a
corner moves with it. Where the buildings no longer cover their masks the attempt is undone for all
that touch.
"""

from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from satmap.vectors.buildings import Polygons

Floats = NDArray[np.float64]

# What a building keeps of its mask: intersection over union at least, area within a share.
_IOU, _AREA = 0.9, 0.03
# Tolerances that are tried, as multiples of that of outlines; walls of masks are wavy.
_TOLERANCES = (3.0, 2.0, 1.0)
# Walls that run so much off the main directions stay oblique, degrees.
_OBLIQUE = 20.0
# Vertices that are off a straight wall by less lie on it.
_STRAIGHT_PX = 0.01
_POLYGON = 3


def squared_outlines(
    exact: Polygons, outlines: Polygons, tolerance: float, frame: tuple[int, int, int, int]
) -> Polygons:
    """Outlines with right angles where they fit.

    Args:
        exact: outlines along pixel edges, (n,), that do not overlap.
        outlines: what buildings without neighbours keep where right angles do not fit, (n,).
        tolerance: of outlines, pixels.
        frame: left, top, right and bottom of the image, at which buildings are cut off.

    Returns:
        Valid polygons (n,), each with an intersection over union of .9 or more with its exact
        outline and an area within 3 % of its; of buildings that touch, all have their walls moved,
        or all have their exact outlines.
    """
    squared = outlines.copy()
    for group in _touching(exact):
        # Near 0, numbers are rounded as finely wherever in an image a building lies.
        corner = shapely.bounds(exact[group])[:, :2].min(axis=0)
        own = shapely.transform(exact[group], lambda xy, corner=corner: xy - corner)
        own_frame = np.array(frame) - np.tile(corner, 2)
        for share in _TOLERANCES:
            drafts = _squared(own, share * tolerance, own_frame)
            drafts = shapely.transform(drafts, lambda xy, corner=corner: xy + corner)
            if _fit(drafts, exact[group]):
                squared[group] = drafts
                break
        else:
            if len(group) > 1:
                squared[group] = exact[group]
    return squared


def _touching(exact: Polygons) -> Iterator[NDArray[np.int64]]:
    """Groups of buildings of which each shares a wall with another."""
    if not len(exact):
        return
    one, other = shapely.STRtree(exact).query(exact, predicate="intersects")
    # Their boundaries have a line in common.
    walls = (one == other) | shapely.relate_pattern(exact[one], exact[other], "****1****")
    one, other = one[walls], other[walls]
    graph = sparse.coo_array((np.ones(len(one)), (one, other)), shape=2 * (len(exact),))
    count, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")
    yield from np.split(order, np.searchsorted(group[order], np.arange(1, count)))


def _squared(exact: Polygons, tolerance: float, frame: Floats) -> Polygons:
    # A coverage has a vertex wherever any of its members has one.
    coverage = shapely.segmentize(exact, 1.0)
    simple = shapely.coverage_simplify(coverage, tolerance, simplify_boundary=True)
    places = shapely.get_coordinates(simple)
    sizes = shapely.get_num_coordinates(shapely.get_rings(simple))
    ring = np.repeat(np.arange(len(sizes)), sizes)
    corners, corner = np.unique(places, axis=0, return_inverse=True)
    corner = corner.ravel()
    wall = np.flatnonzero(ring[1:] == ring[:-1])
    ends = np.stack([corner[wall], corner[wall + 1]])
    along = corners[ends[1]] - corners[ends[0]]
    length = np.hypot(along[:, 0], along[:, 1])
    # Where the image ends is no wall.
    edge = (corners[:, None, :] == np.reshape(frame, (2, 2))).reshape(-1, 4)
    length[(edge[ends[0]] & edge[ends[1]]).any(axis=1)] = 0
    # Directions that differ by a right angle are one; long walls tell it best.
    phases = np.exp(4j * np.arctan2(along[:, 1], along[:, 0]))
    angle = float(np.angle((phases * length**2).sum())) / 4
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    seen, walls = corners @ turn, np.abs(along @ turn)
    steepest = np.tan(np.radians(_OBLIQUE))
    for axis in (0, 1):
        # Upright walls, then level ones.
        level = (walls[:, axis] <= walls[:, 1 - axis] * steepest) & (length > 0)
        seen[:, axis] = _levelled(seen[:, axis], ends[:, level], length[level])
    moved = seen @ turn.T
    squared = shapely.set_coordinates(simple.copy(), moved[corner])
    # As large as before, all together, which turns no wall and parts none.
    drawn, area = float(shapely.area(squared).sum()), float(shapely.area(exact).sum())
    if drawn > 0:
        middle = moved.mean(axis=0)
        moved = middle + (moved - middle) * np.sqrt(area / drawn)
        moved = np.where(edge[:, :2] | edge[:, 2:], corners, moved)
        squared = shapely.set_coordinates(squared, moved[corner])
    # Vertices within straight walls go.
    straight: Polygons = shapely.simplify(squared, _STRAIGHT_PX, preserve_topology=False)
    return straight


def _levelled(values: Floats, ends: NDArray[np.int64], length: Floats) -> Floats:
    """One coordinate of corners, the same for all that a chain of walls connects."""
    graph = sparse.coo_array((np.ones(len(length)), tuple(ends)), shape=2 * (len(values),))
    count, group = connected_components(graph, directed=False)
    weight = np.bincount(ends.ravel(), np.tile(length, 2), minlength=len(values)) + 1e-9
    mean = np.bincount(group, weight * values, minlength=count) / np.bincount(group, weight)
    levelled: Floats = mean[group]
    return levelled


def _fit(drafts: Polygons, exact: Polygons) -> bool:
    if not (shapely.is_valid(drafts) & (shapely.get_type_id(drafts) == _POLYGON)).all():
        return False
    area, drawn = shapely.area(exact), shapely.area(drafts)
    common = shapely.area(shapely.intersection(drafts, exact))
    good = np.abs(drawn - area) <= _AREA * area
    good &= common >= _IOU * (drawn + area - common)
    return bool(good.all())
