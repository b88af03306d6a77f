"""Recipe settings of the building task, importable without torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from satmap.data.view_angles import CATEGORIES
from satmap.exports import BUILDING_SUFFIXES
from satmap.recipes.task_settings import HeadLoss, TaskLosses, TaskSettings
from satmap.settings import Settings

if TYPE_CHECKING:
    from satmap.data.inventory import Inventory
    from satmap.data.view_angles import ViewAngle

BUILDING = "building"
BORDER = "border"
CONTACT = "contact"

#: Suffix of submissions that are lists of COCO results.
COCO_SUFFIX = ".json"

#: The probability maps of buildings: the footprint, its inner border, and the ground squeezed
#: between two buildings.
BUILDING_MAPS = (BUILDING, BORDER, CONTACT)

#: Probability maps in a raster of buildings, by its number of bands.
BUILDING_FILE_MAPS = {count: BUILDING_MAPS[:count] for count in range(1, len(BUILDING_MAPS) + 1)}


class BuildingHeadLoss(HeadLoss):
    """Loss weights of the footprint map.

    Attributes:
        weighted: weight of a cross entropy with the pixel weights of the targets, which are
            highest between buildings and on small ones.
    """

    weighted: NonNegativeFloat = 0.0


class FootprintLosses(TaskLosses):
    """Loss weights of the building maps, for every task that learns them.

    A map without losses is not predicted.
    """

    building: HeadLoss
    border: HeadLoss | None = None
    contact: HeadLoss | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not all(any(head.model_dump().values()) for head in self.heads.values()):
            raise ValueError("all weights of a probability map are 0, so there is nothing to learn")
        return self

    @property
    def heads(self) -> dict[str, HeadLoss]:
        """Loss weights by name of the probability map that the network learns."""
        heads = {BUILDING: self.building, BORDER: self.border, CONTACT: self.contact}
        return {name: head for name, head in heads.items() if head is not None}

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the probability maps that the network learns."""
        return tuple(self.heads)


class BuildingLosses(FootprintLosses):
    """Loss weights of the building task."""

    building: BuildingHeadLoss


class BuildingTargetSettings(Settings):
    """Settings of the training targets; lengths in pixels.

    Attributes:
        border_px: width of the border, inside the building.
        contact_px: ground within this distance of two buildings is contact.
        edge_px: buildings that lie wholly within this distance of the image edge are left out.
        near_weight: extra weight of the ground between two touching buildings.
        near_px: decay length of the extra weight, over the summed distances to the two nearest
            buildings.
        size_px: weights on a building are multiplied by ``size_px`` / sqrt(area), so that small
            buildings count more.
    """

    border_px: int = Field(1, ge=1, le=16)
    contact_px: PositiveFloat = 3.0
    edge_px: NonNegativeInt = 2
    near_weight: NonNegativeFloat = 50.0
    near_px: PositiveFloat = 10.0
    size_px: PositiveFloat = 128.0


class BuildingSettings(Settings):
    """Settings of the building vectoriser; areas in pixels, as in the challenges.

    The defaults worked well in SpaceNet 4 solutions.

    Attributes:
        seed: strength from which a pixel seeds a building, 0..1; strength is building probability
            x (1 - contact) x (1 - border).
        seed_px: smaller seeds are dropped.
        low: building probability from which a pixel can belong to a building, 0..1.
        certain: a blob without a seed is a building if its building probability reaches this value
            somewhere, 0..1.
        split: two seeds are two buildings if the strength between them is below this share of the
            weaker seed's, 0..1.
        seam: two parts are one building if the seam between them is longer than this multiple of
            the square root of the smaller part's area, which means that one encloses the other.
            The wall between attached houses has 1 to 2, a square inside a roof 4.
        least_px: smaller buildings are dropped, and smaller parts are not split off.
        hole_px: smaller holes are filled.
        dilate_px: buildings are dilated by a square with this side; an even square extends one
            pixel further up and to the left. 0 and 1 change nothing. Dilated buildings may overlap.
        simplify_px: tolerance of the outline simplification, applied where area and overlap with
            the mask are kept.
        right_angles: align walls with the building's main directions on the ground if they nearly
            follow them, where area and overlap are kept; shared walls stay shared.
        least_confidence: without a selection model, buildings with a lower mean probability x
            square root of the area are dropped.
        least_iou: with a selection model, buildings with a lower expected IoU are dropped, 0..1.
            F1 penalises a false building as much as a missed one. Average precision ranks by
            confidence and loses nothing by extra buildings, so 0 is best for it.
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
    """Vectoriser settings with overrides by view-angle category.

    Attributes:
        categories: category -> overridden settings, such as
            ``{"very off-nadir": {"least_px": 250}}``.
    """

    categories: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def of(self, category: str | None) -> BuildingSettings:
        """Return the settings of a category; the common ones if it is None or not listed."""
        common = self.model_dump(exclude={"categories"})
        return BuildingSettings(**{**common, **self.categories.get(category or "", {})})

    @model_validator(mode="after")
    def _each_makes_sense(self) -> "BuildingSettingsByCategory":
        for category in self.categories:
            self.of(category)
        return self


class BuildingTaskSettings(TaskSettings):
    """Task section of a recipe for buildings.

    Attributes:
        targets: settings of the training targets.
        input_px: longer side of the network's input images; None for the size of the file.
        view_angle_heads: number of network heads by view angle: 3 by off-nadir angle, 5 by
            off-nadir angle and side; None for a single head.
        vectorizer: settings of the vectoriser.
    """

    prediction_keys: ClassVar[frozenset[str]] = frozenset({"vectorizer"})
    best_checkpoints: ClassVar[Mapping[str, str]] = {"f1": "best_f1", "dice": "best_dice"}
    submission_suffixes: ClassVar[tuple[str, ...]] = (".csv", COCO_SUFFIX)
    export_suffixes: ClassVar[tuple[str, ...]] = BUILDING_SUFFIXES

    name: Literal["buildings"] = "buildings"
    targets: BuildingTargetSettings = BuildingTargetSettings()
    input_px: int | None = Field(None, ge=64)
    view_angle_heads: Literal[3, 5] | None = None
    vectorizer: BuildingSettingsByCategory = BuildingSettingsByCategory()

    def find_images(
        self, directories: Sequence[Path], bands: int = 1, view_angle: "ViewAngle | None" = None
    ) -> "Inventory":
        """Find the images and labels of SpaceNet 1, 2, 4, the Mapping Challenge, or own chips."""
        return find_images_of_buildings(directories, bands, view_angle)

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the network's heads; empty for a single head."""
        return CATEGORIES[self.view_angle_heads] if self.view_angle_heads else ()


def find_images_of_buildings(
    directories: Sequence[Path], bands: int, view_angle: "ViewAngle | None"
) -> "Inventory":
    """Find images with labels of buildings, as :meth:`TaskSettings.find_images`."""
    from satmap.data.layouts.building_challenges import find_building_images
    from satmap.data.layouts.own_chips import find_cut_chips

    return find_cut_chips(directories, "buildings") or find_building_images(
        directories, bands, view_angle
    )
