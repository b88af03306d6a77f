"""Soft targets: a teacher's probability maps, stored beside the cached chip.

The averaged probabilities of an ensemble, one byte per map and pixel, are computed once. In every
epoch they are cropped and augmented like the chip.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from satmap.errors import SatmapError
from satmap.io.files import atomic_path

_TENSOR = "soft"


@dataclass(frozen=True)
class SoftTarget:
    """File of a teacher's probability maps of one chip.

    Attributes:
        path: the file.
        teacher: fingerprint of the teacher, hexadecimal.
    """

    path: Path
    teacher: str

    @classmethod
    def of(cls, chip: Path, teacher: str) -> "SoftTarget":
        """Return the soft target of a cached chip; its file need not exist.

        Args:
            chip: file of the cached chip, whose name changes with its content.
            teacher: fingerprint of the teacher, hexadecimal.
        """
        return cls(chip.with_name(f"{chip.stem}.soft-{teacher[:16]}.safetensors"), teacher)

    def exists(self, shape: tuple[int, int]) -> bool:
        """Return whether the file exists and fits a chip of this height and width."""
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                return tuple(tensors.get_slice(_TENSOR).get_shape()[1:]) == shape
        except (OSError, SafetensorError):
            return False

    def write(self, maps: NDArray[np.uint8]) -> None:
        """Write the probability maps, uint8 (maps, height, width), 0..255 for 0..1.

        Raises:
            CannotWriteError: the cache cannot be written.
        """
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(save({_TENSOR: np.ascontiguousarray(maps)}))

    def read(self, rows: slice = slice(None), columns: slice = slice(None)) -> NDArray[np.uint8]:
        """Read a window of the probability maps, uint8 (maps, h, w).

        Raises:
            SatmapError: the file is missing or damaged.
        """
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                window: NDArray[np.uint8] = tensors.get_slice(_TENSOR)[:, rows, columns]
        except (OSError, SafetensorError) as error:
            raise SatmapError(
                f"the teacher's probability maps {self.path} cannot be read ({error}). Run the "
                "same command again: it computes missing maps and resumes."
            ) from error
        return window
