"""What is done with the planes of an image, in a worker process: nothing here loads a network."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from satmap.data.georeference import Georeference
from satmap.files import atomic_path
from satmap.inference.maps import Maps
from satmap.inference.plane_rasters import write_planes
from satmap.planes import Planes


def keep(planes: Planes, georeference: Georeference | None, paths: Sequence[Path]) -> None:
    """Write planes to files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        write_planes(path, planes, georeference)


def trace(
    planes: Planes, georeference: Georeference | None, paths: Sequence[Path], maps: Maps
) -> Any:
    """Write planes to files, and vectorise them as they are.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    keep(planes, georeference, paths)
    return maps.vectorize(planes)


def copy(stored: Path, paths: Sequence[Path]) -> None:
    """Copy planes from the store to other files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        with atomic_path(path) as temporary:
            shutil.copyfile(stored, temporary)


def trace_stored(stored: Path, neighbours: Sequence[tuple[Path, int, int]], maps: Maps) -> Any:
    """Vectorise planes in the store, with what lies around them.

    Raises:
        SatmapError: the planes are gone, or damaged.
    """
    return maps.vectorize_stored(stored, neighbours)
