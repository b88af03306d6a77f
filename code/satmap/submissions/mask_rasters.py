"""Open Cities submissions: a building mask ``{chip}.TIF`` for every chip.

A mask has the chip's size and one uint8 band with 1 on buildings and 0 elsewhere, compressed with
deflate. Masks are in a directory or in the archive to upload, ``.zip`` or ``.tgz``. Readers accept
the variants in circulation: ``.tif`` and ``.tiff`` in any case, folders ``{chip}/{chip}.tif`` as
for the challenge's images, archives with folders, and 255 for buildings.
"""

import contextlib
import gzip
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from satmap.errors import CannotWriteError, SatmapError
from satmap.io.files import atomic_directory, atomic_path, refuse_pipe
from satmap.io.gdal import driver_of
from satmap.io.text import natural_key
from satmap.submissions.fault import Fault
from satmap.vectors.georeference import Georeference

# Masks are scored pixel by pixel and need no georeference.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

#: Suffixes of mask files, in lower case.
MASK_SUFFIXES = (".tif", ".tiff")

# Suffixes of archives that are read.
_ARCHIVES = (".zip", ".tgz", ".tar.gz")

# What broken and encrypted archives raise.
_BROKEN = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error)

# Number of pixels read or written at a time, and least number of rows that are written.
_PIECE_PIXELS, _WRITTEN_ROWS = 1 << 22, 256

# Most bytes of all masks in an archive, which are read at once. All test chips of the challenge
# have about 100 MB. A small archive can claim any size.
_MOST_UNPACKED = 4 << 30

# The earliest time that a zip can hold, for the same bytes every time.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


# --- finding and reading --------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskFile:
    """File of a mask, on disk or in memory.

    Attributes:
        path: the file; of a member of an archive the archive's path and the member's name.
        place: the file relative to the directory or archive.
        content: bytes of a file in an archive or in memory; None for a file on disk.
    """

    path: Path
    place: PurePosixPath
    content: bytes | None = field(default=None, repr=False)

    @property
    def chip(self) -> str:
        """Id of the chip."""
        return self.place.stem


def find_masks(masks: Path) -> dict[str, MaskFile]:
    """Find the masks of a directory or an archive by chip id, in natural order.

    In a directory, masks are ``{chip}.tif`` or ``{chip}/{chip}.tif``, with the suffix in any case;
    in an archive they may be in any folder.

    Raises:
        SatmapError: the directory or archive cannot be read, or two files belong to the same chip.
    """
    found: dict[str, MaskFile] = {}
    for mask in _masks_and_others(masks)[0]:
        if mask.chip in found:
            raise SatmapError(
                f"{found[mask.chip].path} and {mask.path} are both masks of the chip {mask.chip}; "
                "remove one."
            )
        found[mask.chip] = mask
    return found


def is_mask_archive(path: Path) -> bool:
    """Return whether a file is an archive that holds rasters; zips may hold other things, too."""
    if not path.name.lower().endswith(_ARCHIVES):
        return False
    with contextlib.suppress(*_BROKEN):
        names = (PurePosixPath(name) for name, _, _ in _members(path))
        return any(name.suffix.lower() in MASK_SUFFIXES for name in names)
    return False


def is_mask_directory(directory: Path) -> bool:
    """Return whether a directory holds masks as satmap writes them and nothing else.

    Images may have the same names, so the first file is read.
    """
    files = sorted(directory.iterdir())
    if any(path.suffix != ".TIF" or not path.is_file() for path in files):
        return False
    return not files or next(_check_mask(_on_disk(files[0], directory), None), None) is None


def _masks_and_others(masks: Path) -> tuple[list[MaskFile], list[PurePosixPath]]:
    """List the masks by name and location, in natural order of the chips, and everything else."""
    found: list[MaskFile] = []
    others: list[PurePosixPath] = []
    if not (masks.is_file() and masks.name.lower().endswith(_ARCHIVES)):
        for path in _listed(masks):
            inside = _listed(path) if path.is_dir() else []
            # An empty folder stands for itself.
            for file in inside or [path]:
                mask = _on_disk(file, masks)
                placed = file == path or file.stem == path.name
                if placed and file.suffix.lower() in MASK_SUFFIXES and file.is_file():
                    found.append(mask)
                else:
                    others.append(mask.place)
    else:
        for place, content in _unpacked(masks):
            if place.suffix.lower() in MASK_SUFFIXES:
                found.append(MaskFile(masks / place, place, content))
            else:
                others.append(place)
    return sorted(found, key=lambda mask: natural_key(mask.chip)), others


def _on_disk(path: Path, directory: Path) -> MaskFile:
    return MaskFile(path, PurePosixPath(path.relative_to(directory).as_posix()))


def _listed(directory: Path) -> list[Path]:
    """List a directory without hidden files."""
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SatmapError(f"cannot read {directory}: {error.strerror or error}.") from error


def _unpacked(archive: Path) -> list[tuple[PurePosixPath, bytes]]:
    """Return place and content of an archive's files, without hidden ones.

    Everything is read at once, because a compressed tape has no index.
    """
    refuse_pipe(archive)
    found: list[tuple[PurePosixPath, bytes]] = []
    left = _MOST_UNPACKED
    try:
        for name, size, file in _members(archive):
            place, left = PurePosixPath(name.removeprefix("./")), left - size
            if left < 0:
                raise SatmapError(
                    f"{archive}: its files have more than {_MOST_UNPACKED >> 30} GiB; unpack it "
                    "and give the directory."
                )
            if not any(part.startswith((".", "__MACOSX")) for part in place.parts):
                found.append((place, file.read()))
    except _BROKEN as error:
        raise SatmapError(
            f"{archive}: the archive cannot be read ({error}). It may be truncated; write it again."
        ) from error
    return found


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield name, size in bytes and open file of an archive's members, in their order."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, zipped.open(info)
    else:
        with tarfile.open(archive) as tape:
            for member in tape:
                if (file := tape.extractfile(member)) is not None:
                    yield member.name, member.size, file


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


@contextlib.contextmanager
def open_mask(file: MaskFile | Path) -> Iterator[MaskRaster]:
    """Open a mask to read it in pieces.

    Raises:
        SatmapError: the file is not a readable raster with one band.
    """
    if isinstance(file, Path):
        file = MaskFile(file, PurePosixPath(file.name))
    with _opened(file) as source:
        if source.count != 1:
            raise SatmapError(f"{file.path}: {source.count} bands; a mask must have one.")
        yield MaskRaster(file.path, source.width, source.height, source)


def read_mask(file: MaskFile | Path) -> NDArray[np.bool_]:
    """Read a whole mask, bool (h, w); errors as :func:`open_mask` and :meth:`MaskRaster.read`."""
    with open_mask(file) as mask:
        return mask.read(slice(0, mask.height))


@contextlib.contextmanager
def _opened(file: MaskFile) -> Iterator[rasterio.DatasetReader]:
    with contextlib.ExitStack() as stack:
        try:
            if file.content is None:
                source = rasterio.open(file.path, driver=driver_of(file.path))
            else:
                memory = stack.enter_context(MemoryFile(file.content))
                source = memory.open(driver="GTiff")
            stack.enter_context(source)
        except (RasterioError, OSError) as error:
            raise SatmapError(f"{file.path}: not a readable raster ({error}).") from error
        yield source


# --- writing --------------------------------------------------------------------------------------


def encode_mask(
    read: Callable[[slice], NDArray[np.bool_]],
    shape: tuple[int, int],
    georeference: Georeference | None = None,
) -> bytes:
    """Encode a mask of any size as the content of a ``.TIF``.

    Args:
        read: returns some rows of the mask, bool (rows, width), True on buildings.
        shape: height and width.
        georeference: position of the pixels, if known.
    """
    height, width = shape
    rows = min(max(_PIECE_PIXELS // width, _WRITTEN_ROWS), height)
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "height": height, "width": width,
        "compress": "deflate", "blockysize": rows, "bigtiff": "if_safer",
    }  # fmt: skip
    if georeference is not None:
        profile |= {"crs": georeference.crs, "transform": georeference.transform}
    with MemoryFile() as memory:
        with memory.open(**profile) as target:
            for top in range(0, height, rows):
                piece = slice(top, min(top + rows, height))
                window = Window(0, top, width, piece.stop - top)
                target.write(read(piece).astype(np.uint8), 1, window=window)
        return bytes(memory.getbuffer())


def write_masks(output: Path, masks: Iterable[tuple[str, bytes]]) -> None:
    """Write the masks of chips to a directory or an archive, atomically.

    The same masks in the same order give the same bytes: archives have no times and owners.

    Args:
        output: ends in ``.zip`` or ``.tgz``, or is a directory.
        masks: id of each chip, and the content of its mask as from :func:`encode_mask`.

    Raises:
        CannotWriteError: ``output`` cannot be written, or an id cannot be a file name.
    """
    files = ((_file_name(chip), content) for chip, content in masks)
    match output.suffix.lower():
        case ".zip":
            with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                for name, content in files:
                    # Masks are compressed already.
                    info = zipfile.ZipInfo(name, _ZIP_TIME)
                    info.create_system, info.external_attr = 3, 0o644 << 16
                    archive.writestr(info, content)
        case ".tgz":
            with (
                atomic_path(output) as temporary,
                temporary.open("wb") as file,
                # The header of gzip has a file name and a time.
                gzip.GzipFile("", "wb", 1, file, mtime=0) as zipped,
                tarfile.open(fileobj=zipped, mode="w") as tape,
            ):
                for name, content in files:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tape.addfile(member, BytesIO(content))
        case _:
            with atomic_directory(output) as temporary:
                for name, content in files:
                    (temporary / name).write_bytes(content)


def _file_name(chip: str) -> str:
    if "/" in chip or chip.startswith("."):
        raise CannotWriteError(f"the image id {chip} cannot be the name of a mask; rename it.")
    return f"{chip}.TIF"


# --- checking -------------------------------------------------------------------------------------


def check_masks(masks: Path, expected: Mapping[str, tuple[int, int]] | None = None) -> list[Fault]:
    """Find problems that would get a directory or an archive of masks rejected.

    Any compression is accepted. Given the width and height of every chip, missing and unknown chips
    are reported too.

    Returns:
        Faults without lines, whose messages name the file: masks in natural order of the chips,
        then stray files, then missing chips.

    Raises:
        SatmapError: the directory or archive cannot be read.
    """
    messages: list[str] = []
    seen: dict[str, MaskFile] = {}
    found, others = _masks_and_others(masks)
    kind = "directory" if masks.is_dir() else "archive"
    for mask in found:
        chip, place = mask.chip, mask.place
        if chip in seen:
            messages.append(f"{place}: the chip {chip} has another mask in {seen[chip].place}")
        elif place != PurePosixPath(f"{chip}.TIF"):
            messages.append(f"{place}: must be {chip}.TIF, in the {kind} itself")
        seen.setdefault(chip, mask)
        if expected is not None and chip not in expected:
            messages.append(f"{place}: unknown chip {chip}")
        size = None if expected is None else expected.get(chip)
        messages += [f"{place}: {text}" for text in _check_mask(mask, size)]
    messages += [f"{place}: not a chip's mask" for place in others]
    missing = sorted((expected or {}).keys() - seen.keys(), key=natural_key)
    messages += [f"missing chip {chip}" for chip in missing]
    if not seen:
        messages.append(f"the {kind} has no masks")
    return [Fault(None, message) for message in messages]


def _check_mask(file: MaskFile, size: tuple[int, int] | None) -> Iterator[str]:
    try:
        with _opened(file) as source:
            if size is not None and (source.width, source.height) != size:
                yield (
                    f"{source.width} x {source.height} px, but the chip has {size[0]} x {size[1]}"
                )
            if source.count != 1:
                yield f"{source.count} bands; there must be one"
            if source.dtypes[0] != "uint8":
                yield f"pixels of type {source.dtypes[0]}; they must be uint8"
            mask = MaskRaster(file.path, source.width, source.height, source)
            for rows in mask.pieces():
                _, odd = mask.read_values(rows, (0, 1))
                if odd is not None:
                    yield f"a pixel of value {odd}; there must be only 0 and 1"
                    break
    except SatmapError as error:
        yield str(error).removeprefix(f"{file.path}: ").rstrip(".")
