"""Read images: header, band selection and the contrast stretch to 8 bits."""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from satmap.errors import SatmapError
from satmap.io.gdal import driver_of, require_possible_size, require_raster_file
from satmap.vectors.georeference import Georeference, georeference_of

# satmap reports images without georeference itself, by name, and rasterising in pixel coordinates
# is intended. The filter is global because catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

#: Image products that satmap reads, best first.
MULTISPECTRAL = "PS-MS"
RGB_NIR = "PS-RGBNIR"
RGB = "PS-RGB"

#: Order in which networks see the eight bands, as 1-based WorldView band numbers. Red, green and
#: blue come first, so that a three-channel network takes the first three channels of the array.
MS_BAND_ORDER = (5, 3, 2, 1, 4, 6, 7, 8)

# 1-based band numbers of each product, in that order.
_ORDERS = {MULTISPECTRAL: MS_BAND_ORDER, RGB_NIR: (1, 2, 3, 4), RGB: (1, 2, 3)}

_DTYPES = ("uint8", "uint16")
_UINT16_MAX = 65535

# Rows read at a time to compute the histograms of a large image.
_STRIP_ROWS = 512


@dataclass(frozen=True)
class ImageInfo:
    """Header of an image file.

    Attributes:
        path: the file.
        product: ``PS-MS``, ``PS-RGBNIR`` or ``PS-RGB``.
        width: columns.
        height: rows.
        bands: number of spectral bands, without an alpha band.
        dtype: ``uint8`` or ``uint16``.
        georeference: None if the file has none.
        is_stretched: whether the pixels are stretched to 8 bits already, with 0 for no data and
            the bands in the networks' order.
        stated_metres: pixel size along x and y that the user stated, for images without
            georeference; None if not stated.
    """

    path: Path
    product: str
    width: int
    height: int
    bands: int
    dtype: str
    georeference: Georeference | None
    is_stretched: bool = False
    stated_metres: tuple[float, float] | None = None

    @property
    def metres_per_pixel(self) -> tuple[float, float] | None:
        """Pixel size along x and y, of the georeference or as stated; None if not known."""
        return self.georeference.metres_per_pixel if self.georeference else self.stated_metres

    def gsd_m(self, input_px: int | None = None) -> float | None:
        """Return the pixel size in metres, the geometric mean of both axes; None if not known.

        ``input_px`` is the longer side to which the image is resized; None for its own size.
        """
        if self.metres_per_pixel is None:
            return None
        longer = max(self.width, self.height)
        return math.sqrt(math.prod(self.metres_per_pixel)) * longer / (input_px or longer)


def read_info(path: Path, product: str) -> ImageInfo:
    """Read an image's header.

    Raises:
        SatmapError: the file is not a readable raster, or its band count or data type does not fit
            the product.
    """
    require_raster_file(path)
    try:
        with rasterio.open(path, driver=driver_of(path)) as source:
            require_possible_size(source.width, source.height)
            bands = source.count - _has_alpha(source, product)
            dtype = source.dtypes[0]
            georeference = georeference_of(
                source.crs, source.transform, source.width, source.height
            )
            width, height = source.width, source.height
    except (RasterioError, OSError) as error:
        raise SatmapError(f"{path}: not a readable raster ({_brief(error)}).") from error
    except SatmapError as error:
        raise SatmapError(f"{path}: {error}") from error
    wanted = len(_ORDERS[product])
    if bands != wanted:
        raise SatmapError(
            f"{path}: {bands} bands, but a {product} image has {wanted}. "
            "Check that the file is what its name says."
        )
    if dtype not in _DTYPES:
        raise SatmapError(
            f"{path}: pixels of type {dtype}, but satmap reads {' and '.join(_DTYPES)}. Scale "
            f"the values to 0..{_UINT16_MAX} when you convert them, for example with "
            f"`gdal_translate -ot UInt16 -scale 0 MAX 0 {_UINT16_MAX} -a_nodata 0 {path.name} "
            "OUT.tif`. MAX is the largest value: 1 if values are between 0 and 1. Without -scale "
            "such values would be rounded to 0 or 1."
        )
    return ImageInfo(path, product, width, height, bands, dtype, georeference)


def read_infos(paths: Mapping[str, Path]) -> tuple[dict[str, ImageInfo], list[str]]:
    """Read the headers of all products of an image; return them and the errors of the others."""
    infos, wrong = {}, []
    for product, path in paths.items():
        try:
            infos[product] = read_info(path, product)
        except SatmapError as error:
            wrong.append(str(error))
    return infos, wrong


class StretchedImage:
    """Image stretched to 8 bits and read window by window.

    The percentiles are those of the whole image, so that all windows get the same stretch.

    Attributes:
        shape: height, width and channels.
    """

    def __init__(
        self, info: ImageInfo, low: float, high: float, channels: int | None = None
    ) -> None:
        """Read the image strip by strip and compute its percentiles, if the stretch needs any.

        Arguments and errors are those of :func:`read_stretched`.
        """
        self._info = info
        self._order = _band_order(info, channels)
        self.shape = (info.height, info.width, len(self._order))
        levels = np.iinfo(info.dtype).max + 1
        if keeps_values(levels, low, high):
            self._tables = [np.arange(levels, dtype=np.uint8)] * len(self._order)
        else:
            self._tables = [_table(count, low, high) for count in self._counts]

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Number of pixels with data of each level, (channels, levels)."""
        info, levels = self._info, np.iinfo(self._info.dtype).max + 1
        counts = np.zeros((len(self._order), levels), np.int64)
        for top in range(0, info.height, _STRIP_ROWS):
            rows = slice(top, min(top + _STRIP_ROWS, info.height))
            bands, valid = _read_bands(info, self._order, rows, slice(0, info.width))
            for count, band in zip(counts, bands, strict=True):
                count += _histogram(band, valid, levels)
        return counts

    @property
    def is_blank(self) -> bool:
        """Whether no pixel holds data; errors are those of :func:`read_stretched`."""
        return not self._counts[:, 1:].any()

    def stretch_like(self, info: ImageInfo) -> "StretchedImage":
        """Return another image of the same bands and data type, stretched as this one."""
        other = copy.copy(self)
        other._info = info
        other.shape = (info.height, info.width, self.shape[2])
        return other

    def __getitem__(self, index: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Return a window, given as slices of rows and columns, as :func:`read_stretched` does."""
        bands, valid = _read_bands(self._info, self._order, *index)
        if self._info.is_stretched:
            return bands.transpose(1, 2, 0)
        stretched = np.empty((*valid.shape, len(bands)), np.uint8)
        for channel, (band, table) in enumerate(zip(bands, self._tables, strict=True)):
            # 0 is reserved for pixels without data, so valid pixels are at least 1.
            stretched[..., channel] = np.maximum(_stretched(band, valid, table), valid)
        return stretched


def read_stretched(
    info: ImageInfo, low: float, high: float, channels: int | None = None
) -> NDArray[np.uint8]:
    """Read an image and stretch every band to 8 bits.

    Args:
        info: the image.
        low: percentile mapped to 0.
        high: percentile mapped to 255.
        channels: number of channels to read, the first ones in the networks' order; None for all.

    Returns:
        uint8 (height, width, channels), stored channel by channel in memory: red, green, blue and
        the product's other bands in the networks' order (``MS_BAND_ORDER``). Pixels without data
        are 0 in every channel, all others are at least 1.

    Raises:
        SatmapError: the pixels cannot be read, for example because the file is truncated.
    """
    order = _band_order(info, channels)
    bands, valid = _read_bands(info, order, slice(0, info.height), slice(0, info.width))
    if info.is_stretched:
        return bands.transpose(1, 2, 0)
    stretched = np.empty(bands.shape, np.uint8)
    for plane, band in zip(stretched, bands, strict=True):
        # 0 is reserved for pixels without data, so valid pixels are at least 1.
        np.maximum(stretch(band, valid, low, high), valid, out=plane)
    return stretched.transpose(1, 2, 0)


def read_resized(
    info: ImageInfo, low: float, high: float, input_px: int | None, channels: int | None = None
) -> NDArray[np.uint8]:
    """Read an image with :func:`read_stretched` and resize it with :func:`resize_image`."""
    return resize_image(read_stretched(info, low, high, channels), input_px)


def resize_image(image: NDArray[np.uint8], input_px: int | None) -> NDArray[np.uint8]:
    """Resize an image (h, w, channels) to a longer side of ``input_px``; None keeps its size."""
    if input_px is None or input_px == max(image.shape[:2]):
        return image
    height, width = (
        max(round(side * input_px / max(image.shape[:2])), 1) for side in image.shape[:2]
    )
    mode = cv2.INTER_AREA if input_px < max(image.shape[:2]) else cv2.INTER_LINEAR
    # OpenCV resizes any number of channels, but drops the channel axis if there is only one.
    resized = cv2.resize(image, (width, height), interpolation=mode)
    return np.asarray(resized, np.uint8).reshape(height, width, -1)


def _band_order(info: ImageInfo, channels: int | None) -> Sequence[int]:
    """Return the 1-based numbers of the bands to read, in the networks' order."""
    order = range(1, info.bands + 1) if info.is_stretched else _ORDERS[info.product]
    return order[:channels]


def _read_bands(
    info: ImageInfo, order: Sequence[int], rows: slice, columns: slice
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read bands (bands, height, width) and the mask of pixels with data (height, width)."""
    window = Window.from_slices(rows, columns)
    try:
        with rasterio.open(info.path, driver=driver_of(info.path)) as source:
            bands = source.read(order, window=window)
            # JPEG is lossy, so black pixels there are dark rather than without data.
            is_exact = source.driver != "JPEG"
            valid = bands.any(axis=0) if is_exact else np.ones(bands.shape[1:], np.bool_)
            if _has_alpha(source, info.product) or source.nodata not in (None, 0):
                valid &= source.dataset_mask(window=window) > 0
    except (RasterioError, OSError) as error:
        raise SatmapError(
            f"{info.path}: its pixels cannot be read ({_brief(error)}). "
            "The file may be truncated: download it again."
        ) from error
    return bands, valid


def stretch(
    band: NDArray[np.uint8] | NDArray[np.uint16],
    valid: NDArray[np.bool_],
    low: float,
    high: float,
) -> NDArray[np.uint8]:
    """Stretch a band so that its percentiles ``low`` and ``high`` become 0 and 255.

    Percentiles are taken over valid pixels above zero, as in selim_sef's solution. They are
    computed from the histogram, which is exact for 16-bit integers and needs no sorting.
    """
    levels = np.iinfo(band.dtype).max + 1
    if keeps_values(levels, low, high):
        return np.asarray(band * valid, np.uint8)
    return _stretched(band, valid, _table(_histogram(band, valid, levels), low, high))


def _histogram(band: NDArray[Any], valid: NDArray[np.bool_], levels: int) -> NDArray[np.int64]:
    """Count the valid pixels of each level, int64 (levels,)."""
    pixels = band.ravel() if valid.all() else band[valid]
    counts: NDArray[np.int64] = np.bincount(pixels, minlength=levels)
    return counts


def keeps_values(levels: int, low: float, high: float) -> bool:
    """Return whether a stretch between two percentiles leaves pixels of so many levels unchanged.

    See :class:`satmap.recipes.schema.StretchSettings`.
    """
    return levels == 256 and (low, high) == (0, 100)


def _table(counts: NDArray[np.int64], low: float, high: float) -> NDArray[np.uint8]:
    """Build the lookup table of the stretch, uint8 (levels,); all 0 if no pixel is above 0."""
    cumulated = np.cumsum(counts)
    cumulated -= counts[0]
    total = int(cumulated[-1])
    if total == 0:
        return np.zeros(len(counts), np.uint8)
    if keeps_values(len(counts), low, high):
        return np.arange(len(counts), dtype=np.uint8)
    # At least one pixel lies at or below a percentile, so percentile 0 is the smallest value.
    rank = np.maximum(np.array([low, high]) / 100 * total, 1)
    bottom, top = np.searchsorted(cumulated, rank)
    levels = np.arange(len(counts), dtype=np.float32)
    table = np.clip((levels - bottom) * (255 / max(top - bottom, 1)), 0, 255)
    levels_out: NDArray[np.uint8] = np.rint(table).astype(np.uint8)
    return levels_out


def _stretched(
    band: NDArray[Any], valid: NDArray[np.bool_], table: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    result: NDArray[np.uint8] = table[band]
    result[~valid] = 0
    return result


def _has_alpha(source: rasterio.DatasetReader, product: str) -> bool:
    # The fourth band of an RGB-NIR image is infrared, even if the file labels it as alpha.
    beyond = source.count == len(_ORDERS[product]) + 1
    return bool(beyond and source.colorinterp[-1] == ColorInterp.alpha)


def _brief(error: Exception) -> str:
    # Rasterio keeps GDAL's own message in the cause.
    return str(error.__cause__ or error).strip().rstrip(".")
