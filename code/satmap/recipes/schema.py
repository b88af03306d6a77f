"""Recipes: a challenge's whole solution as data.

A recipe names targets, networks, stages, losses, views and the vectoriser. It is YAML, read into
frozen models; an unknown key or a value out of range is an error that says where. The recipes that
satmap ships lie in ``recipes/``; a path to a file of one's own works in their place.
"""

import hashlib
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

from satmap.data.augmentation import Augmentation
from satmap.data.cache import StretchSettings
from satmap.data.view_angles import CATEGORIES
from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.networks.encoder_names import ENCODER_NAMES, unknown_encoder
from satmap.rasters.probability_maps import BORDER, BUILDING, BUILDING_MAPS, CONTACT, ROAD_MAPS
from satmap.recipes.strict_yaml import read_yaml
from satmap.settings import Settings
from satmap.tasks.buildings.targets import BuildingTargetSettings
from satmap.tasks.buildings.vectorizer.settings import BuildingSettingsByCategory
from satmap.tasks.labelling import TargetsOf
from satmap.tasks.roads.targets import TargetSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import RoadSettings

_SUFFIX = ".yaml"


class HeadLoss(Settings):
    """Weights of the losses of one head; 0 leaves a loss out."""

    dice: NonNegativeFloat = 0.0
    focal: NonNegativeFloat = 0.0
    bce: NonNegativeFloat = 0.0


class RoadHeadLoss(HeadLoss):
    """Weights of the losses of the road head.

    ``recall`` asks for the middles of roads alone: a road that breaks costs as much as its length,
    however few pixels are missing (skeleton recall, arXiv 2404.03010).
    """

    recall: PositiveFloat | None = None


class Losses(Settings):
    """The loss of each head.

    ``distillation`` weighs, on every head, how far the network is from its teacher, an ensemble
    that is trained already (knowledge distillation, arXiv 1503.02531).
    """

    road: RoadHeadLoss
    speed: HeadLoss
    junction: HeadLoss
    distillation: PositiveFloat | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Losses":
        heads = (self.road, self.speed, self.junction)
        if not self.distillation and not any(any(head.model_dump().values()) for head in heads):
            raise ValueError("all weights are 0, so there is nothing to learn")
        return self


class BuildingHeadLoss(HeadLoss):
    """Weights of the losses of the body of buildings.

    ``weighted`` is a cross entropy that counts most between buildings and on small ones, by the
    weights of the targets.
    """

    weighted: NonNegativeFloat = 0.0


class BuildingLosses(Settings):
    """The loss of each plane of buildings; a plane without is not predicted."""

    building: BuildingHeadLoss
    border: HeadLoss | None = None
    contact: HeadLoss | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> "BuildingLosses":
        for head in (self.building, self.border, self.contact):
            if head is not None and not any(head.model_dump().values()):
                raise ValueError("all weights of a plane are 0, so there is nothing to learn")
        return self

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the planes that are learnt."""
        heads = {BUILDING: self.building, BORDER: self.border, CONTACT: self.contact}
        return tuple(name for name in BUILDING_MAPS if heads[name] is not None)


# Tags are no part of where a fault is: see _place.
_ROADS_TAG, _BUILDINGS_TAG = "<roads>", "<buildings>"


def _whose_losses(value: Any) -> str:
    if isinstance(value, BuildingLosses):
        return _BUILDINGS_TAG
    keys = value.keys() if isinstance(value, dict) else ()
    return _BUILDINGS_TAG if any(name in keys for name in BUILDING_MAPS) else _ROADS_TAG


LossesOf = Annotated[
    Annotated[Losses, Tag(_ROADS_TAG)] | Annotated[BuildingLosses, Tag(_BUILDINGS_TAG)],
    Discriminator(_whose_losses),
]


class StepSchedule(Settings):
    """Learning rates that hold from an epoch on: ``{0: 5e-4, 1: 1e-4}``."""

    kind: Literal["steps"] = "steps"
    rates: dict[NonNegativeInt, PositiveFloat]

    @model_validator(mode="after")
    def _starts_at_zero(self) -> "StepSchedule":
        if 0 not in self.rates:
            raise ValueError("rates need a value for epoch 0")
        return self


class CosineSchedule(Settings):
    """Linear warm-up to ``peak``, then half a cosine down to ``final``."""

    kind: Literal["cosine"] = "cosine"
    peak: PositiveFloat
    final: NonNegativeFloat = 0.0
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the stage's steps")


class PlateauSchedule(Settings):
    """A rate that falls by ``factor`` whenever so many validations have brought no better score.

    Scores are the stage's own, and a fall starts the count anew, as torch's
    ``ReduceLROnPlateau`` does. It never falls below ``least``.
    """

    kind: Literal["plateau"] = "plateau"
    rate: PositiveFloat
    factor: float = Field(0.5, gt=0, lt=1)
    patience: PositiveInt = 3
    least: NonNegativeFloat = 1e-6


Schedule = Annotated[StepSchedule | CosineSchedule | PlateauSchedule, Field(discriminator="kind")]


class Stage(Settings):
    """One pass of training: crops of one size under one schedule.

    An epoch is ``passes`` crops of every chip. ``batch`` is a GPU's share, and
    ``sync_batch_norm`` joins the statistics, where a stage runs on several. A pretrained encoder
    is frozen for ``freeze_encoder_epochs``: its first ``freeze_encoder_stages``, or all of it.
    With ``accumulation`` an optimizer step takes the gradients of so many batches. ``chips`` takes
    only so many of the chips, the same in every epoch, and ``losses`` stand in for the member's.
    """

    crop: int = Field(ge=64, multiple_of=32)
    batch: PositiveInt
    epochs: PositiveInt
    passes: PositiveInt = 1
    schedule: Schedule
    freeze_encoder_epochs: NonNegativeInt = 0
    freeze_encoder_stages: PositiveInt | None = Field(None, le=4)
    validate_every: PositiveInt = 1
    sync_batch_norm: bool = False
    accumulation: PositiveInt | None = None
    chips: PositiveInt | None = None
    losses: LossesOf | None = None

    @model_validator(mode="after")
    def _frozen_for_a_time(self) -> "Stage":
        if self.freeze_encoder_stages and not self.freeze_encoder_epochs:
            raise ValueError("freeze_encoder_stages needs freeze_encoder_epochs, 1 or more")
        return self


class Decoder(Settings):
    """Kind and widths of a network's decoder, at strides 16, 8, 4 and 2.

    ``plain`` is the reference's, ``scse`` adds attention. ``light`` saves 29 to 37 % of the plain
    one's arithmetic with ResNet18 and 34, ConvNeXt and the EfficientNets, whose features are
    narrow, 43 % with DPN68b and 50 to 62 % with all others. Four widths alone are a plain one.
    """

    kind: Literal["plain", "scse", "light"] = "plain"
    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (256, 256, 128, 64)

    @model_validator(mode="before")
    @classmethod
    def _from_widths(cls, value: Any) -> Any:
        return {"widths": value} if isinstance(value, list | tuple) else value

    @model_serializer(mode="wrap")
    def _to_widths(self, handler: SerializerFunctionWrapHandler) -> Any:
        # As it was written before there were kinds: recipes keep their fingerprints.
        return self.widths if self.kind == "plain" else handler(self)


class Member(Settings):
    """One network of the ensemble, trained on all folds but its own.

    With ``fold: null`` it is trained on all chips: nothing is left to validate it with, and the
    last weights are all there is.
    """

    fold: NonNegativeInt | None
    encoder: str
    pretrained: bool = Field(True, description="start from ImageNet weights")
    #: The first so many of an image's: red, green, blue, then the other five.
    bands: int = Field(3, ge=1, le=1024, strict=True)
    decoder: Decoder = Decoder()
    losses: LossesOf
    stages: tuple[Stage, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        """The stem of the member's weight files, unique within a recipe."""
        return member_name(self.fold, self.encoder, self.bands, self.decoder.kind)

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the planes that the network gives."""
        return self.losses.maps if isinstance(self.losses, BuildingLosses) else ROAD_MAPS

    def losses_of(self, stage: int) -> Losses | BuildingLosses:
        """The losses of a stage, by its index."""
        return self.stages[stage].losses or self.losses

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from an ensemble that is trained already."""
        losses = (self.losses_of(stage) for stage in range(len(self.stages)))
        return any(isinstance(each, Losses) and bool(each.distillation) for each in losses)

    @model_validator(mode="after")
    def _stages_learn_the_same(self) -> "Member":
        for number, stage in enumerate(self.stages, 1):
            own = stage.losses
            if own is not None and (
                type(own) is not type(self.losses)
                or (isinstance(own, BuildingLosses) and own.maps != self.maps)
            ):
                raise ValueError(f"the losses of stage {number} are of other planes")
        return self

    @model_validator(mode="after")
    def _encoder_exists(self) -> "Member":
        if self.encoder not in ENCODER_NAMES:
            raise ValueError(unknown_encoder(self.encoder))
        return self


def member_name(fold: int | None, encoder: str, bands: int, decoder: str = "plain") -> str:
    """What a network is called that was trained on all folds but one, or on all."""
    name = f"{'all' if fold is None else f'fold{fold}'}-{encoder}-{bands}band"
    return name if decoder == "plain" else f"{name}-{decoder}"


class Optimizer(Settings):
    """Adam or AdamW, with gradients clipped to a global norm.

    With ``ema_decay`` the networks that are scored and kept are exponential moving averages of the
    weights over the steps.
    """

    name: Literal["adam", "adamw"] = "adam"
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = 1.0
    ema_decay: float | None = Field(None, gt=0, lt=1)


#: Which weights of a training are kept: those of the best score, and the last.
Checkpoint = Literal["best_apls", "best_f1", "best_dice", "last"]


class Inference(Settings):
    """How images are predicted.

    ``views`` counts the square's symmetries that are averaged: 8 all, 4 rotations, 1 the image as
    it is. Their mean, and that of the networks, may be ``geometric``: who says no counts for more
    then. Images larger than ``window`` pixels are predicted in windows that are blended into one
    another over twice ``overlap`` pixels. Images without georeference are taken to have
    ``default_metres_per_pixel``, which counts for roads; buildings are measured in pixels. With
    ``neighbours`` the roads of images that lie side by side are vectorised with a look beyond the
    border. Beyond their edges, where networks look a little further, images are mirrored, or with
    ``padding: replicate`` their last pixels are repeated.
    """

    tta: Literal[1, 4, 8] = 8
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    default_metres_per_pixel: PositiveFloat = 0.3
    batch: PositiveInt = 4
    window: int = Field(1344, ge=64, multiple_of=32)
    overlap: int = Field(128, ge=0)
    padding: Literal["reflect", "replicate"] = "reflect"
    neighbours: bool = True
    checkpoints: tuple[Checkpoint, ...] = Field(("best_apls", "best_dice", "last"), min_length=1)

    @model_validator(mode="after")
    def _window_exceeds_overlap(self) -> "Inference":
        if self.window <= 2 * self.overlap:
            raise ValueError("window must be more than twice the overlap")
        return self


class Submission(Settings):
    """How the output is written."""

    keep_prefix: bool = Field(
        False, description="write SN5_roads_test_public_AOI_7_... instead of AOI_7_..."
    )


class Recipe(Settings):
    """Everything that makes a solution."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str
    task: Literal["roads", "buildings"]
    seed: NonNegativeInt = 0
    folds: int = Field(ge=2)
    stretch: StretchSettings = StretchSettings()
    targets: TargetSettings = TargetSettings()
    building_targets: BuildingTargetSettings | None = None
    input_px: int | None = Field(
        None, ge=64, description="the longer side of images as the networks see them"
    )
    view_angles: Literal[3, 5] | None = Field(
        None, description="heads by the look's angle, or by angle and side"
    )
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    sampling: Literal["equal_areas"] | None = Field(
        None, description="as many crops of every area of interest, not of every chip"
    )
    members: tuple[Member, ...] = Field(min_length=1)
    inference: Inference = Inference()
    roads: RoadSettings = RoadSettings()
    buildings: BuildingSettingsByCategory = BuildingSettingsByCategory()
    submission: Submission = Submission()

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the planes that its networks give, in the order of its vectoriser."""
        return self.members[0].maps

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of its networks' heads; none where they have but one."""
        return CATEGORIES[self.view_angles] if self.view_angles else ()

    @property
    def targets_of_task(self) -> TargetsOf:
        """How the labels of its task become pixels."""
        if self.task == "roads":
            return self.targets
        return self.building_targets or BuildingTargetSettings()

    @model_validator(mode="after")
    def _suits_its_task(self) -> "Recipe":
        if self.task == "roads":
            for key in ("building_targets", "input_px", "looks"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is for the task buildings")
        losses = Losses if self.task == "roads" else BuildingLosses
        if not all(isinstance(member.losses, losses) for member in self.members):
            wanted = "road, speed and junction" if self.task == "roads" else "building"
            raise ValueError(f"the task {self.task} has losses of {wanted}")
        if any(member.maps != self.maps for member in self.members):
            raise ValueError("all members must have losses of the same planes")
        return self

    @model_validator(mode="after")
    def _members_fit(self) -> "Recipe":
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError("two members have the same fold, encoder, bands and kind of decoder")
        if any(member.fold is not None and member.fold >= self.folds for member in self.members):
            raise ValueError(f"a member's fold must be below folds = {self.folds}")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether a member learns from an ensemble that is trained already."""
        return any(member.needs_teacher for member in self.members)

    @cached_property
    def training_fingerprint(self) -> str:
        """Hash of all settings that a training depends on; prediction's may change freely."""
        # Keys that are not set leave no trace, so that a new one does not make old states useless.
        content = self.model_dump_json(
            exclude={"description", "inference", "roads", "buildings", "submission"},
            exclude_none=True,
        )
        return hashlib.sha256(content.encode()).hexdigest()


def recipe_names() -> list[str]:
    """The names of the recipes that satmap ships."""
    files = resources.files("satmap") / "recipes"
    return sorted(f.name.removesuffix(_SUFFIX) for f in files.iterdir() if f.name.endswith(_SUFFIX))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a shipped recipe by name or any recipe by path.

    Raises:
        SatmapError: no such recipe, not YAML, an unknown key or a bad value.
    """
    path = Path(name_or_path)
    if path.suffix in {_SUFFIX, ".yml"}:
        refuse_pipe(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SatmapError(
                f"recipe {path} cannot be read ({reason}). satmap's own recipes are called "
                f"{', '.join(recipe_names())}."
            ) from error
    elif name_or_path in recipe_names():
        shipped = resources.files("satmap") / "recipes" / (name_or_path + _SUFFIX)
        text = shipped.read_text(encoding="utf-8")
    else:
        raise SatmapError(
            f"no recipe is called {name_or_path!r}. There are {', '.join(recipe_names())}; "
            f"a file of your own ends in {_SUFFIX}."
        )
    return parse_recipe(text, name_or_path)


def parse_recipe(text: str, source: str) -> Recipe:
    """Turn YAML text into a recipe; ``source`` names it in errors.

    Keys at the top that start with ``x-`` hold YAML anchors for reuse and are left out.
    """
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise SatmapError(f"recipe {source}: {error}") from error
    if not isinstance(content, dict):
        raise SatmapError(f"recipe {source} must be a mapping of keys to values.")
    content = {key: value for key, value in content.items() if not str(key).startswith("x-")}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        faults = {f"  {_place(e['loc'])}: {_message(e)}": None for e in _causes(error)}
        raise SatmapError(f"recipe {source}:\n" + "\n".join(faults)) from error


def _causes(error: ValidationError) -> list[Any]:
    """The errors without those that only follow from them: a tuple lacks the item with a fault."""
    errors = error.errors()
    inner = {e["loc"][:depth] for e in errors for depth in range(len(e["loc"]))}
    return [e for e in errors if e["type"] != "too_short" or e["loc"] not in inner]


def _place(location: tuple[int | str, ...]) -> str:
    named = [part for part in map(str, location) if part not in (_ROADS_TAG, _BUILDINGS_TAG)]
    return ".".join(named) or "recipe"


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key; check its spelling and indentation"
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    return f"{error['msg']} (got {error['input']!r:.60})"
