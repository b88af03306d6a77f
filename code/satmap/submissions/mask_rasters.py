"""Open Cities submissions: a directory with a building mask ``{chip}.TIF`` for every chip.

A mask has the chip's size and one uint8 band with 1 on buildings and 0 elsewhere, compressed with
deflate. The upload is an archive of the directory. Readers accept the variants in circulation:
``.tif`` and ``.tiff`` in any case, folders ``{chip}/{chip}.tif`` as for the challenge's images, and
255 for buildings.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from satmap.errors import SatmapError
from satmap.io.gdal import driver_of
from satmap.io.text import natural_key
from satmap.submissions.fault import Fault

# Masks are scored pixel by pixel and need no georeference.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

#: Suffixes of mask files, in lower case.
MASK_SUFFIXES = (".tif", ".tiff")

# Number of pixels read at a time.
_PIECE_PIXELS = 1 << 22


# --- finding and reading --------------------------------------------------------------------------


def find_masks(directory: Path) -> dict[str, Path]:
    """Find the masks of a directory by chip id, in natural order.

    Masks are ``{chip}.tif`` or ``{chip}/{chip}.tif``; the suffix may be in any case.

    Raises:
        SatmapError: the directory cannot be read, or two files belong to the same chip.
    """
    found: dict[str, Path] = {}
    for path in _masks_and_others(directory)[0]:
        if path.stem in found:
            raise SatmapError(
                f"{found[path.stem]} and {path} are both masks of the chip {path.stem}; remove one."
            )
        found[path.stem] = path
    return found


def _masks_and_others(directory: Path) -> tuple[list[Path], list[Path]]:
    """List the masks by name and location, in natural order of the chips, and everything else."""
    masks: list[Path] = []
    others: list[Path] = []
    for path in _listed(directory):
        inside = _listed(path) if path.is_dir() else []
        # An empty folder stands for itself.
        for file in inside or [path]:
            placed = file == path or file.stem == path.name
            is_mask = placed and file.suffix.lower() in MASK_SUFFIXES and file.is_file()
            (masks if is_mask else others).append(file)
    return sorted(masks, key=lambda path: natural_key(path.stem)), others


def _listed(directory: Path) -> list[Path]:
    """List a directory without hidden files."""
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SatmapError(f"cannot read {directory}: {error.strerror or error}.") from error


@dataclass(frozen=True)
class MaskRaster:
    """Open mask raster, which can be read in pieces.

    Attributes:
        path: the file.
        width: columns.
        height: rows.
    """

    path: Path
    width: int
    height: int
    _source: rasterio.DatasetReader

    def read(self, rows: slice) -> NDArray[np.bool_]:
        """Read some rows of the mask, bool (rows, width), True on buildings.

        Raises:
            SatmapError: the pixels cannot be read, or one is not 0, 1 or 255.
        """
        pixels, odd = self.read_values(rows, (0, 1, 255))
        if odd is not None:
            raise SatmapError(
                f"{self.path}: a pixel of value {odd}; a mask has 1 (or 255) on buildings and 0 "
                "elsewhere. Apply a threshold to probabilities first."
            )
        return np.asarray(pixels != 0, np.bool_)

    def read_values(
        self, rows: slice, allowed: tuple[int, ...]
    ) -> tuple[NDArray[np.generic], np.generic | None]:
        """Read some rows, and return also a pixel value that is not allowed, if there is one.

        Raises:
            SatmapError: the pixels cannot be read.
        """
        try:
            pixels = self._source.read(
                1, window=Window(0, rows.start, self.width, rows.stop - rows.start)
            )
        except (RasterioError, OSError) as error:
            raise SatmapError(
                f"{self.path}: its pixels cannot be read ({error}). The file may be truncated; "
                "write it again."
            ) from error
        odd = pixels[~np.isin(pixels, allowed)]
        return pixels, odd[0] if odd.size else None

    def pieces(self) -> Iterator[slice]:
        """Yield row ranges that cover the mask, each small enough for bounded memory."""
        step = max(1, _PIECE_PIXELS // self.width)
        for top in range(0, self.height, step):
            yield slice(top, min(top + step, self.height))


@contextmanager
def open_mask(path: Path) -> Iterator[MaskRaster]:
    """Open a mask to read it in pieces.

    Raises:
        SatmapError: the file is not a readable raster with one band.
    """
    with _opened(path) as source:
        if source.count != 1:
            raise SatmapError(f"{path}: {source.count} bands; a mask must have one.")
        yield MaskRaster(path, source.width, source.height, source)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a whole mask, bool (h, w); errors as :func:`open_mask` and :meth:`MaskRaster.read`."""
    with open_mask(path) as mask:
        return mask.read(slice(0, mask.height))


@contextmanager
def _opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    try:
        source = rasterio.open(path, driver=driver_of(path))
    except (RasterioError, OSError) as error:
        raise SatmapError(f"{path}: not a readable raster ({error}).") from error
    with source:
        yield source


# --- checking -------------------------------------------------------------------------------------


def check_masks(
    directory: Path, expected: Mapping[str, tuple[int, int]] | None = None
) -> list[Fault]:
    """Find problems that would get a directory of masks rejected; any compression is accepted.

    Given the width and height of every chip, missing and unknown chips are reported too.

    Returns:
        Faults without lines, whose messages name the file: masks in natural order of the chips,
        then stray files, then missing chips.

    Raises:
        SatmapError: the directory cannot be read.
    """
    messages: list[str] = []
    seen: dict[str, Path] = {}
    masks, others = _masks_and_others(directory)
    for path in masks:
        chip = path.stem
        place = path.relative_to(directory)
        if chip in seen:
            other = seen[chip].relative_to(directory)
            messages.append(f"{place}: the chip {chip} has another mask in {other}")
        elif place != Path(f"{chip}.TIF"):
            messages.append(f"{place}: must be {chip}.TIF, in the directory itself")
        seen.setdefault(chip, path)
        if expected is not None and chip not in expected:
            messages.append(f"{place}: unknown chip {chip}")
        size = None if expected is None else expected.get(chip)
        messages += [f"{place}: {text}" for text in _check_mask(path, size)]
    messages += [f"{path.relative_to(directory)}: not a chip's mask" for path in others]
    missing = sorted((expected or {}).keys() - seen.keys(), key=natural_key)
    messages += [f"missing chip {chip}" for chip in missing]
    if not seen:
        messages.append("the directory has no masks")
    return [Fault(None, message) for message in messages]


def _check_mask(path: Path, size: tuple[int, int] | None) -> Iterator[str]:
    try:
        with _opened(path) as source:
            if size is not None and (source.width, source.height) != size:
                yield (
                    f"{source.width} x {source.height} px, but the chip has {size[0]} x {size[1]}"
                )
            if source.count != 1:
                yield f"{source.count} bands; there must be one"
            if source.dtypes[0] != "uint8":
                yield f"pixels of type {source.dtypes[0]}; they must be uint8"
            mask = MaskRaster(path, source.width, source.height, source)
            for rows in mask.pieces():
                _, odd = mask.read_values(rows, (0, 1))
                if odd is not None:
                    yield f"a pixel of value {odd}; there must be only 0 and 1"
                    break
    except SatmapError as error:
        yield str(error).removeprefix(f"{path}: ").rstrip(".")
