"""The road graph that APLS scores: chains merged, nodes as positions on edges.

Follows the scorer of the SpaceNet road challenges (Van Etten, Lindenbaum, Bacastow 2018; the
challenge's own Java code): vertices in one 0.1 px cell are one node, nodes with two edges vanish,
long edges get midpoints. Unlike that scorer, nothing is ever inserted into a graph. A node, a
midpoint or a control is a *position*: an edge and the way travelled along it. Distances between
positions follow from the distances between junctions, so two controls at one place, a loop or
parallel edges need no care.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from satmap.evaluation.metrics.shortest_paths import all_pairs
from satmap.submissions.roads_csv import RoadRow

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Nodes and projections closer than this are one, pixels (the official scorer's ``P2.equals``).
SAME_PLACE_PX = 0.1

#: Shortest segment the organisers accept, pixels.
_SHORTEST_SEGMENT_PX = 0.01

# Junctions whose ways onward are computed at a time: they fit into a processor's cache.
_ROWS = 16

#: Columns of every array of weights.
LENGTH, TIME = 0, 1


@dataclass(frozen=True)
class Positions:
    """Places on the edges of a graph.

    Attributes:
        edge: int64 (n,), the edge of each; -1 for a place that is not on the graph.
        offset: float64 (n, 2), length in pixels and time in seconds from the edge's first end.
    """

    edge: Ints
    offset: Floats

    def take(self, indices: Ints) -> "Positions":
        """Some of them, in the order of ``indices``."""
        return Positions(self.edge[indices], self.offset[indices])


@dataclass(frozen=True, eq=False)
class AplsGraph:
    """Roads of one image, simplified, with the nodes that APLS compares.

    Everything is in a canonical order that depends on the roads alone, not on their order or
    direction, so equal roads give equal bits.

    Attributes:
        ends: int64 (e, 2), junctions at the ends of each edge; equal for a loop.
        totals: float64 (e, 2), length in pixels and time in seconds of each edge.
        junctions: number of junctions.
        starts, stops: float64 (s, 2), x, y of the segments of all edges, edge after edge.
        segment_edge: int64 (s,), the edge of each segment.
        segment_offset: float64 (s, 2), length and time from the edge's first end to ``starts``.
        segment_weight: float64 (s, 2), length and time of each segment.
        node_xy: float64 (n, 2), x, y of the nodes: junctions, then midpoints.
        nodes: where the nodes lie on the edges.
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
    def _segment_tree(self) -> shapely.STRtree:
        return shapely.STRtree(shapely.linestrings(np.stack([self.starts, self.stops], axis=1)))

    @cached_property
    def between(self) -> Floats:
        """Shortest ways between all junctions under each weight, (2, junctions, junctions)."""
        return all_pairs(self.ends, self.totals, self.junctions)

    @cached_property
    def component(self) -> Ints:
        """int64 (n,): the connected part of the roads that each node lies on."""
        links = coo_array((np.ones(len(self.ends)), self.ends.T), (self.junctions, self.junctions))
        _, labels = connected_components(links, directed=False)
        parts: Ints = labels[self.ends[self.nodes.edge, 0]].astype(np.int64)
        return parts

    def ways(self, positions: Positions, weight: int) -> "Ways":
        """Shortest ways between ``positions`` under one weight."""
        return Ways(self.ends, self.totals[:, weight], self.between[weight], positions, weight)

    def locate(self, xy: Floats, snap_px: float) -> Positions:
        """Places on this graph that stand for points of another: the controls of APLS.

        A point within 0.1 px of a node is that node; any other goes to the nearest place on an
        edge, or nowhere (edge -1) if that is farther than ``snap_px``.
        """
        edge, offset = self._project(xy, snap_px)
        distance, node = KDTree(self.node_xy).query(xy)
        alias = np.flatnonzero(distance < SAME_PLACE_PX)
        node = self._merge_positions(node[alias])
        edge[alias] = self.nodes.edge[node]
        offset[alias] = self.nodes.offset[node]
        return Positions(edge, offset)

    def _project(self, xy: Floats, snap_px: float) -> tuple[Ints, Floats]:
        edge = np.full(len(xy), -1, dtype=np.int64)
        offset = np.zeros((len(xy), 2))
        # A little farther than the limit: the decision below is ours, not the tree's rounding.
        point, segment = self._segment_tree.query_nearest(
            shapely.points(xy), max_distance=snap_px * (1 + 1e-9), all_matches=True
        )
        # Of equally near segments the first: one answer whatever the tree's order.
        order = np.lexsort((segment, point))
        point, segment = point[order], segment[order]
        point, first = np.unique(point, return_index=True)
        segment = segment[first]

        start = self.starts[segment]
        along = self.stops[segment] - start
        squared = np.sum(along**2, axis=1)
        fraction = np.sum((xy[point] - start) * along, axis=1) / np.where(squared > 0, squared, 1)
        fraction = np.clip(fraction, 0, 1)[:, None]
        near = np.linalg.norm(start + fraction * along - xy[point], axis=1) <= snap_px
        point, segment, fraction = point[near], segment[near], fraction[near]

        totals = self.totals[self.segment_edge[segment]]
        way = self.segment_offset[segment] + fraction * self.segment_weight[segment]
        way = np.minimum(way, totals)
        way = np.where(way[:, :1] < SAME_PLACE_PX, 0, way)
        way = np.where(totals[:, :1] - way[:, :1] < SAME_PLACE_PX, totals, way)
        edge[point] = self.segment_edge[segment]
        offset[point] = way
        return edge, offset

    def _merge_positions(self, node: Ints) -> Ints:
        """Spread controls over nodes that lie at one place.

        Where roads cross without a junction, midpoints of both can fall on the same pixel. Any of
        them is equally near; taking them in turn lets a copy of a graph match itself.
        """
        # A millionth of a pixel is no distance: what is closer may be a rounding error.
        _, place = np.unique(np.round(self.node_xy, 6), axis=0, return_inverse=True)
        if place.max() + 1 == len(self.node_xy):
            return node
        node = node.copy()
        here = place[node]
        for shared in np.flatnonzero(np.bincount(place) > 1):
            tenants = np.flatnonzero(here == shared)
            choices = np.flatnonzero(place == shared)
            node[tenants] = choices[np.minimum(np.arange(len(tenants)), len(choices) - 1)]
        return node


class Ways:
    """Shortest ways between positions of a graph, computed tile by tile.

    The whole matrix of a city would not fit into memory, nor its rows into a processor's cache.
    """

    def __init__(
        self, ends: Ints, totals: Floats, between: Floats, positions: Positions, weight: int
    ) -> None:
        """Args as in :class:`AplsGraph`; ``between`` float64 (junctions, junctions)."""
        self._edge = positions.edge
        self._u, self._v = ends[positions.edge].T
        self._head = positions.offset[:, weight].copy()
        self._tail = totals[positions.edge] - self._head
        # What is not on the graph has no way to anywhere.
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
        """Ways from some positions to some, float64; infinite where there is none."""
        rows, columns = tile
        onward = self._from_junctions[:, columns]
        ways: Floats = onward[self._u[rows]]
        ways += self._head[rows, None]
        other = onward[self._v[rows]]
        other += self._tail[rows, None]
        np.minimum(ways, other, out=ways)
        # Along a shared edge the way need not pass either end.
        here = self._edge[rows, None]
        i, j = np.nonzero((here == self._edge[columns]) & (here >= 0))
        along = np.abs(self._head[rows][i] - self._head[columns][j])
        ways[i, j] = np.minimum(ways[i, j], along)
        return ways


def build_graph(roads: Sequence[RoadRow], midpoint_px: float) -> AplsGraph | None:
    """Graph of one image's roads; None if they have no segment.

    Args:
        roads: lines in pixels; a line's time is spread evenly along it. NaN times give NaN
            weights, which say nothing and harm nothing until they are asked for.
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
    # A junction lies on many edges; any of them will do to say where.
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
    """Segments of all roads in canonical order, or None.

    Returns:
        int64 (s, 2) nodes at the ends, the smaller first; float64 (nodes, 2) x, y of the nodes;
        float64 (s, 2, 2) x, y of both ends; float64 (s, 2) length and time.
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

    # Java's Math.round: halves go up. A node stands where its smallest vertex stands (the official
    # scorer takes the first in the file), so that the order of the rows changes nothing.
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
    """Merge the segments at nodes that have exactly two.

    Rings without a junction stay as they are, one chain a segment. A segment within one cell (a
    loop) keeps its node from vanishing, as a third edge would.

    Returns:
        Chains of (segment, whether it runs backwards), from end to end.
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
    """Edge and distance along it of every midpoint, edges shorter than 0.75 ``spacing`` without."""
    counts = np.floor(lengths / spacing).astype(np.int64)
    counts[(lengths >= 0.75 * spacing) & (lengths < spacing)] = 1
    edge = np.repeat(np.arange(len(lengths)), counts)
    rank = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return edge, rank * (lengths / (counts + 1))[edge]
