"""What is done with the planes of an image, in a worker process: nothing here loads a network."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from satmap.data.georeference import Georeference
from satmap.files import atomic_path
from satmap.inference.plane_rasters import write_planes
from satmap.mask_files import open_mask
from satmap.mask_roads import roads_of_mask
from satmap.planes import Planes
from satmap.roads.graph import RoadGraph
from satmap.roads.settings import RoadSettings
from satmap.roads.vectorize import vectorize


def keep(planes: Planes, georeference: Georeference | None, paths: Sequence[Path]) -> None:
    """Write planes to files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        write_planes(path, planes, georeference)


def trace(
    planes: Planes, georeference: Georeference | None, paths: Sequence[Path], settings: RoadSettings
) -> RoadGraph:
    """Write planes to files, and vectorise them as they are.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    keep(planes, georeference, paths)
    return vectorize(planes, settings)


def copy(stored: Path, paths: Sequence[Path]) -> None:
    """Copy planes from the store to other files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        with atomic_path(path) as temporary:
            shutil.copyfile(stored, temporary)


def trace_stored(
    stored: Path,
    neighbours: Sequence[tuple[Path, int, int]],
    settings: RoadSettings,
    metres_per_pixel: float,
) -> RoadGraph:
    """Vectorise planes in the store, with what lies around them.

    Args:
        stored: the planes.
        neighbours: those around them, there or not, and at which of their columns and rows each
            one's first pixel lies.
        settings: of the vectoriser.
        metres_per_pixel: of planes without georeference.

    Raises:
        SatmapError: the planes are gone, or damaged.
    """
    there = [around for around in neighbours if around[0].exists()]
    with open_mask(stored, metres_per_pixel) as mask:
        return roads_of_mask(mask, there, settings, metres_per_pixel)
