"""The image's border: crop roads to it, and separate roads that only seem to meet at it."""

from dataclasses import replace

import numpy as np

from satmap.tasks.roads.vectorizer.junctions import road_branches
from satmap.tasks.roads.vectorizer.network import Bools, Floats, Network, cross

# Distance from the image's edge within which the skeleton of a leaving road is bent, metres.
_BEND = 1.0
# A stub at the border shorter than this many road widths is two roads that leave the image
# together,
_STUB = 2.0
# if the sine of the angle between each of them and the border is at least this.
_SLANT = 0.1


def on_border(nodes: Floats, size: Floats) -> Bools:
    """Return which of (n, 2) places lie on the image's border."""
    return np.asarray(((nodes <= 1e-6) | (nodes >= size - 1e-6)).any(axis=1))


def crop_network(network: Network, margin: Floats, limit: Floats, scale: Floats) -> Network:
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
    outside = np.any((points < 0) | (points > limit), axis=1)
    whole = np.all((points > inset) & (points < limit - inset), axis=1)
    index = np.arange(len(points))
    first, last = network.starts, network.stops
    first_whole = np.minimum.reduceat(np.where(whole, index, len(points)), first)
    last_whole = np.maximum.reduceat(np.where(whole, index, -1), first)
    dead = (network.degrees[network.ends] == 1) & (last_whole >= 0)[:, None]
    opens = np.where(dead[:, 0] & outside[first], first_whole, first)
    closes = np.where(dead[:, 1] & outside[last], last_whole, last)
    keep = (index >= opens[network.roads]) & (index <= closes[network.roads])
    keep[first] = keep[last] = True
    nodes = (network.nodes - margin).clip(0, limit) * scale
    return replace(network, nodes=nodes).with_points(points.clip(0, limit) * scale, keep)


def part_at_border(network: Network, width: float, size: Floats) -> Network:
    """Separate roads that leave the image side by side, but are joined in the skeleton.

    Where two roads come together at the border, the skeleton shows one road that touches the border
    and turns back, or a short stub that leaves the image. If the straight continuations of both
    roads meet inside the image, there is a bend or a junction near the border. If they meet
    outside, each road gets its own exit. ``width`` is the width of a road and ``size``, (2,), the
    width and height of the image, in metres.
    """
    network = _cut_where_touching(network, width, size)
    degrees = network.degrees
    branches = road_branches(network, width)
    near = np.minimum(network.nodes, size - network.nodes).min(axis=1) < _STUB * width
    nodes, ends, lines = [*network.nodes], network.ends.copy(), network.lines
    gone, moved = np.zeros((2, len(lines)), np.bool_)
    leaf = on_border(network.nodes, size) & (degrees == 1)
    stub = leaf[network.ends].any(axis=1) & (network.lengths < _STUB * width)
    for joint in np.flatnonzero(near & ((degrees == 2) | (degrees == 3))):
        halves = network.leaving(np.asarray(joint), int(degrees[joint]))
        pair = halves[~stub[halves >> 1]]
        if len(pair) != 2 or moved[pair >> 1].any():
            continue
        edge = int(np.concatenate([nodes[joint], size - nodes[joint]]).argmin())
        axis, limit = edge % 2, 0.0 if edge < 2 else float(size[edge % 2])
        tips = _apart_at(branches.places[pair], branches.directions[pair], axis, limit)
        if tips is None:
            continue
        gone[halves[stub[halves >> 1]] >> 1] = True
        moved[pair >> 1] = True
        for half, tip in zip(pair.tolist(), tips.clip(0, size), strict=True):
            road, end = half >> 1, half % 2
            order = -1 if end else 1
            line = lines[road][::order]
            # The straight continuation replaces the bent part of the skeleton.
            straight = np.flatnonzero(np.abs(line[:, axis] - limit) > _STUB * width / 2)
            rest = line[straight[0] :] if len(straight) else line[-1:]
            lines[road] = np.concatenate([tip[None], rest])[::order]
            ends[road, end] = len(nodes)
            nodes.append(tip)
    parted = Network.of_lines(np.array(nodes).reshape(-1, 2), ends, lines)
    return parted.keep(~gone).dissolve()


def _cut_where_touching(network: Network, width: float, size: Floats) -> Network:
    """Insert a node where a road touches the border away from its ends."""
    points, road, way = network.points, network.roads, network.way
    distance = np.minimum(points, size - points).min(axis=1, initial=np.inf)
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


def _apart_at(places: Floats, directions: Floats, axis: int, limit: float) -> Floats | None:
    """Return where two arms reach the border, (2, 2), or None unless they meet beyond it.

    The arms pass through ``places`` (2, 2) in ``directions`` (2, 2), inwards. The border is the
    line on which coordinate ``axis`` is ``limit``.
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
    tips = np.asarray(places + way[:, None] * directions)
    tips[:, axis] = limit
    return tips
