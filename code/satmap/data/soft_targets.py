"""What a teacher made of a chip, beside the chip in the cache.

The averaged probabilities of an ensemble, a byte a plane and pixel, are computed once and cut and
turned like the chip in every epoch.
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
    """A teacher's probabilities of one chip.

    Attributes:
        path: the file.
        teacher: tells teachers apart.
    """

    path: Path
    teacher: str

    @classmethod
    def of(cls, chip: Path, teacher: str) -> "SoftTarget":
        """Where a teacher's probabilities of a cached chip belong, there or not.

        Args:
            chip: the cached chip's file, whose name changes with its content.
            teacher: hexadecimal digits that change with the teacher.
        """
        return cls(chip.with_name(f"{chip.stem}.soft-{teacher[:16]}.safetensors"), teacher)

    def exists(self, shape: tuple[int, int]) -> bool:
        """Whether there is a whole file for a chip of that height and width."""
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                return tuple(tensors.get_slice(_TENSOR).get_shape()[1:]) == shape
        except (OSError, SafetensorError):
            return False

    def write(self, maps: NDArray[np.uint8]) -> None:
        """Keep the planes, uint8 (planes, height, width), 0..255 for 0..1.

        Raises:
            CannotWriteError: the cache cannot be written.
        """
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(save({_TENSOR: np.ascontiguousarray(maps)}))

    def read(self, rows: slice = slice(None), columns: slice = slice(None)) -> NDArray[np.uint8]:
        """A window of the planes, uint8 (planes, h, w).

        Raises:
            SatmapError: the file is gone or damaged.
        """
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                window: NDArray[np.uint8] = tensors.get_slice(_TENSOR)[:, rows, columns]
        except (OSError, SafetensorError) as error:
            raise SatmapError(
                f"the teacher's planes {self.path} cannot be read ({error}). Start the same "
                "command again: it makes what is missing and goes on."
            ) from error
        return window
