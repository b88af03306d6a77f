"""Checks of arguments that take no torch: a wrong call fails within a second.

Importing torch and torchvision takes many seconds. Commands call these functions first. The work
itself checks again what matters to it: files may change, and Python callers come another way.
"""

from collections.abc import Sequence
from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import is_temporary, refuse_pipe, require_writable
from satmap.io.walk import require_directories
from satmap.recipes.schema import Recipe, load_recipe
from satmap.submissions.outputs import require_outputs
from satmap.weights.header import read_weights_metadata
from satmap.weights.members import choose, find_weights, recipe_of

# How many weight files of a folder a message names.
_NAMED_FILES = 20


def check_prediction(
    directories: Sequence[Path],
    output: Path,
    weights: Path,
    recipe_name: str | None,
    exports: Sequence[Path] = (),
) -> None:
    """Fail if directories, outputs, weights or recipe of a prediction cannot be right.

    Raises:
        SatmapError: a directory does not exist, a file name stands for another format, there are no
            weights, their headers are broken, or they are of another recipe.
        CannotWriteError: an output cannot be written, or holds something else.
    """
    require_directories(directories)
    require_outputs(output, exports)
    files = find_weights(weights)
    recipe = load_recipe(recipe_name) if recipe_name else recipe_of(files)
    choose(files, recipe)


def check_training(directories: Sequence[Path], recipe: Recipe, weights: Path) -> None:
    """Fail if a training cannot begin.

    Raises:
        SatmapError: a directory does not exist.
        CannotWriteError: the directory of weights cannot be written.
    """
    require_directories(directories)
    require_writable(weights / f"{recipe.members[0].name}.safetensors")


def check_maps(maps: Path, *files: Path) -> None:
    """Fail if a directory of probability rasters, or a further input, does not exist.

    Raises:
        SatmapError: so it is.
    """
    require_directories([maps])
    for path in files:
        if not path.exists():
            raise SatmapError(f"{path} does not exist.")
        refuse_pipe(path)


def check_weight_file(path: Path) -> None:
    """Fail if a weight file does not exist, or its header is broken.

    Raises:
        SatmapError: so it is.
    """
    read_weights_metadata(path)


def require_single_file(weights: Path) -> None:
    """Fail if the weights to export are a folder, and name the weight files in it.

    Raises:
        SatmapError: it is a folder.
    """
    if not weights.is_dir():
        return
    files = sorted(path.name for path in weights.glob("*.safetensors") if not is_temporary(path))
    if not files:
        raise SatmapError(
            f"{weights} is a folder without weight files (*.safetensors). Give the file of one "
            "network."
        )
    others = len(files) - _NAMED_FILES
    names = ", ".join(files[:_NAMED_FILES]) + (f" and {others} others" if others > 0 else "")
    raise SatmapError(
        f"{weights} is a folder, but a single network is exported. Give one of the weight files "
        f"in it: {names}."
    )


def check_results(*paths: Path) -> None:
    """Fail if a result or truth does not exist.

    Raises:
        SatmapError: so it is.
    """
    for path in paths:
        if not path.exists():
            raise SatmapError(f"cannot read {path}: No such file or directory.")
