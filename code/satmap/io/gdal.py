"""Checks before GDAL opens a raster: format and size."""

from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe

#: GDAL's drivers by lower-case suffix. If GDAL chose the driver by content, it could take a text
#: for a virtual raster and read the files or contact the servers that the text names.
DRIVERS = {
    ".tif": "GTiff", ".tiff": "GTiff", ".vrt": "VRT", ".jpg": "JPEG", ".jpeg": "JPEG",
    ".png": "PNG", ".webp": "WEBP", ".jp2": "JP2OpenJPEG", ".j2k": "JP2OpenJPEG",
    ".mbtiles": "MBTiles",
}  # fmt: skip
# Drivers of files with references or several images, which only `satmap.data.sources` opens.
_CONTAINERS = ("VRT", "MBTiles")

# 65,536 x 65,536 pixels: a megacity at 0.5 m per pixel. A tiny file can claim any size.
_MOST_PIXELS = 1 << 32
# A mosaic of such rasters: 275,000 km2 at 0.5 m per pixel.
_MOST_MOSAIC_PIXELS = 1 << 40


def driver_of(path: Path) -> str:
    """Return GDAL's driver for a single image by its suffix; GeoTIFF for other suffixes."""
    driver = DRIVERS.get(path.suffix.lower(), "GTiff")
    return "GTiff" if driver in _CONTAINERS else driver


def require_raster_file(path: Path) -> None:
    """Raise SatmapError if the path is a pipe, a device or a directory, before GDAL opens it.

    Missing files are not checked; opening them fails later.
    """
    refuse_pipe(path)
    if path.is_dir():
        raise SatmapError(f"{path} is a directory; put the raster itself there.")


def require_possible_size(width: int, height: int, *, is_mosaic: bool = False) -> None:
    """Raise SatmapError if a raster, or a mosaic of rasters, is implausibly large."""
    most = _MOST_MOSAIC_PIXELS if is_mosaic else _MOST_PIXELS
    if width * height > most:
        raise SatmapError(
            f"{width} x {height} pixels are more than satmap reads, {most:,}. If the image "
            "is really that large, split it, for example with `gdal_retile.py`; otherwise download "
            "it again."
        )
