"""The shape of a network's lines: few points, no staircases, sharp corners. Units are metres."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import shapely

from satmap.tasks.roads.vectorizer.network import Floats, Network, cross, norm


def smooth_lines(network: Network, reach: int) -> Network:
    """Smooth staircases of pixels with a running mean; ends stay in place.

    ``reach`` is the number of points averaged on either side; fewer near the ends.
    """
    if reach < 1 or not len(network.points):
        return network
    index = np.arange(len(network.points))
    first, last = network.starts[network.roads], network.stops[network.roads]
    half = np.minimum(np.minimum(index - first, last - index), reach)
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(network.points, axis=0)])
    points = (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)[:, None]
    # Differences of long sums are rounded, but ends must stay exactly at their nodes.
    points[half == 0] = network.points[half == 0]
    return replace(network, points=points)


def simplify(network: Network, tolerance: float) -> Network:
    """Simplify lines with Douglas-Peucker.

    A loop keeps at least three distinct points, and parallel roads stay distinct.
    """
    if not len(network.counts):
        return network
    # A loop is simplified in three pieces.
    cuts = np.zeros(len(network.points), np.bool_)
    start, count = network.starts[network.loops], network.counts[network.loops]
    for third in (1, 2):
        cuts[start + (count - 1) * third // 3] = True
    cuts[start] = False
    repeats = 1 + cuts.astype(np.int64)
    opened = np.zeros(len(network.points), np.int64)
    opened[network.starts] = 1
    opened = np.repeat(opened, repeats)
    # Of each repeated point, the second one starts a piece.
    opened[np.flatnonzero(np.repeat(cuts, repeats))[1::2]] = 1
    lines = shapely.linestrings(
        np.repeat(network.points, repeats, axis=0), indices=np.cumsum(opened) - 1
    )
    points, piece = shapely.get_coordinates(
        shapely.simplify(lines, tolerance, preserve_topology=False), return_index=True
    )
    road = np.repeat(network.roads, repeats)[np.flatnonzero(opened)][piece]
    # The first point of every further piece repeats the last point of the previous one.
    once = np.ones(len(points), np.bool_)
    once[1:] = (piece[1:] == piece[:-1]) | (road[1:] != road[:-1])
    simple = replace(network, points=points[once], counts=np.bincount(road[once]))
    return _apart(simple, network)


def sharpen_bends(network: Network, width: float) -> Network:
    """Restore corners that the skeleton cuts off.

    A run of short pieces between two longer ones whose continuations intersect nearby is a cut-off
    corner. The intersection replaces it. The ``width`` of a road limits the length of each short
    piece and the distance to the corner.
    """
    points = network.points
    if len(points) < 4:
        return network
    steps = np.diff(points, axis=0)
    lengths = norm(steps)
    inside = network.roads[1:] == network.roads[:-1]
    short = inside & (lengths < width)
    # Runs of short pieces from point `first` to point `last`.
    edges = np.diff(np.concatenate([[0], short.astype(np.int8), [0]]))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    fits = (first > 0) & (last < len(steps))
    first, last = first[fits], last[fits]
    fits = inside[first - 1] & inside[last]
    first, last = first[fits], last[fits]
    ahead, gap, back = steps[first - 1], points[last] - points[first], -steps[last]
    turn = cross(ahead, back)
    safe = np.where(np.abs(turn) > 1e-9, turn, np.inf)
    # Where the pieces before and after the run would meet if they were extended. Distances are
    # multiples of each piece's length.
    before, after = cross(gap, back) / safe, cross(gap, ahead) / safe
    corner = points[first] + before[:, None] * ahead
    cut_off = (before > 0) & (after > 0) & (norm(corner - points[first] - gap / 2) < width)
    cut_off &= (before * lengths[first - 1] < width) & (after * lengths[last] < width)
    first, last = first[cut_off], last[cut_off]
    moved = points.copy()
    moved[first] = corner[cut_off]
    marks = np.zeros(len(points) + 1, np.int64)
    marks[first + 1] += 1
    marks[last + 1] -= 1
    return network.with_points(moved, np.cumsum(marks[:-1]) == 0)


def cut_lines(line: Floats, distances: Floats) -> list[Floats]:
    """Cut a line into pieces at ascending distances from its start, all inside the line."""
    along = np.concatenate([[0.0], np.cumsum(norm(np.diff(line, axis=0)))])
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
            whole = full.points[full.starts[road] : full.stops[road] + 1]
            # The inner point that is farthest from the chord.
            offset = np.abs(cross(whole[-1] - whole[0], whole[1:-1] - whole[0]))
            lines[road] = whole[[0, 1 + int(np.argmax(offset)), -1]]
        taken.add(pair)
    return Network.of_lines(simple.nodes, simple.ends, lines)
