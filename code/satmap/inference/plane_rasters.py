"""Planes as rasters that other programs read, and the vectoriser again."""

from pathlib import Path

from rasterio.io import MemoryFile

from satmap.data.georeference import Georeference
from satmap.files import atomic_path
from satmap.planes import Planes

# Tiles, for readers of windows; the fastest level of deflate after differences of neighbouring
# pixels is the smallest file for the time.
_OPTIONS = {
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
    count, height, width = planes.values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": "uint8"}
    place = georeference and {"crs": georeference.crs, "transform": georeference.transform}
    # Through memory: GDAL does not always tell of a full disk.
    with atomic_path(path) as temporary, MemoryFile() as memory:
        with memory.open(driver="GTiff", **shape, **(place or {}), **_OPTIONS) as target:
            target.write(planes.values)
            target.descriptions = planes.names
        temporary.write_bytes(memory.getbuffer())
