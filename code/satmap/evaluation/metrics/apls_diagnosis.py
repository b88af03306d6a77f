"""Why an image's APLS is what it is: where the routes of one map break in the other.

APLS says how far route lengths differ, not where. A diagnosis finds the roads that have no
counterpart, the places where the way goes on in one map and not in the other, and a handful of
the routes that suffer most. Weight length throughout.
"""

from dataclasses import dataclass, field
from math import inf

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from satmap.evaluation.metrics.apls import METRES_PER_PIXEL, MIDPOINT_M, SNAP_M
from satmap.evaluation.metrics.apls_graph import LENGTH, AplsGraph, Positions, Ways, build_graph
from satmap.evaluation.metrics.road_samples import (
    Roads,
    nearest_places,
    places_at,
    road_rows,
    sample_roads,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: A way is broken if its length in the other map differs by more than this share of its own plus
#: the 8 m that snapping both ends can do.
WAY_TOLERANCE = 0.2

_SPACING_M = 5.0

# Longer stretches without a counterpart are missing roads, not breaks in a road.
_LONGEST_BREAK_M = 50.0

# Breaks closer together are one to the eye: three arms of a junction break three ways.
_ONE_BREAK_M = 10.0

# Cells of a table of ways at a time: bounds the memory on maps of whole cities.
_CELLS = 4_000_000


@dataclass(frozen=True)
class BrokenRoad:
    """Two places next to each other in one map, both found in the other, without the way between.

    They are samples 5 m apart or junctions; or up to 50 m apart, if nothing between is found.

    Attributes:
        xy: halfway between the places, pixels.
        way_m: the way between them.
        other_m: the same in the other map; infinite if there is none.
    """

    xy: tuple[float, float]
    way_m: float
    other_m: float


@dataclass(frozen=True, eq=False)
class Route:
    """A route between two nodes that APLS compares.

    Attributes:
        path: float64 (n, 2), x, y in pixels.
        way_m: its length.
        other: float64 (m, 2), the shortest route in the other map; None if there is none.
        other_m: its length; infinite if there is none.
    """

    path: Floats
    way_m: float
    other: Floats | None
    other_m: float


@dataclass(frozen=True, eq=False)
class LostRoads:
    """What the routes of one map lose in the other.

    Attributes:
        roads_m: length of all roads of the map.
        lost_m: length of those without a road of the other within 4 m.
        pieces: the latter, float64 (n, 2) each, x, y in pixels.
        nodes: how many nodes APLS compares.
        lost_nodes: float64 (k, 2), x, y of those that it does not find in the other map.
        breaks: places where the way goes on in this map and not in the other.
        routes: those that suffer most, the worst first, none with a stretch of another.
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
    """Both directions of APLS.

    Attributes:
        missed: what the truth's routes lose in the proposal: missed roads, gaps.
        false: what the proposal's routes lose in the truth: false roads, false joins.
    """

    missed: LostRoads
    false: LostRoads


def diagnose(
    truth: Roads,
    proposal: Roads,
    *,
    metres_per_pixel: float = METRES_PER_PIXEL,
    routes: int = 5,
) -> Diagnosis:
    """Find what costs an image its APLS.

    Args:
        truth: roads in pixels of the image: rows, arrays (n, 2), or a road graph.
        proposal: the same.
        metres_per_pixel: scale.
        routes: at most so many broken routes in each direction.
    """
    if not metres_per_pixel > 0:
        raise ValueError(f"metres_per_pixel must be positive, got {metres_per_pixel}")
    a = build_graph(road_rows(truth), MIDPOINT_M / metres_per_pixel)
    b = build_graph(road_rows(proposal), MIDPOINT_M / metres_per_pixel)
    return Diagnosis(
        _losses(a, b, metres_per_pixel, routes), _losses(b, a, metres_per_pixel, routes)
    )


def _losses(a: AplsGraph | None, b: AplsGraph | None, scale: float, routes: int) -> LostRoads:
    """What the routes of ``a`` lose in ``b``; ``scale`` in metres a pixel."""
    if a is None:
        return LostRoads()
    snap_px = SNAP_M / scale
    roads = [_stretch(a, edge, 0, total) for edge, total in enumerate(a.totals[:, LENGTH])]
    roads_m = float(a.totals[:, LENGTH].sum()) * scale
    if b is None:
        return LostRoads(roads_m, roads_m, tuple(roads), len(a.node_xy), a.node_xy)
    near = [
        shapely.linestrings(_stretch(b, e, 0, way)) for e, way in enumerate(b.totals[:, LENGTH])
    ]
    roads_of_a = shapely.multilinestrings([shapely.linestrings(road) for road in roads])
    # Vertices nearer to each other than rounding make GEOS divide by zero and go on.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        around = shapely.simplify(shapely.multilinestrings(near), snap_px / 20)
        lost = shapely.difference(roads_of_a, shapely.buffer(around, snap_px))
    pieces = shapely.get_parts(shapely.line_merge(lost))
    controls = b.locate(a.node_xy, snap_px)
    return LostRoads(
        roads_m,
        float(shapely.length(pieces).sum()) * scale,
        tuple(shapely.get_coordinates(piece) for piece in pieces),
        len(a.node_xy),
        a.node_xy[controls.edge < 0],
        _breaks(a, b, scale),
        _routes(a, b, controls, scale, routes),
    )


def _tolerance(way_px: Floats, scale: float) -> Floats:
    tolerance: Floats = WAY_TOLERANCE * way_px + 2 * SNAP_M / scale
    return tolerance


# --- breaks ---------------------------------------------------------------------------------------


def _breaks(a: AplsGraph, b: AplsGraph, scale: float) -> tuple[BrokenRoad, ...]:
    """Places found in ``b``, next to each other in ``a``, without the way between them."""
    samples, sample_xy = sample_roads(a, _SPACING_M / scale)
    web = _Web(a, samples)
    xy = np.concatenate([a.node_xy[: a.junctions], sample_xy])
    # On an overpass the nearest road may be the one that crosses. Junctions have no direction.
    _, ahead = places_at(a, samples.edge, samples.offset[:, LENGTH] + 1)
    _, behind = places_at(a, samples.edge, samples.offset[:, LENGTH] - 1)
    headings = np.concatenate([np.zeros((a.junctions, 2)), ahead - behind])
    point, places = nearest_places(b, xy, SNAP_M / scale, headings)
    point, first = np.unique(point, return_index=True)
    controls = Positions(np.full(len(xy), -1), np.zeros((len(xy), 2)))
    controls.edge[point] = places.edge[first]
    controls.offset[point] = places.offset[first]

    i, j, way = web.neighbours(controls.edge >= 0, _LONGEST_BREAK_M / scale)
    other = _ways(b, controls.take(i), controls.take(j))
    broken = other - way > _tolerance(way, scale)
    i, j, way, other = i[broken], j[broken], way[broken] * scale, other[broken] * scale
    middle = (xy[i] + xy[j]) / 2
    kept: list[int] = []
    # The shortest say most exactly where.
    for k in np.lexsort((*middle.T, way)).tolist():
        apart = np.linalg.norm(middle[kept] - middle[k], axis=1) * scale
        if not (apart < _ONE_BREAK_M).any():
            kept.append(k)
    return tuple(
        BrokenRoad((float(middle[k, 0]), float(middle[k, 1])), float(way[k]), float(other[k]))
        for k in kept
    )


def _ways(graph: AplsGraph, start: Positions, stop: Positions) -> Floats:
    """Length of the shortest way from each of ``start`` to its fellow in ``stop``, pixels."""
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


def _routes(
    a: AplsGraph, b: AplsGraph, controls: Positions, scale: float, count: int
) -> tuple[Route, ...]:
    """The routes between nodes of ``a`` that differ most in ``b``; of equals the shortest."""
    found = np.flatnonzero(controls.edge >= 0)
    if not len(found):
        return ()
    starts, controls = a.nodes.take(found), controls.take(found)
    rows = max(1, _CELLS // len(found))
    ways = a.ways(starts, LENGTH), b.ways(controls, LENGTH)
    candidates = [
        _worst_of_each(*ways, slice(begin, min(begin + rows, len(found))), len(found), scale)
        for begin in range(0, len(found), rows)
    ]
    difference, way, i, j = np.concatenate(candidates, axis=1)
    web_a = _Web(a, a.nodes.take(np.arange(a.junctions, len(a.node_xy))))
    web_b = _Web(b, controls)
    used: set[tuple[int, int]] = set()
    routes: list[Route] = []
    # Rounded, for what is equal but for the last bits.
    for k in np.lexsort((j, i, np.round(way, 6), -np.round(difference, 9))).tolist():
        if len(routes) == count:
            break
        here, there = int(i[k]), int(j[k])
        path, links = web_a.path(int(found[here]), int(found[there]))
        if path is None or used & links:
            continue
        used |= links
        other, _ = web_b.path(b.junctions + here, b.junctions + there)
        other_m = inf if other is None else _length(other) * scale
        routes.append(Route(path, float(way[k]) * scale, other, other_m))
    return tuple(routes)


def _worst_of_each(there: Ways, back: Ways, rows: slice, nodes: int, scale: float) -> Floats:
    """For some nodes the route that suffers most: difference, length, both nodes; (4, nodes)."""
    everywhere = slice(0, nodes)
    way, other = there[rows, everywhere], back[rows, everywhere]
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


# --- ways with their geometry ---------------------------------------------------------------------


class _Web:
    """A road graph cut at given positions: its nodes are the junctions, then the positions."""

    def __init__(self, graph: AplsGraph, positions: Positions) -> None:
        edges = np.arange(len(graph.ends))
        size = graph.junctions + len(positions.edge)
        inner = np.arange(graph.junctions, size)
        edge = np.concatenate([edges, positions.edge, edges])
        totals = graph.totals[:, LENGTH]
        offset = np.concatenate([np.zeros(len(edges)), positions.offset[:, LENGTH], totals])
        node = np.concatenate([graph.ends[:, 0], inner, graph.ends[:, 1]])
        # Stable: at one place the first end comes first and the last end last.
        order = np.lexsort((offset, edge))
        edge, offset, node = edge[order], offset[order], node[order]
        link = np.flatnonzero(edge[1:] == edge[:-1])
        u, v, way = node[link], node[link + 1], offset[link + 1] - offset[link]
        # csr_array would add up links between the same two nodes: keep the shortest.
        shortest = np.lexsort((way, np.maximum(u, v), np.minimum(u, v)))
        link, u, v, way = link[shortest], u[shortest], v[shortest], way[shortest]
        low, high = np.minimum(u, v), np.maximum(u, v)
        keep = np.ones(len(u), np.bool_)
        keep[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        keep &= u != v
        self._graph, self._size = graph, size
        self._u, self._v, self._way = u[keep], v[keep], way[keep]
        link = link[keep]
        self._edge, self._from, self._to = edge[link], offset[link], offset[link + 1]

    def neighbours(self, chosen: NDArray[np.bool_], limit: float) -> tuple[Ints, Ints, Floats]:
        """Pairs of chosen nodes with no chosen node on the way between them, and that way.

        Nodes that are not chosen are passed over as long as the way is shorter than ``limit``.
        """
        both = chosen[self._u] & chosen[self._v]
        i, j, way = [self._u[both]], [self._v[both]], [self._way[both]]
        # Chosen nodes are doubled: ways lead out of the second, and end in the first.
        u, v = np.concatenate([self._u, self._v]), np.concatenate([self._v, self._u])
        links = (np.tile(self._way, 2), (np.where(chosen[u], u + self._size, u), v))
        web = csr_array(links, shape=(2 * self._size, 2 * self._size))
        outset = np.unique(u[chosen[u] & ~chosen[v]])
        rows = max(1, _CELLS // (2 * self._size))
        for begin in range(0, len(outset), rows):
            here = outset[begin : begin + rows]
            ways = dijkstra(web, indices=here + self._size, limit=limit)[:, : self._size]
            row, column = np.nonzero(
                np.isfinite(ways) & chosen & (here[:, None] < np.arange(self._size))
            )
            i.append(here[row])
            j.append(column)
            way.append(ways[row, column])
        return np.concatenate(i), np.concatenate(j), np.concatenate(way)

    def path(self, start: int, stop: int) -> tuple[Floats | None, set[tuple[int, int]]]:
        """The shortest way as float64 (n, 2), None if there is none; and the links it takes."""
        web = csr_array((self._way, (self._u, self._v)), shape=(self._size, self._size))
        # Zeros stay stored, and csgraph takes them for links of no length.
        _, before = dijkstra(web, directed=False, indices=start, return_predecessors=True)
        if start != stop and before[stop] < 0:
            return None, set()
        parts, links = [], set()
        pairs = zip(self._u.tolist(), self._v.tolist(), strict=True)
        place = {pair: k for k, pair in enumerate(pairs)}
        node = stop
        while node != start:
            previous = int(before[node])
            forwards = (previous, node) in place
            k = place[(previous, node) if forwards else (node, previous)]
            ends = (self._from[k], self._to[k]) if forwards else (self._to[k], self._from[k])
            parts.append(_stretch(self._graph, int(self._edge[k]), *ends))
            links.add((min(previous, node), max(previous, node)))
            node = previous
        return (np.concatenate(parts[::-1]) if parts else np.empty((0, 2))), links


def _stretch(graph: AplsGraph, edge: int, start: float, stop: float) -> Floats:
    """Vertices of an edge from one place to another, float64 (n >= 2, 2)."""
    low, high = min(start, stop), max(start, stop)
    begin, end = np.searchsorted(graph.segment_edge, [edge, edge + 1])
    offset = graph.segment_offset[begin:end, LENGTH]
    inner = graph.starts[begin:end][(offset > low) & (offset < high)]
    _, (first, last) = places_at(graph, np.array([edge, edge]), np.array([low, high]))
    path: Floats = np.vstack([first, inner, last])
    return path if start <= stop else path[::-1]
