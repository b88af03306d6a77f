"""Copies of large PNG, JPEG and WebP files, from which windows can be read in any order.

To read a window of such a file, GDAL decodes it from its beginning. So it is decoded once, row by
row, into a tiled GeoTIFF: a temporary file without a name, which the system deletes with the
process. Memory stays bounded.
"""

import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

# Formats without random access.
_DRIVERS = ("PNG", "JPEG", "WEBP")
# Smaller images have few windows, pixels.
_LEAST_PX = 1 << 22
# The copies that were not used for the longest time are deleted beyond this size in all.
_MOST_BYTES = 4 << 30
_TILE_PX = 256

# Descriptors of the copies by path, size and time of the file; None if it is not copied.
_copies: OrderedDict[tuple[str, int, int], int | None] = OrderedDict()
_lock = threading.Lock()


def open_copy(path: str, driver: str) -> rasterio.DatasetReader | None:
    """Open a copy with the same pixels, mask, colours and place as a file.

    Call it within the :class:`rasterio.Env` in which the file would be opened.

    Returns:
        None if the file itself should be read: it is small, has random access or a palette, cannot
        be read, or the disk has no space for the copy.
    """
    if driver not in _DRIVERS:
        return None
    with _lock:
        try:
            state = Path(path).stat()
        except OSError:
            return None
        key = path, state.st_size, state.st_mtime_ns
        if key not in _copies:
            _copies[key] = _copy(path, driver)
            while sum(map(_size, _copies.values())) > _MOST_BYTES and len(_copies) > 1:
                _, oldest = _copies.popitem(last=False)
                if oldest is not None:
                    # Threads that read from it have opened it themselves.
                    os.close(oldest)
        _copies.move_to_end(key)
        copy = _copies[key]
        return None if copy is None else rasterio.open(_name(copy), driver="GTiff")


def _copy(path: str, driver: str) -> int | None:
    """Copy a file; see :func:`open_copy`."""
    try:
        # Without .aux.xml files.
        with rasterio.Env(GDAL_PAM_ENABLED=False), rasterio.open(path, driver=driver) as source:
            # The table of a TIFF holds no transparent colours.
            if (
                source.width * source.height < _LEAST_PX
                or ColorInterp.palette in source.colorinterp
            ):
                return None
            row = source.width * sum(np.dtype(dtype).itemsize for dtype in source.dtypes)
            with tempfile.TemporaryFile(prefix="satmap-") as copy:
                # GDAL copies whole rows if they fit into its buffer.
                with rasterio.Env(GDAL_SWATH_SIZE=2 * _TILE_PX * row, GDAL_TIFF_INTERNAL_MASK=True):
                    rasterio.shutil.copy(
                        source, _name(copy.fileno()), driver="GTiff", tiled=True,
                        blockxsize=_TILE_PX, blockysize=_TILE_PX, interleave="pixel",
                        bigtiff="IF_SAFER",
                    )  # fmt: skip
                return os.dup(copy.fileno())
    except (RasterioError, CPLE_BaseError, OSError):
        # Reading the file itself shows what is wrong, and reads what can be read.
        return None


def _name(copy: int) -> str:
    return f"/proc/self/fd/{copy}"


def _size(copy: int | None) -> int:
    return 0 if copy is None else os.fstat(copy).st_size
