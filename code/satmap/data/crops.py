"""Training crops, read from the chip cache and augmented on the fly."""

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from satmap.data.augmentation import Geometry, draw_geometry, jitter_colours
from satmap.data.cache import CachedChip
from satmap.recipes.schema import Augmentation

# Workers are forked, and OpenCV's threads do not survive a fork: a worker would wait for them
# forever. One thread per process is as fast, because there are as many workers as cores.
cv2.setNumThreads(0)

# Largest number of channels that OpenCV warps in one call.
_MAX_CHANNELS = 4

_THREAD_LOCAL = threading.local()


class CropCutter(Protocol):
    """Part of a task that the dataset needs; see :class:`satmap.tasks.base.Task`."""

    def crop(
        self, chip: CachedChip, geometry: Geometry, size: int, channels: int
    ) -> dict[str, NDArray[Any]]:
        """Cut a training sample from a cached chip: arrays by name."""


class CropDataset(Dataset[tuple[dict[str, NDArray[Any]], int]]):
    """Random crops of chips, reproducible for any number of workers.

    Item ``i`` depends only on the seed, the epoch and ``i``. It is a pair: the task's sample, a
    dictionary of arrays with ``image`` as uint8 (channels, crop, crop), and the index of the chip.
    """

    def __init__(
        self,
        chips: Sequence[CachedChip],
        crop: int,
        channels: int,
        passes: int,
        augmentation: Augmentation | None,
        seed: int,
        cutter: CropCutter,
        equal_areas: bool = False,
    ) -> None:
        """Initialise the dataset.

        Args:
            chips: chips to cut crops from.
            crop: height and width of a crop, pixels.
            channels: number of image channels.
            passes: average number of crops per chip and epoch.
            augmentation: None for random positions only.
            seed: seed of the crops.
            cutter: the task, which cuts the samples.
            equal_areas: give every area of interest the same number of crops, up to one; the chips
                of an area take turns. Otherwise every chip gets the same number.
        """
        self.chips = list(chips)
        areas: dict[str, list[int]] = defaultdict(list)
        for number, chip in enumerate(self.chips):
            areas[chip.aoi if equal_areas else ""].append(number)
        self.areas = list(areas.values())
        self.crop = crop
        self.channels = channels
        self.passes = passes
        self.augmentation = augmentation
        self.seed = seed
        self.cutter = cutter
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the crops; call before iterating the data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.chips) * self.passes

    def chip_of(self, index: int) -> int:
        """Return the index into ``chips`` of the chip that item ``index`` shows."""
        if len(self.areas) == 1:
            return index % len(self.chips)
        turn, area = divmod(index, len(self.areas))
        # Chips of large areas that are not used in this epoch come first in the next.
        turns = -(-len(self) // len(self.areas))
        numbers = self.areas[area]
        return numbers[(turn + self.epoch * turns) % len(numbers)]

    def __getitem__(self, index: int) -> tuple[dict[str, NDArray[Any]], int]:
        random = np.random.default_rng((self.seed, self.epoch, index))
        number = self.chip_of(index)
        chip = self.chips[number]
        settings = self.augmentation
        geometry = draw_geometry(random, chip.shape[:2], self.crop, settings)
        sample = self.cutter.crop(chip, geometry, self.crop, self.channels)
        if settings is not None and random.random() < settings.colour_jitter_probability:
            sample["image"] = jitter_colours(random, sample["image"])
        return sample, number


def read_crop(
    chip: CachedChip, geometry: Geometry, crop: int, channels: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read a crop of the image (channels, crop, crop) and of the target, uint8.

    Only the window that the crop covers is read. The image is resampled bilinearly, the target by
    nearest neighbour; both are reflected at the chip's border.
    """
    matrix = geometry.to_chip(crop)
    window = _whole_pixels(matrix, crop, chip.shape)
    if window is not None:
        return chip.read_channels(channels, *window)
    rows, columns = _window(matrix, crop, chip.shape)
    image, target = chip.read_channels(channels, rows, columns)
    matrix[:, 2] -= (columns.start, rows.start)
    return _warp_channels(image, matrix, crop), _warp(target, matrix, crop, cv2.INTER_NEAREST)


def read_image_crop(
    chip: CachedChip, geometry: Geometry, crop: int, channels: int
) -> NDArray[np.uint8]:
    """Read a crop of the image only, uint8 (channels, crop, crop), resampled bilinearly.

    For tasks whose labels are not rasters.
    """
    matrix = geometry.to_chip(crop)
    rows, columns = _window(matrix, crop, chip.shape)
    image = chip.read_image(channels, rows, columns)
    matrix[:, 2] -= (columns.start, rows.start)
    return _warp_channels(image, matrix, crop)


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
    matrix[:, 2] -= (columns.start, rows.start)
    return _warp_channels(chip.soft.read(rows, columns), matrix, crop)


def _whole_pixels(
    matrix: NDArray[np.float64], crop: int, shape: Sequence[int]
) -> tuple[slice, slice] | None:
    """Return the rows and columns of an axis-aligned crop; None if it must be resampled."""
    left, top = (int(offset) for offset in matrix[:, 2])
    inside = 0 <= left <= shape[1] - crop and 0 <= top <= shape[0] - crop
    if not inside or not np.array_equal(matrix, [[1, 0, left], [0, 1, top]]):
        return None
    return slice(top, top + crop), slice(left, left + crop)


def _window(matrix: NDArray[np.float64], crop: int, shape: Sequence[int]) -> tuple[slice, slice]:
    """Return the rows and columns of the chip that a crop covers."""
    corners = matrix @ np.array([[0, crop, 0, crop], [0, 0, crop, crop], [1, 1, 1, 1]])
    # One more pixel on each side for the interpolation.
    columns, rows = (
        slice(max(0, math.floor(low) - 1), min(side, math.ceil(high) + 2))
        for low, high, side in zip(
            corners.min(axis=1), corners.max(axis=1), shape[1::-1], strict=True
        )
    )
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
