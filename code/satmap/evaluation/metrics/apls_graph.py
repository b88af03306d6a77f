"""Road graph that APLS scores: merged chains, with nodes as positions on edges.

Follows the scorer of the SpaceNet road challenges (Van Etten, Lindenbaum, Bacastow 2018; the
challenge's own Java code): vertices in one 0.1 px cell form one node, nodes with exactly two edges
are removed, and long edges get midpoints. Unlike that scorer, this code never inserts anything
into a graph. A node, a midpoint or a control point is a *position*: an edge and the distance along
it. Distances between positions follow from the distances between junctions, so coincident control
points, loops and parallel edges need no special handling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree

from satmap.evaluation.metrics.shortest_paths import Floats, Ints, all_pairs, shortest_links
from satmap.submissions.roads_csv import RoadRow

#: Nodes and projections closer than this coincide, pixels (the official scorer's ``P2.equals``).
SAME_PLACE_PX = 0.1

#: Shortest segment the organisers accept, pixels.
_SHORTEST_SEGMENT_PX = 0.01

# Path lengths computed at a time by NearPaths; bounds memory on maps of whole cities.
_NEAR_CELLS = 4_000_000

# Junctions processed at a time; their path lengths fit into a processor's cache.
_ROWS = 16

#: Columns of the weight arrays.
LENGTH, TIME = 0, 1


@dataclass(frozen=True)
class Positions:
    """Places on the edges of a graph.

    Attributes:
        edge: int64 (n,), edge index; -1 for a place that is not on the graph.
        offset: float64 (n, 2), length in pixels and time in seconds from the edge's first end.
    """

    edge: Ints
    offset: Floats

    def take(self, indices: Ints) -> "Positions":
        """Return the positions at ``indices``, in that order."""
        return Positions(self.edge[indices], self.offset[indices])

    def put(self, indices: Ints, places: "Positions") -> None:
        """Replace the positions at ``indices``."""
        self.edge[indices] = places.edge
        self.offset[indices] = places.offset


@dataclass(frozen=True, eq=False)
class AplsGraph:
    """Simplified roads of one image, with the nodes that APLS compares.

    Everything is in a canonical order that does not depend on the order or direction of the roads
    in the file, so equal roads give bit-identical results.

    Attributes:
        ends: int64 (e, 2), junctions at the ends of each edge; equal for a loop.
        totals: float64 (e, 2), length in pixels and time in seconds of each edge.
        junctions: number of junctions.
        starts, stops: float64 (s, 2), x, y of the segments of all edges, edge after edge.
        segment_edge: int64 (s,), the edge of each segment.
        segment_offset: float64 (s, 2), length and time from the edge's first end to ``starts``.
        segment_weight: float64 (s, 2), length and time of each segment.
        node_xy: float64 (n, 2), x, y of the nodes: junctions, then midpoints.
        nodes: positions of the nodes on the edges.
    """

    ends: Ints
    totals: Floats
    junctions: int
    starts: Floats
    stops: Floats
    segment_edge: Ints
    segment_offset: Floats
    segment_weight: Floats
    node_xy: Floats
    nodes: Positions

    @cached_property
    def segment_tree(self) -> shapely.STRtree:
        """Spatial index of the segments."""
        return shapely.STRtree(shapely.linestrings(np.stack([self.starts, self.stops], axis=1)))

    @cached_property
    def between(self) -> Floats:
        """Shortest path lengths between all junctions per weight, (2, junctions, junctions)."""
        return all_pairs(self.ends, self.totals, self.junctions)

    @cached_property
    def junction_component(self) -> Ints:
        """int64 (junctions,), connected component of each junction."""
        links = coo_array((np.ones(len(self.ends)), self.ends.T), (self.junctions, self.junctions))
        labels: Ints = connected_components(links, directed=False)[1].astype(np.int64)
        return labels

    @property
    def component(self) -> Ints:
        """int64 (n,), connected component of each node."""
        parts: Ints = self.junction_component[self.ends[self.nodes.edge, 0]]
        return parts

    def project(self, xy: Floats, segment: Ints) -> tuple[Floats, Floats]:
        """Project points, float64 (n, 2), onto one segment each.

        Returns:
            float64 (n, 1), the share of the segment up to the nearest place; float64 (n,), the
            distance to it in pixels.
        """
        start = self.starts[segment]
        along = self.stops[segment] - start
        squared = np.sum(along**2, axis=1)
        fraction = np.sum((xy - start) * along, axis=1) / np.where(squared > 0, squared, 1)
        fraction = np.clip(fraction, 0, 1)[:, None]
        return fraction, np.linalg.norm(start + fraction * along - xy, axis=1)

    def at(self, segment: Ints, fraction: Floats) -> Positions:
        """Return the positions at shares (n, 1) of segments."""
        offset = self.segment_offset[segment] + fraction * self.segment_weight[segment]
        return Positions(self.segment_edge[segment], offset)

    def locate(self, xy: Floats, snap_px: float) -> Positions:
        """Locate points of another graph on this one: the control points of APLS.

        A point within 0.1 px of a node becomes that node. Any other point snaps to the nearest
        place on an edge, or to nothing (edge -1) if that is farther than ``snap_px``.
        """
        found = Positions(np.full(len(xy), -1, np.int64), np.zeros((len(xy), 2)))
        # Query slightly beyond the limit: the exact check below decides, not the tree's rounding.
        point, segment = self.segment_tree.query_nearest(
            shapely.points(xy), max_distance=snap_px * (1 + 1e-9), all_matches=True
        )
        # Of equally near segments take the first, independent of the tree's order.
        order = np.lexsort((segment, point))
        point, segment = point[order], segment[order]
        point, first = np.unique(point, return_index=True)
        segment = segment[first]
        fraction, distance = self.project(xy[point], segment)
        near = distance <= snap_px
        places = self.at(segment[near], fraction[near])
        totals = self.totals[places.edge]
        way = np.minimum(places.offset, totals)
        way = np.where(way[:, :1] < SAME_PLACE_PX, 0, way)
        way = np.where(totals[:, :1] - way[:, :1] < SAME_PLACE_PX, totals, way)
        found.put(point[near], Positions(places.edge, way))

        distance, node = KDTree(self.node_xy).query(xy)
        alias = np.flatnonzero(distance < SAME_PLACE_PX)
        found.put(alias, self.nodes.take(self._spread_over_nodes(node[alias])))
        return found

    def _spread_over_nodes(self, node: Ints) -> Ints:
        """Distribute control points over coincident nodes.

        Where roads cross without a junction, midpoints of both can fall on the same pixel. All of
        them are equally near; assigning them in turn lets a copy of a graph match itself.
        """
        # Differences below a millionth of a pixel may be rounding errors.
        _, place = np.unique(np.round(self.node_xy, 6), axis=0, return_inverse=True)
        if place.max() + 1 == len(self.node_xy):
            return node
        node = node.copy()
        here = place[node]
        for shared in np.flatnonzero(np.bincount(place) > 1):
            controls = np.flatnonzero(here == shared)
            choices = np.flatnonzero(place == shared)
            node[controls] = choices[np.minimum(np.arange(len(controls)), len(choices) - 1)]
        return node


class Ways:
    """Shortest path lengths between positions of a graph, computed tile by tile.

    The full matrix of a city would not fit into memory, nor its rows into a processor's cache.
    """

    def __init__(self, graph: AplsGraph, positions: Positions, weight: int) -> None:
        """Compute the path lengths from all junctions to all positions, by length or time."""
        between = graph.between[weight]
        self._edge = positions.edge
        self._u, self._v = graph.ends[positions.edge].T
        self._head = positions.offset[:, weight].copy()
        self._tail = graph.totals[positions.edge, weight] - self._head
        # Positions off the graph are not connected to anything.
        self._head[positions.edge < 0] = self._tail[positions.edge < 0] = np.inf
        self._from_junctions = np.empty((len(between), len(positions.edge)))
        for begin in range(0, len(between), _ROWS):
            near = between[begin : begin + _ROWS]
            by_start = near.take(self._u, axis=1)
            by_start += self._head
            by_end = near.take(self._v, axis=1)
            by_end += self._tail
            np.minimum(by_start, by_end, out=self._from_junctions[begin : begin + _ROWS])

    def __getitem__(self, tile: tuple[slice, slice]) -> Floats:
        """Return path lengths for a tile of positions, float64; infinite where unconnected."""
        rows, columns = tile
        onward = self._from_junctions[:, columns]
        ways: Floats = onward[self._u[rows]]
        ways += self._head[rows, None]
        other = onward[self._v[rows]]
        other += self._tail[rows, None]
        np.minimum(ways, other, out=ways)
        # The path along a shared edge need not pass either end.
        here = self._edge[rows, None]
        i, j = np.nonzero((here == self._edge[columns]) & (here >= 0))
        along = np.abs(self._head[rows][i] - self._head[columns][j])
        ways[i, j] = np.minimum(ways[i, j], along)
        return ways


class NearPaths:
    """Shortest path lengths between positions of a graph, up to a limit.

    Their memory grows with the roads within the limit, so it suits cities and countries alike.
    """

    def __init__(self, graph: AplsGraph, limit_px: float) -> None:
        """Compute the paths of at most ``limit_px`` between all junctions, by length."""
        u, v = np.concatenate([graph.ends, graph.ends[:, ::-1]]).T
        way = np.tile(graph.totals[:, LENGTH], 2)
        # scipy adds up parallel edges: keep the shortest. Loops are never a shortcut.
        keep = shortest_links(u, v, way)
        keep = keep[u[keep] != v[keep]]
        shape = (graph.junctions, graph.junctions)
        matrix = csr_array((way[keep], (u[keep], v[keep])), shape=shape)
        rows = max(1, _NEAR_CELLS // graph.junctions)
        keys, ways = [], []
        for begin in range(0, graph.junctions, rows):
            here = np.arange(begin, min(begin + rows, graph.junctions))
            found = dijkstra(matrix, indices=here, limit=limit_px)
            row, column = np.nonzero(np.isfinite(found))
            keys.append((row + begin) * graph.junctions + column)
            ways.append(found[row, column])
        self._graph = graph
        self._keys, self._ways = np.concatenate(keys), np.concatenate(ways)

    def between(self, start: Positions, stop: Positions) -> Floats:
        """Return the path length from each of ``start`` to its partner in ``stop``, pixels.

        It is infinite if the part of the path between junctions is longer than the limit.
        """
        ends, totals = self._graph.ends, self._graph.totals[:, LENGTH]
        here, there = start.offset[:, LENGTH], stop.offset[:, LENGTH]
        ways: Floats = np.where(start.edge == stop.edge, np.abs(here - there), np.inf)
        for from_end, head in enumerate((here, totals[start.edge] - here)):
            for to_end, tail in enumerate((there, totals[stop.edge] - there)):
                u, v = ends[start.edge, from_end], ends[stop.edge, to_end]
                ways = np.minimum(ways, head + self._between(u, v) + tail)
        return ways

    def _between(self, u: Ints, v: Ints) -> Floats:
        key = u * self._graph.junctions + v
        place = np.searchsorted(self._keys, key)
        place[place == len(self._keys)] = 0
        ways: Floats = np.where(self._keys[place] == key, self._ways[place], np.inf)
        return ways


def expand(counts: Ints) -> tuple[Ints, Ints]:
    """Return each index i ``counts[i]`` times, paired with 0, 1, ..., ``counts[i]`` - 1."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)


def build_graph(roads: Sequence[RoadRow], midpoint_px: float) -> AplsGraph | None:
    """Build the graph of one image's roads; None if they have no segment.

    Args:
        roads: lines in pixels; a row's time is spread evenly along its line. NaN times give NaN
            time weights, which matter only if time is scored.
        midpoint_px: spacing of the midpoints (50 m), pixels.
    """
    segments = _segments(roads)
    if segments is None:
        return None
    segment_nodes, xy, coordinates, weight = segments
    chains = _chains(segment_nodes)

    index = np.array([i for chain in chains for i, _ in chain])
    flip = np.array([flipped for chain in chains for _, flipped in chain])
    sizes = np.array([len(chain) for chain in chains])
    first = np.cumsum(sizes) - sizes
    last = first + sizes - 1
    segment_edge = np.repeat(np.arange(len(chains)), sizes)

    coordinates = np.where(flip[:, None, None], coordinates[index, ::-1], coordinates[index])
    chain_nodes = np.where(flip[:, None], segment_nodes[index, ::-1], segment_nodes[index])
    weight = weight[index]
    after = np.cumsum(weight, axis=0)
    before = np.concatenate([np.zeros((1, 2)), after[:-1]])
    segment_offset = before - before[first][segment_edge]
    totals = after[last] - before[first]

    ends = np.stack([chain_nodes[first, 0], chain_nodes[last, 1]], axis=1)
    junction_ids, ends_flat = np.unique(ends, return_inverse=True)
    ends = ends_flat.reshape(ends.shape)
    # A junction lies on several edges; any of them can define its position.
    _, touch = np.unique(ends.T, return_index=True)
    edge = touch % len(ends)
    offset = np.where((touch >= len(ends))[:, None], totals[edge], 0)

    mid_edge, mid_length = _midpoints(totals[:, LENGTH], midpoint_px)
    segment = np.searchsorted(before[:, LENGTH], before[first[mid_edge], LENGTH] + mid_length)
    segment = np.clip(segment - 1, first[mid_edge], last[mid_edge])
    rest = mid_length - segment_offset[segment, LENGTH]
    fraction = np.clip(rest / weight[segment, LENGTH], 0, 1)[:, None]
    start, stop = coordinates[segment, 0], coordinates[segment, 1]
    mid_offset = segment_offset[segment] + fraction * weight[segment]

    return AplsGraph(
        ends=ends,
        totals=totals,
        junctions=len(junction_ids),
        starts=coordinates[:, 0],
        stops=coordinates[:, 1],
        segment_edge=segment_edge,
        segment_offset=segment_offset,
        segment_weight=weight,
        node_xy=np.concatenate([xy[junction_ids], start + fraction * (stop - start)]),
        nodes=Positions(np.concatenate([edge, mid_edge]), np.concatenate([offset, mid_offset])),
    )


def _segments(roads: Sequence[RoadRow]) -> tuple[Ints, Floats, Floats, Floats] | None:
    """Return the segments of all roads in canonical order, or None if there are none.

    These are int64 (s, 2) nodes at the ends, the smaller first; float64 (nodes, 2) x, y of the
    nodes; float64 (s, 2, 2) x, y of both ends; float64 (s, 2) length and time.
    """
    roads = [road for road in roads if len(road.line) >= 2]
    if not roads:
        return None
    points = np.concatenate([road.line for road in roads])
    road = np.repeat(np.arange(len(roads)), [len(r.line) for r in roads])
    inner = np.flatnonzero(road[1:] == road[:-1])
    length = np.hypot(*(points[inner + 1] - points[inner]).T)
    road_length = np.bincount(road[inner], length)
    time = np.array([r.travel_time_s for r in roads])
    pace = time / np.where(road_length > 0, road_length, 1)
    weight = np.stack([length, length * pace[road[inner]]], axis=1)

    # Rounds halves up, like Java's Math.round. A node takes the place of its smallest vertex (the
    # official scorer: of the first in the file), so that the order of the rows does not matter.
    order = np.lexsort((points[:, 1], points[:, 0]))
    cells = np.floor(10 * points[order] + 0.5).astype(np.int64)
    _, smallest, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    node_of = np.empty(len(points), dtype=np.int64)
    node_of[order] = inverse.ravel()
    xy = points[order][smallest]

    ends = np.stack([node_of[inner], node_of[inner + 1]], axis=1)
    coordinates = np.stack([points[inner], points[inner + 1]], axis=1)
    keep = (ends[:, 0] != ends[:, 1]) | (length >= _SHORTEST_SEGMENT_PX)
    ends, coordinates, weight = ends[keep], coordinates[keep], weight[keep]
    if not len(ends):
        return None
    (ax, ay), (bx, by) = coordinates[:, 0].T, coordinates[:, 1].T
    u, v = ends.T
    swap = (u > v) | ((u == v) & ((ax > bx) | ((ax == bx) & (ay > by))))
    ends = np.where(swap[:, None], ends[:, ::-1], ends)
    coordinates = np.where(swap[:, None, None], coordinates[:, ::-1], coordinates)
    order = np.lexsort((*weight.T[::-1], *coordinates.reshape(-1, 4).T[::-1], *ends.T[::-1]))
    return ends[order], xy, coordinates[order], weight[order]


def _chains(segment_nodes: Ints) -> list[list[tuple[int, bool]]]:
    """Merge the segments at nodes that have exactly two, to chains of (segment, runs backwards).

    Rings without a junction are not merged: each segment is a chain. A segment within one cell (a
    loop) preserves its node, as a third edge would.
    """
    ends: list[list[int]] = segment_nodes.tolist()
    touching: list[list[int]] = [[] for _ in range(int(segment_nodes.max()) + 1)]
    pinned = set()
    for i, (u, v) in enumerate(ends):
        touching[u].append(i)
        if u == v:
            pinned.add(u)
        else:
            touching[v].append(i)

    def passes(node: int) -> bool:
        return len(touching[node]) == 2 and node not in pinned

    chains = []
    done = [False] * len(ends)
    for node, segments in enumerate(touching):
        if passes(node):
            continue
        for segment in segments:
            if done[segment]:
                continue
            chain = []
            here, i = node, segment
            while True:
                done[i] = True
                backwards = ends[i][0] != here
                chain.append((i, backwards))
                here = ends[i][0 if backwards else 1]
                if not passes(here):
                    break
                a, b = touching[here]
                i = b if i == a else a
            chains.append(chain)
    chains.extend([(i, False)] for i in range(len(ends)) if not done[i])
    return chains


def _midpoints(lengths: Floats, spacing: float) -> tuple[Ints, Floats]:
    """Return edge and distance of every midpoint; edges below 0.75 ``spacing`` have none."""
    counts = np.floor(lengths / spacing).astype(np.int64)
    counts[(lengths >= 0.75 * spacing) & (lengths < spacing)] = 1
    edge, rank = expand(counts)
    return edge, (rank + 1) * (lengths / (counts + 1))[edge]
