"""Preparation of images for the networks."""

from collections.abc import Sequence

from satmap.data.chip import Chip
from satmap.data.imagery import MULTISPECTRAL, RGB, StretchedImage, read_resized
from satmap.errors import SatmapError
from satmap.networks.ensemble import EnsembleMember, Pixels
from satmap.rasters.map_files import MAX_VALUES_IN_MEMORY
from satmap.tasks.base import PreparedImage, Task


def prepare_image(chip: Chip, members: Sequence[EnsembleMember], task: Task) -> PreparedImage:
    """Read an image and stretch it to 8 bits. If the multispectral image fails, read the RGB image.

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
        try:
            pixels: Pixels = (
                StretchedImage(info, *stretch, channels)
                if large
                else read_resized(info, *stretch, input_px, channels)
            )
        except SatmapError as error:
            notes.append(str(error))
            continue
        if pixels.is_blank if isinstance(pixels, StretchedImage) else not pixels[:, :].any():
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
        if info.georeference is not None:
            size = info.georeference.metres_per_pixel
        elif default is not None:
            notes.append(f"images without georeference are assumed to have {default:g} m per pixel")
        return PreparedImage(info, pixels, fitting, size, tuple(notes), category, large)
    raise SatmapError(" ".join(notes))
