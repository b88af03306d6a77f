"""Images as the networks are to see them."""

from collections.abc import Sequence
from dataclasses import dataclass

from satmap.data.cache import category_of
from satmap.data.chip import Chip
from satmap.data.imagery import MULTISPECTRAL, RGB, ImageInfo, StretchedImage, read_resized
from satmap.errors import SatmapError
from satmap.prediction.dense import EnsembleMember, Pixels
from satmap.recipes.schema import Recipe
from satmap.tasks.roads.tiles import MAX_VALUES_IN_MEMORY


@dataclass(frozen=True)
class PreparedImage:
    """An image that was read, and who is to look at it.

    Attributes:
        info: the image that was read; where the multispectral one cannot be, the RGB.
        pixels: uint8 (height, width, channels), read already but of a large image; of the size in
            which the networks see it, which may be another than the file's.
        members: the networks that it has enough channels for.
        metres_per_pixel: along x and y; the recipe's default where the file does not say, as of
            the Mapping Challenge's JPEGs. Of buildings nobody asks for it.
        category: of its look, for networks with a head for each; None without.
        is_large: whether its planes are too large to be held in memory; then it is not read yet.
        notes: what the user should know.
    """

    info: ImageInfo
    pixels: Pixels
    members: Sequence[EnsembleMember]
    metres_per_pixel: tuple[float, float]
    notes: tuple[str, ...]
    category: str | None = None
    is_large: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the file."""
        return self.info.height, self.info.width


def prepare_image(chip: Chip, members: Sequence[EnsembleMember], recipe: Recipe) -> PreparedImage:
    """Read an image and stretch it to 8 bits; the RGB image where the multispectral fails.

    Raises:
        SatmapError: no product of the image can be read, or nobody knows the category of its look.
    """
    notes: list[str] = []
    category = category_of(chip, recipe.view_angles)
    stretch = recipe.stretch.low, recipe.stretch.high
    for info in (chip.image, *(i for i in chip.images.values() if i is not chip.image)):
        fitting = [member for member in members if member.network.encoder.in_channels <= info.bands]
        if not fitting:
            chip.require_channels(min(member.network.encoder.in_channels for member in members))
            continue
        channels = max(member.network.encoder.in_channels for member in fitting)
        # What is seen in a size of its own is small enough.
        large = recipe.input_px is None and (
            len(recipe.maps) * info.height * info.width > MAX_VALUES_IN_MEMORY
        )
        try:
            pixels: Pixels = (
                StretchedImage(info, *stretch, channels)
                if large
                else read_resized(info, *stretch, recipe.input_px, channels)
            )
        except SatmapError as error:
            notes.append(str(error))
            continue
        if pixels.is_blank if isinstance(pixels, StretchedImage) else not pixels[:, :].any():
            notes.append(
                f"{info.path}: no pixel holds data, so nothing can be found; check the image if "
                "it should show something"
            )
        if len(fitting) < len(members):
            notes.append(
                f"{len(members) - len(fitting)} of {len(members)} networks need {MULTISPECTRAL} "
                f"images and were left out where there is only {RGB}"
            )
        size = recipe.inference.default_metres_per_pixel, recipe.inference.default_metres_per_pixel
        if info.georeference is not None:
            size = info.georeference.metres_per_pixel
        elif recipe.task == "roads":
            # Buildings are measured in pixels, whatever their size.
            notes.append(f"images without georeference are taken to have {size[0]} m a pixel")
        return PreparedImage(info, pixels, fitting, size, tuple(notes), category, large)
    raise SatmapError(" ".join(notes))
