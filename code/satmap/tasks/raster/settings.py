"""Recipe settings of the raster task, importable without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from satmap.exports import BUILDING_SUFFIXES
from satmap.io.text import listing
from satmap.recipes.task_settings import HeadLoss, TaskSettings
from satmap.settings import Settings
from satmap.tasks.buildings.settings import FootprintLosses

if TYPE_CHECKING:
    from satmap.data.inventory import Inventory
    from satmap.data.view_angles import ViewAngle


#: Height and width of the challenge's test chips.
CHIP_PX = 1024


class FootprintLoss(HeadLoss):
    """Loss weights of the footprint map.

    A network has one logit for the footprint. It stands for both the sigmoid of one class and the
    softmax of two, of which only the difference of the logits counts.

    Attributes:
        lovasz_softmax: weight of the Lovasz loss of the probabilities, the mean over both classes.
        lovasz_hinge: weight of the Lovasz hinge loss of the logits, the mean over both classes.
    """

    lovasz_softmax: NonNegativeFloat = 0.0
    lovasz_hinge: NonNegativeFloat = 0.0


class RasterLosses(FootprintLosses):
    """Loss weights of the raster task."""

    building: FootprintLoss


class RasterTargetSettings(Settings):
    """Settings of the training targets; lengths in pixels.

    Attributes:
        border_px: width of the border, inside the building.
        contact_px: ground within this distance of two buildings is contact.
    """

    border_px: int = Field(3, ge=1, le=64)
    contact_px: PositiveFloat = 8.0


class RasterTaskSettings(TaskSettings):
    """Task section of a recipe for masks.

    Attributes:
        targets: settings of the training targets.
        threshold: building probability from which a pixel is 1, 0..1. With .5 the more probable
            class wins.
        simplify_px: tolerance of the outlines in exports.
    """

    prediction_keys: ClassVar[frozenset[str]] = frozenset({"threshold", "simplify_px"})
    best_checkpoints: ClassVar[Mapping[str, str]] = {"jaccard": "best_jaccard"}
    submission_suffixes: ClassVar[tuple[str, ...]] = ("", ".zip", ".tgz")
    # A zip is an archive of masks.
    export_suffixes: ClassVar[tuple[str, ...]] = tuple(
        suffix for suffix in BUILDING_SUFFIXES if suffix != ".zip"
    )

    name: Literal["raster"] = "raster"
    targets: RasterTargetSettings = RasterTargetSettings()
    threshold: float = Field(0.5, gt=0, lt=1)
    simplify_px: float = Field(1.0, ge=0, le=100)

    def find_images(
        self, directories: Sequence[Path], bands: int = 1, view_angle: "ViewAngle | None" = None
    ) -> "Inventory":
        """Find the images and labels of a building challenge, or own chips.

        The notes name test chips that do not have the size of the Open Cities challenge.
        """
        from satmap.data.layouts.building_challenges import find_building_images
        from satmap.data.layouts.own_chips import find_cut_chips

        if own := find_cut_chips(directories, "buildings"):
            return own
        inventory = find_building_images(directories, bands, view_angle)
        odd = [
            f"{chip.image_id} ({chip.image.width} x {chip.image.height})"
            for chip in inventory.chips
            if chip.label is None
            and chip.image.georeference is None
            and (chip.image.width, chip.image.height) != (CHIP_PX, CHIP_PX)
        ]
        if not odd:
            return inventory
        note = (
            f"not {CHIP_PX} x {CHIP_PX} px like the challenge's test chips: {listing(odd)}; masks "
            "have the size of their image"
        )
        return replace(inventory, notes=(*inventory.notes, note))
