"""Preparation of images for the networks."""

import contextlib
from collections.abc import Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from satmap.data.chip import Chip
from satmap.data.imagery import MULTISPECTRAL, RGB, ImageInfo, StretchedImage, read_resized
from satmap.errors import SatmapError
from satmap.networks.ensemble import EnsembleMember, Pixels
from satmap.rasters.map_files import MAX_VALUES_IN_MEMORY
from satmap.rasters.scene import Box
from satmap.rasters.surroundings import with_margin
from satmap.tasks.base import PreparedImage, Task


def prepare_image(
    chip: Chip,
    members: Sequence[EnsembleMember],
    task: Task,
    around: Sequence[tuple[ImageInfo, int, int]] = (),
) -> PreparedImage:
    """Read an image and stretch it to 8 bits. If the multispectral image fails, read the RGB image.

    ``around`` are the images whose pixels the networks see beyond its edges, each with the column
    and row of its first pixel in the pixels of ``chip.image``.

    Raises:
        SatmapError: no product of the image can be read, or its view angle category is unknown.
    """
    notes: list[str] = []
    category = task.category(chip)
    recipe, input_px = task.recipe, task.input_px
    stretch = recipe.stretch.low, recipe.stretch.high
    for info in (chip.image, *(i for i in chip.images.values() if i is not chip.image)):
        fitting = [member for member in members if member.network.in_channels <= info.bands]
        if not fitting:
            chip.require_channels(min(member.network.in_channels for member in members))
            continue
        channels = max(member.network.in_channels for member in fitting)
        # Images that are resized to the networks' input size are small enough.
        values = task.values_per_pixel * info.height * info.width
        large = input_px is None and values > MAX_VALUES_IN_MEMORY
        inside: Box | None = None
        try:
            pixels: Pixels
            if large:
                pixels = StretchedImage(info, *stretch, channels)
            elif around and info is chip.image:
                image = StretchedImage(info, *stretch, channels)
                pixels, inside = _with_surroundings(image, info, around, recipe.inference.overlap)
            else:
                pixels = read_resized(info, *stretch, input_px, channels)
            blank = _is_blank(pixels, inside)
        except SatmapError as error:
            notes.append(str(error))
            continue
        if blank:
            notes.append(
                f"{info.path}: no pixel holds data, so nothing can be found; check the image"
            )
        if len(fitting) < len(members):
            notes.append(
                f"{len(members) - len(fitting)} of {len(members)} networks need {MULTISPECTRAL} "
                f"images and were left out for images with only {RGB}"
            )
        default = task.default_metres_per_pixel
        size = default or 1.0, default or 1.0
        if info.metres_per_pixel is not None:
            size = info.metres_per_pixel
        elif default is not None:
            notes.append(f"images without georeference are assumed to have {default:g} m per pixel")
        return PreparedImage(info, pixels, fitting, size, tuple(notes), category, large, inside)
    raise SatmapError(" ".join(notes))


def _is_blank(pixels: Pixels, inside: Box | None) -> bool:
    """Return whether no pixel of an image, or of the part ``inside`` it, holds data."""
    if isinstance(pixels, StretchedImage):
        return pixels.is_blank
    return not pixels[inside.pixels if inside else (slice(None), slice(None))].any()


def _with_surroundings(
    image: StretchedImage,
    info: ImageInfo,
    around: Sequence[tuple[ImageInfo, int, int]],
    margin: int,
) -> tuple[NDArray[np.uint8], Box]:
    """Read an image with a margin from the images around it, and its rectangle in the result.

    The margin is stretched like the image. It is black where it belongs to no readable image; sides
    that no image touches have none.
    """
    own = Box(0, 0, info.width, info.height)
    kind = attrgetter("product", "bands", "dtype", "is_stretched")
    others = [
        (other, Box(column, row, other.width, other.height))
        for other, column, row in around
        if kind(other) == kind(info)
    ]
    whole = with_margin(own, [box for _, box in others], (margin, margin))
    pixels = np.zeros((whole.height, whole.width, image.shape[2]), np.uint8)
    # The nearest one comes first and counts where several overlap.
    for other, box in reversed(others):
        if shared := whole.overlap(box):
            # Its own prediction reports an image that cannot be read.
            with contextlib.suppress(SatmapError):
                part = image.stretch_like(other)[shared.within(box)]
                pixels[shared.within(whole)] = part
    pixels[own.within(whole)] = image[own.pixels]
    return pixels, own.seen_from(whole)
