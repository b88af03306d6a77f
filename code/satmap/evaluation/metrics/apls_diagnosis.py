"""Diagnose the APLS of an image: find where the routes of one map break in the other.

APLS says how far route lengths differ, but not where. The diagnosis finds roads without a
counterpart, places where a road continues in one map but not in the other, and a few of the
worst-affected routes. It considers length only, not travel time.
"""

from dataclasses import dataclass, field
from math import inf

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from satmap.evaluation.metrics.apls import METRES_PER_PIXEL, SNAP_M, build_graphs
from satmap.evaluation.metrics.apls_graph import LENGTH, AplsGraph, Positions, Ways
from satmap.evaluation.metrics.road_samples import (
    Roads,
    nearest_places,
    places_at,
    road_rows,
    sample_roads,
)
from satmap.evaluation.metrics.shortest_paths import Floats, Ints, shortest_links

#: A path is broken if its length in the other map differs by more than this share of its length
#: plus 8 m, the most that snapping both ends can add.
WAY_TOLERANCE = 0.2

_SPACING_M = 5.0

# Longer stretches without a counterpart are missing roads, not breaks in a road.
_LONGEST_BREAK_M = 50.0

# Keep only one of several breaks closer than this: a junction of three arms breaks three times.
_ONE_BREAK_M = 10.0

# Most broken routes to return per direction.
_ROUTES = 5

# Path lengths computed at a time; bounds memory on maps of whole cities.
_CELLS = 4_000_000


@dataclass(frozen=True)
class BrokenRoad:
    """Two neighbouring places that both maps have, but only one map has the path between them.

    The places are samples 5 m apart or junctions. They are up to 50 m apart if the other map has
    nothing in between.

    Attributes:
        xy: midpoint between the places, pixels.
        way_m: length of the path between them.
        other_m: length of the path in the other map; infinite if there is none.
    """

    xy: tuple[float, float]
    way_m: float
    other_m: float


@dataclass(frozen=True, eq=False)
class Route:
    """A route between two of the nodes that APLS compares.

    Attributes:
        path: float64 (n, 2), x, y in pixels.
        way_m: length of ``path``.
        other: float64 (m, 2), shortest route in the other map; None if there is none.
        other_m: length of ``other``; infinite if there is none.
    """

    path: Floats
    way_m: float
    other: Floats | None
    other_m: float


@dataclass(frozen=True, eq=False)
class LostRoads:
    """Roads, nodes and routes of one map that are missing or broken in the other.

    Attributes:
        roads_m: length of all roads of the map.
        lost_m: length of the roads farther than 4 m from every road of the other map.
        pieces: these roads, float64 (n, 2) each, x, y in pixels.
        nodes: number of nodes that APLS compares.
        lost_nodes: float64 (k, 2), x, y of the nodes that are not found in the other map.
        breaks: places where a road continues in this map but not in the other.
        routes: the worst-affected routes, worst first; no two share a stretch.
    """

    roads_m: float = 0.0
    lost_m: float = 0.0
    pieces: tuple[Floats, ...] = ()
    nodes: int = 0
    lost_nodes: Floats = field(default_factory=lambda: np.empty((0, 2)))
    breaks: tuple[BrokenRoad, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Losses in both directions of APLS.

    Attributes:
        missed: losses of the truth in the proposal: missed roads and gaps.
        false: losses of the proposal in the truth: false roads and false joins.
    """

    missed: LostRoads
    false: LostRoads


def diagnose(
    truth: Roads, proposal: Roads, *, metres_per_pixel: float = METRES_PER_PIXEL
) -> Diagnosis:
    """Find what lowers the APLS of an image, given as in :func:`apls.apls`."""
    a, b = build_graphs(road_rows(truth), road_rows(proposal), metres_per_pixel)
    return Diagnosis(_losses(a, b, metres_per_pixel), _losses(b, a, metres_per_pixel))


def _losses(a: AplsGraph | None, b: AplsGraph | None, scale: float) -> LostRoads:
    """Find the losses of ``a`` in ``b``; ``scale`` is in metres per pixel."""
    if a is None:
        return LostRoads()
    snap_px = SNAP_M / scale
    roads = _roads(a)
    roads_m = float(a.totals[:, LENGTH].sum()) * scale
    if b is None:
        pieces = tuple(shapely.get_coordinates(road) for road in roads)
        return LostRoads(roads_m, roads_m, pieces, len(a.node_xy), a.node_xy)
    # Vertices closer than the rounding error make GEOS divide by zero, without harm.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        around = shapely.simplify(shapely.multilinestrings(_roads(b)), snap_px / 20)
        lost = shapely.difference(shapely.multilinestrings(roads), shapely.buffer(around, snap_px))
    pieces = shapely.get_parts(shapely.line_merge(lost))
    controls = b.locate(a.node_xy, snap_px)
    return LostRoads(
        roads_m,
        float(shapely.length(pieces).sum()) * scale,
        tuple(shapely.get_coordinates(piece) for piece in pieces),
        len(a.node_xy),
        a.node_xy[controls.edge < 0],
        _breaks(a, b, scale),
        _routes(a, b, controls, scale),
    )


def _roads(graph: AplsGraph) -> list[shapely.LineString]:
    totals = enumerate(graph.totals[:, LENGTH])
    return [shapely.linestrings(_stretch(graph, edge, 0, total)) for edge, total in totals]


def _tolerance(way_px: Floats, scale: float) -> Floats:
    tolerance: Floats = WAY_TOLERANCE * way_px + 2 * SNAP_M / scale
    return tolerance


# --- breaks ---------------------------------------------------------------------------------------


def _breaks(a: AplsGraph, b: AplsGraph, scale: float) -> tuple[BrokenRoad, ...]:
    """Find neighbouring places of ``a`` that ``b`` has, but without the path between them."""
    samples, sample_xy = sample_roads(a, _SPACING_M / scale)
    split = SplitGraph(a, samples)
    xy = np.concatenate([a.node_xy[: a.junctions], sample_xy])
    # On an overpass the nearest road may be the crossing one, so headings decide first. Junctions
    # have no heading.
    _, ahead = places_at(a, samples.edge, samples.offset[:, LENGTH] + 1)
    _, behind = places_at(a, samples.edge, samples.offset[:, LENGTH] - 1)
    headings = np.concatenate([np.zeros((a.junctions, 2)), ahead - behind])
    point, places = nearest_places(b, xy, SNAP_M / scale, headings)
    point, first = np.unique(point, return_index=True)
    controls = Positions(np.full(len(xy), -1), np.zeros((len(xy), 2)))
    controls.put(point, places.take(first))

    i, j, way = split.neighbours(controls.edge >= 0, _LONGEST_BREAK_M / scale)
    other = _ways(b, controls.take(i), controls.take(j))
    broken = other - way > _tolerance(way, scale)
    i, j, way, other = i[broken], j[broken], way[broken] * scale, other[broken] * scale
    middle = (xy[i] + xy[j]) / 2
    kept: list[int] = []
    # The shortest ones locate a break most precisely.
    for k in np.lexsort((*middle.T, way)).tolist():
        apart = np.linalg.norm(middle[kept] - middle[k], axis=1) * scale
        if not (apart < _ONE_BREAK_M).any():
            kept.append(k)
    return tuple(
        BrokenRoad((float(middle[k, 0]), float(middle[k, 1])), float(way[k]), float(other[k]))
        for k in kept
    )


def _ways(graph: AplsGraph, start: Positions, stop: Positions) -> Floats:
    """Return the shortest path length from each of ``start`` to its partner in ``stop``, pixels."""
    between = graph.between[LENGTH]
    along = np.abs(start.offset[:, LENGTH] - stop.offset[:, LENGTH])
    ways: Floats = np.where(start.edge == stop.edge, along, inf)
    for from_end in (0, 1):
        for to_end in (0, 1):
            u, v = graph.ends[start.edge, from_end], graph.ends[stop.edge, to_end]
            by_ends = _to_end(graph, start, from_end) + _to_end(graph, stop, to_end)
            ways = np.minimum(ways, by_ends + between[u, v])
    return ways


def _to_end(graph: AplsGraph, places: Positions, end: int) -> Floats:
    head = places.offset[:, LENGTH]
    return graph.totals[places.edge, LENGTH] - head if end else head


# --- routes ---------------------------------------------------------------------------------------


def _routes(a: AplsGraph, b: AplsGraph, controls: Positions, scale: float) -> tuple[Route, ...]:
    """Return the routes between nodes of ``a`` that differ most in ``b``; ties: shortest first."""
    found = np.flatnonzero(controls.edge >= 0)
    if not len(found):
        return ()
    starts, controls = a.nodes.take(found), controls.take(found)
    rows = max(1, _CELLS // len(found))
    ways = Ways(a, starts, LENGTH), Ways(b, controls, LENGTH)
    candidates = [
        _worst_of_each(*ways, slice(begin, min(begin + rows, len(found))), len(found), scale)
        for begin in range(0, len(found), rows)
    ]
    difference, way, i, j = np.concatenate(candidates, axis=1)
    split_a = SplitGraph(a, a.nodes.take(np.arange(a.junctions, len(a.node_xy))))
    split_b = SplitGraph(b, controls)
    used: set[tuple[int, int]] = set()
    routes: list[Route] = []
    # Rounded, so that values that differ only in their last bits compare as equal.
    for k in np.lexsort((j, i, np.round(way, 6), -np.round(difference, 9))).tolist():
        if len(routes) == _ROUTES:
            break
        here, there = int(i[k]), int(j[k])
        path, links = split_a.path(int(found[here]), int(found[there]))
        if path is None or used & links:
            continue
        used |= links
        other, _ = split_b.path(b.junctions + here, b.junctions + there)
        other_m = inf if other is None else _length(other) * scale
        # The scorer's own length leaves out steps between vertices that it takes for one place.
        routes.append(Route(path, _length(path) * scale, other, other_m))
    return tuple(routes)


def _worst_of_each(ways_a: Ways, ways_b: Ways, rows: slice, nodes: int, scale: float) -> Floats:
    """Return the worst-affected route from each node of ``rows`` that has one.

    The rows of the result, float64 (4, n), are relative difference, length in pixels, start node
    and end node.
    """
    everywhere = slice(0, nodes)
    way, other = ways_a[rows, everywhere], ways_b[rows, everywhere]
    connected = np.isfinite(way) & (way > 0)
    other[~connected], way[~connected] = 1, 1
    difference = np.minimum(np.abs(way - other) / way, 1)
    difference[np.abs(way - other) <= _tolerance(way, scale)] = 0
    way[difference == 0] = inf
    worst = difference.max(axis=1)
    worst_of = np.where(np.round(difference, 9) == np.round(worst, 9)[:, None], way, inf)
    j = worst_of.argmin(axis=1)
    i = np.arange(rows.start, rows.stop)
    table = np.stack([worst, way[i - rows.start, j], i, j])
    return table[:, worst > 0]


def _length(path: Floats) -> float:
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


# --- paths with their geometry --------------------------------------------------------------------


class SplitGraph:
    """A road graph split at given positions: its nodes are the junctions, then the positions.

    Attributes:
        size: number of nodes.
        u, v: int64 (k,), nodes at the ends of each link; of parallel links only the shortest.
        way: float64 (k,), length of each link in pixels.
    """

    def __init__(self, graph: AplsGraph, positions: Positions) -> None:
        edges = np.arange(len(graph.ends))
        size = graph.junctions + len(positions.edge)
        inner = np.arange(graph.junctions, size)
        edge = np.concatenate([edges, positions.edge, edges])
        totals = graph.totals[:, LENGTH]
        offset = np.concatenate([np.zeros(len(edges)), positions.offset[:, LENGTH], totals])
        node = np.concatenate([graph.ends[:, 0], inner, graph.ends[:, 1]])
        # Stable sort: at the same offset, an edge's first end comes first and its last end last.
        order = np.lexsort((offset, edge))
        edge, offset, node = edge[order], offset[order], node[order]
        link = np.flatnonzero((edge[1:] == edge[:-1]) & (node[1:] != node[:-1]))
        u, v, way = node[link], node[link + 1], offset[link + 1] - offset[link]
        # csr_array would add up parallel links: keep only the shortest.
        keep = shortest_links(np.minimum(u, v), np.maximum(u, v), way)
        self._graph, self.size = graph, size
        self.u, self.v, self.way = u[keep], v[keep], way[keep]
        link = link[keep]
        self._edge, self._from, self._to = edge[link], offset[link], offset[link + 1]

    def neighbours(self, chosen: NDArray[np.bool_], limit: float) -> tuple[Ints, Ints, Floats]:
        """Return pairs of chosen nodes whose path passes no other chosen node, and path lengths.

        A path that passes nodes that are not chosen is at most ``limit`` long.
        """
        both = chosen[self.u] & chosen[self.v]
        i, j, way = [self.u[both]], [self.v[both]], [self.way[both]]
        # Chosen nodes are doubled: paths start at the copy and end at the original.
        u, v = np.concatenate([self.u, self.v]), np.concatenate([self.v, self.u])
        links = (np.tile(self.way, 2), (np.where(chosen[u], u + self.size, u), v))
        doubled = csr_array(links, shape=(2 * self.size, 2 * self.size))
        outset = np.unique(u[chosen[u] & ~chosen[v]])
        rows = max(1, _CELLS // (2 * self.size))
        for begin in range(0, len(outset), rows):
            here = outset[begin : begin + rows]
            ways = dijkstra(doubled, indices=here + self.size, limit=limit)[:, : self.size]
            row, column = np.nonzero(
                np.isfinite(ways) & chosen & (here[:, None] < np.arange(self.size))
            )
            i.append(here[row])
            j.append(column)
            way.append(ways[row, column])
        return np.concatenate(i), np.concatenate(j), np.concatenate(way)

    def path(self, start: int, stop: int) -> tuple[Floats | None, set[tuple[int, int]]]:
        """Return the shortest path, float64 (n, 2) or None, and the links it takes."""
        links_by_node = csr_array((self.way, (self.u, self.v)), shape=(self.size, self.size))
        # Zeros stay stored; csgraph takes them for links of length zero.
        _, before = dijkstra(links_by_node, directed=False, indices=start, return_predecessors=True)
        if start != stop and before[stop] < 0:
            return None, set()
        parts, links = [], set()
        pairs = zip(self.u.tolist(), self.v.tolist(), strict=True)
        index_of = {pair: k for k, pair in enumerate(pairs)}
        node = stop
        while node != start:
            previous = int(before[node])
            forwards = (previous, node) in index_of
            k = index_of[(previous, node) if forwards else (node, previous)]
            ends = (self._from[k], self._to[k]) if forwards else (self._to[k], self._from[k])
            parts.append(_stretch(self._graph, int(self._edge[k]), *ends))
            links.add((min(previous, node), max(previous, node)))
            node = previous
        return (np.concatenate(parts[::-1]) if parts else np.empty((0, 2))), links


def _stretch(graph: AplsGraph, edge: int, start: float, stop: float) -> Floats:
    """Return the vertices of an edge between two offsets, float64 (n >= 2, 2)."""
    low, high = min(start, stop), max(start, stop)
    begin, end = np.searchsorted(graph.segment_edge, [edge, edge + 1])
    offset = graph.segment_offset[begin:end, LENGTH]
    inner = graph.starts[begin:end][(offset > low) & (offset < high)]
    _, (first, last) = places_at(graph, np.array([edge, edge]), np.array([low, high]))
    path: Floats = np.vstack([first, inner, last])
    return path if start <= stop else path[::-1]
