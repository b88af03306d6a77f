"""A road network under construction, and the graph algorithms that operate on it.

All lines are stored one after the other in one array, so every step is a few array operations,
however many roads there are. Chains of edges are followed by pointer doubling (Wyllie's list
ranking, 1979) on half-edges. Unlike a search from junction to junction in a simple graph, this
keeps parallel roads, loops, and rings without a junction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def norm(vectors: Floats) -> Floats:
    """Return the lengths of vectors, (..., 2) -> (...)."""
    return np.asarray(np.hypot(vectors[..., 0], vectors[..., 1]))


def unit(vectors: Floats) -> Floats:
    """Return vectors, (..., 2), scaled to length 1; vectors of length 0 stay."""
    return np.asarray(vectors / np.maximum(norm(vectors), 1e-9)[..., None])


def cross(first: Floats, second: Floats) -> Floats:
    """Return the cross products of vectors, (..., 2) -> (...)."""
    return np.asarray(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0])


def members(sizes: Ints) -> tuple[Ints, Ints]:
    """Return the group of each member of groups of these sizes, and its rank in its group."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


@dataclass(frozen=True)
class Network:
    """An undirected multigraph with geometry.

    Attributes:
        nodes: float64 (n, 2), x and y.
        ends: int64 (m, 2), start and end node of each road; equal for a loop.
        points: float64 (p, 2), the lines of all roads, each from the place of its start node to
            that of its end node.
        counts: int64 (m,), number of points of each road, at least 2.
    """

    nodes: Floats = field(default_factory=lambda: np.empty((0, 2)))
    ends: Ints = field(default_factory=lambda: np.empty((0, 2), np.int64))
    points: Floats = field(default_factory=lambda: np.empty((0, 2)))
    counts: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of_lines(cls, nodes: Floats, ends: Ints, lines: Sequence[Floats]) -> "Network":
        """Build a network from separate lines, float64 (k >= 2, 2) each."""
        points = np.concatenate(lines) if len(lines) else np.empty((0, 2))
        counts = np.array([len(line) for line in lines], np.int64)
        return cls(nodes, np.asarray(ends, np.int64).reshape(-1, 2), points, counts)

    @cached_property
    def starts(self) -> Ints:
        """Index of each road's first point, (m,)."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def stops(self) -> Ints:
        """Index of each road's last point, (m,)."""
        return self.starts + self.counts - 1

    @property
    def lines(self) -> list[Floats]:
        """The line of each road."""
        # A tenth of the time of np.split.
        ends = zip(self.starts.tolist(), self.counts.tolist(), strict=True)
        return [self.points[start : start + count] for start, count in ends]

    @cached_property
    def roads(self) -> Ints:
        """Road of each point, (p,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def degrees(self) -> Ints:
        """Number of road ends at each node, (n,); a loop counts twice."""
        return np.bincount(self.ends.ravel(), minlength=len(self.nodes))

    @property
    def origins(self) -> Ints:
        """Node that each half-edge leaves, (2m,): 2e leaves the start of road e, 2e + 1 its end."""
        return self.ends.reshape(-1)

    @cached_property
    def _by_node(self) -> tuple[Ints, Ints]:
        """All half-edges, node by node, and the index of each node's first one."""
        first = np.cumsum(self.degrees) - self.degrees
        return np.argsort(self.origins, kind="stable"), first

    def leaving(self, nodes: Ints, degree: int) -> Ints:
        """Return the half-edges at nodes that all have ``degree`` roads, (...) -> (..., degree)."""
        halves, first = self._by_node
        return np.asarray(halves[first[nodes][..., None] + np.arange(degree)])

    @property
    def loops(self) -> Bools:
        """Whether each road is a loop, (m,)."""
        return np.asarray(self.ends[:, 0] == self.ends[:, 1])

    @cached_property
    def components(self) -> Ints:
        """Connected component of each road, (m,)."""
        return components(len(self.nodes), self.ends)[self.ends[:, 0]]

    @cached_property
    def along(self) -> Floats:
        """Cumulative length at each point over all roads, (p,); steps between roads count 0."""
        way = np.zeros(len(self.points))
        way[1:] = norm(np.diff(self.points, axis=0))
        way[self.starts] = 0
        return np.cumsum(way, out=way)

    @property
    def way(self) -> Floats:
        """Distance of each point from the start of its road, (p,)."""
        return self.along - self.along[self.starts][self.roads]

    @cached_property
    def lengths(self) -> Floats:
        """Length of each road in the nodes' units, (m,)."""
        return self.along[self.stops] - self.along[self.starts]

    def places(self, roads: Ints, distances: Floats) -> Floats:
        """Return the point on each road, (k,), at a distance from its start, (k,), as (k, 2)."""
        first = self.starts[roads]
        way = self.along[first] + distances
        before = np.searchsorted(self.along, way, side="right") - 1
        before = before.clip(first, first + self.counts[roads] - 2)
        step = self.along[before + 1] - self.along[before]
        share = (way - self.along[before]) / np.where(step > 0, step, 1)
        low, high = self.points[before], self.points[before + 1]
        return low + share.clip(0, 1)[:, None] * (high - low)

    def keep(self, roads: Bools) -> "Network":
        """Return a network of the same nodes and the selected roads, (m,)."""
        points = self.points[np.repeat(roads, self.counts)]
        return Network(self.nodes, self.ends[roads], points, self.counts[roads])

    def with_points(self, points: Floats, kept: Bools) -> "Network":
        """Return the network with new coordinates (p, 2), without the points not in ``kept``."""
        counts = np.bincount(self.roads[kept], minlength=len(self.counts))
        return replace(self, points=points[kept], counts=counts)

    def compact(self) -> "Network":
        """Return the network without unused nodes, in the same order."""
        used = self.degrees > 0
        if used.all():
            return self
        number = np.cumsum(used) - 1
        return Network(self.nodes[used], number[self.ends], self.points, self.counts)

    def dissolve(self) -> "Network":
        """Return the network without nodes of degree two and without unused nodes."""
        if not (self.degrees == 2).any():
            return self.compact()
        halves, counts = follow_chains(len(self.nodes), self.ends)
        first = np.cumsum(counts) - counts
        last = first + counts - 1
        ends = self.origins[np.stack([halves[first], halves[last] ^ 1], axis=1)]
        points, lengths = gather(self, halves >> 1, halves % 2 == 1, np.repeat(first, counts))
        # Each part starts where the previous one ended.
        totals = np.add.reduceat(lengths, first) if len(first) else np.empty(0, np.int64)
        return Network(self.nodes, ends, points, totals).compact()


def gather(network: Network, roads: Ints, backwards: Bools, chain: Ints) -> tuple[Floats, Ints]:
    """Collect the points of roads, (k,), one after the other; some of them ``backwards``, (k,).

    Roads that continue a chain lose their first point, which repeats the last one of the previous
    road. ``chain`` is the position in ``roads`` of the first road of each road's chain, (k,).

    Returns:
        Points (p, 2), and the number of points of each road, (k,).
    """
    skip = (chain != np.arange(len(roads))).astype(np.int64)
    counts = network.counts[roads] - skip
    owner, rank = members(counts)
    rank += skip[owner]
    first, last = network.starts[roads], network.stops[roads]
    index = np.where(backwards[owner], last[owner] - rank, first[owner] + rank)
    return network.points[index], counts


def components(count: int, pairs: Ints) -> Ints:
    """Label the components of nodes that pairs, (m, 2), connect, in order of their first nodes."""
    links = coo_array((np.ones(len(pairs)), pairs.T), (count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def follow_chains(count: int, ends: Ints, cuts: Ints | None = None) -> tuple[Ints, Ints]:
    """Find the chains of edges that meet in nodes of degree two, each once.

    Half-edge 2e leaves the start of edge e, 2e + 1 its end; ``h ^ 1`` is the opposite half-edge.
    Each half-edge points at the next one of its chain. Doubling those pointers gives every
    half-edge the last one of its chain and the number of steps to it, and so its place in the
    chain. A ring of nodes of degree two only is cut at its lowest node.

    Args:
        count: number of nodes.
        ends: int64 (m, 2), nodes of each edge.
        cuts: further nodes at which chains end.

    Returns:
        The half-edges of all chains, chain by chain and in order, int64 (m,), and the number of
        half-edges of each chain.
    """
    if not len(ends):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    origin = ends.reshape(-1)
    stop = np.bincount(origin, minlength=count) != 2
    if cuts is not None:
        stop[cuts] = True
    # The two half-edges that leave each inner node of a chain.
    leaving = np.argsort(origin, kind="stable")
    leaving = leaving[~stop[origin[leaving]]].reshape(-1, 2)
    half = np.arange(len(origin))
    last = half.copy()
    last[leaving[:, 0] ^ 1] = leaving[:, 1]
    last[leaving[:, 1] ^ 1] = leaving[:, 0]
    steps = (last != half).astype(np.int64)
    for _ in range(len(origin).bit_length()):
        further = last[last]
        if np.array_equal(further, last):
            break
        steps += steps[last]
        last = further
    ring = ~stop[origin[last ^ 1]]
    if ring.any():
        label = components(count, ends)
        lowest = np.unique(label, return_index=True)[1]
        return follow_chains(count, ends, lowest[np.unique(label[origin[ring]])])

    # Each chain is found from both of its ends; keep the direction with the lower last half-edge.
    starts = np.flatnonzero(stop[origin])
    starts = starts[last[starts] < (starts ^ 1)]
    starts = starts[np.argsort(last[starts])]
    counts = steps[starts] + 1
    offset = np.zeros_like(half)
    offset[last[starts]] = np.cumsum(counts) - 1
    kept = np.zeros(len(half), np.bool_)
    kept[last[starts]] = True
    mine = np.flatnonzero(kept[last])
    halves = np.empty(len(ends), np.int64)
    halves[offset[last[mine]] - steps[mine]] = mine
    return halves, counts
