"""COCO's compressed run lengths, checked before pycocotools decodes them.

A mask is stored as the lengths of alternating runs of background and building, in column order.
From the third run on, a length is stored as the difference to the length two runs earlier. Each
number is written in groups of five bits per character, low bits first, with the character codes
starting at ``0`` (48). The sixth bit (32) is set on all characters of a number but the last. The
official evaluation decodes this in C without checks: if the runs do not cover the image exactly, it
reads out of bounds or never ends.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

#: Masks must have fewer pixels: pycocotools stores run lengths as unsigned 32-bit integers.
PIXEL_LIMIT = 2**32

# Characters of the longest run length with its sign.
_LONGEST_NUMBER = 7


@dataclass(frozen=True, slots=True)
class CocoMask:
    """Mask of a whole image as compressed run lengths that cover it exactly.

    Attributes:
        size: height and width.
        counts: compressed run lengths, ASCII.
    """

    size: tuple[int, int]
    counts: bytes

    def for_library(self) -> dict[str, Any]:
        """Convert to the dictionary that ``pycocotools.mask`` takes."""
        return {"size": list(self.size), "counts": self.counts}

    def box(self) -> tuple[float, ...]:
        """Return x, y, width and height of the mask; zeros if it is empty."""
        return tuple(coco_mask.toBbox(self.for_library()).tolist())  # type: ignore[arg-type]

    def pixels(self) -> NDArray[np.uint8]:
        """Decode the mask, uint8 (height, width), 1 inside."""
        with warnings.catch_warnings():
            # pycocotools passes its memory to NumPy in a deprecated way.
            warnings.simplefilter("ignore", DeprecationWarning)
            drawn: NDArray[np.uint8] = coco_mask.decode(self.for_library())  # type: ignore[arg-type]
        return drawn


def measure_runs(counts: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Check and sum the compressed run lengths of many masks at once.

    Returns bool (n,), whether they can be decoded and none is negative, and int64 (n,), their sum.
    """
    code = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    ends = np.cumsum([0, *map(len, counts)])
    valid = np.ones(len(counts), np.bool_)

    def mark_invalid(owners: NDArray[np.int64], which: NDArray[np.bool_]) -> None:
        valid[owners[which]] = False

    # Decode the numbers. The last character of a mask always ends a number.
    owner = np.repeat(np.arange(len(counts)), np.diff(ends))
    last = code & 32 == 0
    mark_invalid(owner, (code < 0) | (code > 63))
    mask_ends = ends[1:][np.diff(ends) > 0] - 1
    mark_invalid(owner[mask_ends], ~last[mask_ends])
    last[mask_ends] = True
    stop = np.flatnonzero(last)
    start = np.concatenate(([0], stop[:-1] + 1))[: len(stop)]
    length = stop - start + 1
    mark_invalid(owner[start], length > _LONGEST_NUMBER)
    digit = np.minimum(np.arange(len(code)) - np.repeat(start, length), _LONGEST_NUMBER)
    numbers = np.add.reduceat((code & 31) << 5 * digit, start)
    negative = code[stop] & 16 != 0
    numbers -= negative * (1 << 5 * np.minimum(length, _LONGEST_NUMBER))

    # A run is the sum of every second number up to its own, without the first number of the mask.
    # With masks padded to an even count, the two sequences are the two columns of one array.
    first = np.searchsorted(stop, ends)  # numbers before each mask
    owner = np.repeat(np.arange(len(counts)), np.diff(first))
    nth = np.arange(len(numbers)) - first[:-1][owner]
    rows = np.concatenate(([0], np.cumsum((np.diff(first) + 1) // 2)))
    place = 2 * rows[:-1][owner] + nth
    padded = np.zeros(2 * int(rows[-1]), np.int64)
    padded[place] = np.where(nth == 0, 0, numbers)
    sums = np.concatenate((np.zeros((1, 2), np.int64), padded.reshape(-1, 2).cumsum(axis=0)))
    runs = sums[place // 2 + 1, place % 2] - sums[rows[:-1][owner], place % 2]
    runs[nth == 0] = numbers[nth == 0]
    mark_invalid(owner, (runs < 0) | (runs >= PIXEL_LIMIT))
    totals = np.concatenate(([0], np.cumsum(runs)))[first]
    return valid, np.diff(totals)
