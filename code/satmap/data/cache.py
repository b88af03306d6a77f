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
from typing import Any, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from satmap.data.chip import Chip
from satmap.data.imagery import read_resized
from satmap.data.soft_targets import SoftTarget
from satmap.data.view_angles import require_category
from satmap.errors import CannotWriteError, SatmapError
from satmap.io.checksums import FileRecord, record_file
from satmap.io.files import atomic_path
from satmap.io.progress import track
from satmap.runtime.resources import available_cores
from satmap.settings import Settings
from satmap.tasks.labelling import TargetsOf, encode_label
from satmap.tasks.roads.labels import RoadLabel

Outline: TypeAlias = shapely.Polygon | shapely.MultiPolygon

_HEADER_KEYS = {"shape", "metres_per_pixel", "sources"}

# Raise when the content of a cached file changes for the same inputs and settings.
_FORMAT = "6"


class StretchSettings(Settings):
    """Percentiles, over the pixels above zero of each band, that become 0 and 255."""

    low: float = Field(2.0, ge=0, le=100)
    high: float = Field(98.0, ge=0, le=100)

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "StretchSettings":
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


@dataclass(frozen=True)
class CachedChip:
    """A chip in the cache.

    Attributes:
        image_id: the chip's id.
        aoi: its area of interest.
        path: the file.
        shape: height, width and channels.
        metres_per_pixel: pixel size along x and y; 1 where only pixels count and nobody knows it.
        labels: the labelled roads, cut to the image.
        sources: the files that it was made of: the product of the image, ``label``.
        outlines: the labelled buildings, cut to the image, in pixels of the file as it was given.
        repaired: how many of these were invalid.
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
    labels: tuple[RoadLabel, ...] = ()
    outlines: tuple[Outline, ...] = ()
    repaired: int = 0
    size: tuple[int, int] = (0, 0)
    site: str = ""
    category: str | None = None
    soft: SoftTarget | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is labelled."""
        return not self.labels and not self.outlines

    def read(
        self, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A window of image (h, w, channels) and target (h, w) or (h, w, bytes), both uint8.

        Raises:
            SatmapError: the file is gone or damaged.
        """
        maps, target = self.read_channels(self.shape[2], rows, columns)
        return maps.transpose(1, 2, 0), target

    def read_channels(
        self, channels: int, rows: slice, columns: slice
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The same of the first ``channels`` alone, (channels, h, w); all contiguous.

        Raises:
            SatmapError: the file is gone or damaged.
        """
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                image = tensors.get_slice("image")[:channels, rows, columns]
                target = tensors.get_slice("target")[rows, columns]
        except (OSError, SafetensorError) as error:
            raise SatmapError(
                f"the prepared chip {self.path} cannot be read ({error}). Start the same command "
                "again: it prepares what is missing and goes on."
            ) from error
        return image, target


def prepare_chip(
    chip: Chip,
    directory: Path,
    stretch: StretchSettings,
    targets: TargetsOf,
    *,
    input_px: int | None = None,
    heads: int | None = None,
) -> CachedChip:
    """The cached form of a chip; made, or made anew, only if its inputs or settings changed.

    Args:
        chip: with a label.
        directory: the cache.
        stretch: how the image becomes 8 bits.
        targets: how labels become pixels; their type says which labels these are.
        input_px: length of the longer side as networks see it; None for the image's own.
        heads: into how many categories looks fall; None for no categories.

    Raises:
        SatmapError: the image or label is unusable, the look is not known and needs to be, or the
            cache cannot be written.
    """
    category = category_of(chip, heads)
    # The fingerprint is part of the name: another training's settings make another file, and
    # never change one that is in use.
    fingerprint = _fingerprint(chip, stretch, targets, input_px)
    path = directory / f"{chip.image_id}.{fingerprint[:16]}.safetensors"
    header = _read_header(path)
    if header is None:
        _remove_misplaced(path)
        header = _build(chip, stretch, targets, input_px)
        image, target = header.pop("image").transpose(2, 0, 1), header.pop("target")
        with atomic_path(path) as temporary:
            # The safetensors header holds strings only.
            tensors = {"image": np.ascontiguousarray(image), "target": target}
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
        labels=tuple(RoadLabel(np.array(line), speed) for line, speed in header.get("labels", ())),
        outlines=tuple(shapely.from_wkb(header.get("outlines", ()))),
        repaired=header.get("repaired", 0),
        size=(chip.image.height, chip.image.width),
        site=chip.site,
        category=category,
    )


def category_of(chip: Chip, heads: int | None) -> str | None:
    """The category of a chip's look among so many; None for no categories.

    Raises:
        SatmapError: the look is not known.
    """
    if heads is None:
        return None
    return require_category(chip.image.path.name, chip.view_angle, heads)


def _build(
    chip: Chip, stretch: StretchSettings, targets: TargetsOf, input_px: int | None
) -> dict[str, Any]:
    image = read_resized(chip.image, stretch.low, stretch.high, input_px)
    target, facts = encode_label(chip, image, targets)
    assert chip.label is not None, "draw_target has looked"
    return {
        "image": image,
        "target": target,
        "shape": image.shape,
        # Here, where the files have just been read: hashing them costs hardly more.
        "sources": {
            chip.image.product: record_file(chip.image.path).model_dump(),
            "label": _record_label(chip.label, chip.label.stat().st_mtime_ns).model_dump(),
        },
        **facts,
    }


@lru_cache(maxsize=2)
def _record_label(path: Path, changed_ns: int) -> FileRecord:
    """Of a file that many chips may share, hashed once as long as it does not change."""
    return record_file(path)


def _fingerprint(
    chip: Chip, stretch: StretchSettings, targets: TargetsOf, input_px: int | None
) -> str:
    """Hash of all that the cached file depends on; files count by path, size and time."""
    parts = [_FORMAT, stretch.model_dump_json(), targets.model_dump_json()]
    if input_px is not None:
        parts.append(str(input_px))
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
            whole = {"image", "target"} <= set(tensors.keys()) and header.keys() >= _HEADER_KEYS
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
    targets: TargetsOf,
    *,
    input_px: int | None = None,
    heads: int | None = None,
) -> Preparation:
    """Bring the chips into the cache; one that cannot be read costs only itself.

    Args:
        chips: with labels.
        channels: what the recipe's networks need at most.
        directory: the cache.
        stretch: how images become 8 bits.
        targets: how labels become pixels.
        input_px: length of the longer side as networks see it; None for the image's own.
        heads: into how many categories looks fall; None for no categories.

    Raises:
        CannotWriteError: the cache's directory cannot be written, or its disk is full.
    """

    def attempt(chip: Chip) -> CachedChip | str:
        try:
            chip.require_channels(channels)
            return prepare_chip(chip, directory, stretch, targets, input_px=input_px, heads=heads)
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
