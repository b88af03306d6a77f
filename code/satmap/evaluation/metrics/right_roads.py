"""Which roads of a proposal are right: the event whose probability the confidence of a road states.

A road is right if

1. at least 80 % of its length lies within 2 m of a true road, and
2. both of its ends lie within 2 m of a true road, and the nearest places there are joined in the
   truth by a path at most 1.2 times as long as the road.

So a road 3 m beside a true one is wrong, and so is one that joins roads which the truth leaves
apart, or joins only by a detour. A loop from a junction back to it needs only the first condition.
"""

import heapq
from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Largest distance from a true road, metres.
NEAR_M = 2.0

#: Smallest share of a road's length near true roads.
LEAST_NEAR = 0.8

#: Largest ratio of the path in the truth to the road's own length.
LONGEST_PATH = 1.2

# A road is measured in equal pieces of at most this length, and in at least so many pieces.
_PIECE_M, _LEAST_PIECES = 0.5, 40
# Vertices of the truth on the same tenth of a pixel are one junction, as for APLS.
_CELLS_PER_PIXEL = 10


def right_roads(
    truth: Sequence[Floats], roads: Sequence[Floats], metres_per_pixel: float | tuple[float, float]
) -> Bools:
    """Return which roads of an image are right, bool (roads,).

    Args:
        truth: lines of the true roads, (n, 2) each, in pixels. They meet at shared vertices.
        roads: lines to judge, (n, 2) each, in pixels.
        metres_per_pixel: size of a pixel, or its size along x and along y.
    """
    scale = np.broadcast_to(np.asarray(metres_per_pixel, np.float64), 2)
    right = np.zeros(len(roads), np.bool_)
    network = _Truth(truth, scale)
    if not len(network.ends):
        return right
    for number, line in enumerate(roads):
        on_ground = line * scale
        length = float(np.hypot(*np.diff(on_ground, axis=0).T).sum())
        right[number] = (
            length > 0
            and network.near_share(on_ground, length) >= LEAST_NEAR
            and network.joins(on_ground[[0, -1]], LONGEST_PATH * length)
        )
    return right


class _Truth:
    """The true roads as segments between junctions, in metres.

    Attributes:
        ends: int64 (segments, 2), the vertices at both ends of each segment.
    """

    def __init__(self, lines: Sequence[Floats], scale: Floats) -> None:
        parts = [np.stack([line[:-1], line[1:]], axis=1) for line in lines if len(line) > 1]
        pixels = np.concatenate([np.empty((0, 2, 2)), *parts])
        pixels = pixels[(pixels[:, 0] != pixels[:, 1]).any(axis=1)]
        cells = np.rint(pixels.reshape(-1, 2) * _CELLS_PER_PIXEL)
        _, vertex = np.unique(cells, axis=0, return_inverse=True)
        self.ends: Ints = vertex.reshape(-1, 2)
        self._places = pixels * scale
        self._lengths = np.hypot(*(self._places[:, 1] - self._places[:, 0]).T)
        self._tree = shapely.STRtree(shapely.linestrings(self._places))
        self._steps: dict[int, list[tuple[int, float]]] = {}
        for (one, other), length in zip(self.ends.tolist(), self._lengths.tolist(), strict=True):
            self._steps.setdefault(one, []).append((other, length))
            self._steps.setdefault(other, []).append((one, length))

    def near_share(self, line: Floats, length: float) -> float:
        """Return the share of a line, in metres, that lies near the truth."""
        pieces = max(int(np.ceil(length / _PIECE_M)), _LEAST_PIECES)
        along = (np.arange(pieces) + 0.5) / pieces
        middles = shapely.line_interpolate_point(shapely.LineString(line), along, normalized=True)
        near, _ = self._tree.query(middles, predicate="dwithin", distance=NEAR_M)
        return len(np.unique(near)) / pieces

    def joins(self, places: Floats, longest: float) -> bool:
        """Return whether two places, (2, 2), are joined by a path of at most ``longest`` metres."""
        found, segments = self._tree.query_nearest(
            shapely.points(places), max_distance=NEAR_M, all_matches=False
        )
        if len(found) < 2:
            return False
        (first, head), (last, tail) = (
            (int(segment), self._offset(int(segment), place))
            for segment, place in zip(segments, places, strict=True)
        )
        if first == last and abs(head - tail) <= longest:
            return True
        stops = dict.fromkeys(self.ends[last].tolist(), np.inf)
        for vertex, rest in zip(
            self.ends[last].tolist(), (tail, float(self._lengths[last]) - tail), strict=True
        ):
            stops[vertex] = min(stops[vertex], rest)
        waiting = [
            (head, int(self.ends[first, 0])),
            (float(self._lengths[first]) - head, int(self.ends[first, 1])),
        ]
        heapq.heapify(waiting)
        done: set[int] = set()
        # Dijkstra's algorithm, which only sees what lies within the longest path.
        while waiting:
            way, vertex = heapq.heappop(waiting)
            if way > longest:
                return False
            if vertex in done:
                continue
            done.add(vertex)
            if way + stops.get(vertex, np.inf) <= longest:
                return True
            for other, step in self._steps[vertex]:
                if other not in done:
                    heapq.heappush(waiting, (way + step, other))
        return False

    def _offset(self, segment: int, place: Floats) -> float:
        """Return the distance from a segment's first end to the place on it nearest to another."""
        start, stop = self._places[segment]
        along = stop - start
        share = float(np.clip((place - start) @ along / (along @ along), 0, 1))
        return share * float(self._lengths[segment])
