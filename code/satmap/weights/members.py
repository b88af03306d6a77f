"""Choose the networks of an ensemble from a directory of weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from satmap.errors import SatmapError
from satmap.io.files import is_temporary
from satmap.io.text import counted, printable
from satmap.recipes.schema import LAST, Member, Recipe, recipe_from_json
from satmap.weights.header import (
    CHECKPOINT_KEY,
    CONTENT_KEY,
    TASK_CONTENT,
    NetworkHeader,
    parse_header,
    read_weights_metadata,
)

_NAMES = TypeAdapter(list[str])
_SCORES = TypeAdapter(dict[str, float])
_GSD = TypeAdapter(Annotated[float, Field(gt=0, allow_inf_nan=False)])
_BANDS = TypeAdapter(Annotated[list[Annotated[float, Field(ge=0, le=255)]], Field(min_length=1)])

#: Metadata keys of the training data: metres per pixel, and mean and standard deviation per band.
GSD_KEY, BAND_MEAN_KEY, BAND_STD_KEY = "gsd_m", "band_mean", "band_std"

#: Metadata key: ``transductive`` if a network has learned from test images, else ``inductive``.
LEARNING_KEY = "learning"

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class WeightFile:
    """Weight file of a trained network.

    Attributes:
        path: the file, named ``member.checkpoint.safetensors``; imported files may have any name.
        metadata: metadata from ``save_weights``: ``recipe``, ``member``, ``stage``, ``epoch``, ...
        votes: number of files of the ensemble that hold this network, of which ``duplicates`` are
            the other ones.
    """

    path: Path
    metadata: dict[str, str]
    votes: int = 1
    duplicates: tuple[Path, ...] = ()

    @property
    def checkpoint(self) -> str:
        """Checkpoint from the file name or else the metadata: ``best_apls``, ``last``, ..."""
        named = self.path.name.removesuffix(".safetensors").rpartition(".")[2]
        known = named == LAST or named.startswith("best_")
        return named if known else self.metadata.get(CHECKPOINT_KEY, named)

    @property
    def in_channels(self) -> int:
        """Number of image channels that the network needs."""
        text = self.metadata.get("in_channels", "")
        return int(text) if text.isdecimal() and text.isascii() else self.network.in_channels

    @cached_property
    def network(self) -> NetworkHeader:
        """Description of the network in the file's metadata; errors as in ``parse_header``."""
        return parse_header(self.path, self.metadata)

    @cached_property
    def recipe(self) -> Recipe:
        """Recipe that the network was trained with.

        Raises:
            SatmapError: the file has no recipe, or one that this version of satmap cannot read.
        """
        try:
            return recipe_from_json(self.metadata.get("recipe", ""))
        except (ValueError, RecursionError, SatmapError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise SatmapError(
                f"{self.path}: the recipe inside cannot be read by this version of satmap "
                f"({reason}). Train again, or use the version that trained it."
            ) from error

    @cached_property
    def area(self) -> str | None:
        """The area of interest that the network is for; None for all.

        Raises:
            SatmapError: the recipe cannot be read.
        """
        named = {member.name: member.area for member in self.recipe.ensemble}
        return named.get(self.metadata.get("member", ""))

    @cached_property
    def held_out(self) -> frozenset[str] | None:
        """Ids of the images held out for validation; None if the file has no such list.

        Raises:
            SatmapError: the metadata are not a list of names.
        """
        names = self._parsed("held_out", _NAMES, "a list of names")
        return None if names is None else frozenset(names)

    @cached_property
    def gsd_m(self) -> float | None:
        """Mean pixel size of the training images, metres; None if the file does not state it.

        Raises:
            SatmapError: the metadata are not a number above 0.
        """
        return self._parsed(GSD_KEY, _GSD, "a number above 0")

    @cached_property
    def band_statistics(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of each band of the stretched training images, 0..255.

        None if the file does not state them.

        Raises:
            SatmapError: the metadata are not two lists of numbers.
        """
        numbers = "a list of numbers from 0 to 255"
        means, spreads = (
            self._parsed(key, _BANDS, numbers) for key in (BAND_MEAN_KEY, BAND_STD_KEY)
        )
        return None if means is None or spreads is None else (means, spreads)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Scores on the images that the training held out; none if it held out none.

        Raises:
            SatmapError: the metadata are not numbers by name.
        """
        return self._parsed("scores", _SCORES, "numbers by name") or {}

    def _parsed(self, key: str, kind: TypeAdapter[_Value], expected: str) -> _Value | None:
        """Parse metadata in JSON; None if there are none."""
        text = self.metadata.get(key)
        if text is None:
            return None
        try:
            return kind.validate_json(text)
        except ValidationError as error:
            raise SatmapError(
                f"{self.path} has broken metadata: {key} must be {expected}, not "
                f"{printable(text, 80)}. Copy or train it again."
            ) from error

    @property
    def checkpoint_key(self) -> tuple[str, ...]:
        """Member, stage and epoch; files with the same key hold the same network."""
        return tuple(self.metadata.get(key, self.path.name) for key in ("member", "stage", "epoch"))


def find_weights(directory: Path) -> list[WeightFile]:
    """Return all weight files directly in the directory, sorted by name.

    Raises:
        SatmapError: there are no weight files, or one is not readable.
    """
    paths = [path for path in sorted(directory.glob("*.safetensors")) if not is_temporary(path)]
    if not paths:
        raise SatmapError(
            f"no weights (*.safetensors) in {directory}. Train networks first (`satmap train`), or "
            "give another directory with --weights."
        )
    return [WeightFile(path, read_weights_metadata(path)) for path in paths]


def require_area(files: Sequence[WeightFile], area: str) -> list[bool]:
    """Return which networks are for images of an area of interest.

    Networks that are all for the same area are used for all images.

    Raises:
        SatmapError: none is.
    """
    areas = {file.area for file in files}
    if len(areas) == 1:
        return [True] * len(files)
    chosen = [file.area in (None, area) for file in files]
    if not any(chosen):
        raise SatmapError(
            f"no network is for the area {area or 'of this image'}; there are networks for "
            f"{', '.join(sorted(filter(None, areas)))}. Give a directory with the weights of one "
            "of them with --weights."
        )
    return chosen


def recipe_of(files: Sequence[WeightFile]) -> Recipe:
    """Return the recipe that all the files were trained with.

    Raises:
        SatmapError: the files come from several recipes, or one has no readable recipe.
    """
    recipes = {file.recipe.training_fingerprint: file.recipe for file in files}
    if len(recipes) > 1:
        names = ", ".join(f"{file.path.name} ({file.recipe.name})" for file in files)
        raise SatmapError(
            f"the weights were trained with {len(recipes)} different recipes: {names}. Choose "
            "one with --recipe, or move the other files away."
        )
    return next(iter(recipes.values()))


def choose(files: Sequence[WeightFile], recipe: Recipe) -> list[WeightFile]:
    """Choose the files of a recipe's ensemble, each network once.

    The best and the last checkpoint are often the same network. It is then run once and has the
    votes of both. Weights of other recipes, or of another version of this recipe, are left out.

    Raises:
        SatmapError: no file fits the recipe.
    """
    chosen: dict[tuple[str, ...], WeightFile] = {}
    for file in files:
        fits = file.recipe.training_fingerprint == recipe.training_fingerprint
        if fits and file.checkpoint in recipe.checkpoints:
            known = chosen.get(file.checkpoint_key)
            if known:
                duplicates = (*known.duplicates, file.path)
                file = replace(known, votes=known.votes + 1, duplicates=duplicates)
            chosen[file.checkpoint_key] = file
    if not chosen:
        found = ", ".join(f"{file.path.name} ({file.recipe.name})" for file in files)
        wanted = " or ".join(recipe.checkpoints)
        raise SatmapError(
            f"no weights of checkpoint {wanted} were trained with the current version of recipe "
            f"{recipe.name}; the directory has {found}. Give the recipe that they were trained "
            "with, or leave --recipe out."
        )
    return list(chosen.values())


def describe_networks(files: Sequence[WeightFile], recipe: Recipe) -> str:
    """Describe an ensemble in one line: number of networks, recipe, mean scores when held out."""
    views = counted(recipe.inference.tta, "view")
    text = f"{counted(len(files), 'network')} of recipe {recipe.name}, {views} of each image"
    known = [file.scores for file in files if file.scores]
    names = [name for name in (known[0] if known else ()) if all(name in each for each in known)]
    means = (f"{name} {sum(each[name] for each in known) / len(known):.2f}" for name in names)
    scores = ", ".join(means)
    return f"{text}; on held-out images: {scores}" if scores else text


def trained_gsd(files: Sequence[WeightFile]) -> float | None:
    """Return the mean pixel size of the training images in metres; None if no file states it."""
    sizes = [file.gsd_m for file in files if file.gsd_m is not None]
    return sum(sizes) / len(sizes) if sizes else None


def trained_bands(files: Sequence[WeightFile]) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation of each band of the stretched training images, 0..255.

    They are averaged over the files, for the bands that all have; None if a file does not state
    them.
    """
    known = [file.band_statistics for file in files]
    if not known or not all(known):
        return None
    means, spreads = (
        [sum(values) / len(known) for values in zip(*lists, strict=False)]
        for lists in zip(*filter(None, known), strict=True)
    )
    return means, spreads


def require_starts(path: Path, recipe: Recipe, weights: Path) -> dict[str, WeightFile]:
    """Choose the trained network that each member of a recipe starts from (fine-tuning).

    In a directory, a member starts from the network of the same name. Without one, the members take
    turns with the networks that fit. Of each network the best checkpoint counts.

    Args:
        path: a weight file, or a directory of weights.
        recipe: recipe of the new training.
        weights: directory of the new training's weights.

    Returns:
        Weight file by the name of the member.

    Raises:
        SatmapError: there are no weights, or for a member all have another task, encoder, decoder
            or number of bands, or the training would overwrite them.
    """
    if not path.exists():
        raise SatmapError(f"--init: {path} does not exist. Give a weight file or a directory.")
    directory = path if path.is_dir() else path.parent
    if directory.resolve() == weights.resolve():
        raise SatmapError(
            f"--init: the training writes to {weights} and would overwrite {path}. Give another "
            "--weights directory."
        )
    files = find_weights(path) if path.is_dir() else [WeightFile(path, read_weights_metadata(path))]
    return choose_starts(files, recipe, "--init")


def choose_starts(
    files: Sequence[WeightFile], recipe: Recipe, option: str
) -> dict[str, WeightFile]:
    """Choose among weight files as :func:`require_starts` does; errors name the ``option``."""
    starts = {}
    for number, member in enumerate(recipe.ensemble):
        differences = {file.path: _difference(file, member, recipe) for file in files}
        networks: dict[str, WeightFile] = {}
        for file in sorted(files, key=_checkpoint_rank):
            if not differences[file.path]:
                networks.setdefault(file.metadata.get("member", file.path.name), file)
        if not networks:
            first, difference = next(iter(differences.items()))
            raise SatmapError(f"{option}: {member.name} cannot start from {first}: {difference}")
        taken = sorted(networks)[number % len(networks)]
        starts[member.name] = networks.get(member.name, networks[taken])
    return starts


def _checkpoint_rank(file: WeightFile) -> int:
    """Return the position of a file's checkpoint among those that its recipe predicts with."""
    names = file.recipe.checkpoints
    return names.index(file.checkpoint) if file.checkpoint in names else len(names)


def _difference(file: WeightFile, member: Member, recipe: Recipe) -> str:
    """Return why a member cannot start from a network; "" if it can."""
    if file.recipe.task.name != recipe.task.name:
        return (
            f"it was trained for {file.recipe.task.name}, and recipe {recipe.name} is for "
            f"{recipe.task.name}. Choose another --recipe."
        )
    if file.metadata.get(CONTENT_KEY) == TASK_CONTENT:
        return ""
    network = file.network
    if network.architecture != member.encoder:
        return (
            f"its encoder is {network.architecture}, and the recipe's is {member.encoder}. Use a "
            f"recipe with `encoder: {network.architecture}`."
        )
    if network.in_channels != member.bands:
        return (
            f"it reads {network.in_channels} bands, and the recipe has {member.bands}. Use a "
            f"recipe with `bands: {network.in_channels}`."
        )
    theirs, ours = network.decoder, member.decoder
    if (theirs.kind, theirs.widths) != (ours.kind, ours.widths):
        return (
            f"its decoder is {theirs.kind} with the widths {list(theirs.widths)}, and the recipe's "
            f"is {ours.kind} with {list(ours.widths)}. Use a recipe with "
            f"`decoder: {{kind: {theirs.kind}, widths: {list(theirs.widths)}}}`."
        )
    return ""
