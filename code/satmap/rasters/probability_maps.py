"""The named probability planes that travel from networks to vectorisers."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ProbabilityMaps:
    """Probabilities of one image, one named channel each.

    Attributes:
        names: one name a channel, such as ``road``.
        values: uint8 (planes, height, width), 0..255 for 0..1.
        metres_per_pixel: size of a pixel along x and along y.
    """

    names: tuple[str, ...]
    values: NDArray[np.uint8]
    metres_per_pixel: tuple[float, float]

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or len(self.values) != len(self.names):
            raise ValueError(
                f"{len(self.names)} plane names need an array of {len(self.names)} planes, "
                f"not one of shape {self.values.shape}"
            )
        if self.values.dtype != np.uint8 or not self.values.size:
            raise ValueError(
                "planes are uint8, 0..255 for 0..1, of at least one pixel, not "
                f"{self.values.dtype} of shape {self.values.shape}"
            )
        if not all(0 < size < np.inf for size in self.metres_per_pixel):
            raise ValueError(f"pixels of {self.metres_per_pixel} metres")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        _, height, width = self.values.shape
        return height, width

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        """The plane of that name, (height, width)."""
        probability_map: NDArray[np.uint8] = self.values[self.names.index(name)]
        return probability_map

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def at(
        self, names: Sequence[str], rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Values of some planes at pixels: rows and columns (...) -> (names, ...)."""
        flat = rows * self.shape[1] + columns
        return np.stack([self[name].reshape(-1).take(flat) for name in names])


def resize_maps(values: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Planes (planes, h, w) at another height and width, linearly between the pixels' centres."""
    if values.shape[1:] == size:
        return values
    height, width = size
    resized = [cv2.resize(probability_map, (width, height)) for probability_map in values]
    return np.stack(resized).astype(np.uint8)
