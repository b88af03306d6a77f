"""Watershed as a minimum spanning forest, of all blobs at once.

A watershed cut of a graph is the cut between the trees of a minimum spanning forest that is rooted
in the markers (Cousty, Bertrand, Najman, Couprie 2009, "Watershed cuts"). Seeds are whole insides
of buildings, so that only the narrow rest of a blob is a graph of pixels: on a chip with 200
buildings that is some ten thousand. On plateaus pixels
nearer to a seed come first, as water would flow, so that seams run in the middle.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from satmap.tasks.buildings.vectorizer.tracing import Labels, Mask, Parts

Longs = NDArray[np.int64]

# Distances in sixteenths of a pixel, up to that many, break ties of strength.
_STEPS, _FARTHEST = 16, 1 << 16
# Pixels to the left, right, above, below; of two pixels without seed one gives the edge.
_GIVEN_ONCE = np.array([False, True, False, True])


@dataclass(frozen=True)
class Boundaries:
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
) -> Boundaries:
    """Give every pixel of some blobs to a seed, the strongest pixels first.

    Args:
        strength: uint8 (height, width).
        seeds: int32 (height, width), 0 outside, 1..n, each within one blob.
        blobs: what pixels are connected in.
        split: bool (blobs,), which to flood; they hold all of the seeds.
    """
    width = strength.shape[1]
    away = _distances(seeds, blobs, split)
    place = np.flatnonzero(away > 0)
    count, last = len(place), int(seeds.max())
    # Nodes: pixels, then seeds 1..last as count..., then a root that only seeds are joined to.
    node = np.full((strength.shape[0] + 2, width + 2), -1, np.int32)
    inner = node[1:-1, 1:-1]
    np.subtract(seeds, 1 - count, out=inner, where=seeds > 0)
    inner[away > 0] = np.arange(count, dtype=np.int32)
    here = place // width * (width + 2) + place % width + width + 3
    steps = np.array([-1, 1, -width - 2, width + 2])
    there = node.ravel()[here[:, None] + steps]
    near = there >= 0
    # Blobs that are connected by a corner, or cut apart, may lie side by side.
    blob = blobs.labels.ravel()
    beside = np.where(near, place[:, None] + np.array([-1, 1, -width, width]), place[:, None])
    near &= blob.take(beside) == blob[place][:, None]

    # Seeds come first, then pixels by strength, by distance, row by row.
    flat = strength.ravel()
    level = (255 - flat[place].astype(np.int64)) * _FARTHEST + away.ravel()[place]
    order = np.sort((level << 32) + np.arange(count)) & 0xFFFFFFFF
    turn = np.empty(count + last, np.int64)
    turn[order] = np.arange(last, count + last)
    turn[count:] = np.arange(last)
    given = near & ((there >= count) | _GIVEN_ONCE)
    # An edge is a pixel and one of its sides.
    edge = np.flatnonzero(given)
    start, end = edge // len(steps), there.ravel()[edge]
    root = _roots(turn, there, near, start, end)
    seed_of = np.zeros(count + last, np.int32)
    seed_of[root[count:]] = np.arange(1, last + 1)
    of_node = seed_of[root]

    apart = np.flatnonzero(of_node[start] != of_node[end])
    start, end = start[apart], end[apart]
    one, other = of_node[start].astype(np.int64), of_node[end].astype(np.int64)
    pair = np.minimum(one, other) * (last + 1) + np.maximum(one, other)
    between = (flat[place[start]].astype(np.float64) + flat[beside.ravel()[edge[apart]]]) / 2
    met, number = np.unique(pair, return_inverse=True)
    length = np.bincount(number, minlength=len(met))
    mean = np.bincount(number, between, minlength=len(met)) / np.maximum(length, 1)
    return Boundaries(
        place, of_node[:count], np.stack(np.divmod(met, last + 1)), length.astype(np.int64), mean
    )


def _roots(turn: Longs, there: Labels, near: Mask, start: Longs, end: Labels) -> Longs:
    """The minimum spanning forest rooted in the seeds, by Boruvka's steps: all trees without a seed
    take the cheapest edge that leads out of them, until there are none.

    An edge takes its turn when the later of its ends does, and among those the one whose other end
    comes first, so that all weights differ and there is one forest.

    Args:
        turn: int64 (nodes,), when nodes are reached; pixels' first, then those of seeds.
        there: int32 (pixels, 4), neighbouring nodes.
        near: bool (pixels, 4), where there is one.
        start: int64 (edges,), a pixel each.
        end: int32 (edges,), the node at the other end.

    Returns:
        int64 (nodes,), one node of the tree that each belongs to; of seeds, themselves.
    """
    pixels, nodes = len(there), len(turn)
    # A pixel's cheapest edge leads to the first of its neighbours.
    node_at = np.empty(nodes, np.int64)
    node_at[turn] = np.arange(nodes)
    first = np.full(pixels, nodes)
    for side, beside in zip(there.T, near.T, strict=True):
        np.minimum(first, turn.take(side), out=first, where=beside)
    out = np.arange(nodes)
    out[:pixels] = node_at[first]
    root = _followed(out, turn)
    a, b = root[start], root[end]
    apart = np.flatnonzero(a != b)
    start, end = start[apart], end[apart]
    weight = np.maximum(turn[start], turn[end]) * nodes + np.minimum(turn[start], turn[end])
    order = np.argsort(weight)
    a, b = a[apart][order], b[apart][order]
    while True:
        # Between trees with seeds no edge is taken.
        useful = (a != b) & ((a < pixels) | (b < pixels))
        if not useful.any():
            return root
        a, b = a[useful], b[useful]
        out = np.arange(nodes)
        # Of assignments to one place the last one stays: the cheapest edge's, of both directions.
        both = np.stack([a, b], axis=1)[::-1].ravel(), np.stack([b, a], axis=1)[::-1].ravel()
        out[both[0]] = both[1]
        out[pixels:] = np.arange(pixels, nodes)
        step = _followed(out, turn)
        root, a, b = step[root], step[a], step[b]


def _followed(out: Longs, turn: Longs) -> Longs:
    """Where pointers lead in the end; of two nodes that point at each other, the one that comes
    first stays. Other circles there are none, as all weights differ."""
    stays = (out[out] == np.arange(len(out))) & (turn <= turn[out])
    out = np.where(stays, np.arange(len(out)), out)
    while True:
        further = out[out]
        if (further == out).all():
            return out
        out = further


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
