"""How well two masks agree, pixel by pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Overlap:
    """The sizes of a network's mask and of the true one.

    Attributes:
        both, predicted, labelled: pixels in both masks, in the network's, in the truth.
    """

    both: int
    predicted: int
    labelled: int

    @classmethod
    def of(cls, predicted: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> Self:
        """That of two masks, bool (h, w)."""
        return cls(int((predicted & labelled).sum()), int(predicted.sum()), int(labelled.sum()))


def dice_and_iou(overlaps: Sequence[Overlap]) -> dict[str, float]:
    """``dice`` and ``iou``, 0..1, pooled over all pixels; 0 where nothing is in any mask."""
    both = sum(overlap.both for overlap in overlaps)
    sizes = sum(overlap.predicted + overlap.labelled for overlap in overlaps)
    return {"dice": 2 * both / max(sizes, 1), "iou": both / max(sizes - both, 1)}
