"""Images of any size in windows of bounded size."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Window:
    """A part of an image to compute on and the part of that to keep.

    Attributes:
        read: rows and columns of the image that are computed.
        core: rows and columns of the image that are kept; the cores tile the image.
        core_in_read: the same, counted from the corner of ``read``.
    """

    read: tuple[slice, slice]
    core: tuple[slice, slice]

    @property
    def core_in_read(self) -> tuple[slice, slice]:
        """The core counted from the corner of what is read."""
        rows, columns = (
            slice(core.start - read.start, core.stop - read.start)
            for core, read in zip(self.core, self.read, strict=True)
        )
        return rows, columns


def windows(height: int, width: int, size: int, overlap: int) -> Iterator[Window]:
    """Windows of at most ``size`` pixels a side that overlap by at least ``2 * overlap``.

    What is kept of a window lies at least ``overlap`` pixels from its border, but where that is
    the image's. An image no larger than ``size`` is one window.
    """
    for row_read, row_core in _spans(height, size, overlap):
        for column_read, column_core in _spans(width, size, overlap):
            yield Window((row_read, column_read), (row_core, column_core))


def _spans(length: int, size: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    if length <= size:
        yield slice(0, length), slice(0, length)
        return
    step = size - 2 * overlap
    count = -(-(length - 2 * overlap) // step)
    # Spread evenly, so that the last window is not a sliver that repeats most of the one before.
    starts = [round(index * (length - size) / (count - 1)) for index in range(count)]
    cuts = [0, *((a + size + b) // 2 for a, b in pairwise(starts)), length]
    for start, (first, last) in zip(starts, pairwise(cuts), strict=True):
        yield slice(start, start + size), slice(first, last)
