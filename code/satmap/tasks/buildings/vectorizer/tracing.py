"""Connected parts of masks, and tracing of labelled pixels along their edges.

Every pixel side with another label beyond it is a directed edge, with the pixel on its right. At
its end, the ring turns left if the pixel diagonally ahead has the same label, goes straight on if
the pixel ahead has it, and turns right otherwise. Each ring then borders one 4-connected part of
the surroundings and passes no vertex twice. Outlines of 4-connected instances are therefore valid
polygons, whose holes may touch the outer ring in a point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components

Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """The connected parts of a mask.

    Attributes:
        labels: int32 (height, width), 0 outside, 1..n in the order of the parts' first pixels.
        count: number of labels, including 0 for the outside.
    """

    labels: Labels
    count: int

    # OpenCV can return areas and boxes too, but takes four times as long as for labels alone.
    @cached_property
    def areas(self) -> Ints:
        """Number of pixels per label, (count,), the outside first."""
        areas = label_areas(self.labels, self.count)
        areas[0] = self.labels.size - areas[1:].sum()
        return areas

    @cached_property
    def boxes(self) -> list[tuple[slice, slice]]:
        """Row and column slices of each label's bounding box; the first is the whole image."""
        whole = tuple(slice(0, side) for side in self.labels.shape)
        return [whole, *ndimage.find_objects(self.labels)]


def connected(mask: Mask) -> Parts:
    """Label the 4-connected parts of a mask."""
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return Parts(np.asarray(labels, np.int32), count)


def label_areas(labels: Labels, count: int) -> Ints:
    """Count the pixels of labels 1..count - 1, (count,).

    The outside counts as 0: it is most of an image and would take most of the time.
    """
    return np.bincount(labels[labels > 0], minlength=count)


def at_least(probability_map: Bytes, probability: float) -> Mask:
    """Threshold a probability map, 0..255 for 0..1, at a probability of 0..1."""
    return probability_map >= np.uint8(np.ceil(probability * 255))


def corners_of(boxes: Sequence[tuple[slice, slice]]) -> Ints:
    """Return left, top, right and bottom of row and column slices, (boxes, 4)."""
    corners = [(c.start, r.start, c.stop, r.stop) for r, c in boxes]
    return np.array(corners, np.int64).reshape(-1, 4)


# Up to this number of pairs and things, groups are found without a sparse matrix.
_FEW = 100


def connected_groups(pairs: Ints, count: int) -> Labels:
    """Number the groups of ``count`` things that pairs (2, n) connect, from 0; int32 (count,).

    Groups are numbered by their first thing.
    """
    if max(pairs.shape[1], count) <= _FEW:
        # Sparse matrices take a millisecond. The first thing of a group represents it.
        before = list(range(count))
        for one, other in pairs.T.tolist():
            while before[one] != one:
                one = before[one]
            while before[other] != other:
                other = before[other]
            before[max(one, other)] = min(one, other)
        number: list[int] = []
        groups = 0
        for thing, earlier in enumerate(before):
            number.append(groups if earlier == thing else number[earlier])
            groups += earlier == thing
        return np.array(number, np.int32)
    graph = sparse.coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int32)


# For the top, right, bottom and left side of a pixel, walked right, down, left and up: row and
# column steps to the pixel ahead, to the pixel beyond the side, and to the start of the edge.
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))
_BEYOND = ((-1, 0), (0, 1), (1, 0), (0, -1))
_START = ((0, 0), (0, 1), (1, 1), (1, 0))


def trace_rings(labels: Labels) -> tuple[Floats, Ints, Ints]:
    """Trace the rings around all instances of labels (height, width), outer rings before holes.

    Returns:
        Corners (n, 2), x and y on pixel edges, ring after ring, without the repeated last corner;
        the ring of each corner, (n,); the label of each ring, (rings,).
    """
    height, width = labels.shape
    padded = np.zeros((height + 2, width + 2), np.int32)
    padded[1:-1, 1:-1] = labels
    inner, stride = padded[1:-1, 1:-1], width + 2
    flat = padded.ravel()
    offsets = [up * stride + out for up, out in _BEYOND]
    at_edge = np.zeros(inner.shape, np.bool_)
    for up, out in _BEYOND:
        at_edge |= inner != padded[1 + up : height + 1 + up, 1 + out : width + 1 + out]
    rows, columns = np.divmod(np.flatnonzero(at_edge & (inner > 0)), width)
    pixels = (rows + 1) * stride + columns + 1
    places, sides, following, turned = [], [], [], []
    for number, (down, right) in enumerate(_AHEAD):
        beyond = offsets[number]
        place = pixels[flat[pixels + beyond] != flat[pixels]]
        ahead = place + down * stride + right
        across = ahead + beyond
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
    to = np.searchsorted(key, np.concatenate(following)[order])
    # An edge starts at a corner if the edge before it turned.
    corner = np.zeros(len(key), np.bool_)
    corner[to] = np.concatenate(turned)[order]
    # Jump from corner to corner by pointer doubling.
    while not (there := corner[to]).all():
        to = np.where(there, to, to[to])
    at_corner = np.flatnonzero(corner)
    rank = np.cumsum(corner) - 1
    walk, starts = _cycles(rank[to[at_corner]])
    edges = at_corner[walk]
    ring = np.repeat(np.arange(len(starts)), np.diff([*starts.tolist(), len(walk)]))
    rows, columns = np.divmod(place[edges], stride)
    offset = np.array(_START)[side[edges]]
    corners = np.stack([columns - 1 + offset[:, 1], rows - 1 + offset[:, 0]], axis=1)
    of_ring = flat[place[edges[starts]]]
    return corners.astype(np.float64), ring, of_ring.astype(np.int64)


def _cycles(following: Ints) -> tuple[Ints, Ints]:
    """Return the elements of a permutation cycle by cycle, lowest first, and the cycles' starts."""
    # Pointer doubling.
    first, to = np.arange(len(following)), following
    while (first[to] != first).any():
        first, to = np.minimum(first, first[to]), to[to]
    # Number of steps to the last element of the cycle, which steps to itself.
    last = following == first
    left = np.where(last, 0, 1)
    to = np.where(last, np.arange(len(following)), following)
    while not last[to].all():
        left, to = left + left[to], to[to]
    walk = np.lexsort((-left, first))
    return walk, np.flatnonzero(first[walk] == walk)
