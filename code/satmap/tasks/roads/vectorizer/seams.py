"""Networks cut along the seams of windows, and put together again.

The skeleton is the same whichever window it comes from, so a piece of line between two successive
points belongs to exactly one window, that in which its middle lies, and where it was cut off its
neighbour the very same place is an end of both. Nothing has to be matched with a tolerance.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satmap.rasters.scene import Box
from satmap.tasks.roads.vectorizer.network import Line, Network, gather


def pieces_within(network: Network, box: Box) -> Network:
    """The parts of lines whose middles lie in a rectangle.

    Args:
        network: a traced network, pixels, as the window and some pixels around it show it.
        box: the rectangle; what lies on its right or bottom edge is outside.
    """
    points = network.points
    if not len(points):
        return network
    twice = points[:-1] + points[1:]
    corner = 2 * np.array([(box.left, box.top), (box.right, box.bottom)])
    mine = ((twice >= corner[0]) & (twice < corner[1])).all(axis=1)
    # Between two roads there is no line.
    mine[network.starts[1:] - 1] = False
    edges = np.diff(np.concatenate([[0], mine.astype(np.int8), [0]]))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    kept = np.append(mine, False)
    kept[1:] |= mine
    places = np.stack([points[first], points[last]], axis=1).reshape(-1, 2)
    ends = np.arange(len(places)).reshape(-1, 2)
    return Network(places, ends, points[kept], last - first + 1)


def stitched(pieces: Sequence[Network]) -> Network:
    """One network of the pieces of all windows; ends at the same place meet."""
    places = np.concatenate([piece.nodes for piece in pieces])
    nodes, number = np.unique(_by_rows(places), return_inverse=True)
    network = Network(
        np.stack([nodes.imag, nodes.real], axis=1),
        number.reshape(-1, 2),
        np.concatenate([piece.points for piece in pieces]),
        np.concatenate([piece.counts for piece in pieces]),
    ).dissolve()
    return _rings_turned(network)


def _rings_turned(network: Network) -> Network:
    """Rings without a junction start at their first point by rows, as when traced at once."""
    points = network.points.copy()
    rings = (network.ends[:, 0] == network.ends[:, 1]) & (network.degrees[network.ends[:, 0]] == 2)
    nodes = network.nodes.copy()
    for ring in np.flatnonzero(rings).tolist():
        line = points[network.starts[ring] :][: network.counts[ring]]
        turned = np.roll(line[:-1], -int(_by_rows(line[:-1]).argmin()), axis=0)
        line[:] = np.concatenate([turned, turned[:1]])
        nodes[network.ends[ring, 0]] = turned[0]
    return Network(nodes, network.ends, points, network.counts)


def in_order(network: Network) -> Network:
    """The same with nodes, roads and the directions of lines in the order of their places.

    What depends on order, such as which of two points equally far from a chord stays, is then the
    same however the network came about.
    """
    if not len(network.counts):
        return network
    nodes = _by_rows(network.nodes)
    points = _by_rows(network.points)
    first, last = network.starts, network.starts + network.counts - 1
    backwards = (points[last] < points[first]) | (
        (points[last] == points[first]) & (points[last - 1] < points[first + 1])
    )
    start, end = np.where(backwards, (last, first), (first, last))
    second = np.where(backwards, last - 1, first + 1)
    roads = np.lexsort((points[second], points[end], points[start]))
    lines, counts = gather(network, roads, backwards[roads], np.arange(len(roads)))
    order = np.argsort(nodes)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    ends = np.where(backwards[:, None], network.ends[:, ::-1], network.ends)
    return Network(network.nodes[order], rank[ends[roads]], lines, counts)


def _by_rows(places: Line) -> NDArray[np.complex128]:
    """Places (n, 2) as numbers that are sorted by y, then by x."""
    numbers: NDArray[np.complex128] = places[:, 1] + 1j * places[:, 0]
    return numbers
