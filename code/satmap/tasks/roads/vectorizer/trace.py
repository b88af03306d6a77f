"""From skeleton pixels to a network of nodes, and roads with their pixel paths between them.

Every step is a few array operations without a loop over pixels: neighbouring pixels are linked,
touching junction pixels become one node, and all chains through nodes of degree two are followed at
once (network.py).

Networks of windows are stitched together. The skeleton is the same whichever window it comes from.
So each line piece between two successive points belongs to exactly one window, the one that
contains its middle. Where a line is cut, both neighbouring windows have an end at exactly the same
place, and no matching tolerance is needed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satmap.rasters.scene import Box
from satmap.tasks.roads.vectorizer.network import (
    Bools,
    Floats,
    Ints,
    Network,
    components,
    follow_chains,
    gather,
)


def trace_skeleton(rows: Ints, columns: Ints) -> Network:
    """Trace the pixels of a skeleton, row by row from left to right, into a network in pixels.

    The centre of pixel (row, column) is at x = column + 0.5, y = row + 0.5, as in label vectors
    transformed by the inverse of the image's affine transform.
    """
    if not len(rows):
        return Network()
    links = _links(rows, columns)
    crowded = np.bincount(links.ravel(), minlength=len(rows)) >= 3
    places = np.stack([columns + 0.5, rows + 0.5], axis=1)
    nodes, links = _merged(places, links, crowded[links[:, 0]] & crowded[links[:, 1]])
    halves, counts = follow_chains(len(nodes), links)
    origin = links.reshape(-1)
    last = np.cumsum(counts) - 1
    first = last - counts + 1
    # A chain of k links has k + 1 points: the start of each half-edge, and the end of the last one.
    order = np.insert(origin[halves], last + 1, origin[halves[last] ^ 1])
    ends = np.stack([origin[halves[first]], origin[halves[last] ^ 1]], axis=1)
    return Network(nodes, ends, nodes[order], counts + 1).compact()


def _links(rows: Ints, columns: Ints) -> Ints:
    """Return pairs of neighbouring pixels, (m, 2).

    Diagonal neighbours are linked only if no common side neighbour links them. Otherwise each
    corner of a staircase would be a triangle of junctions.
    """
    # A spare column at either end of each row prevents neighbours from wrapping around.
    stride = int(columns.max()) + 3
    flat = rows * stride + columns

    def neighbour(shift: int) -> Ints:
        there = np.searchsorted(flat, flat + shift).clip(max=len(flat) - 1)
        return np.where(flat[there] == flat + shift, there, -1)

    east, south, west = neighbour(1), neighbour(stride), neighbour(-1)
    southeast = np.where((east >= 0) | (south >= 0), -1, neighbour(stride + 1))
    southwest = np.where((west >= 0) | (south >= 0), -1, neighbour(stride - 1))
    here = np.tile(np.arange(len(flat)), 4)
    there = np.concatenate([east, south, southeast, southwest])
    return np.stack([here, there], axis=1)[there >= 0]


def _merged(places: Floats, links: Ints, inside: Bools) -> tuple[Floats, Ints]:
    """Merge both ends of each link that is ``inside`` at the mean of their places.

    Returns:
        Places (n, 2), and the other links, (k, 2).
    """
    joined, inner = np.unique(links[inside], return_inverse=True)
    label = components(len(joined), inner.reshape(-1, 2))
    first = np.unique(label, return_index=True)[1]
    target = np.arange(len(places))
    target[joined] = joined[first[label]]
    nodes = places.copy()
    for axis in (0, 1):
        sums = np.bincount(label, places[joined, axis])
        nodes[joined[first], axis] = sums / np.bincount(label)
    return nodes, target[links[~inside]]


def pieces_within(network: Network, box: Box) -> Network:
    """Return the parts of lines whose middles lie in a rectangle of pixels.

    The right and bottom edges are outside. The network covers some pixels around the rectangle.
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
    # Rings without a junction start at their first point by rows, as in an image traced as a whole.
    lines, places = network.lines, network.nodes.copy()
    rings = network.loops & (network.degrees[network.ends[:, 0]] == 2)
    for ring in np.flatnonzero(rings).tolist():
        line = lines[ring][:-1]
        turned = np.roll(line, -int(_by_rows(line).argmin()), axis=0)
        lines[ring] = np.concatenate([turned, turned[:1]])
        places[network.ends[ring, 0]] = turned[0]
    return Network.of_lines(places, network.ends, lines)


def in_order(network: Network) -> Network:
    """Sort nodes, roads and line directions by place.

    Results that depend on order, such as which of two points equally far from a chord is kept, are
    then the same however the network was built.
    """
    if not len(network.counts):
        return network
    points, first, last = _by_rows(network.points), network.starts, network.stops
    backwards = (points[last] < points[first]) | (
        (points[last] == points[first]) & (points[last - 1] < points[first + 1])
    )
    start, end = np.where(backwards, (last, first), (first, last))
    second = np.where(backwards, last - 1, first + 1)
    roads = np.lexsort((points[second], points[end], points[start]))
    lines, counts = gather(network, roads, backwards[roads], np.arange(len(roads)))
    order = np.argsort(_by_rows(network.nodes))
    rank = np.argsort(order)
    ends = np.where(backwards[:, None], network.ends[:, ::-1], network.ends)
    return Network(network.nodes[order], rank[ends[roads]], lines, counts)


def _by_rows(places: Floats) -> NDArray[np.complex128]:
    """Convert places (n, 2) to complex numbers, which sort by y, then by x."""
    return np.asarray(places[:, 1] + 1j * places[:, 0])
