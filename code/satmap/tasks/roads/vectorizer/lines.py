"""The shape of a network's lines: few points, no staircases, sharp corners. Units are metres."""

from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.tasks.roads.vectorizer.network import Line, Network


def smooth_lines(network: Network, reach: int) -> Network:
    """Smooth staircases of pixels with a running mean; ends stay in place.

    Args:
        network: the network.
        reach: number of points averaged on either side; fewer near the ends.
    """
    if reach < 1 or not len(network.points):
        return network
    index = np.arange(len(network.points))
    first = np.repeat(network.starts, network.counts)
    last = first + np.repeat(network.counts, network.counts) - 1
    half = np.minimum(np.minimum(index - first, last - index), reach)
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(network.points, axis=0)])
    points = (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)[:, None]
    # Differences of long sums are rounded, but ends must stay exactly at their nodes.
    points[half == 0] = network.points[half == 0]
    return Network(network.nodes, network.ends, points, network.counts)


def simplify(network: Network, tolerance: float) -> Network:
    """Simplify lines with Douglas-Peucker.

    A loop keeps at least three distinct points, and parallel roads stay distinct.
    """
    if not len(network.counts):
        return network
    # A loop is simplified in three pieces.
    cuts = np.zeros(len(network.points), np.bool_)
    loops = np.flatnonzero(network.ends[:, 0] == network.ends[:, 1])
    start, count = network.starts[loops], network.counts[loops]
    for third in (1, 2):
        cuts[start + (count - 1) * third // 3] = True
    cuts[start] = False
    repeats = 1 + cuts.astype(np.int64)
    points = np.repeat(network.points, repeats, axis=0)
    opens = np.zeros(len(network.points), np.int64)
    opens[network.starts] = 1
    # Of each repeated point, the second one starts a piece.
    opened = np.repeat(opens, repeats)
    seconds = np.flatnonzero(np.repeat(cuts, repeats))[1::2]
    opened[seconds] = 1
    piece = np.cumsum(opened) - 1
    lines = shapely.linestrings(points, indices=piece)
    kept, owner = shapely.get_coordinates(
        shapely.simplify(lines, tolerance, preserve_topology=False), return_index=True
    )
    road = np.repeat(np.arange(len(network.counts)), network.counts)
    road_of_piece = np.repeat(road, repeats)[np.flatnonzero(opened)]
    owner_road = road_of_piece[owner]
    # The first point of every further piece repeats the last point of the previous one.
    twice = np.zeros(len(kept), np.bool_)
    twice[1:] = (owner[1:] != owner[:-1]) & (owner_road[1:] == owner_road[:-1])
    simple = Network(network.nodes, network.ends, kept[~twice], np.bincount(owner_road[~twice]))
    return _apart(simple, network)


def sharpen_bends(network: Network, width: float) -> Network:
    """Restore corners that the skeleton cuts off.

    A run of short pieces between two longer ones whose continuations intersect nearby is a cut-off
    corner. The intersection replaces it.

    Args:
        network: the network, simplified.
        width: width of a road; limits the length of each short piece and the distance to the
            corner.
    """
    points = network.points
    if len(points) < 4:
        return network
    road = np.repeat(np.arange(len(network.counts)), network.counts)
    steps = np.diff(points, axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    inside = road[1:] == road[:-1]
    short = inside & (lengths < width)
    # Runs of short pieces from point `first` to point `last`.
    edges = np.diff(np.concatenate([[0], short.astype(np.int8), [0]]))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    fits = (first > 0) & (last < len(steps))
    first, last = first[fits], last[fits]
    fits = inside[first - 1] & inside[last]
    first, last = first[fits], last[fits]
    ahead, gap, back = steps[first - 1], points[last] - points[first], -steps[last]
    turn = ahead[:, 0] * back[:, 1] - ahead[:, 1] * back[:, 0]
    safe = np.where(np.abs(turn) > 1e-9, turn, np.inf)
    # Distance of the corner beyond either end of the run, in multiples of the longer pieces.
    before = (gap[:, 0] * back[:, 1] - gap[:, 1] * back[:, 0]) / safe
    after = (gap[:, 0] * ahead[:, 1] - gap[:, 1] * ahead[:, 0]) / safe
    corner = points[first] + before[:, None] * ahead
    off = corner - points[first] - gap / 2
    cut_off = (before > 0) & (after > 0) & (np.hypot(off[:, 0], off[:, 1]) < width)
    cut_off &= before * lengths[first - 1] < width
    cut_off &= after * lengths[last] < width
    if not cut_off.any():
        return network
    first, last = first[cut_off], last[cut_off]
    moved = points.copy()
    moved[first] = corner[cut_off]
    marks = np.zeros(len(points) + 1, np.int64)
    marks[first + 1] += 1
    marks[last + 1] -= 1
    keep = np.cumsum(marks[:-1]) == 0
    counts = np.add.reduceat(keep.astype(np.int64), network.starts)
    return Network(network.nodes, network.ends, moved[keep], counts)


def cut_lines(line: Line, distances: NDArray[np.float64]) -> list[Line]:
    """Cut a line into pieces at ascending distances from its start, all inside the line."""
    steps = np.diff(line, axis=0)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
    places = np.stack([np.interp(distances, along, line[:, axis]) for axis in (0, 1)], axis=1)
    before = np.searchsorted(along, distances)
    whole = np.insert(line, before, places, axis=0)
    stops = [0, *(before + np.arange(len(before))).tolist(), len(whole) - 1]
    return [whole[start : stop + 1] for start, stop in pairwise(stops)]


def _apart(simple: Network, full: Network) -> Network:
    """Add a middle point to a straight road if another straight road has the same two ends."""
    straight = np.flatnonzero((simple.counts == 2) & (full.counts > 2))
    ends = np.sort(simple.ends, axis=1)
    pairs = ends[simple.counts == 2]
    if not len(straight) or len(np.unique(pairs, axis=0)) == len(pairs):
        return simple
    lines = simple.lines
    taken = {tuple(pair) for pair in ends[(simple.counts == 2) & (full.counts == 2)].tolist()}
    for road in straight.tolist():
        pair = tuple(ends[road].tolist())
        if pair in taken:
            whole = full.points[full.starts[road] : full.starts[road] + full.counts[road]]
            lines[road] = np.stack([whole[0], whole[_farthest(whole)], whole[-1]])
        taken.add(pair)
    return Network.of_lines(simple.nodes, simple.ends, lines)


def _farthest(line: Line) -> int:
    """Return the index of the inner point farthest from the chord."""
    chord = line[-1] - line[0]
    offset = line[1:-1] - line[0]
    return 1 + int(np.argmax(np.abs(chord[0] * offset[:, 1] - chord[1] * offset[:, 0])))
