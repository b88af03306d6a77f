"""Shortest paths between all nodes of a road network, under several weights at once.

Road networks have a small treewidth: removing a few nodes splits them. Dijkstra's algorithm does
not exploit this; that of Planken, de Weerdt and van der Krogt (2012, "Computing all-pairs shortest
paths by leveraging low treewidth") does. Nodes are eliminated one by one, those with the fewest
neighbours first. Each elimination links the node's neighbours at the cost of the path through it.
Afterwards, in reverse order, a node's shortest paths to all nodes eliminated after it are the best
combinations of its few links with those neighbours' paths. Each step is a handful of array
operations, and all weights share one order of elimination.
"""

import heapq

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Up to this many nodes, the compiled Dijkstra's algorithm is faster than array operations.
_FEW_NODES = 200


def all_pairs(ends: Ints, weights: Floats, nodes: int) -> Floats:
    """Return the shortest path length between all pairs of nodes, infinite if unconnected.

    Args:
        ends: int64 (e, 2), nodes of each edge; parallel edges and loops are allowed.
        weights: float64 (e, k), cost of each edge under each weight, >= 0.
        nodes: number of nodes.

    Returns:
        float64 (k, nodes, nodes), symmetric.
    """
    different = ends[:, 0] != ends[:, 1]
    ends, weights = ends[different], weights[different]
    if nodes <= _FEW_NODES:
        return np.stack([_dijkstra(ends, weight, nodes) for weight in weights.T])
    return _by_elimination(ends, weights, nodes)


def shortest_links(u: Ints, v: Ints, ways: Floats) -> Ints:
    """Return the index of the shortest of all links from each u to each v, sorted by u and v."""
    order = np.lexsort((ways, v, u))
    new = (np.diff(u[order], prepend=-1) != 0) | (np.diff(v[order], prepend=-1) != 0)
    shortest: Ints = order[new]
    return shortest


def _dijkstra(ends: Ints, weight: Floats, nodes: int) -> Floats:
    u, v = np.concatenate([ends, ends[:, ::-1]]).T
    weight = np.concatenate([weight, weight])
    # scipy adds up parallel edges: keep the shortest of each pair of ends. Zeros stay stored in the
    # matrix; csgraph takes them for edges of length zero.
    keep = shortest_links(u, v, weight)
    matrix = csr_array((weight[keep], (u[keep], v[keep])), shape=(nodes, nodes))
    ways: Floats = dijkstra(matrix, directed=True)
    return ways


def _by_elimination(ends: Ints, weights: Floats, nodes: int) -> Floats:
    order, behind = _eliminate(ends, nodes)
    rank = np.empty(nodes, np.int64)
    rank[order] = np.arange(nodes)
    ways = np.full((weights.shape[1], nodes, nodes), np.inf)
    ways[:, np.arange(nodes), np.arange(nodes)] = 0
    u, v = rank[ends].T
    for way, weight in zip(ways, weights.T, strict=True):
        np.minimum.at(way, (u, v), weight)
        np.minimum.at(way, (v, u), weight)
    links = [rank[neighbours] for neighbours in behind]
    for node, others in enumerate(links):
        if len(others) > 1:
            pairs = (slice(None), others[:, None], others)
            out = ways[:, node, others]
            ways[pairs] = np.minimum(ways[pairs], out[:, :, None] + out[:, None, :])
    for node in range(nodes - 2, -1, -1):
        others = links[node]
        if len(others):
            rest = slice(node + 1, nodes)
            by_others = ways[:, others, rest] + ways[:, node, others, None]
            ways[:, node, rest] = ways[:, rest, node] = by_others.min(axis=1)
    return np.ascontiguousarray(ways[:, rank[:, None], rank])


def _eliminate(ends: Ints, nodes: int) -> tuple[list[int], list[Ints]]:
    """Return the nodes in order of elimination, and the neighbours each had at that time."""
    neighbours: list[set[int]] = [set() for _ in range(nodes)]
    for u, v in ends.tolist():
        neighbours[u].add(v)
        neighbours[v].add(u)
    # When a node's neighbours change, a fresh entry is pushed; the stale one is skipped later.
    waiting = [(len(others), node) for node, others in enumerate(neighbours)]
    heapq.heapify(waiting)
    done = [False] * nodes
    order, behind = [], []
    while waiting:
        degree, node = heapq.heappop(waiting)
        others = neighbours[node]
        if done[node] or degree != len(others):
            continue
        done[node] = True
        order.append(node)
        behind.append(np.array(sorted(others), np.int64))
        for other in others:
            links = neighbours[other]
            links |= others
            links.discard(node)
            links.discard(other)
            heapq.heappush(waiting, (len(links), other))
    return order, behind
