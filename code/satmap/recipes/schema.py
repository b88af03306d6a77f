"""Schema of recipes, which hold the whole solution of a challenge as data.

A recipe defines targets, networks, stages, losses, test-time augmentation and the vectoriser. It is
a YAML file, read into frozen models. An unknown key or a value out of range is an error that names
the place. satmap's recipes are in ``recipes/``; users can give a path to their own file instead.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Literal, Self, cast

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import TypeVar

import satmap
from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.recipes.encoder_names import ENCODER_NAMES, unknown_encoder
from satmap.recipes.pseudo_labels import PseudoLabels
from satmap.recipes.registry import find_task
from satmap.recipes.schedules import Schedule
from satmap.recipes.strict_yaml import read_yaml
from satmap.recipes.task_settings import TaskLosses, TaskSettings
from satmap.settings import Settings

TaskT = TypeVar("TaskT", bound=TaskSettings, default=Any)
LossesT = TypeVar("LossesT", bound=TaskLosses, default=Any)

#: Format number of the recipes that this version reads. YAML without a number counts as 1.
FORMAT = 1

#: Name of the checkpoint with the last weights of a training.
LAST = "last"

_SUFFIX = ".yaml"


class StretchSettings(Settings):
    """Percentiles of each band's pixels above zero that are mapped to 0 and 255.

    0 and 100, or ``none`` for short, leave 8-bit images as they are: chips that are cut from a
    scene then look like the scene. Other images are stretched from their least to their largest
    value.
    """

    low: float = Field(2.0, ge=0, le=100)
    high: float = Field(98.0, ge=0, le=100)

    @model_validator(mode="before")
    @classmethod
    def _from_none(cls, value: Any) -> Any:
        return {"low": 0.0, "high": 100.0} if value == "none" else value

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class TileSettings(Settings):
    """Square tiles that scenes are cut into for training.

    Attributes:
        zoom: web-mercator zoom at which one map tile becomes one tile. With 1024 pixels, zoom 19
            has pixels of 0.075 m at the equator.
        gsd: metres per pixel of tiles in the scene's own reference system, instead of ``zoom``.
        size: height and width of a tile, pixels.
        nodata: whether the loss ignores pixels without data, or trains them as empty ground.
    """

    zoom: int | None = Field(None, ge=10, le=24)
    gsd: float | None = Field(None, ge=0.01, le=10)
    size: int = Field(1024, ge=64, le=8192)
    nodata: Literal["ignore", "black"] = "ignore"

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.zoom is None) == (self.gsd is None):
            raise ValueError("give either zoom or gsd")
        return self


class Augmentation(Settings):
    """Augmentation of training crops. Shifts are shares of the crop, rotations are degrees.

    Attributes:
        quality_probability: share of crops whose sharpness, noise and compression are changed; None
            for 0. Networks then depend less on how an image was resampled.
    """

    shift: float = Field(0.2, ge=0, lt=1)
    resize: float = Field(0.2, ge=0, lt=1)
    resize_probability: float = Field(0.9, ge=0, le=1)
    rotation: float = Field(10.0, ge=0, le=180)
    rotation_probability: float = Field(0.2, ge=0, le=1)
    flips: bool = True
    colour_jitter_probability: float = Field(0.5, ge=0, le=1)
    mixup: PositiveFloat | None = Field(
        None, description="parameter of the Beta distribution of MixUp's shares; None for no MixUp"
    )
    # The default is None, not 0, so that fingerprints of recipes without this key stay valid.
    quality_probability: float | None = Field(None, ge=0, le=1)


class Stage(Settings, Generic[LossesT]):
    """Training stage with crops of one size and one schedule.

    Attributes:
        crop: height and width of crops, pixels.
        batch: crops per GPU and batch.
        passes: crops per chip and epoch.
        freeze_encoder_epochs: number of first epochs with a frozen encoder, if it is pretrained.
        freeze_encoder_stages: number of first encoder stages to freeze; None for all.
        validate_every: epochs between validations.
        sync_batch_norm: whether all GPUs train the same member with joint batch-norm statistics.
        accumulation: batches per optimizer step; None for 1.
        chips: number of chips to use, the same in every epoch; None for all.
        losses: weights of the losses; None for those of the member.
        later_losses: weights of the losses by the epoch of the stage, counted from 0, from which
            they replace ``losses``.
        encoder_rate: factor of the encoder's learning rate; None for 1. A low one suits networks
            that start from trained ones.
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
    losses: LossesT | None = None
    later_losses: dict[PositiveInt, LossesT] | None = None
    encoder_rate: PositiveFloat | None = None

    @model_validator(mode="after")
    def _frozen_for_a_time(self) -> Self:
        if self.freeze_encoder_stages and not self.freeze_encoder_epochs:
            raise ValueError("freeze_encoder_stages needs freeze_encoder_epochs, 1 or more")
        return self

    @model_validator(mode="after")
    def _later_losses_are_used(self) -> Self:
        if self.later_losses and max(self.later_losses) >= self.epochs:
            raise ValueError(
                f"later_losses: the stage ends before epoch {max(self.later_losses)}, because it "
                f"has {self.epochs}, counted from 0"
            )
        return self


class DecoderSettings(Settings):
    """Kind and widths of a network's decoder, at strides 16, 8, 4 and 2, and optionally 1.

    ``plain`` is the decoder of the reference; ``scse`` adds attention. ``light`` saves arithmetic
    compared with ``plain``: 27 to 37 % with ResNet18 and 34, ConvNeXt and the EfficientNets, whose
    features are narrow, 43 % with DPN68b and VGG16, 50 to 62 % with all others. A list of widths
    means a plain decoder. With four widths the maps are computed at stride 2 and upsampled.
    """

    kind: Literal["plain", "scse", "light"] = "plain"
    widths: tuple[PositiveInt, ...] = Field((256, 256, 128, 64), min_length=4, max_length=5)

    @model_validator(mode="before")
    @classmethod
    def _from_widths(cls, value: Any) -> Any:
        return {"widths": value} if isinstance(value, list | tuple) else value

    @model_serializer(mode="wrap")
    def _to_widths(self, handler: SerializerFunctionWrapHandler) -> Any:
        # A plain decoder is a list, as before ``kind`` existed: fingerprints of recipes stay valid.
        return self.widths if self.kind == "plain" else handler(self)


class Member(Settings, Generic[LossesT]):
    """Ensemble member: one network, trained on all folds except its own.

    With ``fold: null`` it is trained on all chips. Then there is no validation, and only the last
    weights are kept. With an ``area``, such as ``AOI_2_Vegas``, it is trained and used only for
    images of that area of interest.
    """

    fold: NonNegativeInt | None
    area: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+$")
    encoder: str
    pretrained: bool = Field(True, description="start from ImageNet weights")
    #: Number of image bands to use, in the order red, green, blue, then the other five.
    bands: int = Field(3, ge=1, le=1024, strict=True)
    decoder: DecoderSettings = DecoderSettings()
    losses: LossesT
    stages: tuple[Stage[LossesT], ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        """The stem of the member's weight files, unique within a recipe."""
        name = member_name(self.fold, self.encoder, self.bands, self.decoder.kind)
        return f"{name}-{self.area}" if self.area else name

    @property
    def shape(self) -> tuple[str, int, DecoderSettings]:
        """What two networks must have in common so that one can start from the other."""
        return self.encoder, self.bands, self.decoder

    def losses_of(self, stage: int, epoch: float = 0) -> LossesT:
        """Return the losses of the stage with this index; its epochs are counted from 0."""
        later = self.stages[stage].later_losses or {}
        begun = [start for start in later if start <= epoch]
        return later[max(begun)] if begun else self.stages[stage].losses or self.losses

    def _all_losses(self) -> Iterator[tuple[int, LossesT]]:
        """Yield the index of each stage with each of its losses."""
        for index, stage in enumerate(self.stages):
            for epoch in (0, *(stage.later_losses or ())):
                yield index, self.losses_of(index, epoch)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for stage, losses in self._all_losses():
            if losses.map_names != self.losses.map_names:
                raise ValueError(
                    f"the losses of stage {stage + 1} have other probability maps than the member's"
                )
        if self.encoder not in ENCODER_NAMES:
            raise ValueError(unknown_encoder(self.encoder))
        return self


class Round(PseudoLabels, Generic[LossesT]):
    """A further round of training: networks that learn from labels and from pseudo-labels.

    Attributes:
        members: the networks; None for those of the round before.
        start: ``anew``, as in the first round (ImageNet, random or ``--init`` weights), or
            ``previous``, from the network of the same name in the round before, or one that fits.
    """

    members: tuple[Member[LossesT], ...] | None = Field(None, min_length=1)
    start: Literal["anew", "previous"] = "anew"

    @model_validator(mode="after")
    def _average_is_trained(self) -> Self:
        if self.teacher == "average" and self.start != "previous":
            raise ValueError("`teacher: average` needs `start: previous`")
        return self


def member_name(fold: int | None, encoder: str, bands: int, decoder: str = "plain") -> str:
    """Return the name of a member: its fold (None for all chips), encoder, bands and decoder."""
    name = f"{'all' if fold is None else f'fold{fold}'}-{encoder}-{bands}band"
    return name if decoder == "plain" else f"{name}-{decoder}"


class Optimizer(Settings):
    """Adam, AdamW, or SGD with a momentum of 0.9; gradients are clipped to a global norm.

    With ``ema_decay`` the exponential moving average of the weights is scored and saved instead of
    the weights. ``bias_rate`` is the factor of the learning rate of biases; None for 1.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = 1.0
    ema_decay: float | None = Field(None, gt=0, lt=1)
    bias_rate: PositiveFloat | None = None


class Inference(Settings):
    """Settings of prediction.

    Attributes:
        tta: test-time augmentation: number of symmetries of the square that are averaged. 8 is all
            of them, 4 the rotations, 1 the unchanged image.
        mean: mean over symmetries and ensemble members. The geometric mean gives low probabilities
            more weight.
        batch: number of symmetries of an image that a network computes at once.
        window: height and width of the windows in which larger images are predicted, pixels.
        overlap: half the width over which neighbouring windows are blended, pixels.
        padding: content beyond the edge of an image: the mirrored image, or its last pixels
            repeated.
        gaps: what networks see where an image has no data: black, or the mirror image of the pixels
            beside it. Their maps are 0 there in any case. ``satmap map`` always mirrors.
        checkpoints: names of the checkpoints to average; None for all that the task keeps.
        join_chips: show the networks ``overlap`` pixels of the images around each image. Images
            without georeference are placed by matching their borders.
    """

    tta: Literal[1, 4, 8] = 8
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    batch: PositiveInt = 4
    window: int = Field(1344, ge=64, multiple_of=32)
    overlap: int = Field(128, ge=0)
    padding: Literal["reflect", "replicate"] = "reflect"
    gaps: Literal["black", "mirror"] = "black"
    checkpoints: tuple[str, ...] | None = Field(None, min_length=1)
    join_chips: bool = False

    @model_validator(mode="after")
    def _window_exceeds_overlap(self) -> Self:
        if self.window <= 2 * self.overlap:
            raise ValueError("window must be more than twice the overlap")
        return self


class Submission(Settings):
    """Settings of the submission file."""

    keep_prefix: bool = Field(
        False, description="write SN5_roads_test_public_AOI_7_... instead of AOI_7_..."
    )


class Recipe(Settings, Generic[TaskT, LossesT]):
    """All settings of a solution.

    Make one with :func:`load_recipe` or :func:`build_recipe`, which choose the types of its task.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str
    task: TaskT
    seed: NonNegativeInt = 0
    folds: int = Field(ge=2)
    folds_by: Literal["tile", "scene", "area"] | None = Field(
        None, description="what a fold holds out as a whole; see satmap.data.folds.split_chips"
    )
    tiles: TileSettings | None = Field(None, description="how scenes are cut; None to keep them")
    stretch: StretchSettings = StretchSettings()
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    sampling: Literal["equal_areas", "equal_scenes"] | None = Field(
        None, description="crops per area, or scene of an area, instead of per chip"
    )
    members: tuple[Member[LossesT], ...] = Field(min_length=1)
    rounds: tuple[Round[LossesT], ...] = Field(
        (), description="rounds after that of `members`; the networks of the last one predict"
    )
    inference: Inference = Inference()
    submission: Submission = Submission()

    @property
    def members_by_round(self) -> tuple[tuple[Member[LossesT], ...], ...]:
        """The networks of every round."""
        rounds = [self.members]
        for each in self.rounds:
            rounds.append(each.members or rounds[-1])
        return tuple(rounds)

    @property
    def ensemble(self) -> tuple[Member[LossesT], ...]:
        """The networks of the last round, which predict."""
        return self.members_by_round[-1]

    @property
    def all_members(self) -> tuple[Member[LossesT], ...]:
        """The networks of all rounds."""
        return tuple(member for members in self.members_by_round for member in members)

    @property
    def bands(self) -> int:
        """Largest number of bands that a network needs."""
        return max((member.bands for member in self.all_members), default=1)

    def up_to_round(self, number: int) -> Self:
        """Return the recipe without the rounds after ``number``, counted from 0."""
        return self.model_copy(update={"rounds": self.rounds[:number]})

    def require_unlabelled(self, given: bool) -> None:
        """Check that unlabelled images are ``given`` if, and only if, a round learns from them.

        Raises:
            SatmapError: they are missing or superfluous.
        """
        needed = any(each.share for each in self.rounds)
        if needed and not given:
            raise SatmapError(
                f"recipe {self.name} learns from unlabelled images: give their directories with "
                "--unlabelled."
            )
        if given and not needed:
            raise SatmapError(
                f"recipe {self.name} has no round that learns from unlabelled images, so it does "
                "not use --unlabelled. Leave it out."
            )

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the networks' probability maps, in the order that the vectoriser expects."""
        return self.members[0].losses.map_names

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoints that prediction averages."""
        return self.inference.checkpoints or (*self.task.best_checkpoints.values(), LAST)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for members in self.members_by_round:
            if len({member.name for member in members}) < len(members):
                raise ValueError(
                    "two members have the same fold, encoder, bands, kind of decoder and area"
                )
        members = self.all_members
        if any(member.fold is not None and member.fold >= self.folds for member in members):
            raise ValueError(f"a member's fold must be below folds = {self.folds}")
        if any(member.losses.map_names != self.map_names for member in members):
            raise ValueError("all members must have losses for the same probability maps")
        if self.rounds and not self.map_names:
            raise ValueError(f"rounds need probability maps, which the task {self.task.name} lacks")
        for number, each in enumerate(self.rounds):
            before = {member.shape for member in self.members_by_round[number]}
            others = [m.name for m in self.members_by_round[number + 1] if m.shape not in before]
            if each.start == "previous" and others:
                raise ValueError(
                    f"rounds.{number}: {others[0]} cannot start from the round before, which has "
                    "no network with its encoder, bands and decoder"
                )
        if not self.optimizer.ema_decay and any(r.teacher == "average" for r in self.rounds):
            raise ValueError("`teacher: average` needs optimizer.ema_decay")
        kept = (*self.task.best_checkpoints.values(), LAST)
        if unknown := [name for name in self.checkpoints if name not in kept]:
            raise ValueError(
                f"inference.checkpoints: {unknown[0]} is not one of the checkpoints that a "
                f"training of {self.task.name} keeps: {', '.join(kept)}"
            )
        return self

    @property
    def training_fingerprint(self) -> str:
        """Hash of all settings that a training depends on, without those of prediction."""
        content = self.model_dump(
            mode="json", exclude={"description", "inference", "submission"}, exclude_none=True
        )
        for key in self.task.prediction_keys:
            content["task"].pop(key, None)
        if not self.rounds:
            # The first round must have the same fingerprint as a recipe without rounds.
            del content["rounds"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        # The type depends on the task and is not an attribute of a module, which pickle needs.
        content = self.model_dump(mode="json", exclude_unset=True)
        content["task"]["name"] = self.task.name
        return recipe_from_json, (json.dumps(content),)


@cache
def _recipe_type(task: str) -> type[Recipe]:
    entry = find_task(task)
    recipe: Any = Recipe[entry.settings_type(), entry.losses_type()]  # type: ignore[misc]
    return cast(type[Recipe], recipe)


def build_recipe(content: Mapping[str, Any]) -> Recipe:
    """Validate the content of a recipe.

    Raises:
        ValidationError: it lacks something, or holds an unknown key or a bad value.
        SatmapError: there is no such task.
    """
    task = content.get("task")
    name = task.get("name") if isinstance(task, Mapping) else getattr(task, "name", task)
    # Without a name, validate with any task, which reports what is wrong.
    return _recipe_type(name if isinstance(name, str) else "roads").model_validate(content)


def default_recipe(task: str, **settings: Any) -> Recipe:
    """Return a recipe without networks, with default settings of a task except ``settings``."""
    return Recipe.model_construct(
        name=task,
        description="default settings",
        task=find_task(task).settings_type()(name=task, **settings),
        folds=2,
        members=(),
    )


def recipe_from_json(text: str) -> Recipe:
    """Read a recipe that ``model_dump_json`` wrote, for example from a weight file.

    Raises:
        ValueError: the text is not JSON, or not a recipe.
        SatmapError: there is no such task.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("a recipe must be an object")
    return build_recipe(content)


def recipe_names() -> list[str]:
    """Return the names of the recipes that satmap ships."""
    files = resources.files("satmap") / "recipes"
    return sorted(f.name.removesuffix(_SUFFIX) for f in files.iterdir() if f.name.endswith(_SUFFIX))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a shipped recipe by name or any recipe by path.

    Raises:
        SatmapError: the recipe does not exist, is not YAML, or has an unknown key or a bad value.
    """
    path = Path(name_or_path)
    if path.suffix in {_SUFFIX, ".yml"}:
        refuse_pipe(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SatmapError(
                f"recipe {path} cannot be read ({reason}). satmap's own recipes are "
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
    """Parse a recipe from YAML text. Error messages name it by ``source``.

    The top-level key ``format`` must be ``FORMAT`` or absent; it does not become part of the
    recipe. Top-level keys that start with ``x-`` hold YAML anchors for reuse and are ignored.

    Raises:
        SatmapError: the text is not YAML, has another format number, or is not a valid recipe.
    """
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise SatmapError(f"recipe {source}: {error}") from error
    if not isinstance(content, dict):
        raise SatmapError(f"recipe {source} must be a mapping of keys to values.")
    content = {key: value for key, value in content.items() if not str(key).startswith("x-")}
    number = content.pop("format", 1)
    if type(number) is not int or number != FORMAT:
        raise SatmapError(
            f"recipe {source}: its format is {number!r:.60}, but satmap {satmap.__version__} reads "
            f"recipes of format {FORMAT}. Use the version of satmap that the recipe is for, or "
            f"adapt the recipe as CHANGELOG.md says and write `format: {FORMAT}`."
        )
    try:
        return build_recipe(content)
    except SatmapError as error:
        raise SatmapError(f"recipe {source}:\n  task: {error}") from error
    except ValidationError as error:
        raise SatmapError(f"recipe {source}:\n" + "\n".join(_faults(error))) from error


def _faults(error: ValidationError) -> dict[str, None]:
    """Return one line per fault, without repetition."""
    errors = error.errors()
    inner = {e["loc"][:depth] for e in errors for depth in range(len(e["loc"]))}
    faults: dict[str, None] = {}
    for e in errors:
        # pydantic reports a tuple with a wrong item as too short, too.
        if e["type"] == "too_short" and e["loc"] in inner:
            continue
        messages = {
            "extra_forbidden": "unknown key; check its spelling and indentation",
            "missing": "this key is missing",
            "value_error": e["msg"].removeprefix("Value error, "),
        }
        message = messages.get(e["type"], f"{e['msg']} (got {e['input']!r:.60})")
        faults[f"  {'.'.join(map(str, e['loc'])) or 'recipe'}: {message}"] = None
    return faults
