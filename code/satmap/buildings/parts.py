"""Connected parts of masks, with their areas and boxes."""

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


def at_least(plane: NDArray[np.uint8], probability: float) -> Mask:
    """Where a plane of 0..255 for 0..1 reaches a probability."""
    return plane >= np.uint8(np.ceil(probability * 255))
