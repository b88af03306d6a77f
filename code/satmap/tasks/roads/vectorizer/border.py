"""The image's border: crop roads to it, and separate roads that only seem to meet at it."""

import numpy as np
from numpy.typing import NDArray

from satmap.tasks.roads.vectorizer.junctions import cross, road_branches
from satmap.tasks.roads.vectorizer.network import Line, Network

# Distance from the image's edge within which the skeleton of a leaving road is bent, metres.
_BEND = 1.0
# A stub at the border shorter than this many road widths is two roads that leave the image
# together,
_STUB = 2.0
# if the sine of the angle between each of them and the border is at least this.
_SLANT = 0.1


def on_border(nodes: Line, size: Line) -> NDArray[np.bool_]:
    """Return which of (n, 2) places lie on the image's border."""
    border: NDArray[np.bool_] = np.any((nodes <= 1e-6) | (nodes >= size - 1e-6), axis=1)
    return border


def crop_network(network: Network, margin: Line, limit: Line, scale: Line) -> Network:
    """Crop a network in pixels of the padded map to the image, and convert it to metres.

    In the padding, a road that leaves the image at a slant continues at right angles to the edge,
    from the middle of its last row of pixels. The skeleton bends on the way there. So each such
    road is led straight from its last undistorted point to that middle. Everything else that was
    traced beyond the edge is moved onto the edge.

    Args:
        network: the network, pixels of the padded map.
        margin: width of the padding in pixels, along x and y, (2,).
        limit: width and height of the image, pixels, (2,).
        scale: metres per pixel along x and y, (2,).
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
    """Separate roads that leave the image side by side but that the skeleton joins at its border.

    Where two roads come together at the border, the skeleton shows one road that touches the border
    and turns back, or a short stub that leaves the image. If the straight continuations of both
    roads meet inside the image, there is a bend or a junction near the border. If they meet
    outside, each road gets its own exit.

    Args:
        network: the network, metres.
        width: width of a road, metres.
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
            # The straight continuation replaces the bent part of the skeleton.
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
    """Insert a node where a road touches the border away from its ends."""
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
    """Return where two arms reach the border, (2, 2), or None unless they meet beyond it.

    Args:
        places: a place on each arm, (2, 2).
        directions: directions of the arms, inwards, (2, 2).
        axis: the border is a line of constant x (0) or y (1).
        limit: the constant coordinate of the border.
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
