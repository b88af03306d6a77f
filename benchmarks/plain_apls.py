"""Plain APLS: each step of the definition in plain Python, slow and easy to follow.

It shares no code with ``satmap.metrics``. Tests compare the fast implementation with it, and the
benchmark uses it as a peer that does the same work. Shortest paths are scipy's.
"""

from collections.abc import Sequence
from itertools import pairwise, permutations
from math import dist, floor, hypot, inf

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

Point = tuple[float, float]
#: Road: its vertices in pixels and its travel time.
Road = tuple[Sequence[Point], float]

_SAME_PLACE_PX = 0.1


class _Edge:
    """Polyline between two nodes, with length and time from its start to every vertex."""

    def __init__(self, points: list[Point], times: list[float]) -> None:
        self.points = points
        self.at = {"length": [0.0], "time": times}
        for a, b in pairwise(points):
            self.at["length"].append(self.at["length"][-1] + dist(a, b))

    def total(self, weight: str) -> float:
        return self.at[weight][-1]

    def cut(self, segment: int, fraction: float) -> tuple["_Edge", "_Edge"]:
        """Cut the edge at a fraction of one of its segments; return both parts."""
        (x0, y0), (x1, y1) = self.points[segment : segment + 2]
        place = (x0 + fraction * (x1 - x0), y0 + fraction * (y1 - y0))
        times = self.at["time"]
        here = times[segment] + fraction * (times[segment + 1] - times[segment])
        first = _Edge([*self.points[: segment + 1], place], [*times[: segment + 1], here])
        rest = [0.0, *(time - here for time in times[segment + 1 :])]
        return first, _Edge([place, *self.points[segment + 1 :]], rest)


class _Graph:
    """Nodes with coordinates, and edges between them."""

    def __init__(self) -> None:
        self.place: dict[int, Point] = {}
        self.edges: list[tuple[int, int, _Edge]] = []

    def new_node(self, place: Point) -> int:
        self.place[len(self.place)] = place
        return len(self.place) - 1

    def copy(self) -> "_Graph":
        duplicate = _Graph()
        duplicate.place, duplicate.edges = dict(self.place), list(self.edges)
        return duplicate

    def split(self, index: int, segment: int, fraction: float) -> int:
        u, v, edge = self.edges[index]
        first, second = edge.cut(segment, fraction)
        node = self.new_node(first.points[-1])
        self.edges[index] = (u, node, first)
        self.edges.append((node, v, second))
        return node

    def ways(self, weight: str) -> NDArray[np.float64]:
        """Return shortest path lengths between all nodes, infinite without a path."""
        least: dict[tuple[int, int], float] = {}
        for u, v, edge in self.edges:
            for pair in ((u, v), (v, u)):
                least[pair] = min(edge.total(weight), least.get(pair, inf))
        size = len(self.place)
        rows, columns = np.array(list(least)).T
        matrix = csr_array((list(least.values()), (rows, columns)), shape=(size, size))
        ways: NDArray[np.float64] = dijkstra(matrix)
        return ways


def plain_apls(
    truth: Sequence[Road], proposal: Sequence[Road], metres_per_pixel: float, weight: str
) -> tuple[float, float, float]:
    """Return APLS of one image: truth to proposal, proposal to truth, and their harmonic mean.

    ``weight`` is ``length`` or ``time``.
    """
    a, b = (_graph(roads, 50 / metres_per_pixel) for roads in (truth, proposal))
    if not a.edges or not b.edges:
        same = float(not a.edges and not b.edges)
        return same, same, same
    snap = 4 / metres_per_pixel
    there, back = _one_way(a, b, snap, weight), _one_way(b, a, snap, weight)
    return there, back, 2 * there * back / (there + back) if there + back else 0.0


def _graph(roads: Sequence[Road], spacing: float) -> _Graph:
    graph = _Graph()
    node_of: dict[tuple[int, int], int] = {}

    def node(point: Point) -> int:
        cell = (floor(10 * point[0] + 0.5), floor(10 * point[1] + 0.5))
        if cell not in node_of:
            node_of[cell] = graph.new_node(point)
        return node_of[cell]

    for points, time in roads:
        length = sum(dist(p, q) for p, q in pairwise(points))
        for p, q in pairwise(points):
            if dist(p, q) > 0:
                edge = _Edge([p, q], [0.0, time * dist(p, q) / length])
                graph.edges.append((node(p), node(q), edge))
    _merge(graph)
    for index in range(len(graph.edges)):
        _add_midpoints(graph, index, spacing)
    return graph


def _merge(graph: _Graph) -> None:
    """Remove nodes of degree two by joining their edges, except in rings of only such nodes."""
    ring = {
        node
        for part in nx.connected_components(nx.Graph([edge[:2] for edge in graph.edges]))
        if all(len(_touching(graph, node)) == 2 for node in part)
        for node in part
    }
    for node in list(graph.place):
        touching = _touching(graph, node)
        if len(touching) != 2 or len(set(touching)) != 2 or node in ring:
            if not touching:
                del graph.place[node]
            continue
        parts = []
        for index in touching:
            u, v, edge = graph.edges[index]
            parts.append((v, _reversed(edge)) if u == node else (u, edge))
        (start, first), (stop, second) = parts
        second = _reversed(second)
        after = [first.total("time") + time for time in second.at["time"][1:]]
        # The vertices at the node may differ by less than a cell. The joined path counts both.
        whole = _Edge(first.points + second.points[1:], first.at["time"] + after)
        whole.at["length"] = first.at["length"] + [
            first.total("length") + way for way in second.at["length"][1:]
        ]
        for index in sorted(touching, reverse=True):
            del graph.edges[index]
        graph.edges.append((start, stop, whole))
        del graph.place[node]
    numbers = {node: number for number, node in enumerate(graph.place)}
    graph.place = {numbers[node]: place for node, place in graph.place.items()}
    graph.edges = [(numbers[u], numbers[v], edge) for u, v, edge in graph.edges]


def _touching(graph: _Graph, node: int) -> list[int]:
    """Return the indices of the edges at a node; a loop occurs twice."""
    return [i for i, (u, v, _) in enumerate(graph.edges) for end in (u, v) if end == node]


def _reversed(edge: _Edge) -> _Edge:
    total = edge.total("time")
    return _Edge(edge.points[::-1], [total - time for time in edge.at["time"][::-1]])


def _add_midpoints(graph: _Graph, index: int, spacing: float) -> None:
    length = graph.edges[index][2].total("length")
    if length < 0.75 * spacing:
        return
    count = 1 if length < spacing else floor(length / spacing)
    # Start at the far end, so that ``index`` remains the edge to cut.
    for rank in range(count, 0, -1):
        edge = graph.edges[index][2]
        way, ways = rank * length / (count + 1), edge.at["length"]
        segment = max(i for i in range(len(ways) - 1) if ways[i] <= way)
        graph.split(index, segment, (way - ways[segment]) / (ways[segment + 1] - ways[segment]))


def _one_way(a: _Graph, b: _Graph, snap: float, weight: str) -> float:
    b = b.copy()
    control = {node: _insert(b, place, snap) for node, place in a.place.items()}
    there, other = a.ways(weight).tolist(), b.ways(weight).tolist()
    errors = []
    for start, stop in permutations(a.place, 2):
        way = there[start][stop]
        if way == inf:
            continue
        u, v = control[start], control[stop]
        if u is None or v is None:
            errors.append(1.0)
        elif way == 0:
            errors.append(float(other[u][v] > 0))
        else:
            errors.append(min(1.0, abs(way - other[u][v]) / way))
    return 1 - sum(errors) / len(errors) if errors else 1.0


def _insert(graph: _Graph, point: Point, snap: float) -> int | None:
    """Return the node for a control point: an existing one, or a new one on the nearest edge."""
    best, where = snap, None
    for index, (_, _, edge) in enumerate(graph.edges):
        for segment, ((x0, y0), (x1, y1)) in enumerate(pairwise(edge.points)):
            dx, dy = x1 - x0, y1 - y0
            if dx == dy == 0:  # an earlier cut at a vertex
                continue
            share = ((point[0] - x0) * dx + (point[1] - y0) * dy) / (dx * dx + dy * dy)
            share = min(max(share, 0.0), 1.0)
            away = hypot(x0 + share * dx - point[0], y0 + share * dy - point[1])
            if away < best or (away == best and where is None):
                best, where = away, (index, segment, share)
    if where is None:
        return None
    index, segment, share = where
    u, v, edge = graph.edges[index]
    first, second = edge.cut(segment, share)
    if first.total("length") < _SAME_PLACE_PX:
        return u
    if second.total("length") < _SAME_PLACE_PX:
        return v
    return graph.split(index, segment, share)
