"""Checks of arguments without torch, so that a wrong call fails within a second.

Importing torch and torchvision takes many seconds. Commands call these functions first. The work
itself checks again, because files may change and Python callers do not use the command line. All
functions raise a SatmapError that names the argument and the remedy.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from satmap.cli.options import require_task
from satmap.errors import SatmapError
from satmap.io.files import is_temporary, refuse_pipe, require_writable
from satmap.io.walk import require_directories
from satmap.recipes.schema import Recipe, load_recipe
from satmap.submissions.output_checks import (
    require_any_format,
    require_formats,
    require_outputs,
)
from satmap.tasks.calibration import require_calibration
from satmap.weights.header import (
    CONTENT_KEY,
    TASK_CONTENT,
    parse_header,
    read_metadata,
    read_weights_metadata,
)
from satmap.weights.members import choose, find_weights, recipe_of
from satmap.weights.starters import starter_weights

# Largest number of weight files that a message names.
_NAMED_FILES = 20


def check_prediction(options: argparse.Namespace) -> None:
    """Check directories, outputs, weights and recipe of ``predict``."""
    if options.probabilities:
        require_writable(options.probabilities / "maps.tif")
    for path in options.directories:
        if path.is_file():
            raise SatmapError(
                f"{path} is a file. `predict` reads directories of a challenge's images; `satmap "
                "map` reads any images."
            )
    require_directories(options.directories)
    require_outputs(options.output, options.export)
    files = find_weights(options.weights)
    recipe = load_recipe(options.recipe) if options.recipe else recipe_of(files)
    require_formats(recipe.task, options.output, options.export)
    require_networks([file.path for file in choose(files, recipe)])
    require_calibration(options.least_confidence, options.weights, options.out_of_fold)


def check_mapping(options: argparse.Namespace) -> None:
    """Check sources, outputs, weights and recipe of ``map``; choose the starter network."""
    for source in options.sources:
        if "://" not in source:
            require_existing(Path(source))
    require_outputs(options.output, options.export)
    options.weights = options.weights or starter_weights(options.task)
    files = find_weights(options.weights)
    recipe = load_recipe(options.recipe) if options.recipe else recipe_of(files)
    require_task(recipe, options.task)
    for path in (options.output, *options.export):
        require_any_format(recipe.task, path)
    require_networks([file.path for file in choose(files, recipe)])
    require_calibration(options.least_confidence, options.weights)


def require_existing(*paths: Path) -> None:
    """Check that files or directories exist and that none is a pipe or a device."""
    for path in paths:
        if not path.exists():
            raise SatmapError(f"{path} does not exist.")
        refuse_pipe(path)


def require_networks(paths: Sequence[Path]) -> None:
    """Check that weight files exist and that their headers describe networks."""
    for path in paths:
        metadata = read_weights_metadata(path)
        # Only the task itself can read the header of its own kind of network.
        if metadata.get(CONTENT_KEY) != TASK_CONTENT:
            parse_header(path, read_metadata(path))


def require_folds(recipe: Recipe, folds: Sequence[int]) -> None:
    """Check that a recipe has members of these folds."""
    known = sorted({member.fold for member in recipe.members if member.fold is not None})
    for fold in set(folds) - set(known):
        names = ", ".join(map(str, known)) or "none"
        raise SatmapError(
            f"recipe {recipe.name} has no member of fold {fold}. Its folds are: {names}."
        )


def require_single_file(weights: Path) -> None:
    """Reject a folder as the network to export; the message names its weight files."""
    if not weights.is_dir():
        return
    files = sorted(path.name for path in weights.glob("*.safetensors") if not is_temporary(path))
    if not files:
        raise SatmapError(
            f"{weights} is a folder without weight files (*.safetensors). Give the weight file of "
            "one network."
        )
    others = len(files) - _NAMED_FILES
    names = ", ".join(files[:_NAMED_FILES]) + (f" and {others} others" if others > 0 else "")
    raise SatmapError(
        f"{weights} is a folder, but only a single network can be exported. Give one of the weight "
        f"files in it: {names}."
    )


def require_tensorboard() -> None:
    """Check that TensorBoard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise SatmapError(
            "--tensorboard needs the package `tensorboard`, which is not installed: "
            "run `pip install tensorboard`, or leave the option out. The log beside the weights "
            "has the same values."
        )
