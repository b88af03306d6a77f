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
    maps: ProbabilityMaps,
    georeference: Georeference | None,
    paths: Sequence[Path],
    decoder: MapDecoder | None = None,
) -> Any:
    """Write probability maps to files. With a decoder, also decode them without neighbours.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        write_maps(path, maps, georeference)
    return decoder and decoder.decode(maps)


def copy_maps(stored: Path, paths: Sequence[Path]) -> None:
    """Copy probability maps from the store to other files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        with atomic_path(path) as temporary:
            shutil.copyfile(stored, temporary)
