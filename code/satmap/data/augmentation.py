"""Augmentation of training crops: position, scale, rotation, flips and colour jitter."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from satmap.recipes.schema import Augmentation


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
        """Return the affine map (2, 3) from pixel centres of the crop to those of the chip.

        Args:
            crop: height and width of the crop, pixels.
        """
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
    """Draw the geometry of a crop.

    Args:
        random: the random generator.
        shape: height and width of the chip, pixels.
        crop: height and width of the crop, pixels.
        settings: augmentation; None to draw only a position.
    """
    # A chip smaller than the crop is centred; the outside is filled by reflection.
    height, width = shape
    centre = [
        random.uniform(crop / 2, side - crop / 2) if side > crop else side / 2
        for side in (width, height)
    ]
    if settings is None:
        # Whole pixels, so that no resampling is needed.
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
