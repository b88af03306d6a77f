"""From skeleton pixels to a network of nodes, and roads with their pixel paths between them.

Every step is a few array operations without a loop over pixels: neighbouring pixels are linked,
touching junction pixels become one node, and all chains through nodes of degree two are followed at
once (network.py).
"""

import numpy as np
from numpy.typing import NDArray

from satmap.tasks.roads.vectorizer.network import Ints, Line, Network, components, follow_chains


def trace_skeleton(rows: Ints, columns: Ints) -> Network:
    """Trace a skeleton into a network, in pixels.

    The centre of pixel (row, column) is at x = column + 0.5, y = row + 0.5, as in label vectors
    transformed by the inverse of the image's affine transform.

    Args:
        rows: row of each skeleton pixel, (n,), ascending.
        columns: column of each skeleton pixel, (n,), ascending within a row.
    """
    if not len(rows):
        return Network()
    places = np.stack([columns + 0.5, rows + 0.5], axis=1)
    links = _links(rows, columns)
    crowded = np.bincount(links.ravel(), minlength=len(rows)) >= 3
    inside = crowded[links[:, 0]] & crowded[links[:, 1]]
    nodes, links = _merged(places, links, inside)
    halves, counts = follow_chains(len(nodes), links)
    return _lines(nodes, links, halves, counts).compact()


def _links(rows: Ints, columns: Ints) -> Ints:
    """Return pairs of neighbouring pixels, (m, 2).

    Diagonal neighbours are linked only if no common side neighbour links them. Otherwise each
    corner of a staircase would be a triangle of junctions.
    """
    # A spare column at either end of each row prevents neighbours from wrapping around.
    stride = int(columns.max()) + 3
    flat = rows * stride + columns
    here = np.arange(len(flat))
    ahead = np.append(flat, [-1] * 3)
    east = ahead[1:-2] == flat + 1
    # The three neighbours in the next row are among the three pixels from ``below`` on.
    below = np.searchsorted(flat, flat + stride - 1)
    found = {}
    for shift in (-1, 0, 1):
        found[shift] = np.full(len(flat), -1)
        for rank in (0, 1, 2)[: shift + 2]:
            there = ahead[below + rank] == flat + stride + shift
            found[shift][there] = (below + rank)[there]
    west = np.zeros(len(flat), np.bool_)
    west[1:] = east[: len(flat) - 1]
    south = found[0]
    southeast = np.where(east[: len(flat)] | (south >= 0), -1, found[1])
    southwest = np.where(west | (south >= 0), -1, found[-1])
    eastern = np.where(east[: len(flat)], here + 1, -1)
    return np.concatenate(
        [
            np.stack([here[there >= 0], there[there >= 0]], axis=1)
            for there in (eastern, south, southeast, southwest)
        ]
    )


def _merged(places: Line, links: Ints, inside: NDArray[np.bool_]) -> tuple[Line, Ints]:
    """Merge both ends of each link that is ``inside`` at the mean of their places.

    Returns:
        Places (n, 2), and the other links, (k, 2).
    """
    joined, inner = np.unique(links[inside], return_inverse=True)
    label = components(len(joined), inner.reshape(-1, 2))
    first = np.unique(label, return_index=True)[1]
    count = len(places)
    target = np.arange(count)
    target[joined] = joined[first[label]]
    sizes = np.bincount(label)
    nodes = places.copy()
    for axis in (0, 1):
        nodes[joined[first], axis] = np.bincount(label, places[joined, axis]) / sizes
    return nodes, target[links[~inside]]


def _lines(nodes: Line, links: Ints, halves: Ints, counts: Ints) -> Network:
    """Build the network whose roads follow chains of links."""
    origin = links.reshape(-1)
    last = np.cumsum(counts) - 1
    first = last - counts + 1
    # A chain of k links has k + 1 points: the start of each half-edge, and the end of the last one.
    order = np.insert(origin[halves], last + 1, origin[halves[last] ^ 1])
    ends = np.stack([origin[halves[first]], origin[halves[last] ^ 1]], axis=1)
    return Network(nodes, ends, nodes[order], counts + 1)
