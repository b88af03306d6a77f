"""Jobs of worker processes on the probability maps of an image.

This module does not import torch, which would cost each worker seconds and hundreds of megabytes.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from satmap.io.files import atomic_path
from satmap.rasters.map_files import write_maps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.result_decoders import MapDecoder
from satmap.vectors.georeference import Georeference


def store_maps(
    maps: ProbabilityMaps, georeference: Georeference | None, paths: Sequence[Path]
) -> None:
    """Write probability maps to files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        write_maps(path, maps, georeference)


def decode_maps(
    maps: ProbabilityMaps,
    georeference: Georeference | None,
    paths: Sequence[Path],
    decoder: MapDecoder,
) -> Any:
    """Write probability maps to files, and decode them without neighbours.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    store_maps(maps, georeference, paths)
    return decoder.decode(maps)


def copy_maps(stored: Path, paths: Sequence[Path]) -> None:
    """Copy probability maps from the store to other files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        with atomic_path(path) as temporary:
            shutil.copyfile(stored, temporary)


def decode_file(
    decoder: MapDecoder,
    path: Path,
    neighbours: Sequence[tuple[Path, int, int]],
    check_scale: bool = False,
) -> Any:
    """Decode a raster of probability maps, together with the rasters around it.

    Raises:
        SatmapError: the raster is missing or damaged.
    """
    return decoder.decode_file(path, neighbours, check_scale=check_scale)
