"""Planes that wait on disk: for those of their neighbours, or because they are large."""

import hashlib
import shutil
from pathlib import Path

from satmap.errors import CannotWriteError
from satmap.rasters.map_files import is_whole


class MapStore:
    """A directory of planes beside the output, a GeoTIFF an image, which all processes share.

    Under another fingerprint nothing that an earlier run left is found. Everything in it is
    satmap's, what a killed process left half written too.
    """

    def __init__(self, output: Path, fingerprint: str) -> None:
        """The store of ``output``; made when the first planes come."""
        self.directory = output.with_name(f".{output.name}.planes")
        self._fingerprint = fingerprint

    def __contains__(self, key: str) -> bool:
        """Whether an image's planes are there, every block of them."""
        path = self.path(key)
        return path.is_file() and is_whole(path)

    def path(self, key: str) -> Path:
        """The file of an image's planes, there or not."""
        name = hashlib.sha256(f"{self._fingerprint}\n{key}".encode()).hexdigest()
        return self.directory / f"{name[:32]}.tif"

    def discard(self, key: str) -> None:
        """Delete the planes of an image."""
        self.path(key).unlink(missing_ok=True)

    def remove_leftovers(self, keys: list[str]) -> None:
        """Delete everything but the planes of some images; no other process may be at work.

        Raises:
            CannotWriteError: the directory cannot be changed.
        """
        kept = {self.path(key) for key in keys}
        try:
            if self.directory.is_dir():
                for path in self.directory.iterdir():
                    if path not in kept:
                        path.unlink()
        except OSError as error:
            raise CannotWriteError(
                f"cannot clear {self.directory}: {error.strerror}. Choose another output."
            ) from error

    def remove(self) -> None:
        """Delete everything: the output is complete."""
        shutil.rmtree(self.directory, ignore_errors=True)
