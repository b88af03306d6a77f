"""A chip: one image in all its products, with its label."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from satmap.data.imagery import MULTISPECTRAL, ImageInfo
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord, record_file


@dataclass(frozen=True)
class Chip:
    """One image of a challenge in all its products.

    Attributes:
        image_id: id in the challenge's CSV, such as ``AOI_7_Moscow_chip23``.
        long_id: id with the challenge's prefix, such as ``SN5_roads_test_public_AOI_7_...``.
        aoi: area of interest, such as ``AOI_7_Moscow``.
        images: image by product (``PS-MS``, ``PS-RGBNIR``, ``PS-RGB``).
        label: label file; None if there is none. The file may be shared by all views of a place or
            by all images of a data set.
        place: identifier shared by all views of one place; "" if there is only one view.
        view_angle: off-nadir angle; None if unknown.
        number: integer id in COCO annotations and COCO results; None for other data sets.
        scene: the scene that the image was cut from, or that it is; "" if that is not known.
        ignored: vector file with polygons that training ignores; None for none.
    """

    image_id: str
    long_id: str
    aoi: str
    images: Mapping[str, ImageInfo]
    label: Path | None
    place: str = ""
    view_angle: ViewAngle | None = None
    number: int | None = None
    scene: str = ""
    ignored: Path | None = None

    @property
    def image(self) -> ImageInfo:
        """Image with the most bands: multispectral if there is one."""
        return max(self.images.values(), key=lambda image: image.bands)

    @property
    def site(self) -> str:
        """Unit that must not be split across folds: the place, or the chip if it has no place."""
        return self.place or self.image_id

    @property
    def channels(self) -> int:
        """Number of channels of the image with the most bands."""
        return self.image.bands

    def require_channels(self, channels: int) -> None:
        """Raise SatmapError unless the chip has this many channels, which a network needs."""
        if self.channels < channels:
            richer = "" if MULTISPECTRAL in self.images else "Add the PS-MS image, or use"
            raise SatmapError(
                f"the networks need {channels} bands, but {self.image.path.name} has only "
                f"{self.channels}. {richer or 'Use'} a recipe whose members all have "
                f"`bands: {self.channels}` or less."
            )


def record_images(chip: Chip) -> dict[str, FileRecord]:
    """Record the files of an image, by product, except those that cannot be read."""
    records = {}
    for product, info in sorted(chip.images.items()):
        try:
            records[product] = record_file(info.path)
        except SatmapError:
            # An image that was deleted meanwhile is already among the reported faults.
            continue
    return records
