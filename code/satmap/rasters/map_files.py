"""Read and write probability maps on disk: PNG or GeoTIFF, whole or window by window."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from satmap.errors import CannotWriteError, SatmapError
from satmap.io.files import atomic_path
from satmap.io.gdal import driver_of, require_possible_size, require_raster_file
from satmap.io.text import natural_key, require_plain_id
from satmap.io.walk import is_not_a_file, walk
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, Scene
from satmap.vectors.georeference import Georeference, georeference_of

_GDAL_OPTIONS = {
    # With its optimisation for whole images, GDAL silently returns the first half of a truncated
    # PNG, skewed, and black for the rest.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,
    # Bytes of decoded blocks that GDAL caches; the default is 5 % of the machine's memory.
    "GDAL_CACHEMAX": 64_000_000,
}

# Suffixes of probability maps.
_SUFFIXES = (".png", ".tif", ".tiff")

# Drivers that can read a part of a raster without everything before it.
_WINDOWED = ("GTiff", "COG")

#: Maps with more values than this in total are processed in windows, not held in memory.
MAX_VALUES_IN_MEMORY = 128_000_000

# How far beyond 0 and 1 resampling may take a probability.
_TOLERANCE = 0.01


class MapFile:
    """An open raster of probability maps; see :func:`open_map_file`.

    Attributes:
        names: names of the maps.
        width, height: size in pixels.
        georeference: position of the pixels; None if the file has none.
        has_windows: whether reading a part of the file is faster than reading all of it.
    """

    def __init__(
        self,
        path: Path,
        source: rasterio.DatasetReader,
        metres_per_pixel: float,
        kinds: Mapping[int, tuple[str, ...]],
    ) -> None:
        """Use :func:`open_map_file` instead."""
        self.names = _map_names(source, kinds)
        self.width: int = source.width
        self.height: int = source.height
        self.georeference: Georeference | None = georeference_of(
            source.crs, source.transform, source.width, source.height
        )
        self.has_windows = source.driver in _WINDOWED
        self._metres_per_pixel = (metres_per_pixel, metres_per_pixel)
        if self.georeference is not None:
            self._metres_per_pixel = self.georeference.metres_per_pixel
        self._path = path
        self._source = source
        # Asked once, because it takes as long as reading a small part.
        self._all_valid = [MaskFlags.all_valid in flags for flags in source.mask_flag_enums]
        self._highest = 0

    @property
    def scene(self) -> Scene:
        """Maps of the file, read on demand; usable only while the file is open."""
        return Scene(self.names, (self.height, self.width), self._metres_per_pixel, self.read)

    def read(self, name: str, box: Box) -> NDArray[np.uint8]:
        """Read pixels of a map, uint8 (height, width), 0..255; no data and NaN become 0.

        Raises:
            SatmapError: the file is damaged, or its values are not probabilities.
        """
        band = self.names.index(name) + 1
        window = Window(box.left, box.top, box.width, box.height)
        with _faults_of(self._path):
            if self._all_valid[band - 1]:
                values = self._source.read(band, window=window)
            else:
                values = self._source.read(band, window=window, masked=True).filled(0)
            if values.dtype == np.uint8:
                self._highest = max(self._highest, int(values.max()))
            return _as_bytes(values)

    def check_scale(self) -> None:
        """Raise SatmapError for a mask of 0 and 1, judged by the pixels read so far."""
        # Files of several maps are not checked: all of their probabilities may be low.
        if self._highest == 1 and len(self.names) == 1:
            raise SatmapError(
                f"{self._path}: its values are 0 and 1, but a certain {self.names[0]} has the "
                "value 255; multiply them by 255."
            )


@contextlib.contextmanager
def open_map_file(
    path: Path, metres_per_pixel: float, kinds: Mapping[int, tuple[str, ...]]
) -> Iterator[MapFile]:
    """Open a raster of probability maps.

    ``metres_per_pixel`` is the pixel size to assume if the file has no georeference. ``kinds`` has
    the names of the maps by number of bands. Band descriptions with these names override the order.

    Raises:
        SatmapError: the file is not a readable raster, or its values are not probabilities.
    """
    require_raster_file(path)
    with contextlib.ExitStack() as stack:
        with _faults_of(path):
            stack.enter_context(rasterio.Env(**_GDAL_OPTIONS))
            source = stack.enter_context(rasterio.open(path, driver=driver_of(path)))
            require_possible_size(source.width, source.height)
            map_file = MapFile(path, source, metres_per_pixel, kinds)
        yield map_file


def read_map_file(
    path: Path, metres_per_pixel: float, kinds: Mapping[int, tuple[str, ...]]
) -> tuple[ProbabilityMaps, Georeference | None]:
    """Read all maps of a file, and its georeference, like :func:`open_map_file`."""
    with open_map_file(path, metres_per_pixel, kinds) as map_file:
        maps = map_file.scene.at_once()
        map_file.check_scale()
        return maps, map_file.georeference


@contextlib.contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Add the path of the file to errors."""
    try:
        yield
    except (RasterioError, OSError) as error:
        # Rasterio puts GDAL's own message in the cause.
        reason = str(error.__cause__ or error).strip().rstrip(".")
        raise SatmapError(f"{path}: cannot be read ({reason}). Write it again.") from error
    except SatmapError as error:
        raise SatmapError(f"{path}: {error}") from error


def _map_names(
    source: rasterio.DatasetReader, kinds: Mapping[int, tuple[str, ...]]
) -> tuple[str, ...]:
    if source.colorinterp[0] == ColorInterp.palette:
        raise SatmapError(
            "an image with a palette, whose values are not probabilities; convert it to greyscale."
        )
    if source.count not in kinds:
        counts = " or ".join(map(str, kinds)).replace("1", "one", 1)
        most = kinds[max(kinds)]
        raise SatmapError(
            f"{source.count} bands, but a mask has {counts}: {kinds[1][0]} alone, or "
            f"{', '.join(most)}."
        )
    described, known = set(source.descriptions), {*kinds[max(kinds)]}
    if len(described) == source.count and described <= known and {*kinds[1]} <= described:
        return tuple(source.descriptions)
    return kinds[source.count]


def _as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert probabilities to uint8, 0..255."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise SatmapError(
            f"pixels of type {values.dtype}, but probabilities are uint8, 0..255, or float, 0..1; "
            "convert it."
        )
    values[np.isnan(values)] = 0
    low, high = values.min(), values.max()
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise SatmapError(
            f"values from {low:g} to {high:g}, but float probabilities are 0..1; divide them, or "
            "write uint8, 0..255."
        )
    scaled: NDArray[np.uint8] = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return scaled


# As in `satmap.data.imagery`, which worker processes do not import.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

# Tiled, for reading windows. Deflate at its fastest level, on differences of neighbouring pixels
# (predictor 2), is the best trade-off between file size and time.
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
# Takes about half of the time, but older programs cannot read it. Small tiles, because margins of
# neighbours are narrow.
_FAST_OPTIONS = {"compress": "zstd", "zstd_level": 1, "blockxsize": 256, "blockysize": 256}


def write_maps(
    path: Path,
    maps: ProbabilityMaps,
    georeference: Georeference | None,
    *,
    for_itself: bool = False,
) -> None:
    """Write maps as a GeoTIFF, atomically: one uint8 band per map, described by its name.

    Without georeference the file has none. Files that satmap writes ``for_itself`` are compressed
    faster, in a way that older programs cannot read.

    Raises:
        CannotWriteError: the disk is full or the directory not writable.
    """
    profile = _profile(maps.names, maps.shape, georeference)
    if for_itself:
        del profile["zlevel"], profile["predictor"]
        profile |= _FAST_OPTIONS
    # Through memory: GDAL does not always report a full disk.
    with rasterio.Env(**_GDAL_OPTIONS), atomic_path(path) as temporary, MemoryFile() as memory:
        with memory.open(**profile) as target:
            target.write(maps.values)
            target.descriptions = maps.names
        temporary.write_bytes(memory.getbuffer())


@contextlib.contextmanager
def map_writer(
    path: Path, names: Sequence[str], shape: tuple[int, int], georeference: Georeference | None
) -> Iterator[Callable[[int, NDArray[np.uint8]], None]]:
    """Write maps too large for memory like :func:`write_maps`, but strip by strip.

    Yields:
        Function that writes a strip, given its first row and values, uint8 (maps, rows, width).

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
            # GDAL does not always report a full disk; the missing part is at the end of the file.
            with rasterio.open(temporary) as written:
                written.read(window=Window(width - 1, height - 1, 1, 1))
        except RasterioError as error:
            raise CannotWriteError(
                f"cannot write {path}: {error.__cause__ or error}. Check that the disk has space."
            ) from error


def _profile(
    names: Sequence[str], shape: tuple[int, int], georeference: Georeference | None
) -> dict[str, Any]:
    profile = {"count": len(names), "height": shape[0], "width": shape[1], **_OPTIONS}
    if georeference is not None:
        profile |= {"crs": georeference.crs, "transform": georeference.transform}
    return profile


def find_map_files(directory: Path, image_id_of: Callable[[str], str | None]) -> dict[str, Path]:
    """Find the masks under a directory at any depth; return image id to file, in natural order.

    ``image_id_of`` returns the image id in a file name without suffix, or None if it has none. The
    whole name is then the id.

    Raises:
        SatmapError: there is no mask, two masks belong to one image, or a name cannot be written
            to a CSV.
    """
    found: dict[str, Path] = {}
    non_files: dict[str, Path] = {}
    for path in walk([directory], also_non_files=_SUFFIXES):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        image_id = image_id_of(path.stem) or path.stem
        if is_not_a_file(path):
            non_files[image_id] = path
            continue
        if image_id in found:
            raise SatmapError(
                f"two masks belong to the image {image_id}:\n  {found[image_id]}\n  {path}\n"
                "Give a directory that contains only one of them."
            )
        try:
            require_plain_id(image_id)
        except ValueError as error:
            raise SatmapError(f"{path}: rename it; {error}.") from error
        found[image_id] = path
    found = non_files | found
    if not found:
        raise SatmapError(
            f"no masks under {directory}. Expected {', '.join(_SUFFIXES)} files named like "
            "the images, such as AOI_7_Moscow_chip23.tif."
        )
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))
