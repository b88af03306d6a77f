"""Recipe settings of the road task. This module does not import torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from satmap.exports import ROAD_SUFFIXES
from satmap.recipes.task_settings import HeadLoss, TaskLosses, TaskSettings
from satmap.settings import Settings
from satmap.vectors.speeds import SPEED_BINS

if TYPE_CHECKING:
    from satmap.data.inventory import Inventory
    from satmap.data.view_angles import ViewAngle

ROAD = "road"
JUNCTION = "junction"
SPEED_MAPS = tuple(f"speed{index}" for index in range(SPEED_BINS))

#: Names of the probability maps in the reference's order: ten speed bins, road, junction.
ROAD_MAPS = (*SPEED_MAPS, ROAD, JUNCTION)

#: Where roads cross on different levels, and where the upper deck is. Only networks whose recipe
#: has the loss ``levels`` predict these maps.
CROSSING, DECK = "crossing", "deck"
LEVEL_MAPS = (CROSSING, DECK)

#: Names of the probability maps in a raster, by its number of bands.
ROAD_FILE_MAPS = {len(names): names for names in ((ROAD,), ROAD_MAPS, (*ROAD_MAPS, *LEVEL_MAPS))}


class RoadHeadLoss(HeadLoss):
    """Loss weights of the road map.

    Attributes:
        recall: weight of the skeleton recall loss (arXiv 2404.03010): the share of the roads'
            centre pixels that the network misses. A broken road then costs as much as its length,
            however few pixels are missing.
        centreline_dice: weight of the centreline dice (clDice, arXiv 2003.07311), which also
            penalises predicted lines that are not on a road.
        features: weight of the difference of features of an ImageNet network (arXiv 1712.02190).
    """

    recall: PositiveFloat | None = None
    centreline_dice: PositiveFloat | None = None
    features: PositiveFloat | None = None


class RoadLosses(TaskLosses):
    """Loss weights of the road task.

    Attributes:
        road: of the road map.
        speed: of the speed bins.
        junction: of the junction map.
        levels: of the maps of crossings and decks; None for networks without these maps.
    """

    road: RoadHeadLoss
    speed: HeadLoss
    junction: HeadLoss
    levels: HeadLoss | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        heads = (self.road, self.speed, self.junction)
        if not any(any(head.model_dump().values()) for head in heads):
            raise ValueError("all weights are 0, so there is nothing to learn")
        return self

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the probability maps that the network predicts."""
        return ROAD_MAPS if self.levels is None else (*ROAD_MAPS, *LEVEL_MAPS)


class TargetSettings(Settings):
    """Widths of rasterized labels. The defaults match the reference at 0.3 m per pixel."""

    road_buffer_m: PositiveFloat = 2.0
    junction_grid_m: PositiveFloat = 1.5
    junction_stub_m: PositiveFloat = 9.6
    junction_width_m: PositiveFloat = 4.8


class RoadSettings(Settings):
    """Settings of the road vectoriser; lengths in metres, areas in square metres.

    Attributes:
        smooth_m: standard deviation of the Gaussian blur of the road map.
        high: smallest probability of certain road, 0..1.
        low: smallest probability of road where no certain road is near, 0..1.
        apart_m: distance within which a certain road counts as near.
        object_m2: smaller objects are removed.
        hole_m2: smaller holes are filled.
        border_m: width of the padding around the image while thinning.
        spur_m: shorter spurs are pruned. The limit rises to four times this length for spurs whose
            probability is low compared to the image's other roads.
        merge_m: junctions linked by less road are merged.
        component_m: connected components with less road are dropped if doubtful. Certain components
            need a quarter of this length. The limits are lower for components that leave the image.
        simplify_m: tolerance of the Douglas-Peucker simplification.
        gap_m: longest stretch of open ground between aligned free ends that are joined without
            evidence.
        tee_m: longest stretch of open ground between a free end and a road ahead that are joined
            without evidence.
        edge_m: free ends this close to the image's edge ahead are extended to it without evidence.
        bridge_m: longest bridge of all three kinds with evidence.
        bridge_degrees: largest angle between a road and a bridge.
        bridge_probability: mean road probability along a bridge that counts as evidence, 0..1.
        speed_evidence: smallest sum over the speed bins of the mean probability along a road at
            which the speed maps are fully trusted, 0..1.
        default_speed_mph: speed in miles per hour where the speed maps give no evidence.
    """

    smooth_m: float = Field(0.4, ge=0, le=10)
    high: float = Field(0.6, gt=0, le=1)
    low: float = Field(0.25, gt=0, le=1)
    apart_m: float = Field(2.0, ge=0, le=20)
    object_m2: float = Field(4.0, ge=0, le=10000)
    hole_m2: float = Field(9.0, ge=0, le=10000)
    border_m: float = Field(4.0, ge=0, le=100)
    spur_m: float = Field(5.0, ge=0, le=1000)
    merge_m: float = Field(4.0, ge=0, le=100)
    component_m: float = Field(36.0, ge=0, le=10000)
    simplify_m: float = Field(0.6, ge=0, le=100)
    gap_m: float = Field(16.0, ge=0, le=200)
    tee_m: float = Field(10.0, ge=0, le=200)
    edge_m: float = Field(3.0, ge=0, le=200)
    bridge_m: float = Field(33.0, ge=0, le=200)
    bridge_degrees: float = Field(30.0, ge=0, le=90)
    bridge_probability: float = Field(0.2, ge=0, le=1)
    speed_evidence: float = Field(0.05, gt=0, le=1)
    default_speed_mph: float = Field(25.0, ge=1, le=200)

    @model_validator(mode="after")
    def _low_is_not_high(self) -> "RoadSettings":
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, which is above high, {self.high:g}")
        return self


class RoadTaskSettings(TaskSettings):
    """Task section of a recipe for roads.

    Attributes:
        targets: how labels are rasterized for training.
        vectorizer: settings of the vectoriser.
        neighbours: vectorise an image together with the images that touch it.
        default_metres_per_pixel: pixel size of images without georeference.
    """

    prediction_keys: ClassVar[frozenset[str]] = frozenset(
        {"vectorizer", "neighbours", "default_metres_per_pixel"}
    )
    best_checkpoints: ClassVar[Mapping[str, str]] = {"apls": "best_apls", "dice": "best_dice"}
    export_suffixes: ClassVar[tuple[str, ...]] = ROAD_SUFFIXES

    name: Literal["roads"] = "roads"
    targets: TargetSettings = TargetSettings()
    vectorizer: RoadSettings = RoadSettings()
    neighbours: bool = True
    default_metres_per_pixel: PositiveFloat = 0.3

    def find_images(
        self, directories: Sequence[Path], bands: int = 1, view_angle: "ViewAngle | None" = None
    ) -> "Inventory":
        """Find the images and labels of SpaceNet 3 and 5, or own chips."""
        from satmap.data.layouts.own_chips import find_cut_chips
        from satmap.data.layouts.spacenet_roads import scan_roads

        return find_cut_chips(directories, "roads") or scan_roads(directories)
