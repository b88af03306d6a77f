"""Recipe settings of the task ``instances``, importable without torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from satmap.exports import BUILDING_SUFFIXES
from satmap.networks.cascade_settings import CascadeSettings
from satmap.recipes.task_settings import TaskLosses, TaskSettings
from satmap.settings import Settings
from satmap.tasks.buildings.settings import (
    COCO_SUFFIX,
    BuildingLosses,
    BuildingSettings,
    find_images_of_buildings,
)

if TYPE_CHECKING:
    from satmap.data.inventory import Inventory
    from satmap.data.view_angles import ViewAngle


#: The settings of merging that may differ between areas.
TUNED = frozenset({"least_score", "least_px"})


class MergeSettings(Settings):
    """How the candidates of an image become buildings.

    Attributes:
        suppression: of two candidates whose boxes have a larger intersection over union, the better
            one becomes a building.
        voting: all candidates whose boxes have at least this intersection over union with that of a
            building vote on its mask.
        overlap: of two buildings whose masks share more than this part of the smaller one, the
            better one stays; 1 keeps both.
        threshold: pixels with at least this share of the votes belong to the building.
        least_score: buildings with a lower score are dropped, 0..1.
        most: each network keeps this number of candidates, those with the best scores, per window
            and symmetry.
        least_px: buildings with a smaller area are dropped, pixels of the file.
        hole_px: holes with a smaller area are filled, pixels of the file.
        simplify_px: tolerance of the outline simplification.
        right_angles: align walls with the building's main directions on the ground.
        least_iou: with a selection model, buildings with a lower expected intersection over
            union are dropped.
        watershed: with a selection model, how further candidates are found in probability maps.
    """

    suppression: float = Field(0.3, gt=0, le=1)
    voting: float = Field(0.5, gt=0, le=1)
    overlap: float = Field(1.0, gt=0, le=1)
    threshold: float = Field(0.4, gt=0, lt=1)
    least_score: float = Field(0.3, ge=0, le=1)
    most: PositiveInt = 600
    least_px: float = Field(20, ge=0, le=1e9)
    hole_px: float = Field(16, ge=0, le=1e9)
    simplify_px: float = Field(1.0, ge=0, le=100)
    right_angles: bool = False
    least_iou: float = Field(0.3, ge=0, le=1)
    watershed: BuildingSettings = BuildingSettings()


class MergeSettingsByArea(MergeSettings):
    """Settings of merging with overrides by area of interest.

    Attributes:
        areas: area to overridden settings, such as ``{AOI_3_Paris: {least_score: 0.5}}``.
    """

    areas: dict[str, dict[str, float]] = Field(default_factory=dict)

    def of(self, area: str) -> MergeSettings:
        """Return the settings of an area; the common ones if it is not listed."""
        common = self.model_dump(exclude={"areas"})
        return MergeSettings(**{**common, **self.areas.get(area, {})})

    @model_validator(mode="after")
    def _each_makes_sense(self) -> Self:
        for area, changed in self.areas.items():
            self.of(area)
            if others := sorted(set(changed) - TUNED):
                raise ValueError(
                    f"areas.{area}: {others[0]} cannot differ between areas, only "
                    f"{' and '.join(sorted(TUNED))} can"
                )
        return self


class InstanceLosses(TaskLosses):
    """Weights of the parts of the loss.

    The parts from ``mask`` to ``quality`` are added up over the rounds.

    Attributes:
        proposal: whether an anchor is a building.
        proposal_box: position of proposals.
        mask: masks of positive boxes.
        building: whether a box is a building.
        mask_building: whether a mask is a building.
        box: moved position of boxes.
        refined: sharpened masks.
        quality: predicted intersection over union of masks.
        maps: losses of the probability maps that the network also predicts.
    """

    proposal: NonNegativeFloat = 1.0
    proposal_box: NonNegativeFloat = 1.0
    mask: NonNegativeFloat = 2.0
    building: NonNegativeFloat = 1.0
    mask_building: NonNegativeFloat = 1.0
    box: NonNegativeFloat = 1.0
    refined: NonNegativeFloat = 1.0
    quality: NonNegativeFloat = 1.0
    maps: BuildingLosses | None = None


class InstanceTaskSettings(TaskSettings):
    """Task section of a recipe for buildings as instances.

    Attributes:
        network: architecture of the networks.
        input_px: longer side of the network's input images; None for the size of the file.
        least_px: labels with fewer pixels of the network's input are ignored in training.
        vectorizer: how candidates become buildings.
    """

    prediction_keys: ClassVar[frozenset[str]] = frozenset({"vectorizer"})
    best_checkpoints: ClassVar[Mapping[str, str]] = {"f1": "best_f1"}
    submission_suffixes: ClassVar[tuple[str, ...]] = (".csv", COCO_SUFFIX)
    export_suffixes: ClassVar[tuple[str, ...]] = BUILDING_SUFFIXES

    name: Literal["instances"] = "instances"
    network: CascadeSettings = CascadeSettings()
    input_px: int | None = Field(None, ge=64)
    least_px: float = Field(4.0, ge=1)
    vectorizer: MergeSettingsByArea = MergeSettingsByArea()

    def find_images(
        self, directories: Sequence[Path], bands: int = 1, view_angle: "ViewAngle | None" = None
    ) -> "Inventory":
        """Find images and labels as for the task ``buildings``."""
        return find_images_of_buildings(directories, bands, view_angle)

    @property
    def loss_parts(self) -> tuple[str, ...]:
        """Names of the parts of the loss, in the order in which they are shown."""
        return self.network.loss_parts
