"""Files of made cities: images that are whole or not there, directories that hold one city only."""

from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.io import MemoryFile

from satmap.errors import SatmapError
from satmap.io.files import atomic_path

_SUFFIXES = {".tif", ".geojson", ".jpg"}

_JPEG_QUALITY = 92


def refuse_strangers(root: Path, ours: Collection[Path]) -> None:
    """Old images beside new ones would pass for one city and spoil every score.

    Args:
        root: where the city goes.
        ours: the images and labels that it will have there.

    Raises:
        SatmapError: there are others.
    """
    found = sorted(
        path
        for path in root.rglob("[!.]*.*")
        if path.suffix in _SUFFIXES and path not in ours and path.is_file()
    )
    if found:
        raise SatmapError(
            f"{root} holds {len(found)} files of another city, {found[0].name} first; "
            "give another directory or remove that one."
        )


def write_tiff(
    path: Path,
    pixels: NDArray[np.uint16] | NDArray[np.uint8],
    transform: Affine,
    crs: str = "EPSG:4326",
) -> None:
    """Write (h, w, bands) as a tiled, deflated GeoTIFF.

    Raises:
        CannotWriteError: the disk is full or the directory not writable.
    """
    height, width, bands = pixels.shape
    # Through memory: GDAL does not always tell of a full disk.
    with atomic_path(path) as temporary, MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=width,
            height=height,
            count=bands,
            dtype=pixels.dtype,
            crs=crs,
            transform=transform,
            tiled=True,
            blockxsize=256,
            blockysize=256,
            compress="deflate",
            predictor=2,
            zlevel=4,
        ) as sink:
            sink.write(np.moveaxis(pixels, 2, 0))
        temporary.write_bytes(memory.getbuffer())


def write_jpeg(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write a picture (h, w, 3).

    Raises:
        CannotWriteError: the disk is full or the directory not writable.
    """
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), settings)[1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
