"""Temporary store of probability maps on disk, for large maps and maps that await neighbours.

Workers import this module, so it does without torch, which would cost each of them seconds and
hundreds of megabytes.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from satmap.errors import CannotWriteError
from satmap.io.files import atomic_path
from satmap.rasters.map_files import write_maps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.vectors.georeference import Georeference


class MapStore:
    """Directory of probability maps beside the output, one GeoTIFF per image, for all processes.

    Maps that an earlier run stored under another fingerprint are not found. Everything in the
    directory belongs to satmap, including incomplete files of killed processes.
    """

    def __init__(self, output: Path, fingerprint: str) -> None:
        """Set up the store of ``output``; writing the first maps creates the directory."""
        self.directory = output.with_name(f".{output.name}.maps")
        self._fingerprint = fingerprint

    def __contains__(self, key: str) -> bool:
        """Return whether the maps of an image are complete; after a full disk they may not be."""
        path = self.path(key)
        try:
            if not path.is_file():
                return False
            with rasterio.open(path, driver="GTiff") as source:
                for _, window in source.block_windows():
                    source.read(window=window)
        except (RasterioError, OSError):
            return False
        return True

    def path(self, key: str) -> Path:
        """Return the path of an image's maps, which need not exist."""
        name = hashlib.sha256(f"{self._fingerprint}\n{key}".encode()).hexdigest()
        return self.directory / f"{name[:32]}.tif"

    def remove_leftovers(self, keys: list[str]) -> None:
        """Delete everything but the maps of ``keys``; no other process may use the store.

        Raises:
            CannotWriteError: the directory cannot be changed.
        """
        kept = {self.path(key) for key in keys}
        try:
            if self.directory.is_dir():
                for path in set(self.directory.iterdir()) - kept:
                    path.unlink()
        except OSError as error:
            raise CannotWriteError(
                f"cannot clear {self.directory}: {error.strerror}. Choose another output."
            ) from error

    def remove(self) -> None:
        """Delete the store, when the output is complete."""
        shutil.rmtree(self.directory, ignore_errors=True)


def store_maps(
    maps: ProbabilityMaps,
    georeference: Georeference | None,
    rasters: Sequence[Path],
    stored: Path | None = None,
    decode: Callable[[ProbabilityMaps], Any] | None = None,
) -> Any:
    """Write probability maps to the user's ``rasters`` and to a file of the store.

    Returns the result of ``decode``, if it is given.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in rasters:
        write_maps(path, maps, georeference)
    if stored:
        write_maps(stored, maps, georeference, for_itself=True)
    return decode and decode(maps)


def store_and_decode(
    maps: ProbabilityMaps | None,
    georeference: Georeference | None,
    rasters: Sequence[Path],
    decode: Callable[[Any], Any],
    prediction: Any,
) -> Any:
    """Write the probability maps of a prediction to ``rasters``, if any, and decode it.

    Raises:
        CannotWriteError: as :func:`store_maps`.
    """
    if maps is not None:
        store_maps(maps, georeference, rasters)
    return decode(prediction)


def copy_maps(stored: Path, paths: Sequence[Path]) -> None:
    """Copy probability maps from the store to other files; raises as :func:`store_maps`."""
    for path in paths:
        with atomic_path(path) as temporary:
            shutil.copyfile(stored, temporary)
