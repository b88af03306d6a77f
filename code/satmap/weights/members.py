"""Choose the networks of an ensemble from a directory of weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from satmap.errors import SatmapError
from satmap.io.files import is_temporary
from satmap.io.text import printable
from satmap.recipes.schema import LAST, Recipe, recipe_from_json
from satmap.weights.header import (
    CHECKPOINT_KEY,
    NetworkHeader,
    parse_header,
    read_weights_metadata,
)

_NAMES = TypeAdapter(list[str])


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
    def held_out(self) -> frozenset[str] | None:
        """Ids of the images held out for validation; None if the file has no such list.

        Raises:
            SatmapError: the metadata are not a list of names.
        """
        text = self.metadata.get("held_out")
        if text is None:
            return None
        try:
            return frozenset(_NAMES.validate_json(text))
        except ValidationError as error:
            raise SatmapError(
                f"{self.path} has broken metadata: held_out must be a list of names, not "
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
            f"no weights (*.safetensors) in {directory}. Run train.sh first, or give another "
            "directory with --weights."
        )
    return [WeightFile(path, read_weights_metadata(path)) for path in paths]


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
            f"{recipe.name}; the directory has {found}. Pass the recipe that they were trained "
            "with, or none."
        )
    return list(chosen.values())
