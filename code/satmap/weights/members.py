"""Choosing the networks of an ensemble from a directory of weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

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


@dataclass(frozen=True)
class WeightFile:
    """A trained network on disk.

    Attributes:
        path: the file, named ``member.checkpoint.safetensors``, an imported one as it may be.
        metadata: what ``save_weights`` wrote: ``recipe``, ``member``, ``stage``, ``epoch``, ...
        votes: for how many files of the ensemble it stands.
        duplicates: the others of these, which hold the same network.
    """

    path: Path
    metadata: dict[str, str]
    votes: int = 1
    duplicates: tuple[Path, ...] = ()

    @property
    def checkpoint(self) -> str:
        """``best_apls``, ``best_dice`` or ``last``: what the name says, else the file."""
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
        """What the file says of its network.

        Raises:
            SatmapError: it is broken, or for another version of satmap.
        """
        return parse_header(self.path, self.metadata)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the network was trained with.

        Raises:
            SatmapError: the file does not say, or this version of satmap cannot read it.
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
        """Ids of the images that validated its training; None if the file does not say.

        Raises:
            SatmapError: what it says is no list of names.
        """
        text = self.metadata.get("held_out")
        if text is None:
            return None
        try:
            names = json.loads(text)
        # Brackets within brackets, thousands deep, are too much for Python's parser.
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SatmapError(
                f"{self.path} has broken metadata: held_out must be a list of names, not "
                f"{printable(text, 80)}. Copy or train it again."
            )
        return frozenset(names)

    @property
    def checkpoint_key(self) -> tuple[str, ...]:
        """Member, stage and epoch: two files of one moment hold the same network."""
        return tuple(self.metadata.get(key, self.path.name) for key in ("member", "stage", "epoch"))


def find_weights(directory: Path) -> list[WeightFile]:
    """All weight files directly in the directory, sorted by name.

    Raises:
        SatmapError: there are none, or one is not a weight file.
    """
    paths = [path for path in sorted(directory.glob("*.safetensors")) if not is_temporary(path)]
    if not paths:
        raise SatmapError(
            f"no weights (*.safetensors) in {directory}. Run train.sh first, or give the right "
            "directory with --weights."
        )
    return [WeightFile(path, read_weights_metadata(path)) for path in paths]


def recipe_of(files: Sequence[WeightFile]) -> Recipe:
    """The recipe that all the files were trained with.

    Raises:
        SatmapError: they come from several recipes, or do not say.
    """
    recipes = {file.recipe.training_fingerprint: file.recipe for file in files}
    if len(recipes) > 1:
        names = ", ".join(f"{file.path.name} ({file.recipe.name})" for file in files)
        raise SatmapError(
            f"the weights were trained with {len(recipes)} different recipes: {names}. Say which "
            "one with --recipe, or move the others away."
        )
    return next(iter(recipes.values()))


def choose(files: Sequence[WeightFile], recipe: Recipe) -> list[WeightFile]:
    """The files that a recipe's ensemble is made of, each network once.

    The best and the last checkpoint are often the same network; it then computes once and has
    their votes. Weights of other recipes, or of another state of this one, are left out.

    Raises:
        SatmapError: nothing is left.
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
            f"no weights that recipe {recipe.name}, as it is now, was trained to, of checkpoint "
            f"{wanted}; there are {found}. Pass the recipe that they were trained with, or none."
        )
    return list(chosen.values())
