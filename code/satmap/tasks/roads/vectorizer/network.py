"""A road network under construction, and the graph algorithms that operate on it.

All lines are stored one after the other in one array, so every step is a few array operations,
however many roads there are. Chains of edges are followed by pointer doubling (Wyllie's list
ranking, 1979) on half-edges. Unlike a search from junction to junction in a simple graph, this
keeps parallel roads, loops, and rings without a junction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Line = NDArray[np.float64]
Ints = NDArray[np.int64]


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

    nodes: Line = field(default_factory=lambda: np.empty((0, 2)))
    ends: Ints = field(default_factory=lambda: np.empty((0, 2), np.int64))
    points: Line = field(default_factory=lambda: np.empty((0, 2)))
    counts: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of_lines(cls, nodes: Line, ends: Ints, lines: Sequence[Line]) -> "Network":
        """Build a network from separate lines, float64 (k >= 2, 2) each."""
        points = np.concatenate(lines) if len(lines) else np.empty((0, 2))
        counts = np.array([len(line) for line in lines], np.int64)
        return cls(nodes, np.asarray(ends, np.int64).reshape(-1, 2), points, counts)

    @cached_property
    def starts(self) -> Ints:
        """Index of each road's first point, (m,)."""
        return np.cumsum(self.counts) - self.counts

    @property
    def lines(self) -> list[Line]:
        """The line of each road."""
        return np.split(self.points, self.starts[1:]) if len(self.counts) else []

    @cached_property
    def degrees(self) -> Ints:
        """Number of road ends at each node, (n,); a loop counts twice."""
        return np.bincount(self.ends.ravel(), minlength=len(self.nodes))

    @cached_property
    def along(self) -> NDArray[np.float64]:
        """Cumulative length at each point over all roads, (p,); steps between roads count 0."""
        if not len(self.points):
            return np.empty(0)
        steps = np.diff(self.points, axis=0)
        way = np.zeros(len(self.points))
        np.hypot(steps[:, 0], steps[:, 1], out=way[1:])
        way[self.starts] = 0
        return np.cumsum(way, out=way)

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """Length of each road in the nodes' units, (m,)."""
        if not len(self.counts):
            return np.empty(0)
        lengths: NDArray[np.float64] = (
            self.along[self.starts + self.counts - 1] - self.along[self.starts]
        )
        return lengths

    def places(self, roads: Ints, distances: NDArray[np.float64]) -> Line:
        """Return places on roads at distances from their starts, (k,) and (k,) -> (k, 2)."""
        first = self.starts[roads]
        way = self.along[first] + distances
        before = np.searchsorted(self.along, way, side="right") - 1
        before = before.clip(first, first + self.counts[roads] - 2)
        step = self.along[before + 1] - self.along[before]
        share = (way - self.along[before]) / np.where(step > 0, step, 1)
        low, high = self.points[before], self.points[before + 1]
        places: Line = low + share.clip(0, 1)[:, None] * (high - low)
        return places

    def keep(self, roads: NDArray[np.bool_]) -> "Network":
        """Return a network of the same nodes and the selected roads, (m,)."""
        points = self.points[np.repeat(roads, self.counts)]
        return Network(self.nodes, self.ends[roads], points, self.counts[roads])

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
        ends = np.stack(
            [
                self.ends.reshape(-1)[halves[first]],
                self.ends.reshape(-1)[halves[first + counts - 1] ^ 1],
            ],
            axis=1,
        )
        points, lengths = gather(self, halves >> 1, halves % 2 == 1, np.repeat(first, counts))
        # Each part starts where the previous one ended.
        totals = np.add.reduceat(lengths, first) if len(first) else np.empty(0, np.int64)
        return Network(self.nodes, ends, points, totals).compact()


def gather(
    network: Network, roads: Ints, backwards: NDArray[np.bool_], chain: Ints
) -> tuple[Line, Ints]:
    """Collect the points of roads one after the other.

    Roads that continue a chain lose their first point, which repeats the last one of the previous
    road.

    Args:
        network: the network.
        roads: numbers of the roads, (k,).
        backwards: whether each road is reversed, (k,).
        chain: position in ``roads`` of the first road of each road's chain, (k,).

    Returns:
        Points (p, 2), and the number of points of each road, (k,).
    """
    skip = (chain != np.arange(len(roads))).astype(np.int64)
    counts = network.counts[roads] - skip
    owner = np.repeat(np.arange(len(roads)), counts)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts) + skip[owner]
    first = network.starts[roads]
    last = first + network.counts[roads] - 1
    index = np.where(backwards[owner], last[owner] - rank, first[owner] + rank)
    return network.points[index], counts


def components(count: int, pairs: Ints) -> Ints:
    """Label the connected components of ``count`` nodes, (count,), from 0 up.

    Uses hooking to lower neighbours and pointer jumping (Shiloach and Vishkin 1982). On small
    graphs this takes a dozen array operations, less time than the input checks of scipy's general
    routine.

    Args:
        count: number of nodes.
        pairs: int64 (m, 2), linked nodes.
    """
    root = np.arange(count)
    first, second = pairs[:, 0], pairs[:, 1]
    while True:
        one, other = root[first], root[second]
        if np.array_equal(one, other):
            break
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while True:
            further = root[root]
            if np.array_equal(further, root):
                break
            root = further
    is_root = root == np.arange(count)
    labels: Ints = (np.cumsum(is_root) - 1)[root]
    return labels


def follow_chains(count: int, ends: Ints) -> tuple[Ints, Ints]:
    """Find the chains of edges that meet in nodes of degree two, each once.

    Half-edge 2e leaves the start of edge e, 2e + 1 its end; ``h ^ 1`` is the opposite half-edge.
    Each half-edge points at the next one of its chain. Doubling those pointers gives every
    half-edge the last one of its chain and the number of steps to it, and so its place in the
    chain. A ring of nodes of degree two only is cut at its lowest node.

    Args:
        count: number of nodes.
        ends: int64 (m, 2), nodes of each edge.

    Returns:
        The half-edges of all chains, chain by chain and in order, int64 (m,), and the number of
        half-edges of each chain.
    """
    if not len(ends):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    origin = ends.reshape(-1)
    stop = np.bincount(origin, minlength=count) != 2
    half = np.arange(len(origin))
    while True:
        # The two half-edges that leave each inner node of a chain.
        leaving = np.argsort(origin, kind="stable")
        leaving = leaving[~stop[origin[leaving]]].reshape(-1, 2)
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
        if not ring.any():
            break
        nodes = np.unique(origin[ring])
        number = np.full(count, -1)
        number[nodes] = np.arange(len(nodes))
        label = components(len(nodes), number[ends[ring[::2]]])
        stop[nodes[np.unique(label, return_index=True)[1]]] = True

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
