"""Training crops: a window of the cache, turned, scaled and recoloured in one go."""

import math
from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from satmap.data.augmentation import Augmentation, Geometry, draw_geometry, recolour
from satmap.data.cache import CachedChip

# Workers are forked, and OpenCV's threads do not survive a fork: a worker that waits for them waits
# for ever. One thread a process is as fast here, for there are as many workers as cores.
cv2.setNumThreads(0)


class CropDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Random crops of chips, reproducible whatever the number of workers.

    Item ``i`` of an epoch depends on seed, epoch and ``i`` alone. Items are
    (image uint8 (channels, crop, crop), target uint8 as of ``CachedChip.read``, index of the chip).
    """

    def __init__(
        self,
        chips: Sequence[CachedChip],
        crop: int,
        channels: int,
        passes: int,
        augmentation: Augmentation | None,
        seed: int,
        equal_areas: bool = False,
    ) -> None:
        """Crops of ``chips``; without ``augmentation`` they are only placed at random.

        With ``equal_areas`` every area of interest has as many items, one more or less, and its
        chips take turns; without, every chip has as many.
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

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        random = np.random.default_rng((self.seed, self.epoch, index))
        number = self.chip_of(index)
        chip = self.chips[number]
        settings = self.augmentation
        geometry = draw_geometry(random, chip.shape[:2], self.crop, settings)
        image, target = read_crop(chip, geometry, self.crop, self.channels)
        if settings is not None and random.random() < settings.colour_probability:
            image = recolour(random, image)
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
        return pixels, torch.from_numpy(target), number


def read_crop(
    chip: CachedChip, geometry: Geometry, crop: int, channels: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the crop from the cache: image (crop, crop, channels) and target, uint8.

    Only the window that the crop covers is read. The image is resampled linearly, the target takes
    the nearest pixel; both are reflected at the chip's border.
    """
    matrix = geometry.to_chip(crop)
    corners = matrix @ np.array([[0, crop, 0, crop], [0, 0, crop, crop], [1, 1, 1, 1]])
    # One pixel more on each side for the interpolation.
    windows = [
        (max(0, math.floor(low) - 1), min(side, math.ceil(high) + 2))
        for low, high, side in zip(
            corners.min(axis=1), corners.max(axis=1), chip.shape[1::-1], strict=True
        )
    ]
    (left, right), (top, bottom) = windows
    image, target = chip.read(slice(top, bottom), slice(left, right))
    matrix[:, 2] -= (left, top)

    def warp(pixels: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
        return cv2.warpAffine(
            np.ascontiguousarray(pixels),
            matrix,
            (crop, crop),
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )  # type: ignore[return-value]

    parts = [
        warp(image[..., first : min(first + 4, channels)], cv2.INTER_LINEAR)
        # OpenCV warps at most four channels at once.
        for first in range(0, channels, 4)
    ]
    warped = np.concatenate([part.reshape(crop, crop, -1) for part in parts], axis=2)
    return warped, warp(target, cv2.INTER_NEAREST)
