"""Checks of arguments without torch, so that a wrong call fails within a second.

Importing torch and torchvision takes many seconds. Commands call these functions first. The work
itself checks again, because files may change and Python callers do not use the command line.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import is_temporary, refuse_pipe, require_writable
from satmap.io.walk import require_directories
from satmap.recipes.schema import Recipe, load_recipe
from satmap.submissions.outputs import require_outputs
from satmap.weights.header import read_weights_metadata
from satmap.weights.members import choose, find_weights, recipe_of

# Largest number of weight files that a message names.
_NAMED_FILES = 20


def check_prediction(
    directories: Sequence[Path],
    output: Path,
    weights: Path,
    recipe_name: str | None,
    exports: Sequence[Path] = (),
) -> None:
    """Check directories, outputs, weights and recipe of a prediction.

    Raises:
        SatmapError: a directory does not exist, a file name has the suffix of another format, there
            are no weights, their headers are broken, or they belong to another recipe.
        CannotWriteError: an output cannot be written, or holds something else.
    """
    require_directories(directories)
    require_outputs(output, exports)
    files = find_weights(weights)
    recipe = load_recipe(recipe_name) if recipe_name else recipe_of(files)
    choose(files, recipe)


def check_training(directories: Sequence[Path], recipe: Recipe, weights: Path) -> None:
    """Check the image directories and the directory of weights of a training.

    Raises:
        SatmapError: a directory does not exist.
        CannotWriteError: the directory of weights cannot be written.
    """
    require_directories(directories)
    require_writable(weights / f"{recipe.members[0].name}.safetensors")


def check_maps(maps: Path, *files: Path) -> None:
    """Check that a directory of probability rasters and further input files exist.

    Raises:
        SatmapError: one of them does not exist.
    """
    require_directories([maps])
    for path in files:
        if not path.exists():
            raise SatmapError(f"{path} does not exist.")
        refuse_pipe(path)


def check_weight_file(path: Path) -> None:
    """Check that a weight file exists and has a valid header.

    Raises:
        SatmapError: the file does not exist, or its header is broken.
    """
    read_weights_metadata(path)


def require_single_file(weights: Path) -> None:
    """Check that the weights to export are not a folder.

    Raises:
        SatmapError: they are; the message names the weight files in the folder.
    """
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


def check_results(*paths: Path) -> None:
    """Check that results or truth files exist.

    Raises:
        SatmapError: one of them does not exist.
    """
    for path in paths:
        if not path.exists():
            raise SatmapError(f"cannot read {path}: No such file or directory.")


def require_tensorboard() -> None:
    """Check that TensorBoard is installed.

    Raises:
        SatmapError: it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise SatmapError(
            "--tensorboard needs the package `tensorboard`, which is not installed: "
            "run `pip install tensorboard`, or leave the option out. The log beside the weights "
            "has the same values."
        )
