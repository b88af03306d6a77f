"""Crossings: places where two roads cross on different levels, without meeting.

APLS and TOPO hardly see an overpass that became a junction, because few routes turn there. This
score compares the crossings themselves: found, missed and false ones, and which road is above.

A crossing is a place where two lines pass through each other without a vertex in common. Of a pair
of roads that touches, or crosses twice within 10 m, nothing is counted. Nor is a place where a path
of at most 10 m joins both roads: that is a junction drawn badly. A crossing is *borderline* if a
road ends within 4 m of it, as at the border of a chip, or if the roads are less than 15 degrees
apart. A borderline crossing is neither missed nor false, but a sure one may be matched with it.

A crossing of the truth and one of the proposal match if they are at most 10 m apart and their roads
have the same directions within 30 degrees. Matching is one to one: as many as possible, and of
these the nearest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from satmap.evaluation.metrics.apls import METRES_PER_PIXEL
from satmap.evaluation.metrics.apls_graph import (
    LENGTH,
    SAME_PLACE_PX,
    AplsGraph,
    NearPaths,
    Positions,
    build_graph,
)
from satmap.evaluation.metrics.figures import Figures
from satmap.evaluation.metrics.road_samples import Roads, places_at, road_rows
from satmap.evaluation.metrics.shortest_paths import Floats, Ints
from satmap.submissions.roads_csv import RoadRow

#: Largest distance between a true crossing and its match.
PLACE_M = 10.0

#: Largest angle between a true road at a crossing and its match, degrees.
ANGLE_DEG = 30.0

# Length of road on either side of a crossing that gives its direction; roads that cross twice
# within it only touch, and roads joined by a path of this length meet.
_NEAR_M = 10.0

# Roads that end closer to a crossing may only touch.
_END_M = 4.0

# Roads at smaller angles run beside each other; where exactly they cross is a matter of chance.
_LEAST_ANGLE_DEG = 15.0


@dataclass(frozen=True, eq=False)
class Crossings:
    """Crossings of one map.

    Attributes:
        xy: float64 (n, 2), places in pixels.
        directions: float64 (n, 2), directions of both roads, radians from 0 to pi.
        above: int64 (n,), 1 if the first road is above, -1 if the second is, 0 if unknown.
        borderline: bool (n,), crossings that may be none (see the module).
    """

    xy: Floats
    directions: Floats
    above: Ints
    borderline: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CrossingMatches:
    """Crossings of a truth and of a proposal that match.

    Attributes:
        truth, proposal: the crossings compared.
        pairs: int64 (m, 2), index of the true and of the proposed crossing.
        order: int64 (m,), 1 if both maps agree which road is above, -1 if they contradict each
            other, 0 if one of them does not know.
    """

    truth: Crossings
    proposal: Crossings
    pairs: Ints
    order: Ints

    def unmatched(self, side: int) -> Ints:
        """Return the indices of the missed (side 0) or false (side 1) crossings."""
        crossings = (self.truth, self.proposal)[side]
        sure = np.flatnonzero(~crossings.borderline)
        return np.setdiff1d(sure, self.pairs[:, side])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Bool (m,): pairs that count as found; pairs of two borderline crossings do not."""
        t, p = self.pairs.T
        both: NDArray[np.bool_] = self.truth.borderline[t] & self.proposal.borderline[p]
        return ~both


@dataclass(frozen=True)
class CrossingScore:
    """Crossings of one image; for many, use ``sum(scores, CrossingScore())``.

    Attributes:
        found, missed: true crossings with and without a match.
        false: proposed crossings without a match.
        ordered: found crossings of which both maps state which road is above.
        order_right: those of them in which both maps agree.
    """

    found: int = 0
    missed: int = 0
    false: int = 0
    ordered: int = 0
    order_right: int = 0

    def __add__(self, other: "CrossingScore") -> "CrossingScore":
        return CrossingScore(
            self.found + other.found,
            self.missed + other.missed,
            self.false + other.false,
            self.ordered + other.ordered,
            self.order_right + other.order_right,
        )

    def figures(self) -> Figures:
        """Return counts and shares for a report; None where a share has nothing to count."""
        found, missed, false = self.found, self.missed, self.false
        return {
            "crossings_found": found,
            "crossings_missed": missed,
            "crossings_false": false,
            "crossings_precision": share(found, found + false),
            "crossings_recall": share(found, found + missed),
            "crossings_f1": share(2 * found, 2 * found + missed + false),
            "crossings_ordered": self.ordered,
            "crossings_order": share(self.order_right, self.ordered),
        }


def share(part: int, whole: int) -> float | None:
    """Return a share of a number of things; None if there are none."""
    return part / whole if whole else None


def score_crossings(
    truth: Roads, proposal: Roads, *, metres_per_pixel: float = METRES_PER_PIXEL
) -> CrossingScore:
    """Count the crossings of one image, of roads in pixels: rows, arrays (n, 2), or a graph.

    The order and direction of the rows do not matter, nor do vertices that split a segment.
    ``metres_per_pixel`` converts all distances to pixels.
    """
    true, found = (find_crossings(roads, metres_per_pixel) for roads in (truth, proposal))
    matches = match_crossings(true, found, metres_per_pixel)
    order = matches.order[matches.counted]
    return CrossingScore(
        len(order),
        len(matches.unmatched(0)),
        len(matches.unmatched(1)),
        int((order != 0).sum()),
        int((order > 0).sum()),
    )


def match_crossings(
    truth: Crossings, proposal: Crossings, metres_per_pixel: float
) -> CrossingMatches:
    """Match crossings one to one by place and by the directions of both roads."""
    limit_px = PLACE_M / metres_per_pixel
    pairs, orders = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    if len(truth.xy) and len(proposal.xy):
        near = KDTree(truth.xy).sparse_distance_matrix(
            KDTree(proposal.xy), limit_px, output_type="coo_matrix"
        )
        t, p, distance = near.row.astype(np.int64), near.col.astype(np.int64), near.data
        straight, swapped = (
            _turn(truth.directions[t], proposal.directions[p][:, order])
            for order in ([0, 1], [1, 0])
        )
        # Not by the sums: they are equal if one crossing's angle lies within the other's.
        is_swapped = swapped.max(axis=1) < straight.max(axis=1)
        turned = np.where(is_swapped[:, None], swapped, straight)
        alike = turned.max(axis=1) <= np.radians(ANGLE_DEG)
        t, p, distance, is_swapped = (each[alike] for each in (t, p, distance, is_swapped))
        # A borderline crossing is matched only if no sure one is left.
        cost = distance / limit_px + truth.borderline[t] + proposal.borderline[p]
        chosen = _assign(t, p, cost)
        pairs.append(np.stack([t[chosen], p[chosen]], axis=1))
        flip = np.where(is_swapped[chosen], -1, 1)
        orders.append(truth.above[t[chosen]] * proposal.above[p[chosen]] * flip)
    return CrossingMatches(truth, proposal, np.concatenate(pairs), np.concatenate(orders))


def _turn(a: Floats, b: Floats) -> Floats:
    """Return the angles between undirected directions, radians from 0 to pi / 2."""
    difference = np.abs(a - b) % pi
    turned: Floats = np.minimum(difference, pi - difference)
    return turned


def _assign(row: Ints, column: Ints, cost: Floats) -> Ints:
    """Return the indices of the links of a matching: as many as possible, of least total cost."""
    if not len(row):
        return np.empty(0, np.int64)
    size = int(max(row.max(), column.max())) + 1
    links = coo_array((np.ones(len(row)), (row, size + column)), shape=(2 * size, 2 * size))
    part = connected_components(links, directed=False)[1][row]
    chosen = []
    order = np.argsort(part, kind="stable")
    # Each group of crossings that could be mistaken for each other is small.
    for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        rows, r = np.unique(row[group], return_inverse=True)
        columns, c = np.unique(column[group], return_inverse=True)
        # No sum of costs reaches the price of one pair that is not allowed.
        table = np.full((len(rows), len(columns)), 4.0 * len(group))
        link = np.full(table.shape, -1, np.int64)
        table[r, c], link[r, c] = cost[group], group
        taken = link[linear_sum_assignment(table)]
        chosen.append(taken[taken >= 0])
    return np.sort(np.concatenate(chosen))


# --- finding --------------------------------------------------------------------------------------


def find_crossings(roads: Roads, metres_per_pixel: float = METRES_PER_PIXEL) -> Crossings:
    """Find the crossings of a map, in an order that does not depend on that of the rows.

    Raises:
        ValueError: a line is invalid, or ``metres_per_pixel`` is not positive.
    """
    located = locate_crossings(roads, metres_per_pixel)
    if located is None:
        nothing = np.empty((0, 2))
        return Crossings(nothing, nothing, np.empty(0, np.int64), np.empty(0, np.bool_))
    borderline = _turn(*located.directions.T) < np.radians(_LEAST_ANGLE_DEG)
    for each in (located.first, located.second):
        borderline |= _is_near_end(located.graph, each, _END_M / metres_per_pixel)
    return Crossings(located.xy, located.directions, located.above, borderline)


@dataclass(frozen=True, eq=False)
class LocatedCrossings:
    """Crossings of one map, with their roads.

    Attributes:
        graph: the map. Its edges lead from junction to junction.
        first, second: positions of the crossings on both roads.
        xy: float64 (n, 2), places in pixels.
        directions: float64 (n, 2), directions of both roads, radians from 0 to pi.
        rows: int64 (n, 2), a row of either road.
        levels: float64 (n, 2), levels of both roads; NaN if rows on top of each other differ.
    """

    graph: AplsGraph
    first: Positions
    second: Positions
    xy: Floats
    directions: Floats
    rows: Ints
    levels: Floats

    @property
    def above(self) -> Ints:
        """int64 (n,), 1 if the first road is above, -1 if the second is, 0 if unknown."""
        # Equal levels, also contradictory ones, do not say which road is above.
        return np.sign(np.nan_to_num(self.levels[:, 0] - self.levels[:, 1])).astype(np.int64)


def locate_crossings(
    roads: Roads, metres_per_pixel: float = METRES_PER_PIXEL
) -> LocatedCrossings | None:
    """Find the crossings of a map and their roads; None if the map has no road.

    Raises:
        ValueError: as :func:`find_crossings`.
    """
    if not metres_per_pixel > 0:
        raise ValueError(f"metres_per_pixel must be positive, got {metres_per_pixel}")
    rows = road_rows(roads)
    graph = build_graph(rows, np.inf)
    near_px = _NEAR_M / metres_per_pixel
    if graph is None:
        return None
    first, second, segments = _passings(graph, near_px)
    apart = np.flatnonzero(NearPaths(graph, near_px).between(first, second) > near_px)
    first, second = first.take(apart), second.take(apart)
    _, xy = places_at(graph, first.edge, first.offset[:, LENGTH])
    directions = np.stack([_direction(graph, each, near_px) for each in (first, second)], axis=1)
    owners, levels = _levels(rows, graph, segments[apart])
    return LocatedCrossings(graph, first, second, xy, directions, owners, levels)


def _passings(graph: AplsGraph, near_px: float) -> tuple[Positions, Positions, Ints]:
    """Find where roads pass through each other: positions on both, and int64 (n, 2) segments."""
    lines = graph.segment_tree.geometries
    i, j = graph.segment_tree.query(lines, predicate="intersects")
    i, j = i[i < j], j[i < j]
    ends = np.stack([graph.starts, graph.stops], axis=1)
    gap = np.linalg.norm(ends[i][:, :, None] - ends[j][:, None], axis=-1).min(axis=(1, 2))
    along_i, along_j = (graph.stops[k] - graph.starts[k] for k in (i, j))
    area, product = _cross(along_i, along_j), _length(along_i) * _length(along_j)
    # Roads on top of each other have no place where they cross.
    wanted = (gap >= SAME_PLACE_PX) & (np.abs(area) > 1e-9 * product)
    i, j, area, along_i, along_j = (each[wanted] for each in (i, j, area, along_i, along_j))
    between = graph.starts[j] - graph.starts[i]
    share_i, share_j = (
        np.clip(_cross(between, along) / area, 0, 1)[:, None] for along in (along_j, along_i)
    )
    places = graph.at(np.stack([i, j]), np.stack([share_i, share_j]))
    edge, offset = places.edge, places.offset
    # The road with the smaller number comes first; of a road that crosses itself its earlier part.
    way = offset[:, :, LENGTH]
    swap = (edge[0] > edge[1]) | ((edge[0] == edge[1]) & (way[0] > way[1]))
    edge = np.where(swap, edge[::-1], edge)
    offset = np.where(swap[:, None], offset[::-1], offset)
    segments = np.where(swap, [j, i], [i, j]).T
    first, second = (Positions(*each) for each in zip(edge, offset, strict=True))
    chosen = np.flatnonzero(_get_across(graph, first, second))
    chosen = chosen[_odd_ones(first.take(chosen), second.take(chosen), near_px)]
    return first.take(chosen), second.take(chosen), segments[chosen]


def _cross(a: Floats, b: Floats) -> Floats:
    product: Floats = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return product


def _length(vectors: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(vectors, axis=1)
    return lengths


def _get_across(graph: AplsGraph, first: Positions, second: Positions) -> NDArray[np.bool_]:
    """Return, bool (n,), where the second road gets from one side of the first to the other.

    Neither does a road that ends there, nor one that touches the other with a vertex.
    """
    angles = []
    for each in (first, second):
        _, here = places_at(graph, each.edge, each.offset[:, LENGTH])
        for step in (-SAME_PLACE_PX / 2, SAME_PLACE_PX / 2):
            away = _moved(graph, each, step) - here
            # Of a road that ends the angle is not a number, and compares as False.
            angles.append(np.where(_length(away) > 0, np.arctan2(*away.T[::-1]), np.nan))
    behind, ahead, one, other = np.array(angles) - angles[0]
    sector = ahead % (2 * pi)
    ends = np.isnan(behind + ahead + one + other)
    across: NDArray[np.bool_] = ((one % (2 * pi) < sector) != (other % (2 * pi) < sector)) & ~ends
    return across


def _moved(graph: AplsGraph, places: Positions, step_px: float) -> Floats:
    """Return x, y of the places a step further along their edges, at most at the end."""
    totals = graph.totals[places.edge, LENGTH]
    length = np.clip(places.offset[:, LENGTH] + step_px, 0, totals)
    return places_at(graph, places.edge, length)[1]


def _odd_ones(first: Positions, second: Positions, near_px: float) -> Ints:
    """Return the middle one of each group of intersections that is odd in number.

    A group is the intersections of the same two roads within ``near_px`` along both. After an even
    number of them the roads are where they were. A vertex that lies on the other road gives two
    intersections in one place, which count once.
    """
    a, b = first.offset[:, LENGTH], second.offset[:, LENGTH]
    order = np.lexsort((b, a, second.edge, first.edge))
    same = (np.diff(first.edge[order]) == 0) & (np.diff(second.edge[order]) == 0)
    step = np.maximum(np.abs(np.diff(a[order])), np.abs(np.diff(b[order])))
    twice = same & (step < SAME_PLACE_PX)
    begins = np.append(True, ~(same & (step <= near_px)))[: len(order)]
    kept = np.append(True, ~twice)[: len(order)]
    group = np.cumsum(begins)[kept]
    order = order[kept]
    counts = np.bincount(group, minlength=1)[1:]
    middle = np.cumsum(counts) - counts + counts // 2
    chosen: Ints = order[middle[counts % 2 == 1]]
    return chosen


def _direction(graph: AplsGraph, places: Positions, near_px: float) -> Floats:
    along = _moved(graph, places, near_px) - _moved(graph, places, -near_px)
    angle: Floats = np.arctan2(along[:, 1], along[:, 0]) % pi
    return angle


def _is_near_end(graph: AplsGraph, places: Positions, limit_px: float) -> NDArray[np.bool_]:
    """Return where a road ends, at nothing else, within ``limit_px`` along it."""
    is_end = np.bincount(graph.ends.ravel()) == 1
    head = places.offset[:, LENGTH]
    u, v = graph.ends[places.edge].T
    near: NDArray[np.bool_] = (is_end[u] & (head < limit_px)) | (
        is_end[v] & (graph.totals[places.edge, LENGTH] - head < limit_px)
    )
    return near


def _levels(rows: Sequence[RoadRow], graph: AplsGraph, segments: Ints) -> tuple[Ints, Floats]:
    """Return a row of each segment (n, 2), and its level; NaN if rows of one segment differ."""
    if not len(segments):
        return np.empty((0, 2), np.int64), np.empty((0, 2))
    owners: dict[bytes, int] = {}
    levels: dict[bytes, float] = {}
    for number, row in enumerate(rows):
        for segment in np.stack([row.line[:-1], row.line[1:]], axis=1):
            for key in (segment.tobytes(), segment[::-1].tobytes()):
                owners[key] = number
                known = levels.setdefault(key, row.level)
                levels[key] = row.level if known == row.level else np.nan
    ends = np.stack([graph.starts, graph.stops], axis=1)[segments]
    keys = [[end.tobytes() for end in pair] for pair in ends]
    return (
        np.array([[owners[key] for key in pair] for pair in keys]),
        np.array([[levels[key] for key in pair] for pair in keys]),
    )
