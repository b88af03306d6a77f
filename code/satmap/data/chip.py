"""A chip: one place, the images of it and its label."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from satmap.data.imagery import MULTISPECTRAL, ImageInfo
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError


@dataclass(frozen=True)
class Chip:
    """One image of a challenge in all its products.

    Attributes:
        image_id: the id that the challenge's CSV uses, ``AOI_7_Moscow_chip23``.
        long_id: the id with the challenge's prefix kept, ``SN5_roads_test_public_AOI_7_...``.
        aoi: the area of interest, ``AOI_7_Moscow``.
        images: product (``PS-MS``, ``PS-RGBNIR``, ``PS-RGB``) to image.
        label: the file of its labels, its own, that of all looks at the place or that of all
            images; None where there is none.
        place: what all looks at one place have in common; "" where there is but one.
        view_angle: from where it was taken, where that is known.
        number: the id in a file of COCO annotations, which also stands in results.
    """

    image_id: str
    long_id: str
    aoi: str
    images: Mapping[str, ImageInfo]
    label: Path | None
    place: str = ""
    view_angle: ViewAngle | None = None
    number: int | None = None

    @property
    def image(self) -> ImageInfo:
        """The richest image: multispectral where there is one."""
        return max(self.images.values(), key=lambda image: image.bands)

    @property
    def site(self) -> str:
        """What must not be in two folds: the place, and where it has but one look the chip."""
        return self.place or self.image_id

    @property
    def channels(self) -> int:
        """Number of channels that the richest image gives."""
        return self.image.bands

    def require_channels(self, channels: int) -> None:
        """Fail unless the chip can feed a network of so many channels.

        Raises:
            SatmapError: the chip has fewer.
        """
        if self.channels < channels:
            richer = "" if MULTISPECTRAL in self.images else "Add the PS-MS image, or use"
            raise SatmapError(
                f"the networks want {channels} bands, but there is only "
                f"{self.image.path.name} with {self.channels}. {richer or 'Use'} a recipe "
                f"whose members all have `bands: {self.channels}` or less."
            )
