"""Blobs of a scene that is read in windows, with the same result as reading it at once.

The processing of a blob depends only on its own pixels. A blob that ends within a window is
processed there. Blobs that reach a seam between windows are connected by the labels on both sides
of the seams, and each is then read again as a whole. To bound memory, blobs larger than
:data:`LARGEST_PX`, which no building is, are cut along lines of the image that do not depend on
the window size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from satmap.rasters.scene import Box
from satmap.tasks.buildings.vectorizer.tracing import (
    Ints,
    Labels,
    Mask,
    Parts,
    connected,
    connected_groups,
    corners_of,
)

#: Width and height up to which a blob is never cut; a multiple of the window size.
LARGEST_PX = 4096


@dataclass(frozen=True)
class Crop:
    """Crop of a scene with its blobs.

    ``owned``, (blobs,), marks the blobs to be processed in this crop only; they lie entirely in it.
    """

    box: Box
    blobs: Parts
    owned: Mask


def blob_crops(
    mask: Callable[[Box], Mask], shape: tuple[int, int], window: int, largest: int = LARGEST_PX
) -> Iterator[Crop]:
    """Yield crops that together own every blob of a scene exactly once.

    First come the windows, each with the blobs that lie wholly in it, then one crop for each blob
    that reaches a seam. ``mask`` returns the blob pixels of a rectangle, and ``shape`` is the
    height and width of the scene. ``window``, the side of the windows in pixels, must divide
    ``largest``. Blobs wider or higher than ``largest`` are cut.

    Raises:
        ValueError: ``window`` does not divide ``largest``.
    """
    if window < 1 or largest % window:
        raise ValueError(f"windows of {window} pixels do not divide {largest}")
    whole = Box(0, 0, shape[1], shape[0])
    seams = _Seams(whole)
    for box in whole.tiles(window, window):
        blobs = connected(mask(box))
        owned = ~seams.add(box, blobs)
        owned[0] = False
        if owned.any():
            yield Crop(box, blobs, owned)
    for bounds, limits, (column, row) in seams.joined(largest):
        # One extra pixel on each side, for its surroundings.
        box = bounds.grown(1, 1).overlap(limits) or bounds
        blobs = connected(mask(box))
        owned = np.zeros(blobs.count, np.bool_)
        owned[blobs.labels[row - box.top, column - box.left]] = True
        yield Crop(box, blobs, owned)


class _Seams:
    """Collects the blobs that reach the seams between windows."""

    def __init__(self, whole: Box) -> None:
        self._whole = whole
        self._count = 0
        # Left, top, right and bottom of every blob in the scene; column and row of one pixel.
        self._bounds: list[Ints] = []
        self._pixels: list[Ints] = []
        # By axis, position, start and side of a seam: the blob at each pixel, -1 for none.
        self._lines: dict[tuple[str, int, int, int], Ints] = {}

    def add(self, box: Box, blobs: Parts) -> Mask:
        """Record the blobs of a window that reach its seams, and return which do, (blobs,)."""
        whole, labels = self._whole, blobs.labels
        at_seam = np.zeros(blobs.count, np.bool_)
        lines: dict[tuple[str, int, int, int], tuple[int | slice, int | slice]] = {}
        last_row, last_column = box.height - 1, box.width - 1
        if box.left > whole.left:
            lines["x", box.left, box.top, 1] = (slice(None), 0)
        if box.right < whole.right:
            lines["x", box.right, box.top, 0] = (slice(None), last_column)
        if box.top > whole.top:
            lines["y", box.top, box.left, 1] = (0, slice(None))
        if box.bottom < whole.bottom:
            lines["y", box.bottom, box.left, 0] = (last_row, slice(None))
        columns, rows = np.meshgrid(np.arange(box.width), np.arange(box.height), sparse=True)
        pixel = np.zeros((blobs.count, 2), np.int64)
        for at in lines.values():
            line: Labels = labels[at]
            at_seam[line] = True
            pixel[line, 0] = np.broadcast_to(columns, labels.shape)[at]
            pixel[line, 1] = np.broadcast_to(rows, labels.shape)[at]
        at_seam[0] = False
        number = np.where(at_seam, np.cumsum(at_seam) - 1 + self._count, -1)
        self._lines.update({key: number[labels[at]] for key, at in lines.items()})
        self._count += int(at_seam.sum())
        bounds = corners_of([blobs.boxes[blob] for blob in np.flatnonzero(at_seam).tolist()])
        corner = np.array([box.left, box.top])
        self._bounds.append(bounds + np.tile(corner, 2))
        self._pixels.append(pixel[at_seam] + corner)
        return at_seam

    def joined(self, largest: int) -> Iterator[tuple[Box, Box, tuple[int, int]]]:
        """Yield the joined blobs: bounding box, limits of their crop, and one of their pixels."""
        if not self._count:
            return
        bounds, pixels = np.concatenate(self._bounds), np.concatenate(self._pixels)
        pairs, cut = self._pairs(largest)
        part_of = connected_groups(pairs[:, ~cut], self._count)
        whole_of = connected_groups(pairs, self._count)
        parts, wholes = _extent(bounds, part_of), _extent(bounds, whole_of)
        sides = wholes[:, 2:] - wholes[:, :2]
        is_cut: Mask = sides.max(axis=1) > largest
        group = np.where(is_cut[whole_of], part_of + len(wholes), whole_of)
        extents = np.concatenate([wholes, parts])
        # The first blob represents its group.
        _, first = np.unique(group, return_index=True)
        for number in np.sort(first).tolist():
            column, row = pixels[number].tolist()
            limits = self._whole
            if is_cut[whole_of[number]]:
                left, top = column // largest * largest, row // largest * largest
                limits = Box(left, top, largest, largest).overlap(limits) or limits
            left, top, right, bottom = extents[group[number]].tolist()
            yield Box(left, top, right - left, bottom - top), limits, (column, row)

    def _pairs(self, largest: int) -> tuple[Ints, Mask]:
        """Pairs of blobs that touch across a seam, (2, n), and whether the seam is a cut line."""
        pairs, cuts = [np.empty((2, 0), np.int64)], [np.empty(0, np.bool_)]
        for (axis, place, along, side), line in self._lines.items():
            if side:
                continue
            other = self._lines[axis, place, along, 1]
            both = (line >= 0) & (other >= 0)
            found = np.unique(np.stack([line[both], other[both]]), axis=1)
            pairs.append(found)
            cuts.append(np.full(found.shape[1], place % largest == 0))
        return np.concatenate(pairs, axis=1), np.concatenate(cuts)


def _extent(bounds: Ints, group: Labels) -> Ints:
    """Compute the bounds of each group."""
    extent = np.empty((int(group.max()) + 1, 4), np.int64)
    extent[:, :2], extent[:, 2:] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    np.minimum.at(extent[:, :2], group, bounds[:, :2])
    np.maximum.at(extent[:, 2:], group, bounds[:, 2:])
    return extent
