"""COCO's compressed run lengths, measured before the library that decodes them sees them.

They are the lengths of alternating runs of background and building in column order, each from the
third on as its difference to the one before the last, in groups of five bits a character from ``0``
(48), low bits first, bit 6 set on all characters but the last of a number. The official evaluation
decodes them in C without a check: where the runs do not cover the image exactly it reads foreign
memory or never ends.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

#: Run lengths in the library are unsigned integers of 32 bits.
PIXEL_LIMIT = 2**32

# Characters of the longest run length and its sign.
_LONGEST_NUMBER = 7


@dataclass(frozen=True, slots=True)
class CocoMask:
    """A mask of a whole image as compressed run lengths that cover it exactly.

    Attributes:
        size: height and width.
        counts: the run lengths, ASCII.
    """

    size: tuple[int, int]
    counts: bytes

    def for_library(self) -> dict[str, Any]:
        """The object that ``pycocotools.mask`` takes."""
        return {"size": list(self.size), "counts": self.counts}

    def pixels(self) -> NDArray[np.uint8]:
        """The mask drawn, uint8 (height, width), 1 inside."""
        with warnings.catch_warnings():
            # The library hands its memory over in a way that NumPy 2 is going to give up.
            warnings.simplefilter("ignore", DeprecationWarning)
            drawn: NDArray[np.uint8] = coco_mask.decode(self.for_library())  # type: ignore[arg-type]
        return drawn


def measure_runs(counts: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Decode many masks' compressed run lengths at once.

    Args:
        counts: the run lengths of each mask.

    Returns:
        bool (n): whether they can be read and none is negative; int64 (n): their sum, if so.
    """
    code = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    ends = np.cumsum([0, *map(len, counts)])
    sound = np.ones(len(counts), np.bool_)

    def spoil(owners: NDArray[np.int64], which: NDArray[np.bool_]) -> None:
        sound[owners[which]] = False

    # Numbers of several characters. The last character of a mask ends one in any case.
    owner = np.repeat(np.arange(len(counts)), np.diff(ends))
    last = code & 32 == 0
    spoil(owner, (code < 0) | (code > 63))
    mask_ends = ends[1:][np.diff(ends) > 0] - 1
    spoil(owner[mask_ends], ~last[mask_ends])
    last[mask_ends] = True
    stop = np.flatnonzero(last)
    start = np.concatenate(([0], stop[:-1] + 1))[: len(stop)]
    length = stop - start + 1
    spoil(owner[start], length > _LONGEST_NUMBER)
    digit = np.minimum(np.arange(len(code)) - np.repeat(start, length), _LONGEST_NUMBER)
    numbers = np.add.reduceat((code & 31) << 5 * digit, start)
    negative = code[stop] & 16 != 0
    numbers -= negative * (1 << 5 * np.minimum(length, _LONGEST_NUMBER))

    # Runs are sums of every second number of a mask but its first. With an even number of places
    # a mask, two columns hold the two sequences.
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
    spoil(owner, (runs < 0) | (runs >= PIXEL_LIMIT))
    totals = np.concatenate(([0], np.cumsum(runs)))[first]
    return sound, np.diff(totals)
