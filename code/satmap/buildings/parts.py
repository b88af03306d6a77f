"""Connected parts of masks, with their areas and boxes."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Parts:
    """The connected parts of a mask.

    Attributes:
        labels: int32 (height, width), 0 outside, 1..n.
        areas: int32 (n + 1,), pixels; the first is the outside's.
        boxes: int32 (n + 1, 4), left, top, width and height.
    """

    labels: Labels
    areas: NDArray[np.int32]
    boxes: NDArray[np.int32]

    def __len__(self) -> int:
        """How many, with the outside."""
        return len(self.areas)

    def box(self, label: int) -> tuple[slice, slice]:
        """Rows and columns of a part."""
        left, top, width, height = self.boxes[label].tolist()
        return slice(top, top + height), slice(left, left + width)


def connected(mask: Mask) -> Parts:
    """The 4-connected parts of a mask, numbered in the order of their first pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S
    )
    return Parts(
        np.asarray(labels, np.int32),
        np.asarray(stats[:, cv2.CC_STAT_AREA], np.int32),
        np.asarray(stats[:, : cv2.CC_STAT_AREA], np.int32),
    )


def at_least(plane: NDArray[np.uint8], probability: float) -> Mask:
    """Where a plane of 0..255 for 0..1 reaches a probability."""
    return plane >= np.uint8(np.ceil(probability * 255))
