"""Prepared chips, and the crops that trainings cut from them and augment.

:mod:`satmap.data.cache` writes one memory-mapped file per chip. Reading a crop touches only the
pages of its rows and of the channels that the network uses. A teacher's probability maps lie beside
the chip's file and are cropped and augmented like the chip.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord
from satmap.io.files import atomic_path
from satmap.recipes.schema import Augmentation

# Workers are forked, and OpenCV's threads do not survive a fork: a worker would wait for them
# forever. One thread per process is as fast, because there are as many workers as cores.
cv2.setNumThreads(0)

# Largest number of channels that OpenCV warps in one call.
_MAX_CHANNELS = 4

_THREAD_LOCAL = threading.local()

_SOFT = "soft"

#: Kind of a chip's label among its source files.
LABEL = "label"


@dataclass(frozen=True)
class SoftTarget:
    """File of a teacher's probability maps of one chip, one byte per map and pixel.

    Attributes:
        path: the file.
        teacher: fingerprint of the teacher, hexadecimal.
    """

    path: Path
    teacher: str

    @classmethod
    def of(cls, chip: Path, teacher: str) -> "SoftTarget":
        """Return the soft target of a cached chip's file, whose name changes with its content."""
        return cls(chip.with_name(f"{chip.stem}.soft-{teacher[:16]}.safetensors"), teacher)

    def exists(self, shape: tuple[int, int]) -> bool:
        """Return whether the file exists and fits a chip of this height and width."""
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                return tuple(tensors.get_slice(_SOFT).get_shape()[1:]) == shape
        except (OSError, SafetensorError):
            return False

    def write(self, maps: NDArray[np.uint8]) -> None:
        """Write the probability maps, uint8 (maps, height, width), 0..255 for 0..1.

        Raises:
            CannotWriteError: the cache cannot be written.
        """
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(save({_SOFT: np.ascontiguousarray(maps)}))

    def read(self, rows: slice = slice(None), columns: slice = slice(None)) -> NDArray[np.uint8]:
        """Read a window of the probability maps, uint8 (maps, h, w).

        Raises:
            SatmapError: the file is missing or damaged.
        """
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                window: NDArray[np.uint8] = tensors.get_slice(_SOFT)[:, rows, columns]
        except (OSError, SafetensorError) as error:
            raise SatmapError(
                f"the teacher's probability maps {self.path} cannot be read ({error}). Run the "
                "same command again: it computes missing maps and resumes."
            ) from error
        return window


@dataclass(frozen=True)
class CachedChip:
    """A prepared chip. Reading raises SatmapError if its file is missing or damaged.

    Attributes:
        image_id: id of the chip.
        aoi: area of interest.
        path: the file.
        shape: height, width and channels.
        metres_per_pixel: pixel size along x and y; 1 if unknown and not needed.
        sources: source files by kind: the image's product and ``label``.
        payload: labels in the task's own form.
        count: number of labelled objects.
        repaired: number of invalid labelled objects that were repaired.
        size: height and width of the original image.
        site: unit that must not be split across folds.
        category: view-angle category, for networks with one head per category; None for others.
        soft: a teacher's soft target; None for chips without one.
        gsd_m: pixel size in the networks' input, metres; None without georeference.
        scene: the scene that it was cut from; "" if that is not known.
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
    gsd_m: float | None = None
    scene: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether the chip has no labelled object."""
        return not self.count

    @property
    def is_labelled(self) -> bool:
        """Whether the chip has a label, which may be empty."""
        return LABEL in self.sources

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read the image (h, w, channels) and the target (h, w) or (h, w, bytes)."""
        image, target = self.read_channels(self.shape[2], slice(None), slice(None))
        return image.transpose(1, 2, 0), target

    def read_channels(
        self, channels: int, rows: slice, columns: slice
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read a window of the first ``channels`` of the image and of the target.

        Returns:
            The image, uint8 (channels, h, w), and the target, (h, w) or (h, w, bytes), both
            contiguous.
        """
        image, target = self._read(image=(slice(channels), rows, columns), target=(rows, columns))
        return image, target

    def read_image(self, channels: int, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """Read a window of the first ``channels`` of the image, uint8 (channels, h, w)."""
        (image,) = self._read(image=(slice(channels), rows, columns))
        return image

    def read_array(self, name: str) -> NDArray[Any]:
        """Read a whole array of the encoded label."""
        (array,) = self._read(**{name: (slice(None),)})
        return array

    def _read(self, **windows: tuple[slice, ...]) -> list[NDArray[Any]]:
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                return [tensors.get_slice(name)[window] for name, window in windows.items()]
        except (OSError, SafetensorError) as error:
            raise SatmapError(
                f"the prepared chip {self.path} cannot be read ({error}). Run the same command "
                "again: it prepares missing chips and resumes."
            ) from error


@dataclass(frozen=True)
class Geometry:
    """Position and transformation of a crop in its chip.

    Attributes:
        centre: x and y in pixels of the chip.
        scale: chip pixels per crop pixel.
        angle: degrees, counter-clockwise.
        quarter_turns: number of rotations by 90 degrees, 0..3.
        mirrored: whether the crop is flipped left to right before the rotation.
    """

    centre: tuple[float, float]
    scale: float = 1.0
    angle: float = 0.0
    quarter_turns: int = 0
    mirrored: bool = False

    def to_chip(self, crop: int) -> NDArray[np.float64]:
        """Return the affine map (2, 3) from pixel centres of a square crop to those of the chip."""
        turn = math.radians(self.angle + 90 * self.quarter_turns)
        cosine, sine = math.cos(turn) * self.scale, math.sin(turn) * self.scale
        mirror = -1.0 if self.mirrored else 1.0
        linear = np.array([[cosine * mirror, sine], [-sine * mirror, cosine]])
        middle = np.full(2, (crop - 1) / 2)
        return np.column_stack([linear, np.asarray(self.centre) - 0.5 - linear @ middle])


def draw_geometry(
    random: np.random.Generator,
    shape: tuple[int, int],
    crop: int,
    settings: Augmentation | None,
) -> Geometry:
    """Draw the geometry of a square crop of a chip of this height and width.

    Without ``settings`` only a position is drawn, in whole pixels.
    """
    # A chip smaller than the crop is centred; the outside is filled by reflection.
    height, width = shape
    centre = [
        random.uniform(crop / 2, side - crop / 2) if side > crop else side / 2
        for side in (width, height)
    ]
    if settings is None:
        x, y = (math.floor(c - crop / 2) + crop / 2 for c in centre)
        return Geometry((x, y))
    x, y = (c + random.uniform(-settings.shift, settings.shift) * crop for c in centre)
    resized = random.random() < settings.resize_probability
    rotated = random.random() < settings.rotation_probability
    return Geometry(
        centre=(x, y),
        scale=1 + random.uniform(-settings.resize, settings.resize) * resized,
        angle=random.uniform(-settings.rotation, settings.rotation) * rotated,
        quarter_turns=int(random.integers(4)) if settings.flips else 0,
        mirrored=bool(random.integers(2)) if settings.flips else False,
    )


def jitter_colours(random: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Jitter the colours of an image, uint8 (channels, h, w).

    One of three changes is drawn: a shift of each channel, brightness and contrast, or gamma.
    """
    levels = np.arange(256.0)
    tables = np.tile(levels, (len(image), 1))
    match random.integers(3):
        case 0:
            tables += random.uniform(-20, 20, (len(image), 1))
        case 1:
            tables = (tables - 127.5) * random.uniform(0.8, 1.2) + 127.5
            tables += 255 * random.uniform(-0.2, 0.2)
        case _:
            tables = 255 * (tables / 255) ** random.uniform(0.8, 1.2)
    lookup = np.clip(np.rint(tables), 0, 255).astype(np.uint8)
    changed = np.empty_like(image)
    for plane, table, out in zip(image, lookup, changed, strict=True):
        cv2.LUT(plane, table, out)
    return changed


def degrade(random: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Change the sharpness of an image, uint8 (channels, h, w), and add noise and JPEG artefacts.

    Images that were warped, sharpened or compressed differ in this from those of a training. Each
    change is drawn on its own: resampling to larger pixels and back or sharpening, noise, and
    compression.
    """
    height, width = image.shape[1:]
    planes: list[Any] = list(image)
    sharpness = random.random()
    if sharpness < 0.6:
        factor = random.uniform(1, 2.5)
        size = round(width / factor), round(height / factor)
        kernel = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[random.integers(2)]
        small = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in planes]
        planes = [cv2.resize(plane, (width, height), interpolation=kernel) for plane in small]
    elif sharpness < 0.8:
        amount = random.uniform(0.2, 1)
        blurred = [cv2.GaussianBlur(plane, (5, 5), 1.0) for plane in planes]
        planes = [
            cv2.addWeighted(plane, 1 + amount, soft, -amount, 0)
            for plane, soft in zip(planes, blurred, strict=True)
        ]
    if random.random() < 0.3:
        noise = random.normal(0, random.uniform(1, 8), image.shape).astype(np.int16)
        planes = list(np.clip(np.stack(planes) + noise, 0, 255).astype(np.uint8))
    if random.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(40, 96))]
        # JPEG has one or three channels, the three as brightness and colour.
        whole = [cv2.merge(planes[2::-1])] if len(planes) == 3 else planes
        read = [
            np.asarray(cv2.imdecode(cv2.imencode(".jpg", p, quality)[1], cv2.IMREAD_UNCHANGED))
            for p in whole
        ]
        planes = list(cv2.split(read[0])[::-1]) if len(planes) == 3 else read
    return np.stack(planes)


def read_crop(
    chip: CachedChip, geometry: Geometry, crop: int, channels: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read a crop of the image (channels, crop, crop) and of the target, uint8.

    Only the window that the crop covers is read. The image is resampled bilinearly, the target by
    nearest neighbour; both are reflected at the chip's border.
    """
    matrix = geometry.to_chip(crop)
    left, top = (int(offset) for offset in matrix[:, 2])
    inside = 0 <= left <= chip.shape[1] - crop and 0 <= top <= chip.shape[0] - crop
    if inside and np.array_equal(matrix, [[1, 0, left], [0, 1, top]]):
        return chip.read_channels(channels, slice(top, top + crop), slice(left, left + crop))
    rows, columns = _window(matrix, crop, chip.shape)
    image, target = chip.read_channels(channels, rows, columns)
    return _warp_channels(image, matrix, crop), _warp(target, matrix, crop, cv2.INTER_NEAREST)


def read_image_crop(
    chip: CachedChip, geometry: Geometry, crop: int, channels: int
) -> NDArray[np.uint8]:
    """Read a crop of the image only, for tasks whose labels are not rasters.

    Returns:
        uint8 (channels, crop, crop), resampled bilinearly.
    """
    matrix = geometry.to_chip(crop)
    rows, columns = _window(matrix, crop, chip.shape)
    return _warp_channels(chip.read_image(channels, rows, columns), matrix, crop)


def read_soft_crop(chip: CachedChip, geometry: Geometry, crop: int) -> NDArray[np.uint8]:
    """Read a crop of a teacher's probability maps, resampled bilinearly.

    Returns:
        uint8 (maps, crop, crop), 0..255 for 0..1.

    Raises:
        ValueError: the chip has no soft target.
    """
    if chip.soft is None:
        raise ValueError(f"{chip.image_id} has no soft target")
    matrix = geometry.to_chip(crop)
    rows, columns = _window(matrix, crop, chip.shape)
    return _warp_channels(chip.soft.read(rows, columns), matrix, crop)


def _window(matrix: NDArray[np.float64], crop: int, shape: Sequence[int]) -> tuple[slice, slice]:
    """Return the chip's rows and columns that a crop covers; make the map relative to them."""
    corners = matrix @ np.array([[0, crop, 0, crop], [0, 0, crop, crop], [1, 1, 1, 1]])
    # One more pixel on each side for the interpolation.
    columns, rows = (
        slice(max(0, math.floor(low) - 1), min(side, math.ceil(high) + 2))
        for low, high, side in zip(
            corners.min(axis=1), corners.max(axis=1), shape[1::-1], strict=True
        )
    )
    matrix[:, 2] -= (columns.start, rows.start)
    return rows, columns


def _warp_channels(
    channels: NDArray[np.uint8], matrix: NDArray[np.float64], crop: int
) -> NDArray[np.uint8]:
    """Resample channels (n, h, w) bilinearly to (n, crop, crop)."""
    warped = np.empty((len(channels), crop, crop), np.uint8)
    window = _scratch("window", (*channels.shape[1:], _MAX_CHANNELS))
    resampled = _scratch("resampled", (crop, crop, _MAX_CHANNELS))
    for first in range(0, len(channels), _MAX_CHANNELS):
        part = channels[first : first + _MAX_CHANNELS]
        # Always four channels: three are slower in OpenCV, and two are rounded differently.
        cv2.merge([*part, *[part[-1]] * (_MAX_CHANNELS - len(part))], window)
        _warp(window, matrix, crop, cv2.INTER_LINEAR, resampled)
        for channel in range(len(part)):
            cv2.extractChannel(resampled, channel, warped[first + channel])
    return warped


def _warp(
    pixels: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    crop: int,
    interpolation: int,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Resample pixels (h, w) or (h, w, 4) to (crop, crop) or (crop, crop, 4)."""
    return cv2.warpAffine(
        pixels,
        matrix,
        (crop, crop),
        out,
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )  # type: ignore[return-value]


def _scratch(name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a scratch buffer of this thread, reused from crop to crop.

    The system hands out new memory of that size page by page, which takes as long as the warp.
    """
    size = math.prod(shape)
    buffer: NDArray[np.uint8] | None = getattr(_THREAD_LOCAL, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        setattr(_THREAD_LOCAL, name, buffer)
    return buffer[:size].reshape(shape)
