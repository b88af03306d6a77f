"""Split networks along window seams, and stitch them together again.

The skeleton is the same whichever window it comes from. So each line piece between two successive
points belongs to exactly one window, the one that contains its middle. Where a line is cut, both
neighbouring windows have an end at exactly the same place, and no matching tolerance is needed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satmap.rasters.scene import Box
from satmap.tasks.roads.vectorizer.network import Line, Network, gather


def pieces_within(network: Network, box: Box) -> Network:
    """Return the parts of lines whose middles lie in a rectangle.

    Args:
        network: traced network in pixels, covering the window and some pixels around it.
        box: the rectangle; its right and bottom edges are outside.
    """
    points = network.points
    if not len(points):
        return network
    twice = points[:-1] + points[1:]
    corner = 2 * np.array([(box.left, box.top), (box.right, box.bottom)])
    mine = ((twice >= corner[0]) & (twice < corner[1])).all(axis=1)
    # The step from the end of one road to the start of the next is no line.
    mine[network.starts[1:] - 1] = False
    edges = np.diff(np.concatenate([[0], mine.astype(np.int8), [0]]))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    kept = np.append(mine, False)
    kept[1:] |= mine
    places = np.stack([points[first], points[last]], axis=1).reshape(-1, 2)
    ends = np.arange(len(places)).reshape(-1, 2)
    return Network(places, ends, points[kept], last - first + 1)


def stitched(pieces: Sequence[Network]) -> Network:
    """Stitch the pieces of all windows into one network; ends at the same place meet."""
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
    """Rotate rings without a junction so that they start at their first point by rows.

    This is where they start if the image is traced as a whole.
    """
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
    """Sort nodes, roads and line directions by place.

    Results that depend on order, such as which of two points equally far from a chord is kept, are
    then the same however the network was built.
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
    """Convert places (n, 2) to complex numbers, which sort by y, then by x."""
    numbers: NDArray[np.complex128] = places[:, 1] + 1j * places[:, 0]
    return numbers
