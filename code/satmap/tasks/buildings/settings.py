"""What a recipe for buildings can hold. This module loads without torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from satmap.data.view_angles import CATEGORIES
from satmap.recipes.task_settings import HeadLoss, TaskLosses, TaskSettings
from satmap.settings import Settings

if TYPE_CHECKING:
    from satmap.data.inventory import Inventory
    from satmap.data.view_angles import ViewAngle

BUILDING = "building"
BORDER = "border"
CONTACT = "contact"

#: The probability maps of buildings: the footprint, its inner border, and the ground squeezed
#: between two buildings.
BUILDING_MAPS = (BUILDING, BORDER, CONTACT)

#: Which probability maps a raster of buildings holds, by its number of bands.
BUILDING_FILE_MAPS = {count: BUILDING_MAPS[:count] for count in range(1, len(BUILDING_MAPS) + 1)}


class BuildingHeadLoss(HeadLoss):
    """Weights of the losses of the footprint map.

    ``weighted`` is a cross entropy that counts most between buildings and on small ones, by the
    pixel weights of the targets.
    """

    weighted: NonNegativeFloat = 0.0


class BuildingLosses(TaskLosses):
    """The weights of the losses of buildings; a map without losses is not predicted."""

    building: BuildingHeadLoss
    border: HeadLoss | None = None
    contact: HeadLoss | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        for head in (self.building, self.border, self.contact):
            if head is not None and not any(head.model_dump().values()):
                raise ValueError(
                    "all weights of a probability map are 0, so there is nothing to learn"
                )
        return self

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the probability maps that the network learns."""
        heads = {BUILDING: self.building, BORDER: self.border, CONTACT: self.contact}
        return tuple(name for name in BUILDING_MAPS if heads[name] is not None)


class BuildingTargetSettings(Settings):
    """How buildings are drawn and weighted for training; lengths in pixels.

    Attributes:
        border_px: width of the border, inside a building.
        contact_px: ground no farther than this from two buildings is contact.
        edge_px: buildings that lie wholly within this distance of the image's edge are left out.
        near_weight: extra weight of the ground between two buildings that touch.
        near_px: the sum of distances to the two nearest buildings over which the extra weight
            falls.
        size_px: side of a square building that weighs as much as the ground.
    """

    border_px: int = Field(1, ge=1, le=16)
    contact_px: PositiveFloat = 3.0
    edge_px: NonNegativeInt = 2
    near_weight: NonNegativeFloat = 50.0
    near_px: PositiveFloat = 10.0
    size_px: PositiveFloat = 128.0


class BuildingSettings(Settings):
    """What the building vectoriser can be told; areas in pixels, as the challenges count them.

    The defaults are those that SpaceNet 4's solutions found to work.

    Attributes:
        seed: strength from which a pixel is surely inside one building, 0..1; strength is body
            probability x (1 - contact) x (1 - border).
        seed_px: smaller seeds are dropped.
        low: body probability from which a pixel belongs to a building that has a seed, 0..1.
        certain: body probability that a building without a seed reaches somewhere, 0..1.
        split: two seeds are two buildings if the strength between them is below this share of the
            weaker one's, 0..1.
        seam: they are one building if the seam between them is longer than so many times the root
            of the smaller one's area: what another encloses is a part of it. A wall of attached
            houses takes 1 to 2, a square within a roof 4.
        least_px: smaller buildings are dropped, and no smaller part is split off.
        hole_px: smaller holes are filled.
        dilate_px: every building grows by a square of so many pixels a side, up and to the left as
            an even one has no middle; 0 and 1 leave it. Two may then share pixels.
        simplify_px: tolerance of the outlines, where area and overlap with the mask stay.
        right_angles: walls that nearly run along their building's main directions do so exactly,
            where area and overlap stay; walls that buildings share stay shared.
        least_confidence: buildings with a lower mean probability x square root of the area are
            dropped, where no confidence model rates them.
        least_iou: where one does, those are dropped that may expect a lower intersection over union
            with the truth, 0..1. To F1 a false building costs as much as a missed one; average
            precision takes the surest first, loses by no building, and wants 0.
    """

    seed: float = Field(0.7, gt=0, lt=1)
    seed_px: float = Field(20, ge=0, le=1e6)
    low: float = Field(0.3, gt=0, lt=1)
    certain: float = Field(0.5, gt=0, le=1)
    split: float = Field(0.8, ge=0, le=1)
    seam: float = Field(3.0, gt=0, le=1e6)
    least_px: float = Field(100, ge=0, le=1e9)
    hole_px: float = Field(16, ge=0, le=1e9)
    dilate_px: int = Field(0, ge=0, le=64)
    simplify_px: float = Field(1.0, ge=0, le=100)
    right_angles: bool = False
    least_confidence: float = Field(0.0, ge=0, le=1e9)
    least_iou: float = Field(0.3, ge=0, le=1)

    @model_validator(mode="after")
    def _low_is_lowest(self) -> "BuildingSettings":
        if self.low > min(self.seed, self.certain):
            raise ValueError("low is above seed or certain")
        return self


class BuildingSettingsByCategory(BuildingSettings):
    """Settings of which some differ between categories of looks.

    Attributes:
        categories: category -> the settings that differ there, such as
            ``{"very off-nadir": {"least_px": 250}}``.
    """

    categories: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def of(self, category: str | None) -> BuildingSettings:
        """The settings of a category; those of all for None and for one that is not listed."""
        common = self.model_dump(exclude={"categories"})
        return BuildingSettings(**{**common, **self.categories.get(category or "", {})})

    @model_validator(mode="after")
    def _each_makes_sense(self) -> "BuildingSettingsByCategory":
        for category in self.categories:
            self.of(category)
        return self


class BuildingTaskSettings(TaskSettings):
    """The part of a recipe that is about buildings.

    Attributes:
        targets: how labels are drawn and weighted for training.
        input_px: the longer side of images as the networks see them; None for the file's own size.
        view_angle_heads: number of the network's heads by view angle: 3 by the off-nadir angle, 5
            by the angle and the side; None for one head.
        vectorizer: settings of the vectoriser.
    """

    prediction_keys: ClassVar[frozenset[str]] = frozenset({"vectorizer"})
    best_checkpoints: ClassVar[Mapping[str, str]] = {"f1": "best_f1", "dice": "best_dice"}
    export_suffixes: ClassVar[tuple[str, ...]] = (".geojson", ".gpkg")

    name: Literal["buildings"] = "buildings"
    targets: BuildingTargetSettings = BuildingTargetSettings()
    input_px: int | None = Field(None, ge=64)
    view_angle_heads: Literal[3, 5] | None = None
    vectorizer: BuildingSettingsByCategory = BuildingSettingsByCategory()

    def find_images(
        self, directories: Sequence[Path], bands: int = 1, view_angle: "ViewAngle | None" = None
    ) -> "Inventory":
        """Find the images and labels of SpaceNet 1, 2, 4 or the Mapping Challenge."""
        from satmap.data.layouts.building_challenges import find_building_images

        return find_building_images(directories, bands, view_angle)

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the network's heads; none where it has but one."""
        return CATEGORIES[self.view_angle_heads] if self.view_angle_heads else ()
