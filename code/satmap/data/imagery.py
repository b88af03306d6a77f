"""Opening images: header facts, bands by name, and the stretch to 8 bits."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from satmap.data.georeference import Georeference, georeference_of
from satmap.errors import SatmapError

# Images without georeference are reported by satmap itself, with their names, and rasterising in
# pixels is no fault. Filtered once: catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

#: The image products that satmap reads, best first.
MULTISPECTRAL = "PS-MS"
RGB = "PS-RGB"

#: Channels of the eight-band order that networks see: red, green, blue lead, so that a network of
#: three channels takes the first three of the same array. Band numbers are WorldView's, 1-based.
MS_BAND_ORDER = (5, 3, 2, 1, 4, 6, 7, 8)

_DTYPES = ("uint8", "uint16")


@dataclass(frozen=True)
class ImageInfo:
    """What an image file's header says.

    Attributes:
        path: the file.
        product: ``PS-MS`` or ``PS-RGB``.
        width: columns.
        height: rows.
        bands: number of spectral bands, an alpha band not counted.
        dtype: ``uint8`` or ``uint16``.
        georeference: None where the file has none.
    """

    path: Path
    product: str
    width: int
    height: int
    bands: int
    dtype: str
    georeference: Georeference | None


def read_info(path: Path, product: str) -> ImageInfo:
    """Read an image's header.

    Raises:
        SatmapError: not a readable raster, or its bands or type do not fit the product.
    """
    try:
        with rasterio.open(path) as source:
            bands = source.count - _has_alpha(source)
            dtype = source.dtypes[0]
            georeference = georeference_of(
                source.crs, source.transform, source.width, source.height
            )
            width, height = source.width, source.height
    except (RasterioError, OSError) as error:
        raise SatmapError(f"{path}: not a readable raster ({_brief(error)}).") from error
    except SatmapError as error:
        raise SatmapError(f"{path}: {error}") from error
    wanted = len(MS_BAND_ORDER) if product == MULTISPECTRAL else 3
    if bands != wanted:
        raise SatmapError(
            f"{path}: {bands} bands, but a {product} image has {wanted}. "
            "Check that the file is what its name says."
        )
    if dtype not in _DTYPES:
        raise SatmapError(
            f"{path}: pixels of type {dtype}, but satmap reads {' and '.join(_DTYPES)}. "
            f"Convert it, for example with `rio convert --dtype uint16 {path.name} OUT.tif`."
        )
    return ImageInfo(path, product, width, height, bands, dtype, georeference)


def read_stretched(
    info: ImageInfo, low: float, high: float, channels: int | None = None
) -> NDArray[np.uint8]:
    """Read an image and stretch every band to 8 bits.

    Args:
        info: the image.
        low: percentile that becomes 0.
        high: percentile that becomes 255.
        channels: read only the first so many channels of the network's order.

    Returns:
        uint8 (height, width, channels): red, green, blue and, of a multispectral image, the other
        five bands in ``MS_BAND_ORDER``. Pixels without data are 0 in every channel, all others at
        least 1.

    Raises:
        SatmapError: the pixels cannot be read, for example from a truncated file.
    """
    order = MS_BAND_ORDER if info.product == MULTISPECTRAL else (1, 2, 3)
    try:
        with rasterio.open(info.path) as source:
            bands = source.read(order[:channels])
            valid = bands.any(axis=0)
            if _has_alpha(source) or source.nodata not in (None, 0):
                valid &= source.dataset_mask() > 0
    except (RasterioError, OSError) as error:
        raise SatmapError(
            f"{info.path}: its pixels cannot be read ({_brief(error)}). "
            "The file may be truncated: fetch it again."
        ) from error
    stretched = np.empty((info.height, info.width, len(bands)), np.uint8)
    for channel, band in enumerate(bands):
        # 0 is kept for pixels without data: the darkest of the others are 1.
        stretched[..., channel] = np.maximum(stretch(band, valid, low, high), valid)
    return stretched


def stretch(
    band: NDArray[np.uint8] | NDArray[np.uint16],
    valid: NDArray[np.bool_],
    low: float,
    high: float,
) -> NDArray[np.uint8]:
    """Stretch a band so that its percentiles ``low`` and ``high`` become 0 and 255.

    Percentiles are taken over valid pixels above zero, as selim_sef's solution does; they come
    from the histogram, which for 16-bit integers is exact and needs no sorting.
    """
    counts = np.bincount(band.ravel() if valid.all() else band[valid], minlength=1)
    counts[0] = 0
    cumulated = np.cumsum(counts)
    total = int(cumulated[-1])
    if total == 0:
        return np.zeros(band.shape, np.uint8)
    # At least one pixel lies at or below a percentile, so that 0 is the least value there is.
    rank = np.maximum(np.array([low, high]) / 100 * total, 1)
    bottom, top = np.searchsorted(cumulated, rank)
    levels = np.arange(np.iinfo(band.dtype).max + 1, dtype=np.float32)
    table = np.clip((levels - bottom) * (255 / max(top - bottom, 1)), 0, 255)
    result: NDArray[np.uint8] = np.rint(table).astype(np.uint8)[band]
    result[~valid] = 0
    return result


def _has_alpha(source: rasterio.DatasetReader) -> bool:
    return bool(source.count in (4, 9) and source.colorinterp[-1] == ColorInterp.alpha)


def _brief(error: Exception) -> str:
    # Rasterio puts GDAL's own words in the cause.
    return str(error.__cause__ or error).strip().rstrip(".")
