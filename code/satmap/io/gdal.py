"""What rasters satmap opens: of which formats, and how large they may claim to be."""

from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe

# GDAL's drivers by suffix, in lower case. By content GDAL would take a text for a virtual raster
# and read the files, or ask the servers, that it names.
_DRIVERS = {
    ".tif": "GTiff", ".tiff": "GTiff", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG",
}  # fmt: skip

# 65,536 x 65,536: a megacity at half a metre. A few kilobytes can claim any size.
_MOST_PIXELS = 1 << 32


def driver_of(path: Path) -> str:
    """GDAL's driver for a raster by its name; GeoTIFF where the name says nothing."""
    return _DRIVERS.get(path.suffix.lower(), "GTiff")


def require_raster_file(path: Path) -> None:
    """Fail before GDAL reads a pipe, which may never have a writer, or looks into a directory.

    Raises:
        SatmapError: the path is one. What is not there opening will tell.
    """
    refuse_pipe(path)
    if path.is_dir():
        raise SatmapError(f"{path} is a directory; put the raster itself there.")


def require_possible_size(width: int, height: int) -> None:
    """Fail on a raster that nobody can have meant before days are spent on it.

    Raises:
        SatmapError: it has more pixels than anything that satmap is made for.
    """
    if width * height > _MOST_PIXELS:
        raise SatmapError(
            f"{width} x {height} pixels are more than satmap reads, {_MOST_PIXELS:,}. If it is "
            "really so large, cut it into parts, for example with `gdal_retile.py`; else fetch it "
            "again."
        )
