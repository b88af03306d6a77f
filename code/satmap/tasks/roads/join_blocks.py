"""Join the roads of the blocks of a map into one network.

Each block is vectorised with a margin of its neighbours and cropped to its own rectangle. So a road
that crosses a seam ends there once in each of the two blocks, at almost the same place. These ends
are joined, and the two pieces become one road. A junction on a seam is in both blocks and becomes
one. An end without a counterpart joins a road of the other block that passes near it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from satmap.rasters.scene import Box
from satmap.vectors.road_graph import RoadEdge, RoadGraph, line_length_m

# Two ends at a seam, or an end and a road, are joined if they are at most this far apart.
_REACH_M = 4.0
# Nodes at a seam that are one junction in two blocks are at most this far apart.
_SAME_PLACE_M = 1.0
# Pieces at a seam that are shorter and lead nowhere are leftovers of cropping.
_STUB_M = 4.0
# Ends at most this many pixels from a block's border were cropped there.
_AT_BORDER_PX = 0.15

Points = NDArray[np.float64]


class _Pieces:
    """Roads that are being joined: places of nodes, and edges as (start, end, RoadEdge)."""

    def __init__(self) -> None:
        self.places: list[tuple[float, float]] = []
        self.edges: dict[int, RoadEdge] = {}
        self.at: dict[int, set[int]] = defaultdict(set)
        self._next = 0

    def add_node(self, place: Sequence[float]) -> int:
        self.places.append((float(place[0]), float(place[1])))
        return len(self.places) - 1

    def add(self, edge: RoadEdge) -> int:
        number, self._next = self._next, self._next + 1
        self.edges[number] = edge
        for node in edge.nodes:
            self.at[node].add(number)
        return number

    def remove(self, number: int) -> RoadEdge:
        edge = self.edges.pop(number)
        for node in edge.nodes:
            self.at[node].discard(number)
        return edge

    def degree(self, node: int) -> int:
        return sum(self.edges[number].nodes.count(node) for number in self.at[node])


def join_blocks(
    blocks: Iterable[tuple[Box, RoadGraph]], metres_per_pixel: tuple[float, float]
) -> RoadGraph:
    """Join the road graphs of blocks.

    The result does not depend on the order of the blocks.

    Args:
        blocks: rectangle of each block in the map, and its roads in pixels of the block, none of
            them outside it.
        metres_per_pixel: along x and y.

    Returns:
        One graph in pixels of the map, with coordinates on a grid of 0.1 pixel. Nodes of degree two
        that the seams made are gone.
    """
    pieces = _Pieces()
    # Ends of roads at a seam, and junctions there -> block that they belong to.
    cut: dict[int, int] = {}
    junctions: dict[int, int] = {}
    ordered = sorted(blocks, key=lambda block: (block[0].top, block[0].left))
    block_of: list[int] = []
    for number, (box, graph) in enumerate(ordered):
        first = len(pieces.places)
        for x, y in graph.nodes.tolist():
            pieces.add_node((x + box.left, y + box.top))
            block_of.append(number)
        corner = np.array((box.left, box.top), np.float64)
        for edge in graph.edges:
            start, end = edge.nodes
            pieces.add(_moved(edge, (first + start, first + end), edge.line + corner))
        for node, (x, y) in enumerate(graph.nodes.tolist(), first):
            gap = min(x, y, box.width - x, box.height - y)
            if gap <= _AT_BORDER_PX:
                (cut if pieces.degree(node) == 1 else junctions)[node] = number
    scale = np.array(metres_per_pixel)
    _join_junctions(pieces, junctions, cut, scale)
    left = _join_pairs(pieces, cut, scale, metres_per_pixel)
    _join_to_roads(pieces, left, cut, block_of, scale, metres_per_pixel)
    return _finished(pieces)


def _join_junctions(
    pieces: _Pieces, junctions: dict[int, int], cut: dict[int, int], scale: Points
) -> None:
    """Make one junction of those that blocks have at the same place, and of the ends there."""
    block_of = junctions | cut
    united: dict[int, int] = {}
    for pair in _near_pairs(pieces, block_of, scale, _SAME_PLACE_M):
        if not junctions.keys() & set(pair):
            continue
        one, other = (united.get(node, node) for node in pair)
        if one == other:
            continue
        if one not in junctions:
            one, other = other, one
        for number in sorted(pieces.at[other]):
            edge = pieces.remove(number)
            line = edge.line.copy()
            for end, node in ((0, edge.nodes[0]), (-1, edge.nodes[1])):
                if node == other:
                    line[end] = pieces.places[one]
            start, stop = (one if node == other else node for node in edge.nodes)
            pieces.add(_moved(edge, (start, stop), line))
        united = {node: one if root == other else root for node, root in united.items()}
        united[other] = one
        cut.pop(other, None)


def _join_pairs(
    pieces: _Pieces, cut: dict[int, int], scale: Points, metres: tuple[float, float]
) -> list[int]:
    """Join the ends of different blocks that are nearest to each other; return the others."""
    joined: set[int] = set()
    for one, other in _near_pairs(pieces, cut, scale, _REACH_M):
        if joined & {one, other}:
            continue
        joined |= {one, other}
        middle = np.round((np.array(pieces.places[one]) + pieces.places[other]) / 2, 1)
        _unite(pieces, one, other, middle, metres)
    return sorted(cut.keys() - joined, key=lambda node: pieces.places[node])


def _near_pairs(
    pieces: _Pieces, block_of: dict[int, int], scale: Points, reach_m: float
) -> list[tuple[int, int]]:
    """Return the pairs of nodes of different blocks within reach, the nearest first."""
    nodes = sorted(block_of, key=lambda node: (pieces.places[node], node))
    if not nodes:
        return []
    tree = cKDTree(np.array([pieces.places[node] for node in nodes]) * scale)
    pairs = tree.query_pairs(reach_m, output_type="ndarray")
    apart = np.linalg.norm(tree.data[pairs[:, 0]] - tree.data[pairs[:, 1]], axis=1)
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0], apart))].tolist()
    named = [(nodes[one], nodes[other]) for one, other in ordered]
    return [(one, other) for one, other in named if block_of[one] != block_of[other]]


def _unite(
    pieces: _Pieces, one: int, other: int, place: Points, metres: tuple[float, float]
) -> None:
    """Make one road of the two that end at ``one`` and ``other``."""
    (first,), (second,) = pieces.at[one], pieces.at[other]
    if first == second:
        # Both ends of one road: it becomes a loop.
        edge = pieces.remove(first)
        line = np.concatenate([[place], edge.line[1:-1], [place]])
        node = pieces.add_node(place.tolist())
        pieces.add(_moved(edge, (node, node), line, metres))
        return
    before, after = pieces.remove(first), pieces.remove(second)
    if before.nodes[1] != one:
        before = _reversed(before)
    if after.nodes[0] != other:
        after = _reversed(after)
    line = np.concatenate([before.line[:-1], [place], after.line[1:]])
    length = line_length_m(line, metres)
    time = before.travel_time_s + after.travel_time_s
    weights = np.array([before.length_m, after.length_m])
    share = weights / weights.sum() if weights.sum() else np.array([0.5, 0.5])
    probability = float(share @ (before.mean_probability, after.mean_probability))
    confidences = before.confidence, after.confidence
    confidence = None if None in confidences else float(share @ confidences)
    speed = float(weights.sum() / time) if time else before.speed_mps
    nodes = before.nodes[0], after.nodes[1]
    longer = before if before.length_m >= after.length_m else after
    widths = before.width_m, after.width_m
    width = None if None in widths else float(share @ widths)
    pieces.add(
        replace(
            longer,
            nodes=nodes,
            line=line,
            length_m=length,
            speed_mps=speed,
            mean_probability=probability,
            confidence=confidence,
            width_m=longer.width_m if width is None else width,
        )
    )


def _join_to_roads(
    pieces: _Pieces,
    left: Sequence[int],
    cut: dict[int, int],
    block_of: Sequence[int],
    scale: Points,
    metres: tuple[float, float],
) -> None:
    """Join ends without a counterpart to a road of another block, or drop them if tiny."""
    numbers = list(pieces.edges)
    tree = shapely.STRtree(
        [shapely.LineString(pieces.edges[number].line * scale) for number in numbers]
    )
    # Roads that were split or extended -> their successors.
    successors: dict[int, list[int]] = {}

    def living(number: int) -> list[int]:
        if number in pieces.edges:
            return [number]
        return [n for each in successors.get(number, ()) for n in living(each)]

    for node in left:
        if pieces.degree(node) != 1:
            continue
        (own,) = pieces.at[node]
        here = shapely.Point(np.array(pieces.places[node]) * scale)
        found = tree.query(here, predicate="dwithin", distance=_REACH_M).tolist()
        near = []
        for number in {n for index in found for n in living(numbers[index])} - {own}:
            edge = pieces.edges[number]
            if any(n >= len(block_of) or block_of[n] != cut[node] for n in edge.nodes):
                line = shapely.LineString(edge.line * scale)
                near.append((line.distance(here), number))
        if near and min(near)[0] <= _REACH_M:
            successors |= _attach(pieces, node, min(near)[1], scale, metres)
        elif pieces.edges[own].length_m < _STUB_M:
            pieces.remove(own)


def _attach(
    pieces: _Pieces, node: int, number: int, scale: Points, metres: tuple[float, float]
) -> dict[int, list[int]]:
    """Split a road where it is nearest to the end ``node``, and join the end to it there.

    Returns the successors of the roads that were replaced.
    """
    successors = {}
    edge = pieces.edges[number]
    line = shapely.LineString(edge.line * scale)
    at = line.project(shapely.Point(np.array(pieces.places[node]) * scale))
    place = np.round(np.array(line.interpolate(at).coords[0]) / scale, 1)
    target = next(
        (n for n in edge.nodes if np.hypot(*((place - pieces.places[n]) * scale)) < 1), None
    )
    if target is None:
        pieces.remove(number)
        target = pieces.add_node(place.tolist())
        along = [0.0, *np.cumsum([np.hypot(*(b - a)) for a, b in pairwise(edge.line * scale)])]
        index = int(np.searchsorted(along, at, side="left"))
        before = np.concatenate([edge.line[:index], [place]])
        after = np.concatenate([[place], edge.line[index:]])
        successors[number] = [
            pieces.add(_moved(edge, (edge.nodes[0], target), before, metres)),
            pieces.add(_moved(edge, (target, edge.nodes[1]), after, metres)),
        ]
    (own,) = pieces.at[node]
    road = pieces.remove(own)
    if road.nodes[1] != node:
        road = _reversed(road)
    joined = np.concatenate([road.line, [pieces.places[target]]])
    successors[own] = [pieces.add(_moved(road, (road.nodes[0], target), joined, metres))]
    return successors


def _moved(
    edge: RoadEdge,
    nodes: tuple[int, int],
    line: Points,
    metres: tuple[float, float] | None = None,
) -> RoadEdge:
    """Return a road with other nodes and another line; with ``metres`` its length changes."""
    length = line_length_m(line, metres) if metres else edge.length_m
    return replace(edge, nodes=nodes, line=line, length_m=length)


def _reversed(edge: RoadEdge) -> RoadEdge:
    return _moved(edge, edge.nodes[::-1], edge.line[::-1])


def _finished(pieces: _Pieces) -> RoadGraph:
    """Return the graph with nodes and edges in an order that only depends on their places."""
    used = sorted({n for edge in pieces.edges.values() for n in edge.nodes},
                  key=lambda node: (*pieces.places[node], node))  # fmt: skip
    number = {node: index for index, node in enumerate(used)}
    edges = []
    for edge in pieces.edges.values():
        if number[edge.nodes[0]] > number[edge.nodes[1]]:
            edge = _reversed(edge)
        line = np.round(edge.line, 1)
        fresh = np.append(True, (np.diff(line, axis=0) != 0).any(axis=1))
        line = line[fresh] if fresh.sum() >= 2 else line[[0, -1]]
        nodes = number[edge.nodes[0]], number[edge.nodes[1]]
        edges.append(_moved(edge, nodes, line))
    edges.sort(key=lambda edge: (edge.nodes, edge.line.tolist()))
    places = np.array([pieces.places[node] for node in used], np.float64).reshape(-1, 2)
    return RoadGraph(np.round(places, 1), tuple(edges))
