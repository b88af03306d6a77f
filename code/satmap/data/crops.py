"""Training crops: a window of the cache, turned, scaled and recoloured in one go."""

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

# Workers are forked, and OpenCV's threads do not survive a fork: a worker that waits for them waits
# for ever. One thread a process is as fast here, for there are as many workers as cores.
cv2.setNumThreads(0)

# OpenCV warps so many planes at once, and no more.
_AT_ONCE = 4

_OWN = threading.local()


class CropCutter(Protocol):
    """What the dataset needs to know of a task; see :class:`satmap.tasks.base.Task`."""

    def crop(
        self, chip: CachedChip, geometry: Geometry, size: int, channels: int
    ) -> dict[str, NDArray[Any]]:
        """Cut a training sample from a cached chip."""


class CropDataset(Dataset[tuple[dict[str, NDArray[Any]], int]]):
    """Random crops of chips, reproducible for any number of workers.

    Item ``i`` of an epoch depends on seed, epoch and ``i`` alone. It is the task's sample, arrays
    by name with ``image`` uint8 (channels, crop, crop), and the index of its chip.
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
        """Make the dataset.

        Args:
            chips: what crops are cut from.
            crop: height and width of a crop, pixels.
            channels: number of image channels.
            passes: crops of a chip in an epoch.
            augmentation: None to place crops at random and leave them as they are.
            seed: another seed gives other crops.
            cutter: the task, which cuts samples.
            equal_areas: give every area of interest the same number of crops, one more or less;
                its chips take turns. Without, every chip has the same number.
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
        """Draw other crops; call before the data loader is iterated."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.chips) * self.passes

    def chip_of(self, index: int) -> int:
        """Which chip item ``index`` of the epoch shows, an index into ``chips``."""
        if len(self.areas) == 1:
            return index % len(self.chips)
        turn, area = divmod(index, len(self.areas))
        # Chips of large areas that had no turn in this epoch have theirs in the next.
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

    Only the window that the crop covers is read. The image is resampled linearly, the target takes
    the nearest pixel; both are reflected at the chip's border.
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
    """The same of the image alone, for tasks whose labels are not pixels."""
    matrix = geometry.to_chip(crop)
    rows, columns = _window(matrix, crop, chip.shape)
    image = chip.read_image(channels, rows, columns)
    matrix[:, 2] -= (columns.start, rows.start)
    return _warp_channels(image, matrix, crop)


def read_soft_crop(chip: CachedChip, geometry: Geometry, crop: int) -> NDArray[np.uint8]:
    """Read a crop of a teacher's probability maps, resampled linearly: uint8 (maps, crop, crop).

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
    """Rows and columns that are the crop, pixel for pixel; None if it must be resampled."""
    left, top = (int(offset) for offset in matrix[:, 2])
    inside = 0 <= left <= shape[1] - crop and 0 <= top <= shape[0] - crop
    if not inside or not np.array_equal(matrix, [[1, 0, left], [0, 1, top]]):
        return None
    return slice(top, top + crop), slice(left, left + crop)


def _window(matrix: NDArray[np.float64], crop: int, shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of the chip that a crop covers."""
    corners = matrix @ np.array([[0, crop, 0, crop], [0, 0, crop, crop], [1, 1, 1, 1]])
    # One pixel more on each side for the interpolation.
    columns, rows = (
        slice(max(0, math.floor(low) - 1), min(side, math.ceil(high) + 2))
        for low, high, side in zip(
            corners.min(axis=1), corners.max(axis=1), shape[1::-1], strict=True
        )
    )
    return rows, columns


def _warp_channels(
    maps: NDArray[np.uint8], matrix: NDArray[np.float64], crop: int
) -> NDArray[np.uint8]:
    """Planes (n, h, w) resampled linearly to (n, crop, crop)."""
    warped = np.empty((len(maps), crop, crop), np.uint8)
    window = _scratch("window", (*maps.shape[1:], _AT_ONCE))
    resampled = _scratch("resampled", (crop, crop, _AT_ONCE))
    for first in range(0, len(maps), _AT_ONCE):
        part = maps[first : first + _AT_ONCE]
        # OpenCV takes longer for three channels than for four, and rounds two in another way.
        cv2.merge([*part, *[part[-1]] * (_AT_ONCE - len(part))], window)
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
    """Pixels (h, w) or (h, w, 4) resampled to (crop, crop) or (crop, crop, 4)."""
    return cv2.warpAffine(
        pixels,
        matrix,
        (crop, crop),
        out,
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )  # type: ignore[return-value]


def _scratch(name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory of this thread for what lives no longer than a crop.

    Fresh memory of that size comes from the system page by page, which takes as long as the work.
    """
    size = math.prod(shape)
    buffer: NDArray[np.uint8] | None = getattr(_OWN, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        setattr(_OWN, name, buffer)
    return buffer[:size].reshape(shape)
