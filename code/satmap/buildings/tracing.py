"""Walking around labelled pixels along their edges.

Every side of a pixel behind which lies something else is an edge with the pixel on its right. An
edge goes on around the pixel diagonally ahead if that belongs to the same instance, else straight
on, else around its own pixel. Each ring so has one 4-connected part of the surroundings beside it
and passes no vertex twice: outlines of 4-connected instances are valid polygons, whose holes may
touch the outside in a point.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Sides above, to the right, below and to the left, walked to the right, down, to the left and up:
# rows and columns to what lies ahead, to what lies beyond, and to where an edge starts.
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))
_BEYOND = ((-1, 0), (0, 1), (1, 0), (0, -1))
_START = ((0, 0), (0, 1), (1, 1), (1, 0))


def trace_rings(labels: NDArray[np.int32]) -> tuple[NDArray[np.float64], Ints, Ints]:
    """The rings around all instances, outer ones before holes.

    Args:
        labels: int32 (height, width), 0 outside.

    Returns:
        Corners (n, 2) as x and y of pixels' edges, without the repeated last one, those of a ring
        after one another; the ring of each, (n,); the label of each ring, (rings,).
    """
    height, width = labels.shape
    padded = np.zeros((height + 2, width + 2), np.int32)
    padded[1:-1, 1:-1] = labels
    inner, stride = padded[1:-1, 1:-1], width + 2
    flat = padded.ravel()
    places, sides, following, turned = [], [], [], []
    for number, ((down, right), (up, out)) in enumerate(zip(_AHEAD, _BEYOND, strict=True)):
        beyond = padded[1 + up : height + 1 + up, 1 + out : width + 1 + out]
        rows, columns = np.divmod(np.flatnonzero((inner != beyond) & (inner > 0)), width)
        place = (rows + 1) * stride + columns + 1
        ahead = place + down * stride + right
        across = ahead + up * stride + out
        label = flat[place]
        left, straight = flat[across] == label, flat[ahead] == label
        goes_to = np.where(left, across, np.where(straight, ahead, place))
        turn = np.where(left, 3, np.where(straight, 0, 1))
        places.append(place)
        sides.append(np.full(len(place), number))
        following.append(goes_to * 4 + (number + turn) % 4)
        turned.append(turn > 0)
    place, side = np.concatenate(places), np.concatenate(sides)
    key = place * 4 + side
    order = np.argsort(key)
    key, place, side = key[order], place[order], side[order]
    to = np.searchsorted(key, np.concatenate(following)[order]).tolist()
    # By the start of an edge: whether the one before it turned.
    corner = np.zeros(len(key), np.bool_)
    corner[to] = np.concatenate(turned)[order]

    walk: list[int] = []
    starts: list[int] = []
    seen = bytearray(len(to))
    for first in range(len(to)):
        if seen[first]:
            continue
        starts.append(len(walk))
        edge = first
        while not seen[edge]:
            seen[edge] = 1
            walk.append(edge)
            edge = to[edge]
    edges = np.array(walk, np.int64)
    ring = np.repeat(np.arange(len(starts)), np.diff([*starts, len(walk)]))
    ring, edges_at_corners = ring[corner[edges]], edges[corner[edges]]
    first_edges = edges[np.array(starts, np.int64)]
    rows, columns = np.divmod(place[edges_at_corners], stride)
    offset = np.array(_START)[side[edges_at_corners]]
    corners = np.stack([columns - 1 + offset[:, 1], rows - 1 + offset[:, 0]], axis=1)
    return corners.astype(np.float64), ring, flat[place[first_edges]].astype(np.int64)
