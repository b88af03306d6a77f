"""Chips made ready for training, one memory-mapped file each.

A file is a safetensors container: the stretched image, plane after plane, the target and, in its
header, everything that validation needs. Reading a crop touches only the pages of its own rows, and
of the planes that the network wants. The directory can be deleted whenever no training runs.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from satmap.data.chip import Chip
from satmap.data.imagery import read_resized
from satmap.data.soft_targets import SoftTarget
from satmap.errors import CannotWriteError, SatmapError
from satmap.io.checksums import FileRecord, record_file
from satmap.io.files import atomic_path
from satmap.io.progress import track
from satmap.recipes.schema import StretchSettings
from satmap.runtime.resources import available_cores

_HEADER_KEYS = {"shape", "metres_per_pixel", "payload", "count", "repaired", "sources"}

# Raise when the content of a cached file changes for the same inputs and settings.
_FORMAT = "7"


@dataclass(frozen=True)
class EncodedLabel:
    """What the label of a chip becomes for training.

    Attributes:
        arrays: stored beside the image, by name. Tasks with probability maps have ``target``, uint8
            (h, w) or (h, w, bytes), of the image's size.
        payload: JSON values that scoring needs, such as the lines of roads.
        count: number of labelled objects.
        metres_per_pixel: along x and y; 1 where it is not known and not needed.
        repaired: number of invalid objects that were repaired.
    """

    arrays: Mapping[str, NDArray[Any]]
    payload: Any
    count: int
    metres_per_pixel: tuple[float, float]
    repaired: int = 0


class LabelEncoder(Protocol):
    """What the cache needs to know of a task; see :class:`satmap.tasks.base.Task`."""

    input_px: int | None

    @property
    def label_fingerprint(self) -> str:
        """Changes with every setting that ``encode`` depends on."""

    def category(self, chip: Chip) -> str | None:
        """The network head that is responsible for an image."""

    def encode(self, chip: Chip, image: NDArray[np.uint8]) -> EncodedLabel:
        """Turn the label of a chip into what training needs."""

    def load_payload(self, payload: Any) -> Any:
        """Turn a payload back into labels."""


@dataclass(frozen=True)
class CachedChip:
    """A chip in the cache.

    Attributes:
        image_id: the chip's id.
        aoi: its area of interest.
        path: the file.
        shape: height, width and channels.
        metres_per_pixel: pixel size along x and y; 1 where only pixels count and nobody knows it.
        sources: the files that it was made of: the product of the image, ``label``.
        payload: the labels, in the task's own form.
        count: number of labelled objects.
        repaired: number of labelled objects that were invalid.
        size: height and width of the file as it was given.
        site: what must not be in two folds.
        category: of the look, for networks with a head for each; None without.
        soft: what a teacher made of the image; None for chips that have none.
    """

    image_id: str
    aoi: str
    path: Path
    shape: tuple[int, int, int]
    metres_per_pixel: tuple[float, float]
    sources: Mapping[str, FileRecord]
    payload: Any = None
    count: int = 0
    repaired: int = 0
    size: tuple[int, int] = (0, 0)
    site: str = ""
    category: str | None = None
    soft: SoftTarget | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is labelled."""
        return not self.count

    def read(
        self, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A window of the image (h, w, channels) and of the target (h, w) or (h, w, bytes).

        Raises:
            SatmapError: the file is gone or damaged.
        """
        image, target = self.read_channels(self.shape[2], rows, columns)
        return image.transpose(1, 2, 0), target

    def read_channels(
        self, channels: int, rows: slice, columns: slice
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The same with the first ``channels`` of the image, (channels, h, w), all contiguous.

        Raises:
            SatmapError: the file is gone or damaged.
        """
        image, target = self._read(image=(slice(channels), rows, columns), target=(rows, columns))
        return image, target

    def read_image(self, channels: int, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """A window of the first ``channels`` of the image, uint8 (channels, h, w).

        Raises:
            SatmapError: the file is gone or damaged.
        """
        (image,) = self._read(image=(slice(channels), rows, columns))
        return image

    def read_array(self, name: str) -> NDArray[Any]:
        """A whole array of the encoded label.

        Raises:
            SatmapError: the file is gone or damaged.
        """
        (array,) = self._read(**{name: (slice(None),)})
        return array

    def _read(self, **windows: tuple[slice, ...]) -> list[NDArray[Any]]:
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                return [tensors.get_slice(name)[window] for name, window in windows.items()]
        except (OSError, SafetensorError) as error:
            raise SatmapError(
                f"the prepared chip {self.path} cannot be read ({error}). Start the same command "
                "again: it prepares what is missing and goes on."
            ) from error


def prepare_chip(
    chip: Chip,
    directory: Path,
    stretch: StretchSettings,
    encoder: LabelEncoder,
) -> CachedChip:
    """The cached form of a chip; made, or made anew, only if its inputs or settings changed.

    Args:
        chip: with a label.
        directory: the cache.
        stretch: how the image becomes 8 bits.
        encoder: the task, which encodes the label.

    Raises:
        SatmapError: the image or label is unusable, the look is not known and needs to be, or the
            cache cannot be written.
    """
    category = encoder.category(chip)
    # The fingerprint is part of the name: another training's settings make another file, and
    # never change one that is in use.
    fingerprint = _fingerprint(chip, stretch, encoder)
    path = directory / f"{chip.image_id}.{fingerprint[:16]}.safetensors"
    header = _read_header(path)
    if header is None:
        _remove_misplaced(path)
        header, tensors = _build(chip, stretch, encoder)
        with atomic_path(path) as temporary:
            # The safetensors header holds strings only.
            content = save(tensors, {"chip": json.dumps(header)})
            temporary.write_bytes(content)
    width_m, height_m = header["metres_per_pixel"]
    return CachedChip(
        image_id=chip.image_id,
        aoi=chip.aoi,
        path=path,
        shape=tuple(header["shape"]),
        metres_per_pixel=(width_m, height_m),
        sources={
            kind: FileRecord.model_validate(record) for kind, record in header["sources"].items()
        },
        payload=encoder.load_payload(header["payload"]),
        count=header["count"],
        repaired=header["repaired"],
        size=(chip.image.height, chip.image.width),
        site=chip.site,
        category=category,
    )


def require_image_data(chip: Chip, image: NDArray[np.uint8], labelled: int, noun: str) -> None:
    """Fail if a label has objects and its image has no data.

    Raises:
        SatmapError: there is nothing to see of what is labelled.
    """
    if labelled and not image.any():
        assert chip.label is not None, "the label was read"
        raise SatmapError(
            f"{chip.image.path}: no pixel holds data, but {chip.label.name} has {labelled} {noun}, "
            "which cannot be learned from it. Check the image."
        )


def _build(
    chip: Chip, stretch: StretchSettings, encoder: LabelEncoder
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays of a chip."""
    image = read_resized(chip.image, stretch.low, stretch.high, encoder.input_px)
    encoded = encoder.encode(chip, image)
    assert chip.label is not None, "the label was read"
    header = {
        "shape": image.shape,
        "metres_per_pixel": encoded.metres_per_pixel,
        "payload": encoded.payload,
        "count": encoded.count,
        "repaired": encoded.repaired,
        # Here, where the files have just been read: hashing them costs little more.
        "sources": {
            chip.image.product: record_file(chip.image.path).model_dump(),
            "label": _record_label(chip.label, chip.label.stat().st_mtime_ns).model_dump(),
        },
    }
    return header, {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), **encoded.arrays}


@lru_cache(maxsize=2)
def _record_label(path: Path, changed_ns: int) -> FileRecord:
    """Of a file that many chips may share, hashed once as long as it does not change."""
    return record_file(path)


def _fingerprint(chip: Chip, stretch: StretchSettings, encoder: LabelEncoder) -> str:
    """Hash of all that the cached file depends on; files count by path, size and time."""
    parts = [_FORMAT, stretch.model_dump_json(), encoder.label_fingerprint, str(encoder.input_px)]
    for path in (chip.image.path, chip.label):
        if path is not None:
            try:
                stat = path.stat()
            except OSError as error:
                raise SatmapError(f"{path}: cannot be read ({error.strerror}).") from error
            parts += [str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _remove_misplaced(path: Path) -> None:
    """Delete a pipe, or a link to none or to itself, in the place of a file of satmap's own.

    Followed, links of several chips could lead to one and the same file.
    """
    if not path.is_file() and not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()


def _read_header(path: Path) -> dict[str, Any] | None:
    """The header of a cached file, None where there is no whole one."""
    # A pipe would have to be waited for.
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as tensors:
            header: dict[str, Any] = json.loads(tensors.metadata()["chip"])
            whole = "image" in set(tensors.keys()) and header.keys() >= _HEADER_KEYS
            return header if whole else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


# More bad chips than this share point to a systematic fault that skipping would hide.
_TOLERATED_FAULTS = 0.1


@dataclass(frozen=True)
class Preparation:
    """The chips that are ready, in the order given, and what is wrong with the others."""

    chips: tuple[CachedChip, ...]
    faults: dict[str, str]

    def require_enough(self) -> None:
        """Fail if nothing is left or so much is bad that something is wrong with all of it.

        Raises:
            SatmapError: names the first faults.
        """
        total = len(self.chips) + len(self.faults)
        if len(self.faults) > _TOLERATED_FAULTS * total or not self.chips:
            first = "\n".join(f"  {fault}" for fault in list(self.faults.values())[:5])
            raise SatmapError(f"{len(self.faults)} of {total} chips cannot be used:\n{first}")


def prepare_chips(
    chips: Sequence[Chip],
    channels: int,
    directory: Path,
    stretch: StretchSettings,
    encoder: LabelEncoder,
) -> Preparation:
    """Bring the chips into the cache; one that cannot be read costs only itself.

    Args:
        chips: with labels.
        channels: what the recipe's networks need at most.
        directory: the cache.
        stretch: how images become 8 bits.
        encoder: the task, which encodes the labels.

    Raises:
        CannotWriteError: the cache's directory cannot be written, or its disk is full.
    """

    def attempt(chip: Chip) -> CachedChip | str:
        try:
            chip.require_channels(channels)
            return prepare_chip(chip, directory, stretch, encoder)
        except CannotWriteError:
            raise
        except SatmapError as error:
            return str(error)
        # Libraries fail in ways of their own on files that nobody has thought of.
        except Exception as error:
            return f"{chip.image.path}: {type(error).__name__}: {error}"

    ready, faults = [], {}
    # Threads suffice: GDAL and numpy let go of the interpreter for most of the work.
    with ThreadPoolExecutor(available_cores()) as pool:
        results = track(pool.map(attempt, chips), "preparing", len(chips))
        for chip, result in zip(chips, results, strict=True):
            if isinstance(result, str):
                faults[chip.image_id] = result
            else:
                ready.append(result)
    return Preparation(tuple(ready), faults)


def default_cache() -> Path:
    """``$SATMAP_CACHE``, else the organisers' scratch volume, else the user's cache directory."""
    if named := os.environ.get("SATMAP_CACHE"):
        return Path(named)
    scratch = Path("/wdata")
    # What this process may do, not its user: a container's has a power more than that.
    if scratch.is_dir() and os.access(scratch, os.W_OK, effective_ids=True):
        return scratch / "satmap-cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "satmap"
