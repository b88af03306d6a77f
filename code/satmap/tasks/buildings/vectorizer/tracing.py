"""Walking around labelled pixels along their edges.

Every side of a pixel behind which lies something else is an edge with the pixel on its right. An
edge goes on around the pixel diagonally ahead if that belongs to the same instance, else straight
on, else around its own pixel. Each ring so has one 4-connected part of the surroundings beside it
and passes no vertex twice: outlines of 4-connected instances are valid polygons, whose holes may
touch the outside in a point.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Parts:
    """The connected parts of a mask.

    Attributes:
        labels: int32 (height, width), 0 outside, 1..n in the order of the parts' first pixels.
        count: how many there are, the outside included.
    """

    labels: Labels
    count: int

    # OpenCV gives areas and boxes, too, in four times the time of labels.
    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """Pixels of each, int64 (count,), the outside's first."""
        areas = label_areas(self.labels, self.count)
        areas[0] = self.labels.size - areas[1:].sum()
        return areas

    @cached_property
    def boxes(self) -> list[tuple[slice, slice]]:
        """Rows and columns of each; the first is the image's."""
        whole = tuple(slice(0, side) for side in self.labels.shape)
        return [whole, *ndimage.find_objects(self.labels)]


def connected(mask: Mask) -> Parts:
    """The 4-connected parts of a mask."""
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return Parts(np.asarray(labels, np.int32), count)


def label_areas(labels: Labels, count: int) -> NDArray[np.int64]:
    """Pixels of labels 1..count - 1, int64 (count,); 0 for the outside, which is most of an image
    and would take most of the time."""
    return np.bincount(labels[labels > 0], minlength=count)


def at_least(probability_map: NDArray[np.uint8], probability: float) -> Mask:
    """Where a plane of 0..255 for 0..1 reaches a probability."""
    return probability_map >= np.uint8(np.ceil(probability * 255))


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
    # Edges that start at a corner: the one before turned.
    corner = np.zeros(len(key), np.bool_)
    corner[to] = np.concatenate(turned)[order]
    # From corner to corner, by steps that double.
    while not (there := corner[to]).all():
        to = np.where(there, to, to[to])
    at_corner = np.flatnonzero(corner)
    rank = np.cumsum(corner) - 1
    walk, starts = _circles(rank[to[at_corner]])
    edges = at_corner[walk]
    ring = np.repeat(np.arange(len(starts)), np.diff([*starts.tolist(), len(walk)]))
    rows, columns = np.divmod(place[edges], stride)
    offset = np.array(_START)[side[edges]]
    corners = np.stack([columns - 1 + offset[:, 1], rows - 1 + offset[:, 0]], axis=1)
    of_ring = flat[place[edges[starts]]]
    return corners.astype(np.float64), ring, of_ring.astype(np.int64)


def _circles(following: Ints) -> tuple[Ints, Ints]:
    """The circles of a permutation, each from its first element on, by steps that double.

    Returns:
        All elements in the order in which they are walked; where in it circles start, ascending.
    """
    first, to = np.arange(len(following)), following
    while (first[to] != first).any():
        first, to = np.minimum(first, first[to]), to[to]
    # Steps to the last of a circle, from which no step is taken.
    last = following == first
    left = np.where(last, 0, 1)
    to = np.where(last, np.arange(len(following)), following)
    while not last[to].all():
        left, to = left + left[to], to[to]
    walk = np.lexsort((-left, first))
    return walk, np.flatnonzero(first[walk] == walk)
