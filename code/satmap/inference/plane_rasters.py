"""Planes as rasters that other programs read, and the vectoriser again."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from satmap.data.georeference import Georeference
from satmap.errors import CannotWriteError
from satmap.files import atomic_path
from satmap.planes import Planes

# As in `satmap.data.imagery`, which workers do not load.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

# Tiles, for readers of windows; the fastest level of deflate after differences of neighbouring
# pixels is the smallest file for the time.
_OPTIONS = {
    "driver": "GTiff",
    "dtype": "uint8",
    "tiled": True,
    "blockxsize": 512,
    "blockysize": 512,
    "interleave": "band",
    "compress": "deflate",
    "predictor": 2,
    "zlevel": 1,
    "bigtiff": "if_safer",
}


def write_planes(path: Path, planes: Planes, georeference: Georeference | None) -> None:
    """Write planes as a GeoTIFF, atomically: a uint8 band a plane, described by its name.

    Args:
        path: the ``.tif`` file.
        planes: 0..255 for 0..1.
        georeference: where their pixels lie; without one the file has none.

    Raises:
        CannotWriteError: the disk is full or the directory not writable.
    """
    profile = _profile(planes.names, planes.shape, georeference)
    # Through memory: GDAL does not always tell of a full disk.
    with atomic_path(path) as temporary, MemoryFile() as memory:
        with memory.open(**profile) as target:
            target.write(planes.values)
            target.descriptions = planes.names
        temporary.write_bytes(memory.getbuffer())


@contextlib.contextmanager
def writing_planes(
    path: Path, names: Sequence[str], shape: tuple[int, int], georeference: Georeference | None
) -> Iterator[Callable[[int, NDArray[np.uint8]], None]]:
    """The same for planes too large to be held, strip after strip.

    Args:
        path: the ``.tif`` file, which is there when the block has succeeded.
        names: of the planes.
        shape: height and width.
        georeference: as of :func:`write_planes`.

    Yields:
        A function of a strip's first row and its planes, uint8 (planes, rows, width).

    Raises:
        CannotWriteError: the disk is full or the directory not writable.
    """
    height, width = shape
    with atomic_path(path) as temporary:
        try:
            with rasterio.open(temporary, "w", **_profile(names, shape, georeference)) as target:
                target.descriptions = tuple(names)

                def write(top: int, values: NDArray[np.uint8]) -> None:
                    target.write(values, window=Window(0, top, width, values.shape[1]))

                yield write
            # GDAL does not always tell of a full disk; what it lost is at the end of the file.
            with rasterio.open(temporary) as written:
                written.read(window=Window(width - 1, height - 1, 1, 1))
        except RasterioError as error:
            raise CannotWriteError(
                f"cannot write {path}: {error.__cause__ or error}. Check that the disk has space."
            ) from error


def is_whole(path: Path) -> bool:
    """Whether all pixels of a raster can be read: a disk that was full or failed leaves others."""
    try:
        with rasterio.open(path, driver="GTiff") as source:
            for _, window in source.block_windows():
                source.read(window=window)
    except (RasterioError, OSError):
        return False
    return True


def _profile(
    names: Sequence[str], shape: tuple[int, int], georeference: Georeference | None
) -> dict[str, Any]:
    place = georeference and {"crs": georeference.crs, "transform": georeference.transform}
    return {
        "count": len(names), "height": shape[0], "width": shape[1], **(place or {}), **_OPTIONS
    }  # fmt: skip
