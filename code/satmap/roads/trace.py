"""From a skeleton to a network: nodes, and between them roads with their path of pixels.

Every step is a handful of array operations, without a loop over pixels. Pixels are joined to their
neighbours; touching junction pixels become one node; then all chains through nodes of degree two
are followed at once by pointer doubling (Wyllie's list ranking, 1979). The same walk dissolves
needless nodes after cleaning. Unlike a search from junction to junction over a plain graph, it
works on half-edges, so parallel roads, loops and rings without a junction all survive.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Line = NDArray[np.float64]


@dataclass(frozen=True)
class Network:
    """A road network under construction: an undirected multigraph with geometry.

    Attributes:
        nodes: float64 (n, 2), x and y.
        ends: int64 (m, 2), start and end node of each road; equal for a loop.
        lines: float64 (k >= 2, 2) each, from the start node's place to the end node's.
    """

    nodes: Line = field(default_factory=lambda: np.empty((0, 2)))
    ends: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    lines: tuple[Line, ...] = ()

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Number of road ends at each node, (n,); a loop counts twice."""
        return np.bincount(self.ends.ravel(), minlength=len(self.nodes))

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Length of each road, (m,), in the nodes' units."""
        if not self.lines:
            return np.empty(0)
        counts = np.array([len(line) for line in self.lines])
        steps = np.diff(np.concatenate(self.lines), axis=0)
        distances = np.hypot(steps[:, 0], steps[:, 1])
        # Steps from one line to the next are no road.
        distances[np.cumsum(counts[:-1]) - 1] = 0
        return np.add.reduceat(distances, np.cumsum(counts) - counts)

    def keep(self, roads: NDArray[np.bool_]) -> "Network":
        """The same nodes with the chosen roads, (m,)."""
        lines = tuple(line for line, kept in zip(self.lines, roads, strict=True) if kept)
        return Network(self.nodes, self.ends[roads], lines)


def line_length(line: Line) -> float:
    """Length of a line in its own units."""
    steps = np.diff(line, axis=0)
    return float(np.hypot(steps[:, 0], steps[:, 1]).sum())


def on_border(nodes: Line, size: Line) -> NDArray[np.bool_]:
    """Which of (n, 2) places lie on the image's border."""
    border: NDArray[np.bool_] = np.any((nodes <= 1e-6) | (nodes >= size - 1e-6), axis=1)
    return border


def trace(skeleton: NDArray[np.bool_]) -> Network:
    """Network of a skeleton, (height, width), in pixels.

    Pixel (row, column) has its centre at x = column + 0.5, y = row + 0.5, as in label vectors that
    went through the inverse of the image's affine transform.
    """
    pixels, links = _pixel_links(skeleton)
    degrees = np.bincount(links.ravel(), minlength=len(pixels))
    is_junction = degrees >= 3
    inside = is_junction[links].all(axis=1)
    count, group = components(len(pixels), links[inside])
    sizes = np.bincount(group, minlength=count)
    nodes = np.stack(
        [np.bincount(group, pixels[:, axis], minlength=count) / sizes for axis in (0, 1)], axis=1
    )
    ends = group[links[~inside]]
    chains = follow_chains(count, ends)
    lines = tuple(nodes[chain] for chain in chains)
    return compact(nodes, _chain_ends(chains), lines)


def dissolve(network: Network) -> Network:
    """The same roads without nodes of degree two, and without unused nodes."""
    ends = network.ends
    halves = follow_chains(len(network.nodes), ends, halves=True)
    lines = []
    for chain in halves:
        parts = [
            network.lines[half >> 1] if half % 2 == 0 else network.lines[half >> 1][::-1]
            for half in chain.tolist()
        ]
        # Each part starts where the one before it ended.
        lines.append(np.concatenate([parts[0], *(part[1:] for part in parts[1:])]))
    sides = ends.reshape(-1)
    new = np.array([(sides[c[0]], sides[c[-1] ^ 1]) for c in halves], np.int64).reshape(-1, 2)
    return compact(network.nodes, new, tuple(lines))


def compact(nodes: Line, ends: NDArray[np.int64], lines: tuple[Line, ...]) -> Network:
    """A network without the nodes that no road uses; order is kept."""
    used, inverse = np.unique(ends, return_inverse=True)
    return Network(nodes[used], inverse.reshape(-1, 2).astype(np.int64), lines)


def components(count: int, ends: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Number of connected components of ``count`` nodes, and the component of each, (count,)."""
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), (count, count))
    number, labels = connected_components(graph, directed=False)
    return int(number), labels.astype(np.int64)


def follow_chains(
    count: int, ends: NDArray[np.int64], *, halves: bool = False
) -> list[NDArray[np.int64]]:
    """Chains of edges that meet in nodes of degree two, each once.

    Half-edge 2e leaves the start of edge e, 2e + 1 its end; ``h ^ 1`` is the other half. Each
    half-edge points at the next of its chain; doubling those pointers gives every half-edge its
    chain's last and the number of steps to it, and a sort by both yields all chains in order.

    Args:
        count: number of nodes.
        ends: int64 (m, 2), nodes of each edge.
        halves: return half-edges instead of nodes.

    Returns:
        One int64 array a chain: its nodes from end to end (a ring starts and ends with the lowest),
        or its half-edges in order.
    """
    if not len(ends):
        return []
    origin = ends.reshape(-1)
    degrees = np.bincount(origin, minlength=count)
    stop = degrees != 2
    # A ring of nothing but degree two has no end to start from: its lowest node serves.
    _, label = components(count, ends)
    has_stop = np.zeros(count, np.bool_)
    has_stop[label[stop]] = True
    _, lowest = np.unique(label, return_index=True)
    stop[lowest[~has_stop[: len(lowest)]]] = True

    # The two half-edges that leave each node in the midst of a chain.
    leaving = np.argsort(origin, kind="stable")
    leaving = leaving[~stop[origin[leaving]]].reshape(-1, 2)
    half = np.arange(2 * len(ends))
    following = half.copy()
    following[leaving[:, 0] ^ 1] = leaving[:, 1]
    following[leaving[:, 1] ^ 1] = leaving[:, 0]
    steps = (following != half).astype(np.int64)
    last = following
    while True:
        further = last[last]
        if np.array_equal(further, last):
            break
        steps = steps + steps[last]
        last = further

    # A chain is found from both its ends; the direction with the lower last half-edge is kept.
    first = np.empty_like(half)
    starts = np.flatnonzero(stop[origin])
    first[last[starts]] = starts
    kept = np.flatnonzero(last < (first[last] ^ 1))
    kept = kept[np.lexsort((-steps[kept], last[kept]))]
    cuts = np.flatnonzero(np.diff(last[kept])) + 1
    chains = np.split(kept, cuts) if len(kept) else []
    if halves:
        return chains
    return [np.append(origin[chain], origin[chain[-1] ^ 1]) for chain in chains]


def _chain_ends(chains: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.array([(chain[0], chain[-1]) for chain in chains], np.int64).reshape(-1, 2)


def _pixel_links(skeleton: NDArray[np.bool_]) -> tuple[Line, NDArray[np.int64]]:
    """Centres of the skeleton's pixels, (n, 2), and pairs of neighbours, (m, 2).

    A diagonal neighbour counts only where no pixel links the two by its sides; otherwise each
    corner of a staircase would be a triangle and its pixels junctions.
    """
    height, width = skeleton.shape
    # A spare column at the end of each row keeps neighbours from wrapping round.
    stride = width + 1
    rows, columns = np.nonzero(skeleton)
    flat = rows * stride + columns
    number = np.full((height + 2) * stride, -1, np.int32)
    number[flat] = np.arange(len(flat))

    def at(shift: int) -> NDArray[np.int32]:
        # Negative places read the spare rows at the end, which are empty.
        neighbours: NDArray[np.int32] = number[flat + shift]
        return neighbours

    east, south, west = at(1), at(stride), at(-1)
    southeast = np.where((east < 0) & (south < 0), at(stride + 1), -1)
    southwest = np.where((west < 0) & (south < 0), at(stride - 1), -1)
    here = np.arange(len(flat))
    links = np.concatenate(
        [
            np.stack([here[there >= 0], there[there >= 0]], axis=1)
            for there in (east, south, southeast, southwest)
        ]
    )
    centres = np.stack([columns + 0.5, rows + 0.5], axis=1)
    return centres, links
