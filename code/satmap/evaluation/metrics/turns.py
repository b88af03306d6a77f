"""False turns: routes of one road map that connect roads which the other map keeps apart.

An overpass that became a junction, or roads joined wrongly, lets a router turn where nobody can.
APLS and TOPO weigh such errors by lengths, together with all others. This score looks only at
*connections*, apart from missing roads.

Shortest routes are sampled in both maps, and each is checked against the other map in stretches of
40 m, one from every 10 m of the route. A place exists in the other map if a road of it is within
4 m. A stretch is

- *followed* if the other map has a path between its ends, of at most 1.2 times its length plus 8 m
  (the tolerance of :mod:`satmap.evaluation.metrics.apls_diagnosis`);
- a *wrong connection* if all its places exist in the other map, but no such path;
- on a *missing road* if one of its places does not exist in the other map.

If several roads are within 4 m of an end, any of them will do. So parallel roads are not mistaken
for each other, and turns closer than 40 m to each other need no definition of their own. A gap of
less than 8 m is a wrong connection, because the roads on both sides of it exist; a longer one is a
missing road.
"""

from dataclasses import dataclass, field

import numpy as np
import shapely
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from satmap.evaluation.metrics.apls import METRES_PER_PIXEL, SNAP_M
from satmap.evaluation.metrics.apls_diagnosis import WAY_TOLERANCE, SplitGraph
from satmap.evaluation.metrics.apls_graph import (
    LENGTH,
    AplsGraph,
    NearPaths,
    Positions,
    build_graph,
    expand,
)
from satmap.evaluation.metrics.crossings import share
from satmap.evaluation.metrics.figures import Figures
from satmap.evaluation.metrics.road_samples import EXACT_PX, Roads, road_rows
from satmap.evaluation.metrics.shortest_paths import Floats, Ints

#: Length of the stretches of a route that must exist in the other map.
STRETCH_M = 40.0

#: Longest route: far routes pass so many junctions that the share of right ones tends to zero.
ROUTE_M = 500.0

# Largest distance between places where routes begin and end.
_SPACING_M = 10.0

# Routes of an image: from so many places, to so many others each.
_STARTS, _GOALS = 500, 8
_SEED = 0

# Path lengths computed at a time; bounds memory on maps of whole cities.
_CELLS = 4_000_000


@dataclass(frozen=True)
class TurnScore:
    """Routes of one image; for many, use ``sum(scores, TurnScore())``.

    Attributes:
        proposed: routes of the proposal.
        false_turns: those with a connection that the truth does not have.
        true: routes of the truth.
        missed_turns: those with a connection that the proposal does not have.
        lost: those that the proposal cannot follow, for a missing connection or a missing road.
    """

    proposed: int = 0
    false_turns: int = 0
    true: int = 0
    missed_turns: int = 0
    lost: int = 0

    def __add__(self, other: "TurnScore") -> "TurnScore":
        return TurnScore(
            self.proposed + other.proposed,
            self.false_turns + other.false_turns,
            self.true + other.true,
            self.missed_turns + other.missed_turns,
            self.lost + other.lost,
        )

    def figures(self) -> Figures:
        """Return the shares for a report; None where a map has no routes.

        ``false_turn_rate`` is the mean of ``false_turns`` and ``missed_turns``.
        """
        false = share(self.false_turns, self.proposed)
        missed = share(self.missed_turns, self.true)
        return {
            "false_turns": false,
            "missed_turns": missed,
            "false_turn_rate": None if false is None or missed is None else (false + missed) / 2,
            "lost_routes": share(self.lost, self.true),
        }


@dataclass(frozen=True, eq=False)
class CheckedRoutes:
    """Routes of one map, compared with another.

    Attributes:
        routes: number of routes.
        wrong: number of routes with a wrong connection.
        lost: number of routes with a wrong connection or a missing road.
        places: float64 (n, 2), middles of the wrong connections, x and y in pixels; those of one
            place are close together.
    """

    routes: int = 0
    wrong: int = 0
    lost: int = 0
    places: Floats = field(default_factory=lambda: np.empty((0, 2)))


def score_turns(
    truth: Roads, proposal: Roads, *, metres_per_pixel: float = METRES_PER_PIXEL
) -> TurnScore:
    """Check the routes of one image, of roads in pixels: rows, arrays (n, 2), or a graph.

    The order and direction of the rows do not matter. ``metres_per_pixel`` converts all distances
    to pixels.
    """
    there, back = check_turns(truth, proposal, metres_per_pixel)
    return TurnScore(there.routes, there.wrong, back.routes, back.wrong, back.lost)


def check_turns(
    truth: Roads, proposal: Roads, metres_per_pixel: float
) -> tuple[CheckedRoutes, CheckedRoutes]:
    """Return the routes of the proposal checked in the truth, and those of the truth."""
    if not metres_per_pixel > 0:
        raise ValueError(f"metres_per_pixel must be positive, got {metres_per_pixel}")
    spacing_px = _SPACING_M / metres_per_pixel
    a, b = (build_graph(road_rows(roads), spacing_px) for roads in (truth, proposal))
    return _check(b, a, metres_per_pixel), _check(a, b, metres_per_pixel)


def _check(a: AplsGraph | None, b: AplsGraph | None, metres_per_pixel: float) -> CheckedRoutes:
    """Check routes of ``a`` in ``b``."""
    if a is None:
        return CheckedRoutes()
    route, node, way = _routes(a, ROUTE_M / metres_per_pixel)
    if not len(route):
        return CheckedRoutes()
    routes = int(route[-1]) + 1
    if b is None:
        return CheckedRoutes(routes, 0, routes)
    snap_px = SNAP_M / metres_per_pixel
    owner, places = _counterparts(b, a.node_xy, snap_px)
    exists = np.bincount(owner, minlength=len(a.node_xy)) > 0
    lost = np.zeros(routes, np.bool_)
    lost[route[~exists[node]]] = True

    first, last = _stretches(route, way, STRETCH_M / metres_per_pixel)
    missing = np.cumsum(np.append(0, ~exists[node]))
    whole = missing[last + 1] == missing[first]
    first, last = first[whole], last[whole]
    # Routes share most stretches; a stretch is the shortest path between its ends.
    ends = np.sort(node[np.stack([first, last], axis=1)], axis=1)
    pairs, index, inverse = np.unique(ends, axis=0, return_index=True, return_inverse=True)
    longest = (1 + WAY_TOLERANCE) * (way[last] - way[first])[index] + 2 * snap_px
    followed = _followed(b, owner, places, pairs, longest)
    wrong = np.zeros(routes, np.bool_)
    broken = ~followed[inverse.ravel()]
    wrong[route[first[broken]]] = True
    middle = (first + last)[index][~followed] // 2
    return CheckedRoutes(
        routes, int(wrong.sum()), int((wrong | lost).sum()), a.node_xy[np.unique(node[middle])]
    )


def _routes(graph: AplsGraph, limit_px: float) -> tuple[Ints, Ints, Floats]:
    """Sample shortest routes of at most ``limit_px`` between the nodes of a graph.

    Returns:
        int64 (n,), the routes' numbers, ascending; int64 (n,), the nodes that they pass, from start
        to goal; float64 (n,), length of the way from the start to each, pixels.
    """
    split = SplitGraph(graph, graph.nodes.take(np.arange(graph.junctions, len(graph.node_xy))))
    links = csr_array((split.way, (split.u, split.v)), shape=(split.size, split.size))
    random = np.random.default_rng(_SEED)
    starts = random.permutation(split.size)[:_STARTS]
    rows = max(1, _CELLS // split.size)
    parts: list[tuple[Ints, Ints, Floats]] = []
    count = 0
    for begin in range(0, len(starts), rows):
        here = starts[begin : begin + rows]
        ways, before = dijkstra(
            links, directed=False, indices=here, limit=limit_px, return_predecessors=True
        )
        row, node = np.nonzero(np.isfinite(ways) & (ways > 0))
        # Shuffle the nodes within reach of each start, and take the first ones.
        order = np.lexsort((random.random(len(row)), row))
        row, node = row[order], node[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        row, node = row[rank < _GOALS], node[rank < _GOALS]
        route = np.arange(len(row)) + count
        count += len(row)
        while len(route):
            parts.append((route, node, ways[row, node]))
            more = node != here[row]
            route, row = route[more], row[more]
            node = before[row, node[more]].astype(np.int64)
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    route, node, way = (np.concatenate(each) for each in zip(*parts, strict=True))
    # Later parts are nearer to the start, also where nodes lie in one place.
    order = np.lexsort((-np.arange(len(route)), route))
    return route[order], node[order], way[order]


def _stretches(route: Ints, way: Floats, length_px: float) -> tuple[Ints, Ints]:
    """Return first and last entry of the stretches, each at least ``length_px`` if the route is.

    One begins at every entry from which the rest of the route is long enough. A shorter route is
    one stretch.
    """
    end = np.searchsorted(route, route, side="right") - 1
    # Ways differ by less than the step between routes, so that the keys ascend.
    step = float(way.max()) + 2 * length_px
    key = route * step + way
    last = np.searchsorted(key, key + length_px - EXACT_PX)
    fits = last <= end
    is_start = np.append(True, np.diff(route) != 0)
    chosen = np.flatnonzero(fits | is_start)
    return chosen, np.minimum(last, end)[chosen]


def _counterparts(graph: AplsGraph, xy: Floats, limit_px: float) -> tuple[Ints, Positions]:
    """Return the places of a graph within ``limit_px`` of points, float64 (n, 2).

    Returns:
        int64 (m,), ascending, the point of each place; and the m places. A road that passes a point
        has one place, the nearest; one that comes back has another.
    """
    reach = limit_px + EXACT_PX
    point, segment = graph.segment_tree.query(
        shapely.points(xy), predicate="dwithin", distance=reach
    )
    fraction, distance = graph.project(xy[point], segment)
    places = graph.at(segment, fraction)
    order = np.lexsort((places.offset[:, LENGTH], places.edge, point))
    point, distance, places = point[order], distance[order], places.take(order)
    apart = np.diff(places.offset[:, LENGTH]) > 2 * reach
    new = (np.diff(point) != 0) | (np.diff(places.edge) != 0) | apart
    passing = np.cumsum(np.append(0, new))[: len(point)]
    nearest = np.lexsort((distance, passing))
    first = nearest[np.unique(passing[nearest], return_index=True)[1]]
    return point[first].astype(np.int64), places.take(first)


def _followed(
    graph: AplsGraph, owner: Ints, places: Positions, pairs: Ints, longest: Floats
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return, bool (n,), whether the graph has a path between points of at most a given length.

    ``places`` are the counterparts of the points ``owner``. ``pairs``, int64 (n, 2), are points;
    any of the counterparts of both will do.
    """
    if not len(pairs):
        return np.empty(0, np.bool_)
    begin, stop = np.searchsorted(owner, pairs), np.searchsorted(owner, pairs, side="right")
    counts = stop - begin
    pair, rank = expand(counts.prod(axis=1))
    start = begin[pair, 0] + rank // counts[pair, 1]
    goal = begin[pair, 1] + rank % counts[pair, 1]
    paths = NearPaths(graph, float(longest.max()))
    ways = paths.between(places.take(start), places.take(goal))
    followed = np.zeros(len(pairs), np.bool_)
    followed[pair[ways <= longest[pair] + EXACT_PX]] = True
    return followed
