"""Planes that wait on disk until those of their neighbours are there too."""

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from satmap.errors import CannotWriteError
from satmap.files import atomic_path

# Planes are smooth: the fastest level packs them ten times smaller, at a few milliseconds a plane.
_COMPRESSION = (cv2.IMWRITE_PNG_COMPRESSION, 1)


class PlaneStore:
    """A directory of planes beside the output, each image's in one grey PNG, plane under plane.

    Under another fingerprint nothing that an earlier run left is found.
    """

    def __init__(self, output: Path, fingerprint: str) -> None:
        """The store of ``output``; made when the first planes come."""
        self.directory = output.with_name(f".{output.name}.planes")
        self._fingerprint = fingerprint

    def add(self, key: str, values: NDArray[np.uint8]) -> None:
        """Keep an image's planes, uint8 (planes, height, width).

        Raises:
            CannotWriteError: the disk is full or the directory not writable.
        """
        planes, height, width = values.shape
        _, content = cv2.imencode(".png", values.reshape(planes * height, width), _COMPRESSION)
        try:
            self.directory.mkdir(exist_ok=True)
        except OSError as error:
            raise CannotWriteError(
                f"cannot write {self.directory}: {error.strerror}. Choose another output."
            ) from error
        with atomic_path(self._path(key)) as temporary:
            temporary.write_bytes(content.tobytes())

    def read(self, key: str, planes: int) -> NDArray[np.uint8] | None:
        """An image's planes, uint8 (planes, height, width); None if they are not there."""
        stacked = cv2.imread(str(self._path(key)), cv2.IMREAD_UNCHANGED)
        if stacked is None or stacked.ndim != 2 or len(stacked) % planes:
            return None
        return np.asarray(stacked, np.uint8).reshape(planes, -1, stacked.shape[1])

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def remove(self) -> None:
        """Delete everything: the output is complete."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(f"{self._fingerprint}\n{key}".encode()).hexdigest()
        return self.directory / f"{name[:32]}.png"
