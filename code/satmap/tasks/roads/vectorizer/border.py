"""The image's border: roads cropped to it, and roads that only seem to meet at it."""

import numpy as np
from numpy.typing import NDArray

from satmap.tasks.roads.vectorizer.junctions import cross, road_branches
from satmap.tasks.roads.vectorizer.network import Line, Network

# So far inside the image's edge the skeleton of a road that leaves it is bent, metres.
_BEND = 1.0
# At the border so many road widths of a stub are no road but two that leave the image together,
_STUB = 2.0
# if both of them make at least this sine of an angle with it.
_SLANT = 0.1


def on_border(nodes: Line, size: Line) -> NDArray[np.bool_]:
    """Which of (n, 2) places lie on the image's border."""
    border: NDArray[np.bool_] = np.any((nodes <= 1e-6) | (nodes >= size - 1e-6), axis=1)
    return border


def crop_network(network: Network, margin: Line, limit: Line, scale: Line) -> Network:
    """A network in pixels of the padded plane, cropped to the image, in metres.

    Far beyond the image's edge a road that leaves aslant runs at right angles to the edge, through
    the middle of its last row; on the way there the skeleton is bent. So the road goes straight
    from where it is whole to that middle. Whatever else was traced beyond the edge falls onto it.

    Args:
        network: the network, pixels of the padded plane.
        margin: pixels that the plane was padded by, along x and y, (2,).
        limit: width and height of the image, pixels, (2,).
        scale: metres a pixel along x and y, (2,).
    """
    if not len(network.counts):
        return network
    points = network.points - margin
    inset = _BEND / scale
    x, y = points.T
    outside = (x < 0) | (y < 0) | (x > limit[0]) | (y > limit[1])
    whole = (x > inset[0]) & (y > inset[1]) & (x < limit[0] - inset[0]) & (y < limit[1] - inset[1])
    index = np.arange(len(points))
    first, last = network.starts, network.starts + network.counts - 1
    first_whole = np.minimum.reduceat(np.where(whole, index, len(points)), first)
    last_whole = np.maximum.reduceat(np.where(whole, index, -1), first)
    dead = (network.degrees[network.ends] == 1) & (last_whole >= 0)[:, None]
    enters, leaves = dead[:, 0] & outside[first], dead[:, 1] & outside[last]
    opens = np.repeat(np.where(enters, first_whole, first), network.counts)
    closes = np.repeat(np.where(leaves, last_whole, last), network.counts)
    keep = (index >= opens) & (index <= closes)
    keep[first] = keep[last] = True
    counts = np.add.reduceat(keep.astype(np.int64), first)
    return Network(
        (network.nodes - margin).clip(0, limit) * scale,
        network.ends,
        points[keep].clip(0, limit) * scale,
        counts,
    )


def part_at_border(network: Network, width: float, size: Line) -> Network:
    """Let roads leave the image side by side that the skeleton joins just before its border.

    Where two roads come together at the border the skeleton shows one that touches it and turns
    back, or a short stub that leaves the image. If their straight continuations meet inside the
    image, that is a bend or a junction near its border; if they meet outside, each road leaves the
    image for itself.

    Args:
        network: the network, metres.
        width: of a road, metres.
        size: width and height of the image, (2,).
    """
    network = _cut_where_touching(network, width, size)
    degrees = network.degrees
    branches = road_branches(network, width)
    near = np.minimum(network.nodes, size - network.nodes).min(axis=1) < _STUB * width
    nodes, ends, lines = [*network.nodes], network.ends.copy(), network.lines
    by_node = np.argsort(branches.nodes, kind="stable")
    first = np.searchsorted(branches.nodes[by_node], np.arange(len(network.nodes) + 1))
    gone = np.zeros(len(lines), np.bool_)
    moved = np.zeros(len(lines), np.bool_)
    leaf = on_border(network.nodes, size) & (degrees == 1)
    stub = leaf[network.ends].any(axis=1) & (network.lengths < _STUB * width)
    for joint in np.flatnonzero(near & ((degrees == 2) | (degrees == 3))).tolist():
        halves = by_node[first[joint] : first[joint + 1]]
        pair = halves[~stub[halves >> 1]]
        if len(pair) != 2 or moved[pair >> 1].any():
            continue
        distances = np.concatenate([nodes[joint], size - nodes[joint]])
        edge = int(distances.argmin())
        axis, limit = edge % 2, 0.0 if edge < 2 else float(size[edge % 2])
        tips = _apart_at(branches.places[pair], branches.directions[pair], axis, limit)
        if tips is None:
            continue
        gone[halves[stub[halves >> 1]] >> 1] = True
        moved[pair >> 1] = True
        for half, tip in zip(pair.tolist(), tips.clip(0, size), strict=True):
            road, end = half >> 1, half % 2
            line = lines[road][::-1] if end else lines[road]
            # As far as the skeleton is bent the straight continuation takes its place.
            straight = np.flatnonzero(np.abs(line[:, axis] - limit) > _STUB * width / 2)
            rest = line[straight[0] :] if len(straight) else line[-1:]
            line = np.concatenate([tip[None], rest])
            lines[road] = line[::-1] if end else line
            ends[road, end] = len(nodes)
            nodes.append(tip)
    kept = np.flatnonzero(~gone)
    return Network.of_lines(
        np.array(nodes).reshape(-1, 2), ends[kept], [lines[road] for road in kept.tolist()]
    ).dissolve()


def _cut_where_touching(network: Network, width: float, size: Line) -> Network:
    """A node where a road comes nearest to the border, if it comes near in its midst."""
    points = network.points
    distance = np.minimum(points, size - points).min(axis=1) if len(points) else np.empty(0)
    road = np.repeat(np.arange(len(network.counts)), network.counts)
    way = network.along - network.along[network.starts][road] if len(points) else distance
    rest = network.lengths[road] - way
    touching = np.flatnonzero((distance < width) & (way > 2 * width) & (rest > 2 * width))
    if not len(touching):
        return network
    order = touching[np.lexsort((distance[touching], road[touching]))]
    order = order[np.unique(road[order], return_index=True)[1]]
    lines, ends, nodes = network.lines, network.ends.tolist(), [*network.nodes]
    for index in order.tolist():
        number = int(road[index])
        line, at = lines[number], index - int(network.starts[number])
        lines[number] = line[: at + 1]
        lines.append(line[at:])
        ends.append([len(nodes), ends[number][1]])
        ends[number] = [ends[number][0], len(nodes)]
        nodes.append(line[at])
    return Network.of_lines(np.array(nodes), np.array(ends, np.int64), lines)


def _apart_at(places: Line, directions: Line, axis: int, limit: float) -> Line | None:
    """Where two arms reach the border, (2, 2), if they meet only beyond it.

    Args:
        places: a place on each arm, (2, 2).
        directions: of the arms, inwards, (2, 2).
        axis: the border is a line of constant x (0) or y (1),
        limit: at this coordinate.
    """
    inward = 1.0 if limit == 0 else -1.0
    turn = float(cross(directions[0], directions[1]))
    if (directions[:, axis] * inward < _SLANT).any() or abs(turn) < 1e-6:
        return None
    step = float(cross(places[1] - places[0], directions[1])) / turn
    meeting = places[0] + step * directions[0]
    if (meeting[axis] - limit) * inward > 0:
        return None
    way = (limit - places[:, axis]) / directions[:, axis]
    tips: Line = places + way[:, None] * directions
    tips[:, axis] = limit
    return tips
