"""Watershed as a minimum spanning forest, of all blobs at once.

A watershed cut of a graph is the cut between the trees of a minimum spanning forest that is rooted
in the markers (Cousty, Bertrand, Najman, Couprie 2009, "Watershed cuts"). Seeds are whole insides
of buildings, so that only the narrow rest of a blob is a graph of pixels: on a chip with 200
buildings that is some ten thousand, sorted and joined by scipy in milliseconds. On plateaus pixels
nearer to a seed come first, as water would flow, so that seams run in the middle.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from satmap.buildings.parts import Labels, Parts

Longs = NDArray[np.int64]

# Distances in sixteenths of a pixel, up to that many, break ties of strength.
_STEPS, _FARTHEST = 16, 1 << 16
# Pixels to the left, right, above, below; of two pixels without seed one gives the edge.
_GIVEN_ONCE = np.array([False, True, False, True])


@dataclass(frozen=True)
class Shores:
    """What the water reached, and where parts meet.

    Attributes:
        place: int64 (pixels,), flat places of the pixels outside seeds.
        part: int32 (pixels,), the seed that each belongs to.
        pairs: int64 (2, seams), two seeds whose parts meet, each pair once, ascending.
        length: int64 (seams,), pixels' sides along which they meet.
        strength: float64 (seams,), mean along the seam, 0..255.
    """

    place: Longs
    part: Labels
    pairs: Longs
    length: Longs
    strength: NDArray[np.float64]


def flood(
    strength: NDArray[np.uint8], seeds: Labels, blobs: Parts, split: NDArray[np.bool_]
) -> Shores:
    """Give every pixel of some blobs to a seed, the strongest pixels first.

    Args:
        strength: uint8 (height, width).
        seeds: int32 (height, width), 0 outside, 1..n, each within one blob.
        blobs: what pixels are connected in.
        split: bool (blobs,), which to flood; they hold all of the seeds.
    """
    width = strength.shape[1]
    away = _distances(seeds, blobs, split)
    place = np.flatnonzero(away)
    count, last = len(place), int(seeds.max())
    # Nodes: pixels, then seeds 1..last as count..., then a root that only seeds are joined to.
    node = np.full((strength.shape[0] + 2, width + 2), -1, np.int32)
    inner = node[1:-1, 1:-1]
    np.subtract(seeds, 1 - count, out=inner, where=seeds > 0)
    inner[away > 0] = np.arange(count, dtype=np.int32)
    here = place // width * (width + 2) + place % width + width + 3
    steps = np.array([-1, 1, -width - 2, width + 2])
    there = node.ravel()[here[:, None] + steps]
    given = (there >= count) | ((there >= 0) & _GIVEN_ONCE)
    # Blobs that are connected by a corner, or cut apart, may lie side by side.
    blob = blobs.labels.ravel()
    beside = np.where(given, place[:, None] + np.array([-1, 1, -width, width]), place[:, None])
    given &= blob[beside] == blob[place][:, None]

    # Seeds come first, then pixels by strength, by distance, row by row. An edge takes its turn
    # when the later of its ends does, so that all weights differ.
    flat = strength.ravel()
    level = (255 - flat[place].astype(np.int64)) * _FARTHEST + away.ravel()[place]
    order = np.sort((level << 32) + np.arange(count)) & 0xFFFFFFFF
    turn = np.empty(count + last, np.int64)
    turn[order] = np.arange(last, count + last)
    turn[count:] = np.arange(last)
    start = np.repeat(np.arange(count), given.sum(axis=1))
    end = there[given]
    later, sooner = np.maximum(turn[start], turn[end]), np.minimum(turn[start], turn[end])
    root = count + last
    ends = np.concatenate([end, np.arange(count, root, dtype=np.int32)])
    # Edges to the root come before all others.
    weights = np.concatenate(
        [(later * root + sooner + root).astype(np.float64), 1.0 + turn[count:]]
    )
    starts = np.concatenate([[0], np.cumsum(given.sum(axis=1)), np.full(last, len(end))])
    starts = np.append(starts, len(ends))
    graph = sparse.csr_array((weights, ends, starts), shape=(root + 1, root + 1))
    tree = minimum_spanning_tree(graph).tocoo()
    grown = tree.row != root
    forest = sparse.coo_array(
        (tree.data[grown], (tree.row[grown], tree.col[grown])), shape=(root, root)
    )
    _, group = connected_components(forest, directed=False)
    seed_of = np.zeros(len(group), np.int32)
    seed_of[group[count:]] = np.arange(1, last + 1)
    of_node = seed_of[group]

    one, other = of_node[start].astype(np.int64), of_node[end].astype(np.int64)
    apart = one != other
    pair = np.minimum(one, other)[apart] * (last + 1) + np.maximum(one, other)[apart]
    between = (flat[place[start[apart]]].astype(np.float64) + flat[beside[given][apart]]) / 2
    met, number = np.unique(pair, return_inverse=True)
    length = np.bincount(number, minlength=len(met))
    mean = np.bincount(number, between, minlength=len(met)) / np.maximum(length, 1)
    return Shores(
        place, of_node[:count], np.stack(np.divmod(met, last + 1)), length.astype(np.int64), mean
    )


def _distances(seeds: Labels, blobs: Parts, split: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Steps as the crow flies from pixels of some blobs to their blob's nearest seed; else 0."""
    away = np.zeros(seeds.shape, np.int32)
    for blob in np.flatnonzero(split).tolist():
        box = blobs.boxes[blob]
        inside = blobs.labels[box] == blob
        open_ = np.ascontiguousarray(~(inside & (seeds[box] > 0))).view(np.uint8)
        distance = cv2.distanceTransform(open_, cv2.DIST_L2, 5)
        steps = np.minimum(distance * _STEPS, _FARTHEST - 1).astype(np.int32)
        np.copyto(away[box], steps, where=inside)
    return away
