"""Prepare chips for training, one file per chip in a cache; :mod:`satmap.data.crops` reads them.

A file is a safetensors container with the stretched image, stored channel by channel, the target
and, in the header, everything that validation needs. The directory can be deleted whenever no
training runs.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from satmap.data.chip import Chip
from satmap.data.crops import LABEL, CachedChip
from satmap.data.imagery import read_resized
from satmap.errors import CannotWriteError, SatmapError, error_text
from satmap.io.checksums import FileRecord, record_file
from satmap.io.files import atomic_path
from satmap.io.progress import track
from satmap.recipes.schema import StretchSettings
from satmap.runtime.resources import available_cores

if TYPE_CHECKING:
    from satmap.tasks.base import Task

_HEADER_KEYS = {"shape", "metres_per_pixel", "payload", "count", "repaired", "sources"}

# Increase this number when the content of a cached file changes for the same inputs and settings.
_FORMAT = "8"


@dataclass(frozen=True)
class EncodedLabel:
    """Label of a chip, encoded for training.

    Attributes:
        arrays: arrays stored beside the image, by name. Tasks with probability maps have
            ``target``, uint8 (h, w) or (h, w, bytes), of the image's size.
        payload: JSON values that scoring needs, such as the lines of roads.
        count: number of labelled objects.
        metres_per_pixel: pixel size along x and y; 1 if unknown and not needed.
        repaired: number of invalid objects that were repaired.
    """

    arrays: Mapping[str, NDArray[Any]]
    payload: Any
    count: int
    metres_per_pixel: tuple[float, float]
    repaired: int = 0


def prepare_chip(chip: Chip, directory: Path, stretch: StretchSettings, task: "Task") -> CachedChip:
    """Return the cached form of a chip; build it if missing or its inputs changed.

    Raises:
        SatmapError: the image or label is unusable, a required off-nadir angle is unknown, or the
            cache cannot be written.
    """
    category = task.category(chip)
    # The fingerprint is part of the name. A training with other settings therefore writes another
    # file and never changes one that is in use.
    fingerprint = _fingerprint(chip, stretch, task)
    path = directory / f"{chip.image_id}.{fingerprint[:16]}.safetensors"
    header = header_of(path, lambda: _build(chip, stretch, task))
    return CachedChip(
        image_id=chip.image_id,
        aoi=chip.aoi,
        path=path,
        shape=tuple(header["shape"]),
        metres_per_pixel=tuple(header["metres_per_pixel"]),
        sources=sources_of(header),
        payload=task.load_payload(header["payload"]),
        count=header["count"],
        repaired=header["repaired"],
        size=(chip.image.height, chip.image.width),
        site=chip.site,
        scene=chip.scene,
        category=category,
        gsd_m=chip.image.gsd_m(task.input_px),
    )


#: Header and arrays of a cached file.
Content = tuple[dict[str, Any], dict[str, NDArray[Any]]]


def header_of(path: Path, build: Callable[[], Content]) -> dict[str, Any]:
    """Return the header of a cached file; build the file if it is missing or incomplete.

    Raises:
        CannotWriteError: the cache cannot be written.
    """
    header = _read_header(path)
    if header is None:
        _remove_misplaced(path)
        header, tensors = build()
        with atomic_path(path) as temporary:
            # The safetensors header holds strings only.
            temporary.write_bytes(save(tensors, {"chip": json.dumps(header)}))
    return header


def sources_of(header: Mapping[str, Any]) -> dict[str, FileRecord]:
    """Return the source files in the header of a cached file, by kind."""
    return {kind: FileRecord.model_validate(record) for kind, record in header["sources"].items()}


def require_image_data(chip: Chip, image: NDArray[np.uint8], labelled: int, noun: str) -> None:
    """Raise SatmapError if an image has labelled objects but no data."""
    if labelled and not image.any():
        assert chip.label is not None, "the label was read"
        raise SatmapError(
            f"{chip.image.path}: no pixel holds data, but {chip.label.name} has {labelled} {noun}. "
            "Check the image."
        )


def _build(chip: Chip, stretch: StretchSettings, task: "Task") -> Content:
    """Build the header and the arrays of a chip."""
    image = read_resized(chip.image, stretch.low, stretch.high, task.input_px)
    # The files have just been read, so hashing them costs little.
    sources = {chip.image.product: record_file(chip.image.path)}
    if chip.label is None:
        if not image.any():
            raise SatmapError(f"{chip.image.path}: no pixel holds data. Leave the image out.")
        encoded = task.encode_unlabelled(image)
    else:
        encoded = task.encode(chip, image)
        sources[LABEL] = _record_label(chip.label, chip.label.stat().st_mtime_ns)
    return pack_chip(image, encoded, sources)


def pack_chip(
    image: NDArray[np.uint8], encoded: EncodedLabel, sources: Mapping[str, FileRecord]
) -> Content:
    """Return the header and the arrays of a cached file; ``image`` is (h, w, channels)."""
    header = {
        "shape": image.shape,
        "metres_per_pixel": encoded.metres_per_pixel,
        "payload": encoded.payload,
        "count": encoded.count,
        "repaired": encoded.repaired,
        "sources": {kind: record.model_dump() for kind, record in sources.items()},
    }
    return header, {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), **encoded.arrays}


@lru_cache(maxsize=2)
def _record_label(path: Path, changed_ns: int) -> FileRecord:
    """Record a label file; one that many chips share is hashed only once until it changes."""
    return record_file(path)


def _fingerprint(chip: Chip, stretch: StretchSettings, task: "Task") -> str:
    """Hash everything that the cached file depends on; source files by path, size and time."""
    parts = [_FORMAT, stretch.model_dump_json(), task.label_fingerprint, str(task.input_px)]
    for path in (chip.image.path, chip.label, *([chip.ignored] if chip.ignored else [])):
        if path is not None:
            try:
                stat = path.stat()
            except OSError as error:
                raise SatmapError(f"{path}: cannot be read ({error.strerror}).") from error
            parts += [str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _remove_misplaced(path: Path) -> None:
    """Delete a pipe or a broken link that has the name of a cached file.

    If such links were followed, several chips could end up in the same file.
    """
    if not path.is_file() and not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()


def _read_header(path: Path) -> dict[str, Any] | None:
    """Read the header of a cached file; None if the file is missing or incomplete."""
    # Opening a pipe would block.
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as tensors:
            header: dict[str, Any] = json.loads(tensors.metadata()["chip"])
            whole = "image" in set(tensors.keys()) and header.keys() >= _HEADER_KEYS
            return header if whole else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


# A larger share of bad chips points to a systematic problem, which skipping them would hide.
_TOLERATED_FAULTS = 0.1


@dataclass(frozen=True)
class Preparation:
    """Prepared chips in the given order, and the error message of each failed chip by image id."""

    chips: tuple[CachedChip, ...]
    faults: dict[str, str]

    def require_enough(self) -> None:
        """Raise SatmapError if no chip was prepared or more than a tenth of the chips failed."""
        total = len(self.chips) + len(self.faults)
        if len(self.faults) > _TOLERATED_FAULTS * total or not self.chips:
            first = "\n".join(f"  {fault}" for fault in list(self.faults.values())[:5])
            raise SatmapError(f"{len(self.faults)} of {total} chips cannot be used:\n{first}")


def prepare_chips(
    chips: Sequence[Chip],
    channels: int,
    directory: Path,
    stretch: StretchSettings,
    task: "Task",
) -> Preparation:
    """Prepare chips in threads; chips that fail are reported and do not stop the others.

    ``channels`` is the largest number of channels that a network of the recipe needs.

    Raises:
        CannotWriteError: the cache directory cannot be written to, or the disk is full.
    """

    def attempt(chip: Chip) -> CachedChip | str:
        try:
            chip.require_channels(channels)
            return prepare_chip(chip, directory, stretch, task)
        except CannotWriteError:
            raise
        # Libraries raise many kinds of errors on unusual files.
        except Exception as error:
            return error_text(error, chip.image.path)

    ready, faults = [], {}
    # Threads suffice: GDAL and numpy release the interpreter lock for most of the work.
    with ThreadPoolExecutor(available_cores()) as pool:
        results = track(pool.map(attempt, chips), "preparing", len(chips))
        for chip, result in zip(chips, results, strict=True):
            if isinstance(result, str):
                faults[chip.image_id] = result
            else:
                ready.append(result)
    return Preparation(tuple(ready), faults)


def default_cache() -> Path:
    """Return ``$SATMAP_CACHE``, or the organisers' scratch volume, or the user's cache directory.

    The first one that is set or writable is used.
    """
    if named := os.environ.get("SATMAP_CACHE"):
        return Path(named)
    scratch = Path("/wdata")
    # Check the rights of the process, not those of its real user; they may differ in a container.
    if scratch.is_dir() and os.access(scratch, os.W_OK, effective_ids=True):
        return scratch / "satmap-cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "satmap"
