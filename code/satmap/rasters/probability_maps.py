"""Named probability maps: output of the networks, input of the vectorisers."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ProbabilityMaps:
    """Named probability maps of one image.

    Attributes:
        names: one name per map, such as ``road``.
        values: uint8 (maps, height, width), 0..255 for 0..1.
        metres_per_pixel: size of a pixel along x and along y.
    """

    names: tuple[str, ...]
    values: NDArray[np.uint8]
    metres_per_pixel: tuple[float, float]

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or len(self.values) != len(self.names):
            raise ValueError(
                f"{len(self.names)} map names need an array of shape ({len(self.names)}, h, w), "
                f"got {self.values.shape}"
            )
        if self.values.dtype != np.uint8 or not self.values.size:
            raise ValueError(
                "probability maps must be uint8, 0..255 for 0..1, with at least one pixel, got "
                f"{self.values.dtype} of shape {self.values.shape}"
            )
        if not all(0 < size < np.inf for size in self.metres_per_pixel):
            raise ValueError(
                f"metres_per_pixel must be positive and finite, got {self.metres_per_pixel}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        _, height, width = self.values.shape
        return height, width

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        """Return the map of that name, (height, width)."""
        probability_map: NDArray[np.uint8] = self.values[self.names.index(name)]
        return probability_map

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def at(
        self, names: Sequence[str], rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return values of some maps at pixels: rows and columns (...) -> (names, ...)."""
        flat = rows * self.shape[1] + columns
        return np.stack([self[name].reshape(-1).take(flat) for name in names])


def resize_maps(values: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize maps (maps, h, w) to another height and width, bilinearly between pixel centres."""
    if values.shape[1:] == size:
        return values
    height, width = size
    resized = [cv2.resize(probability_map, (width, height)) for probability_map in values]
    return np.stack(resized).astype(np.uint8)
