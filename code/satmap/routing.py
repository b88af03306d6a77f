"""Fastest routes, and the roads that can be reached in given times, in a road network.

The network is any vector file of roads: satmap's exports, or OpenStreetMap data. Roads are joined
where they share a vertex, so roads that cross on different levels stay apart. Points are snapped to
the nearest road. Shortest paths are those of scipy's ``csgraph``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.io.geojson_reader import GeoLine
from satmap.submissions.formats import Format, detect
from satmap.submissions.vector_maps import MAP_SUFFIXES, in_degrees, read_map, travel_time_s
from satmap.vectors.georeference import metres_per_degree
from satmap.vectors.speeds import MPS_PER_MPH, label_speed_mph

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Vertices with the same seven decimals of a degree, 1 cm, are the same place.
_DECIMALS = 7

# A stated length is that of the line if they differ by less than this factor.
_SAME_LENGTH = 1.1

# Turns by fewer degrees are straight on; beyond the others they are sharp, or turn back.
_STRAIGHT, _SHARP, _BACK = 30.0, 120.0, 165.0

# A place within this share of an edge's length from its end is at the node there. All edges of the
# node can then be used, whichever of them was the nearest.
_AT_END = 1e-9

_FORWARD, _BACKWARD = {"yes", "true", "1"}, {"-1", "reverse"}


@dataclass(frozen=True)
class Network:
    """Road network: edges between nodes.

    Attributes:
        places: float64 (nodes, 2), longitude and latitude.
        ends: int64 (edges, 2), nodes at the start and end of each edge.
        lines: LineString of each edge, in longitude and latitude.
        lengths_m: float64 (edges,).
        times_s: float64 (edges,), seconds from end to end.
        directions: int8 (edges,): 1 if an edge can only be used from start to end, -1 for the
            opposite, 0 for both.
        assumed: number of roads without a speed, whose speed is that of their class or a default.
    """

    places: Floats
    ends: Ints
    lines: NDArray[np.object_]
    lengths_m: Floats
    times_s: Floats
    directions: NDArray[np.int8]
    assumed: int = 0

    @cached_property
    def scale(self) -> Floats:
        """Metres per degree of longitude and latitude in the middle of the network."""
        middle = float(self.places[:, 1].min() + self.places[:, 1].max()) / 2
        return np.array(metres_per_degree(middle))

    @cached_property
    def tree(self) -> shapely.STRtree:
        """Index of the edges, in metres."""
        return shapely.STRtree(shapely.transform(self.lines, lambda xy: xy * self.scale))

    def snap(self, longitude: float, latitude: float) -> "Position":
        """Return the nearest place on a road."""
        point = shapely.Point(np.array([longitude, latitude]) * self.scale)
        edge = int(self.tree.nearest(point))
        line = self.tree.geometries[edge]
        along = float(shapely.line_locate_point(line, point))
        share = along / max(float(line.length), 1e-9)
        share = 0.0 if share < _AT_END else 1.0 if share > 1 - _AT_END else share
        return Position(edge, share, float(shapely.distance(line, point)))

    def times_from(self, start: "Position", limit_s: float = math.inf) -> "Reached":
        """Return the shortest times from a position to all nodes."""
        count, edge = len(self.places), start.edge
        leaving: dict[int, float] = {}
        if self.directions[edge] >= 0 or start.share == 1:
            leaving[int(self.ends[edge, 1])] = (1 - start.share) * float(self.times_s[edge])
        if self.directions[edge] <= 0 or start.share == 0:
            node, seconds = int(self.ends[edge, 0]), start.share * float(self.times_s[edge])
            leaving[node] = min(seconds, leaving.get(node, math.inf))
        rows, columns, times, _ = self._steps
        # The position is one more node, which can only be left.
        rows = np.append(rows, [count] * len(leaving))
        columns, times = np.append(columns, [*leaving]), np.append(times, [*leaving.values()])
        # csgraph reads 0 as no edge.
        graph = csr_matrix((np.maximum(times, 1e-9), (rows, columns)), (count + 1, count + 1))
        found, before = dijkstra(graph, indices=count, return_predecessors=True, limit=limit_s)
        return Reached(start, found[:count], before[:count])

    @cached_property
    def _steps(self) -> tuple[Ints, Ints, Floats, Ints]:
        """Return start, end, seconds and edge of the fastest step between every two nodes."""
        numbers = np.arange(len(self.ends))
        ahead, back = numbers[self.directions >= 0], numbers[self.directions <= 0]
        rows = np.concatenate([self.ends[ahead, 0], self.ends[back, 1]])
        columns = np.concatenate([self.ends[ahead, 1], self.ends[back, 0]])
        edges = np.concatenate([ahead, back])
        order = np.lexsort((self.times_s[edges], columns, rows))
        rows, columns, edges = rows[order], columns[order], edges[order]
        first = np.append(True, (np.diff(rows) != 0) | (np.diff(columns) != 0))
        return rows[first], columns[first], self.times_s[edges[first]], edges[first]

    def edge_between(self, start: int, end: int) -> int:
        """Return the fastest edge from one node to its neighbour."""
        rows, columns, _, edges = self._steps
        first, last = np.searchsorted(rows, [start, start + 1])
        return int(edges[first:last][columns[first:last] == end][0])

    def part(self, edge: int, start: float, end: float) -> Floats:
        """Return the part of an edge between two shares of its length, in that direction."""
        line = self.lines[edge]
        if start > end:
            return self.part(edge, end, start)[::-1]
        xy = shapely.get_coordinates(line)
        steps = np.hypot(*np.diff(xy * self.scale, axis=0).T)
        along = np.concatenate([[0], np.cumsum(steps)]) / max(steps.sum(), 1e-9)
        inner = xy[(along > start) & (along < end)]
        first, last = (
            np.array([np.interp(share, along, xy[:, axis]) for axis in (0, 1)])
            for share in (start, end)
        )
        return np.vstack([first, inner, last])


@dataclass(frozen=True)
class Position:
    """A place on an edge: its share of the edge's length, and the metres from the given point."""

    edge: int
    share: float
    distance_m: float


@dataclass(frozen=True)
class Reached:
    """The seconds from a position to each node, and the node before it on the fastest way."""

    start: Position
    times_s: Floats
    before: NDArray[np.int32]


@dataclass(frozen=True)
class Turn:
    """A turn of a route: where, in words, and after how many metres."""

    place: tuple[float, float]
    words: str
    after_m: float


@dataclass(frozen=True)
class Route:
    """The fastest route between two positions.

    Attributes:
        line: float64 (n, 2), longitude and latitude.
        length_m: its length.
        time_s: seconds.
        turns: the turns at junctions, in order.
    """

    line: Floats
    length_m: float
    time_s: float
    turns: tuple[Turn, ...]


def read_network(path: Path, least_confidence: float | None = None) -> Network:
    """Read the roads of a vector file as a network, without those of a lower confidence.

    Raises:
        SatmapError: the file cannot be read or holds no roads.
    """
    if path.is_dir() or path.suffix.lower() == ".csv":
        what = "a directory" if path.is_dir() else "a CSV, whose roads are in pixels"
        raise SatmapError(f"{path} is {what}. Give a vector file of roads, such as roads.gpkg.")
    _require_vectors(path)
    collection = read_map(path, least_confidence)
    if not collection.lines:
        raise SatmapError(f"{path}: no roads. Give a vector file of roads, such as roads.gpkg.")
    try:
        return build_network(in_degrees(collection).lines)
    except ValueError as error:
        raise SatmapError(f"{path}: {error}.") from error


def _require_vectors(path: Path) -> None:
    """Raise SatmapError for other files, also those without a telling suffix."""
    if path.suffix.lower() in MAP_SUFFIXES:
        if (kind := detect(path)) != Format.VECTORS:
            raise SatmapError(f"{path} is {kind}. Give a vector file of roads, such as roads.gpkg.")
        return
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            head = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    if not head.startswith(b"{"):
        raise SatmapError(
            f"{path} is no vector file of roads. Give one that ends in {', '.join(MAP_SUFFIXES)}."
        )


def build_network(roads: Sequence[GeoLine]) -> Network:
    """Join roads where they share a vertex.

    Length and time are the properties ``length_m`` and ``travel_time_s``, which satmap's exports
    have. Otherwise the length is that on the ground, and the time follows from the speed or the
    class of the road. ``oneway`` is that of OpenStreetMap.
    """
    sizes = [len(road.xy) for road in roads]
    keys = np.round(np.concatenate([road.xy for road in roads]), _DECIMALS)
    places, key = np.unique(keys, axis=0, return_inverse=True)
    key = key.reshape(-1)
    is_node = np.bincount(key, minlength=len(places)) > 1
    begins = np.concatenate([[0], np.cumsum(sizes)])
    is_node[key[begins[:-1]]] = is_node[key[begins[1:] - 1]] = True
    number = np.cumsum(is_node) - 1
    ends, lines, lengths, times, directions, assumed = [], [], [], [], [], 0
    for road, begin, end in zip(roads, begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        of_road = key[begin:end]
        xy = road.xy
        steps = np.hypot(*(np.diff(xy, axis=0) * metres_per_degree(float(xy[0, 1]))).T)
        along = np.concatenate([[0.0], np.cumsum(steps)])
        length = _number(road.properties.get("length_m")) or float(along[-1])
        seconds = travel_time_s(road.properties, length)
        if not 1 / _SAME_LENGTH < length / max(float(along[-1]), 1e-9) < _SAME_LENGTH:
            # The line is a part of the road that the properties describe.
            seconds, length = seconds * float(along[-1]) / length, float(along[-1])
        if not math.isfinite(seconds):
            assumed += 1
            seconds = length / (label_speed_mph(road.properties) * MPS_PER_MPH)
        cuts = np.flatnonzero(is_node[of_road])
        for first, last in pairwise(cuts.tolist()):
            share = float(along[last] - along[first]) / max(float(along[-1]), 1e-9)
            ends.append((number[of_road[first]], number[of_road[last]]))
            lines.append(shapely.LineString(xy[first : last + 1]))
            lengths.append(share * length)
            times.append(share * seconds)
            directions.append(_direction(road.properties))
    return Network(
        places[is_node],
        np.array(ends, np.int64),
        np.array(lines, np.object_),
        np.array(lengths),
        np.array(times),
        np.array(directions, np.int8),
        assumed,
    )


def find_route(network: Network, start: Position, end: Position) -> Route | None:
    """Find the fastest route; None if there is none."""
    reached = network.times_from(start)
    edge, whole = end.edge, network.times_s[end.edge]
    options: list[tuple[float, int]] = []
    if network.directions[edge] >= 0 or end.share == 0:
        node = int(network.ends[edge, 0])
        options.append((float(reached.times_s[node] + end.share * whole), node))
    if network.directions[edge] <= 0 or end.share == 1:
        node = int(network.ends[edge, 1])
        options.append((float(reached.times_s[node] + (1 - end.share) * whole), node))
    if start.edge == edge and network.directions[edge] * (end.share - start.share) >= 0:
        options.append((float(abs(end.share - start.share) * whole), -1))
    time, node = min(options)
    if not math.isfinite(time):
        return None
    pieces = _pieces(network, reached, end, node)
    parts = [network.part(*piece) for piece in pieces]
    lengths = [abs(b - a) * float(network.lengths_m[e]) for e, a, b in pieces]
    line = np.concatenate([parts[0], *(part[1:] for part in parts[1:])])
    return Route(line, sum(lengths), time, _turns(network, parts, lengths))


def _pieces(
    network: Network, reached: Reached, end: Position, node: int
) -> list[tuple[int, float, float]]:
    """Return edges and shares along a route whose last node is ``node``; -1 for none."""
    start = reached.start
    if node < 0:
        return [(end.edge, start.share, end.share)]
    nodes = [node]
    while (before := int(reached.before[nodes[-1]])) < len(network.places):
        nodes.append(before)
    nodes.reverse()
    at_end = 0.0 if nodes[-1] == network.ends[end.edge, 0] else 1.0
    if network.ends[end.edge, 0] == network.ends[end.edge, 1]:
        # A loop is entered at the nearer end that its direction allows.
        forward = network.directions[end.edge] > 0 or (
            network.directions[end.edge] == 0 and end.share <= 0.5
        )
        at_end = 0.0 if forward else 1.0
    pieces = [(start.edge, start.share, _left_at(network, start, nodes[0]))]
    for a, b in pairwise(nodes):
        edge = network.edge_between(a, b)
        usable = network.directions[edge] >= 0 and network.ends[edge].tolist() == [a, b]
        pieces.append((edge, 0.0, 1.0) if usable else (edge, 1.0, 0.0))
    pieces.append((end.edge, at_end, end.share))
    return [piece for piece in pieces if piece[1] != piece[2]] or pieces[:1]


def _left_at(network: Network, start: Position, node: int) -> float:
    """Return the end of the first edge, 0 or 1, at which a route leaves it towards a node."""
    first, last = network.ends[start.edge].tolist()
    if first == last:
        direction = network.directions[start.edge]
        return 1.0 if direction > 0 or (direction == 0 and start.share >= 0.5) else 0.0
    return 0.0 if node == first else 1.0


def _turns(network: Network, parts: Sequence[Floats], lengths: Sequence[float]) -> tuple[Turn, ...]:
    """Describe the changes of direction between the parts of a route."""
    turns, after = [], 0.0
    for part, following, length in zip(parts[:-1], parts[1:], lengths[:-1], strict=True):
        after += length
        (x, y), (u, v) = (
            (part[-1] - part[-2]) * network.scale,
            (following[1] - following[0]) * network.scale,
        )
        angle = math.degrees(math.atan2(x * v - y * u, x * u + y * v))
        if abs(angle) < _STRAIGHT:
            continue
        side = "left" if angle > 0 else "right"
        words = f"sharp {side}" if abs(angle) > _SHARP else side
        words = "turn back" if abs(angle) > _BACK else words
        longitude, latitude = following[0].tolist()
        turns.append(Turn((longitude, latitude), words, after))
    return tuple(turns)


def find_reach(network: Network, start: Position, seconds: float) -> tuple[list[Floats], float]:
    """Find the parts of roads that can be reached in a time, and their total length in metres."""
    times = network.times_from(start, seconds).times_s
    left = np.maximum(seconds - times, 0)
    lines: list[Floats] = []
    length = 0.0
    for edge in range(len(network.ends)):
        first, last = network.ends[edge].tolist()
        whole, direction = max(float(network.times_s[edge]), 1e-9), network.directions[edge]
        spans = []
        if direction >= 0 and left[first]:
            spans.append((0.0, min(float(left[first]) / whole, 1.0)))
        if direction <= 0 and left[last]:
            spans.append((max(1 - float(left[last]) / whole, 0.0), 1.0))
        if edge == start.edge:
            share = seconds / whole
            low = start.share if direction > 0 else max(start.share - share, 0.0)
            high = start.share if direction < 0 else min(start.share + share, 1.0)
            spans.append((low, high))
        for low, high in _united(spans):
            lines.append(network.part(edge, low, high))
            length += (high - low) * float(network.lengths_m[edge])
    return lines, length


def _united(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Unite intervals that touch; empty ones are left out."""
    united: list[tuple[float, float]] = []
    for low, high in sorted(span for span in spans if span[1] > span[0]):
        if united and low <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], high))
        else:
            united.append((low, high))
    return united


def route_as_geojson(route: Route) -> dict[str, Any]:
    """Return a route as a GeoJSON feature, with the figures that ``satmap route`` prints."""
    turns = [
        {
            "turn": turn.words,
            "after_m": round(turn.after_m, 1),
            "at": [round(degrees, _DECIMALS) for degrees in turn.place],
        }
        for turn in route.turns
    ]
    properties = {"length_m": round(route.length_m, 1), "time_s": round(route.time_s, 1)}
    return {
        "type": "Feature",
        "properties": {**properties, "turns": turns},
        "geometry": {"type": "LineString", "coordinates": _rounded(route.line)},
    }


def reach_as_geojson(network: Network, start: Position, minutes: Sequence[float]) -> dict[str, Any]:
    """Return the roads that can be reached in each of several times as GeoJSON, longest first."""
    features = []
    for each in sorted(minutes, reverse=True):
        lines, length = find_reach(network, start, 60 * each)
        features.append(
            {
                "type": "Feature",
                "properties": {"minutes": each, "length_m": round(length, 1)},
                "geometry": {
                    "type": "MultiLineString",
                    "coordinates": [_rounded(line) for line in lines],
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _rounded(line: Floats) -> list[list[float]]:
    rounded: list[list[float]] = np.round(line, _DECIMALS).tolist()
    return rounded


def _direction(properties: Mapping[str, Any]) -> int:
    """Return 1 for a road in the direction of its line only, -1 for the opposite, 0 for both."""
    text = str(properties.get("oneway", "")).lower()
    if text in _FORWARD:
        return 1
    if text in _BACKWARD:
        return -1
    return int(properties.get("junction") == "roundabout" and text not in ("no", "false", "0"))


def _number(value: Any) -> float | None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return float(number) if number is not None and math.isfinite(number) and number > 0 else None
