"""Right angles: align walls with a building's main directions, jointly with its neighbours.

Touching buildings are simplified as one coverage, so a shared wall stays one line. Coordinates are
rotated to the directions in which most of the wall length runs. There, the ends of a nearly
horizontal wall get the same y and the ends of a nearly vertical wall the same x; all walls at a
corner move with it. If a building no longer matches its mask, the change is undone for the whole
group of touching buildings.
"""

from collections.abc import Iterator

import numpy as np
import shapely

from satmap.tasks.buildings.vectorizer.tracing import Floats, Ints, connected_groups
from satmap.vectors.buildings import Polygons

# Limits for the result against the mask: smallest IoU, largest relative change of the area.
_IOU, _AREA = 0.9, 0.03
# Multiples of the outline tolerance, tried in this order. Walls in masks are wavy, so large ones
# come first.
_TOLERANCES = (3.0, 2.0, 1.0)
# Walls that deviate more from the main directions stay oblique, degrees.
_OBLIQUE = 20.0
# Vertices closer than this to a straight wall are removed.
_STRAIGHT_PX = 0.01
_POLYGON = 3


def squared_outlines(
    exact: Polygons,
    outlines: Polygons,
    tolerance: float,
    shape: tuple[int, int],
    metres_per_pixel: tuple[float, float] = (1.0, 1.0),
) -> Polygons:
    """Make outlines rectangular on the ground where right angles fit the mask.

    Args:
        exact: outlines along pixel edges, which do not overlap.
        outlines: simplified ones, the fallback for buildings without neighbours.
        tolerance: of the simplification, pixels.
        shape: height and width of the image, whose edges cut buildings off.
        metres_per_pixel: along x and y. Pixels in degrees are not square on the ground.

    Returns:
        Valid polygons (n,). Those with moved walls have an IoU of at least 0.9 with the exact
        outline and an area within 3 % of it. Of touching buildings, all walls are moved, or all
        outlines are exact.
    """
    squared = outlines.copy()
    # Square pixels of the same area.
    scale = np.array(metres_per_pixel) / np.sqrt(np.prod(metres_per_pixel))
    for group in touching(exact):
        # Shift to the origin, so that rounding does not depend on the position in the image.
        corner = shapely.bounds(exact[group])[:, :2].min(axis=0)
        own = shapely.transform(exact[group], lambda xy, corner=corner: (xy - corner) * scale)
        frame = (np.array([0, 0, shape[1], shape[0]]) - np.tile(corner, 2)) * np.tile(scale, 2)
        for share in _TOLERANCES:
            drafts = _squared(own, share * tolerance, frame)
            drafts = shapely.transform(drafts, lambda xy, corner=corner: xy / scale + corner)
            if _fit(drafts, exact[group]):
                squared[group] = drafts
                break
        else:
            if len(group) > 1:
                squared[group] = exact[group]
    return squared


def touching(exact: Polygons) -> Iterator[Ints]:
    """Yield groups of buildings connected by shared walls; others form groups of one."""
    if not len(exact):
        return
    one, other = shapely.STRtree(exact).query(exact, predicate="intersects")
    # Their boundaries have a line in common.
    walls = (one == other) | shapely.relate_pattern(exact[one], exact[other], "****1****")
    group = connected_groups(np.stack([one[walls], other[walls]]), len(exact))
    order = np.argsort(group, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _squared(exact: Polygons, tolerance: float, frame: Floats) -> Polygons:
    # Neighbours in a coverage must have the same vertices along shared walls.
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
    # The edge of the image is not a wall.
    edge = (corners[:, None, :] == np.reshape(frame, (2, 2))).reshape(-1, 4)
    length[(edge[ends[0]] & edge[ends[1]]).any(axis=1)] = 0
    # Directions modulo 90 degrees, weighted by the squared length of the walls.
    phases = np.exp(4j * np.arctan2(along[:, 1], along[:, 0]))
    angle = float(np.angle((phases * length**2).sum())) / 4
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rotated, walls = corners @ turn, np.abs(along @ turn)
    steepest = np.tan(np.radians(_OBLIQUE))
    for axis in (0, 1):
        # Vertical walls, then horizontal ones.
        level = (walls[:, axis] <= walls[:, 1 - axis] * steepest) & (length > 0)
        rotated[:, axis] = _levelled(rotated[:, axis], ends[:, level], length[level])
    moved = rotated @ turn.T
    squared = shapely.set_coordinates(simple.copy(), moved[corner])
    # Scale the whole group to its former area, which keeps angles and shared walls.
    drawn, area = float(shapely.area(squared).sum()), float(shapely.area(exact).sum())
    if drawn > 0:
        middle = moved.mean(axis=0)
        moved = middle + (moved - middle) * np.sqrt(area / drawn)
        moved = np.where(edge[:, :2] | edge[:, 2:], corners, moved)
        squared = shapely.set_coordinates(squared, moved[corner])
    # Remove vertices within straight walls.
    straight: Polygons = shapely.simplify(squared, _STRAIGHT_PX, preserve_topology=False)
    return straight


def _levelled(values: Floats, ends: Ints, length: Floats) -> Floats:
    """Average one coordinate over all corners connected by a chain of walls."""
    group = connected_groups(ends, len(values))
    weight = np.bincount(ends.ravel(), np.tile(length, 2), minlength=len(values)) + 1e-9
    mean = np.bincount(group, weight * values) / np.bincount(group, weight)
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
