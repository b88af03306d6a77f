"""Cleaning a road network; all lengths here are metres, and so are the network's coordinates.

Working in metres rather than pixels makes every rule hold for images of any resolution, also where
pixels are wider than high. Pruning repeats until nothing changes (CRESI), and takes the shortest
spur of each junction first, so that the fork at a road's end loses one prong and not both. What is
doubtful beside the image's other roads must be longer to stay.
"""

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.roads.evidence import Evidence
from satmap.roads.network import Line, Network, components

# A certain component must have only this share of the length that a doubtful one must have,
_CERTAIN_PART = 0.25
# and if it leaves the image, where it goes on, the one this share and the other that.
_CERTAIN_LEAVING, _DOUBTFUL_LEAVING = 0.04, 0.5


def on_border(nodes: Line, size: Line) -> NDArray[np.bool_]:
    """Which of (n, 2) places lie on the image's border."""
    border: NDArray[np.bool_] = np.any((nodes <= 1e-6) | (nodes >= size - 1e-6), axis=1)
    return border


def drop_short_loops(network: Network, below: float) -> Network:
    """Drop loops, and all but one of parallel roads, that enclose less than a road's width."""
    ends, lengths = network.ends, network.lengths
    low, high = ends.min(axis=1), ends.max(axis=1)
    order = np.lexsort((lengths, high, low))
    repeated = np.zeros(len(ends), np.bool_)
    repeated[order[1:]] = (low[order[1:]] == low[order[:-1]]) & (
        high[order[1:]] == high[order[:-1]]
    )
    drop = ((ends[:, 0] == ends[:, 1]) & (lengths < below)) | (repeated & (lengths < below / 2))
    return network.keep(~drop).dissolve() if drop.any() else network


def prune_spurs(
    network: Network,
    below: tuple[float, float],
    skip: float,
    size: Line,
    evidence: Evidence,
) -> Network:
    """Drop dead ends that leave a junction, shortest first.

    Args:
        network: the network.
        below: shorter ones are dropped, if certain and if doubtful; those on the image's border,
            which are no ends but leave the image, only below half of it.
        skip: so much of a spur lies in the road it leaves and says nothing about it.
        size: width and height of the image, (2,).
        evidence: the road plane.
    """
    certain, doubtful = below
    while True:
        degrees, lengths, ends = network.degrees, network.lengths, network.ends
        free = degrees[ends] == 1
        dead = (free.sum(axis=1) == 1) & (degrees[ends].max(axis=1, initial=0) > 2)
        if not (dead & (lengths < doubtful)).any():
            return network
        needed = certain + (doubtful - certain) * evidence.doubt(network, skip)
        leaves = (free & on_border(network.nodes, size)[ends]).any(axis=1)
        spurs = np.flatnonzero(dead & (lengths < np.where(leaves, needed / 2, needed)))
        if not len(spurs):
            return network
        roots = np.where(free[spurs, 0], ends[spurs, 1], ends[spurs, 0])
        order = spurs[np.lexsort((lengths[spurs], roots))]
        _, shortest = np.unique(np.sort(roots), return_index=True)
        keep = np.ones(len(ends), np.bool_)
        keep[order[shortest]] = False
        network = network.keep(keep).dissolve()


def drop_components(network: Network, below: float, size: Line, evidence: Evidence) -> Network:
    """Drop connected parts of too little road.

    Args:
        network: the network.
        below: metres of road that a doubtful part must have; a certain one needs a quarter, and
            where a part leaves the image it needs less, for it goes on there.
        size: width and height of the image, (2,).
        evidence: the road plane.
    """
    if not len(network.counts):
        return network
    group = components(len(network.nodes), network.ends)
    of_road = group[network.ends[:, 0]]
    total = np.bincount(of_road, network.lengths).astype(np.float64)
    doubt = np.bincount(of_road, network.lengths * evidence.doubt(network, 0)).astype(np.float64)
    doubt /= np.maximum(total, 1e-9)
    leaves = np.bincount(group[on_border(network.nodes, size)], minlength=len(total)) > 0
    certain = np.where(leaves, _CERTAIN_LEAVING, _CERTAIN_PART)
    doubtful = np.where(leaves, _DOUBTFUL_LEAVING, 1.0)
    small = total < below * (certain + (doubtful - certain) * doubt)
    return network.keep(~small[of_road]).dissolve() if small.any() else network


def drop_uncertain(network: Network, least: float, evidence: Evidence) -> Network:
    """Drop connected parts whose probability is nowhere at least ``least``: the hysteresis."""
    if not len(network.counts):
        return network
    of_road = components(len(network.nodes), network.ends)[network.ends[:, 0]]
    highest = np.zeros(len(network.nodes))
    np.maximum.at(highest, of_road, evidence.highest(network))
    kept = highest[of_road] >= least
    return network if kept.all() else network.keep(kept).dissolve()


def smooth_lines(network: Network, reach: int) -> Network:
    """Lines of pixels with their staircases evened out by a running mean; ends stay.

    Args:
        network: the network.
        reach: neighbours on either side that are averaged; fewer near the ends.
    """
    if reach < 1 or not len(network.points):
        return network
    index = np.arange(len(network.points))
    first = np.repeat(network.starts, network.counts)
    last = first + np.repeat(network.counts, network.counts) - 1
    half = np.minimum(np.minimum(index - first, last - index), reach)
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(network.points, axis=0)])
    points = (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)[:, None]
    # Differences of long sums round; ends must stay where the nodes are.
    points[half == 0] = network.points[half == 0]
    return Network(network.nodes, network.ends, points, network.counts)


def simplify(network: Network, tolerance: float) -> Network:
    """Douglas-Peucker; a loop keeps at least three distinct points, parallel roads stay apart."""
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
    # Of a point that stands twice the second opens a piece.
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
    # The first point of a further piece is the last of the one before.
    twice = np.zeros(len(kept), np.bool_)
    twice[1:] = (owner[1:] != owner[:-1]) & (owner_road[1:] == owner_road[:-1])
    simple = Network(network.nodes, network.ends, kept[~twice], np.bincount(owner_road[~twice]))
    return _apart(simple, network)


def sharpen_bends(network: Network, width: float) -> Network:
    """Give corners back what a skeleton cuts off them.

    One or a few short pieces between two longer ones that go on to meet each other nearby are no
    road but the cut: the corner takes their place.

    Args:
        network: the network, simplified.
        width: of a road; what lies between, and every piece of it, is about that short.
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
    # How far the corner lies beyond either end of the run.
    before = (gap[:, 0] * back[:, 1] - gap[:, 1] * back[:, 0]) / safe
    after = (gap[:, 0] * ahead[:, 1] - gap[:, 1] * ahead[:, 0]) / safe
    corner = points[first] + before[:, None] * ahead
    off = corner - points[first] - gap / 2
    cut = (before > 0) & (after > 0) & (np.hypot(off[:, 0], off[:, 1]) < width)
    cut &= before * lengths[first - 1] < width
    cut &= after * lengths[last] < width
    if not cut.any():
        return network
    first, last = first[cut], last[cut]
    moved = points.copy()
    moved[first] = corner[cut]
    marks = np.zeros(len(points) + 1, np.int64)
    marks[first + 1] += 1
    marks[last + 1] -= 1
    keep = np.cumsum(marks[:-1]) == 0
    counts = np.add.reduceat(keep.astype(np.int64), network.starts)
    return Network(network.nodes, network.ends, moved[keep], counts)


def _apart(simple: Network, full: Network) -> Network:
    """Give back one point to straight roads that share both ends with another straight road."""
    straight = np.flatnonzero((simple.counts == 2) & (full.counts > 2))
    ends = np.sort(simple.ends, axis=1)
    pairs = ends[simple.counts == 2]
    if not len(straight) or len(np.unique(pairs, axis=0)) == len(pairs):
        return simple
    lines = simple.lines
    seen = {tuple(pair) for pair in ends[(simple.counts == 2) & (full.counts == 2)].tolist()}
    for road in straight.tolist():
        pair = tuple(ends[road].tolist())
        if pair in seen:
            whole = full.points[full.starts[road] : full.starts[road] + full.counts[road]]
            lines[road] = np.stack([whole[0], whole[_farthest(whole)], whole[-1]])
        seen.add(pair)
    return Network.of_lines(simple.nodes, simple.ends, lines)


def _farthest(line: Line) -> int:
    """Index of the inner point that lies farthest from the chord."""
    chord = line[-1] - line[0]
    offset = line[1:-1] - line[0]
    return 1 + int(np.argmax(np.abs(chord[0] * offset[:, 1] - chord[1] * offset[:, 0])))
