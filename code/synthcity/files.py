"""File output: atomic writes of images and text, and checks of the output directory.

Functions raise ``CityError`` if the disk is full or a place is not writable.
"""

import os
import secrets
import tempfile
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.io import MemoryFile

_SUFFIXES = {".tif", ".geojson", ".jpg"}
_JPEG_QUALITY = 92


class CityError(Exception):
    """Invalid argument or unusable output path; the message says what to do."""


def refuse_other_city(root: Path, expected: Collection[Path]) -> None:
    """Fail if a directory holds images or labels of another city, which would distort all scores.

    ``expected`` are the paths of all images and labels of this city.
    """
    found = sorted(
        path
        for path in root.rglob("[!.]*.*")
        if path.suffix in _SUFFIXES and path not in expected and path.is_file()
    )
    if found:
        raise CityError(
            f"{root} holds {len(found)} files of another city, {found[0].name} first; "
            "give another directory or remove that one."
        )


def require_writable(path: Path) -> None:
    """Fail early if a file cannot be written."""
    try:
        path = _resolved(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CityError(
            f"cannot write {path}: {error.strerror or error}. "
            "Choose another place for the output or change the directory's permissions."
        ) from error


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; create its directory if needed."""
    temporary = None
    try:
        path = _resolved(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}{path.suffix}")
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            # The content must be on disk before the file gets its final name.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CityError(
            f"cannot write {path}: {error.strerror or error}. "
            "Check that the directory exists, is writable and has space."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _resolved(path: Path) -> Path:
    """Follow symbolic links, so that the link stays and its target is replaced."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise CityError(f"{path} is a directory; give the name of a file to write.")
    if path.exists() and not path.is_file():
        raise CityError(f"{path} is a device or a pipe; give the name of a file to write.")
    return path


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_tiff(
    path: Path,
    pixels: NDArray[np.uint16] | NDArray[np.uint8],
    transform: Affine,
    crs: str = "EPSG:4326",
) -> None:
    """Write pixels (h, w, bands) as a tiled, deflated GeoTIFF."""
    height, width, bands = pixels.shape
    shape = {"width": width, "height": height, "count": bands, "dtype": pixels.dtype}
    tiling = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    packing = {"compress": "deflate", "predictor": 2, "zlevel": 4}
    # GDAL writes to memory first, because it does not always report a full disk.
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", crs=crs, transform=transform, **shape, **tiling, **packing
        ) as sink:
            sink.write(np.moveaxis(pixels, 2, 0))
        write_bytes(path, memory.getbuffer())


def write_jpeg(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write pixels (h, w, 3) as a JPEG."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), settings)[1]
    write_bytes(path, encoded.tobytes())
