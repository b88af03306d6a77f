"""Choosing the networks of an ensemble from a directory of weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch
from pydantic import ValidationError

from satmap.errors import SatmapError
from satmap.io.files import is_temporary
from satmap.io.text import printable
from satmap.prediction.dense import EnsembleMember
from satmap.recipes.schema import Checkpoint, Recipe
from satmap.weights.header import (
    CHECKPOINT_KEY,
    NetworkHeader,
    parse_header,
    read_weights_metadata,
)
from satmap.weights.network_files import load_weights


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
        return named if named in get_args(Checkpoint) else self.metadata.get(CHECKPOINT_KEY, named)

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
            return Recipe.model_validate_json(self.metadata.get("recipe", ""))
        except ValidationError as error:
            raise SatmapError(
                f"{self.path}: the recipe inside cannot be read by this version of satmap "
                f"({error.errors()[0]['msg']}). Train again, or use the version that trained it."
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
        SatmapError: nothing is left, or a network does not have the planes that the task needs.
    """
    chosen: dict[tuple[str, ...], WeightFile] = {}
    for file in files:
        fits = file.recipe.training_fingerprint == recipe.training_fingerprint
        if fits and file.checkpoint in recipe.inference.checkpoints:
            known = chosen.get(file.checkpoint_key)
            if known:
                duplicates = (*known.duplicates, file.path)
                file = replace(known, votes=known.votes + 1, duplicates=duplicates)
            chosen[file.checkpoint_key] = file
    if not chosen:
        found = ", ".join(f"{file.path.name} ({file.recipe.name})" for file in files)
        wanted = " or ".join(recipe.inference.checkpoints)
        raise SatmapError(
            f"no weights that recipe {recipe.name}, as it is now, was trained to, of checkpoint "
            f"{wanted}; there are {found}. Pass the recipe that they were trained with, or none."
        )
    for file in chosen.values():
        _require_maps(file, recipe)
    return list(chosen.values())


def _require_maps(file: WeightFile, recipe: Recipe) -> None:
    """Fail before any work if a network cannot do the recipe's task."""
    wanted = recipe.maps
    network = file.network
    if network.categories and not recipe.categories:
        raise SatmapError(
            f"{file.path} has a head for each of {_list(network.categories)}, but images of "
            f"{recipe.task} have no category to choose one by. Move it elsewhere."
        )
    if network.categories != recipe.categories:
        raise SatmapError(
            f"{file.path} has heads for {_list(network.categories) or 'no categories'}, but the "
            f"recipe {recipe.name} for {_list(recipe.categories)}. Move it elsewhere."
        )
    if set(network.maps) != set(wanted):
        raise SatmapError(
            f"{file.path} gives the planes {_list(network.maps)}, but {recipe.task} are made of "
            f"{_list(wanted)}. Move it elsewhere."
        )


def load_ensemble(files: Sequence[WeightFile], device: torch.device) -> list[EnsembleMember]:
    """The networks on the device, in evaluation mode, their planes in one order.

    The order is that of the task of the first file's recipe, where it has these planes, and else
    that of the first network.

    Raises:
        SatmapError: a file cannot be loaded, or the networks have different planes or categories.
    """
    first = files[0]
    task = first.recipe.maps
    maps = task if set(task) == set(first.network.maps) else first.network.maps
    members = []
    for file in files:
        network, _ = load_weights(file.path)
        if set(network.map_names) != set(maps) or network.categories != first.network.categories:
            raise SatmapError(
                f"{first.path} and {file.path} cannot be averaged: the first gives "
                f"{_outputs(first.network.maps, first.network.categories)}, the second "
                f"{_outputs(network.map_names, network.categories)}. Move one elsewhere."
            )
        network.order_maps(maps)
        network.to(device).to(memory_format=torch.channels_last)
        members.append(EnsembleMember(network, file.votes))
    return members


def _list(names: Sequence[str]) -> str:
    return printable(", ".join(names), 300)


def _outputs(maps: Sequence[str], categories: Sequence[str]) -> str:
    heads = f" for each of {_list(categories)}" if categories else ""
    return f"{_list(maps)}{heads}"
