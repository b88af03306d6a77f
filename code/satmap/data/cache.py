"""Chips made ready for training, one memory-mapped file each.

A file is a safetensors container: the stretched image, plane after plane, the target and, in its
header, everything that validation needs. Reading a crop touches only the pages of its own rows, and
of the planes that the network wants. The directory can be deleted whenever no training runs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from satmap.checksums import FileRecord, record_file
from satmap.data.chip import Chip
from satmap.data.imagery import read_stretched
from satmap.data.labels import RoadLabel, clip_to_image, read_road_labels
from satmap.data.soft_targets import SoftTarget
from satmap.data.targets import TargetSettings, rasterize_roads
from satmap.errors import SatmapError
from satmap.files import atomic_path
from satmap.settings import Settings

_HEADER_KEYS = {"shape", "metres_per_pixel", "labels", "sources"}

# Raise when the content of a cached file changes for the same inputs and settings.
_FORMAT = "5"


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
        metres_per_pixel: pixel size along x and y.
        labels: the labelled roads, cut to the image.
        sources: the files that it was made of: the product of the image, ``label``.
        soft: what a teacher made of the image; None for chips that have none.
    """

    image_id: str
    aoi: str
    path: Path
    shape: tuple[int, int, int]
    metres_per_pixel: tuple[float, float]
    labels: tuple[RoadLabel, ...]
    sources: Mapping[str, FileRecord]
    soft: SoftTarget | None = None

    def read(
        self, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A window of image (h, w, channels) and target (h, w), both uint8.

        Raises:
            SatmapError: the file is gone or damaged.
        """
        planes, target = self.read_planes(self.shape[2], rows, columns)
        return planes.transpose(1, 2, 0), target

    def read_planes(
        self, channels: int, rows: slice, columns: slice
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The same of the first ``channels`` alone: (channels, h, w) and (h, w), both contiguous.

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
    chip: Chip, directory: Path, stretch: StretchSettings, targets: TargetSettings
) -> CachedChip:
    """The cached form of a chip; made, or made anew, only if its inputs or settings changed.

    Raises:
        SatmapError: the image or label is unusable, or the cache cannot be written.
    """
    # The fingerprint is part of the name: another training's settings make another file, and
    # never change one that is in use.
    fingerprint = _fingerprint(chip, stretch, targets)
    path = directory / f"{chip.image_id}.{fingerprint[:16]}.safetensors"
    header = _read_header(path)
    if header is None:
        header = _build(chip, stretch, targets)
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
        labels=tuple(RoadLabel(np.array(line), speed) for line, speed in header["labels"]),
        sources={
            kind: FileRecord.model_validate(record) for kind, record in header["sources"].items()
        },
    )


def _build(chip: Chip, stretch: StretchSettings, settings: TargetSettings) -> dict[str, Any]:
    info = chip.image
    if chip.label is None:
        raise SatmapError(f"{info.path}: no label, so it cannot be trained with.")
    if info.georeference is None:
        raise SatmapError(
            f"{info.path}: no georeference, so its labels cannot be placed. "
            "Assign one, for example with `rio edit-info --crs EPSG:4326 --transform ...`."
        )
    image = read_stretched(info, stretch.low, stretch.high)
    labels = read_road_labels(chip.label, info.georeference)
    size = (info.height, info.width)
    inside = [part for label in labels for part in clip_to_image(label, info.width, info.height)]
    if labels and not inside:
        raise SatmapError(
            f"{chip.label}: none of its {len(labels)} roads lies on {info.path.name}. "
            "Check that label and image belong together and the label's coordinate system."
        )
    if inside and not image.any():
        raise SatmapError(
            f"{info.path}: no pixel holds data, but {chip.label.name} has {len(labels)} roads, "
            "which cannot be learned from it. Check the image."
        )
    target = rasterize_roads(labels, size, info.georeference.metres_per_pixel, settings)
    return {
        "image": image,
        "target": target,
        "shape": image.shape,
        "metres_per_pixel": info.georeference.metres_per_pixel,
        "labels": [(label.line.tolist(), label.speed_mph) for label in inside],
        # Here, where the files have just been read: hashing them costs hardly more.
        "sources": {
            info.product: record_file(info.path).model_dump(),
            "label": record_file(chip.label).model_dump(),
        },
    }


def _fingerprint(chip: Chip, stretch: StretchSettings, targets: TargetSettings) -> str:
    """Hash of all that the cached file depends on; files count by path, size and time."""
    parts = [_FORMAT, stretch.model_dump_json(), targets.model_dump_json()]
    for path in (chip.image.path, chip.label):
        if path is not None:
            try:
                stat = path.stat()
            except OSError as error:
                raise SatmapError(f"{path}: cannot be read ({error.strerror}).") from error
            parts += [str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_header(path: Path) -> dict[str, Any] | None:
    """The header of a cached file, None where there is no whole one."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            header: dict[str, Any] = json.loads(tensors.metadata()["chip"])
            whole = {"image", "target"} <= set(tensors.keys()) and header.keys() >= _HEADER_KEYS
            return header if whole else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
