"""Cleaning a road network; all lengths here are metres, and so are the network's coordinates.

Working in metres rather than pixels makes every rule hold for images of any resolution, also where
pixels are wider than high. Pruning repeats until nothing changes (CRESI), and takes the shortest
spur of each junction first, so that the fork at a road's end loses one prong and not both.
"""

from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.roads.trace import Line, Network, compact, components, dissolve, line_length, on_border


def merge_junctions(network: Network, within: float) -> Network:
    """Join junctions that a road shorter than ``within`` links, at their mean place.

    A skeleton shows most crossings as two T-junctions a few pixels apart. Only junctions of three
    or more roads are joined: the ends of a short road are not one place.
    """
    ends = network.ends
    junction = network.degrees >= 3
    lengths = network.lengths
    short = junction[ends].all(axis=1) & (lengths < within) & (ends[:, 0] != ends[:, 1])
    if not short.any():
        return network
    count, group = components(len(network.nodes), ends[short])
    sizes = np.bincount(group, minlength=count)
    nodes = np.stack(
        [np.bincount(group, network.nodes[:, axis], minlength=count) / sizes for axis in (0, 1)],
        axis=1,
    )
    moved = np.hypot(*(nodes[group] - network.nodes).T)
    kept = network.keep(~short)
    lines = []
    for (start, end), line in zip(kept.ends, kept.lines, strict=True):
        if moved[start] or moved[end]:
            line = _reattach(line, nodes[group[start]], moved[start])
            line = _reattach(line[::-1], nodes[group[end]], moved[end])[::-1]
        lines.append(line)
    return dissolve(compact(nodes, group[kept.ends], tuple(lines)))


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
    return dissolve(network.keep(~drop)) if drop.any() else network


def prune_spurs(network: Network, below: float, size: Line) -> Network:
    """Drop dead ends that leave a junction, shortest first.

    Args:
        network: the network.
        below: shorter ones are dropped; those on the image's border, which are no ends but leave
            the image, only below half of it.
        size: width and height of the image, (2,).
    """
    while True:
        degrees, lengths = network.degrees, network.lengths
        ends = network.ends
        free = degrees[ends] == 1
        leaves = (free & on_border(network.nodes, size)[ends]).any(axis=1)
        spurs = np.flatnonzero(
            (free.sum(axis=1) == 1)
            & (lengths < np.where(leaves, below / 2, below))
            & (degrees[ends].max(axis=1, initial=0) > 2)
        )
        if not len(spurs):
            return network
        roots = np.where(free[spurs, 0], ends[spurs, 1], ends[spurs, 0])
        order = spurs[np.lexsort((lengths[spurs], roots))]
        _, shortest = np.unique(np.sort(roots), return_index=True)
        keep = np.ones(len(ends), np.bool_)
        keep[order[shortest]] = False
        network = dissolve(network.keep(keep))


def drop_components(network: Network, below: float, size: Line) -> Network:
    """Drop connected parts of less road than ``below`` in all.

    Args:
        network: the network.
        below: metres of road; a sixth serves a part that leaves the image, for it goes on there.
        size: width and height of the image, (2,).
    """
    if not network.lines:
        return network
    count, group = components(len(network.nodes), network.ends)
    total = np.bincount(group[network.ends[:, 0]], network.lengths, minlength=count)
    leaves = np.bincount(group[on_border(network.nodes, size)], minlength=count) > 0
    small = total < np.where(leaves, below / 6, below)
    return dissolve(network.keep(~small[group[network.ends[:, 0]]]))


def simplify(network: Network, tolerance: float) -> Network:
    """Douglas-Peucker; a loop keeps at least three distinct points, parallel roads stay apart."""
    lines = []
    pieces = [
        piece
        for (start, end), line in zip(network.ends, network.lines, strict=True)
        for piece in (_thirds(line) if start == end else [line])
    ]
    if not pieces:
        return network
    index = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    geometries = shapely.linestrings(np.concatenate(pieces), indices=index)
    simple = shapely.simplify(geometries, tolerance, preserve_topology=False)
    points, owner = shapely.get_coordinates(simple, return_index=True)
    parts = np.split(points, np.flatnonzero(np.diff(owner)) + 1)
    taken = 0
    straight: set[tuple[int, int]] = set()
    for (start, end), line in zip(network.ends.tolist(), network.lines, strict=True):
        if start == end:
            first, second, third = parts[taken : taken + 3]
            new = np.concatenate([first, second[1:], third[1:]])
            taken += 3
        else:
            new = parts[taken]
            taken += 1
            if len(new) == 2:
                pair = (min(start, end), max(start, end))
                if pair in straight and len(line) > 2:
                    # Two straight roads between two nodes would be one and the same segment.
                    new = np.stack([line[0], line[_farthest(line)], line[-1]])
                straight.add(pair)
        lines.append(new)
    return Network(network.nodes, network.ends, tuple(lines))


def cut(line: Line, distances: NDArray[np.float64]) -> list[Line]:
    """A line in pieces, cut at ascending distances from its start, each inside the line."""
    along = _distances(line)
    places = np.stack([np.interp(distances, along, line[:, axis]) for axis in (0, 1)], axis=1)
    before = np.searchsorted(along, distances)
    whole = np.insert(line, before, places, axis=0)
    stops = [0, *(before + np.arange(len(before))).tolist(), len(whole) - 1]
    return [whole[start : stop + 1] for start, stop in pairwise(stops)]


def _distances(line: Line) -> NDArray[np.float64]:
    steps = np.diff(line, axis=0)
    return np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])


def _reattach(line: Line, place: Line, moved: float) -> Line:
    """The line from ``place`` on, without the first bit that would make it hook back."""
    if not moved:
        return line
    far = np.hypot(*(line[1:-1] - place).T) > 2 * moved
    skip = int(np.argmax(far)) if far.any() else len(far)
    return np.concatenate([[place], line[1 + skip :]])


def _thirds(line: Line) -> list[Line]:
    return cut(line, line_length(line) * np.array([1 / 3, 2 / 3]))


def _farthest(line: Line) -> int:
    """Index of the inner point that lies farthest from the chord."""
    chord = line[-1] - line[0]
    offset = line[1:-1] - line[0]
    return 1 + int(np.argmax(np.abs(chord[0] * offset[:, 1] - chord[1] * offset[:, 0])))
