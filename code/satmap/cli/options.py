"""Options that several commands share, and what their values are."""

import argparse
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from satmap.errors import SatmapError
from satmap.recipes.registry import task_names
from satmap.runtime.resources import available_cores

if TYPE_CHECKING:
    from satmap.data.view_angles import ViewAngle
    from satmap.recipes.schema import Recipe


def add_weights(sub: argparse.ArgumentParser) -> None:
    """Where weights are."""
    sub.add_argument(
        "--weights",
        type=Path,
        default=default_weights(),
        metavar="DIR",
        help="directory of weights (default: $WEIGHTS_DIR or %(default)s)",
    )


def add_networks(sub: argparse.ArgumentParser) -> None:
    """Where weights are, and what runs networks."""
    add_weights(sub)
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def add_recipe(sub: argparse.ArgumentParser, meaning: str = "name or .yaml file") -> None:
    """Which recipe; the meaning is what the help says of it."""
    sub.add_argument("--recipe", default="sn5-roads", help=f"{meaning} (default: %(default)s)")


def add_images(sub: argparse.ArgumentParser, meaning: str) -> None:
    """Directories of images; the meaning is what the help says of them."""
    sub.add_argument("--images", type=Path, nargs="+", default=[], metavar="DIR", help=meaning)


def add_view_angle(sub: argparse.ArgumentParser) -> None:
    """From where images look."""
    sub.add_argument(
        "--nadir",
        type=view_angle,
        metavar="LOOK",
        help="from where images look whose names do not say it, for recipes with a head by "
        "look: degrees off nadir, with the side if need be, such as 32 or 32south",
    )


def add_maps(sub: argparse.ArgumentParser, default: str) -> None:
    """Add options for probability rasters: task, pixel size, worker processes.

    Args:
        sub: the command.
        default: what the help says of the default task.
    """
    sub.add_argument(
        "--task", choices=task_names(), help=f"what the rasters show (default: {default})"
    )
    sub.add_argument(
        "--metres-per-pixel",
        type=pixel_size,
        metavar="M",
        help="pixel size of rasters without georeference (default: the recipe's, 0.3)",
    )
    sub.add_argument(
        "--workers",
        type=count,
        default=available_cores() if available_cores() > 1 else 0,
        metavar="N",
        help="processes that vectorise; 0 works in the main one (default: %(default)s)",
    )


def default_weights() -> Path:
    """``$WEIGHTS_DIR``, else ``weights``."""
    return Path(os.environ.get("WEIGHTS_DIR", "weights"))


def pixel_size(text: str) -> float:
    """Argument type: metres, between a millimetre and a hundred metres."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is no size of a pixel in metres")
    return value


def count(text: str) -> int:
    """Argument type: a whole number from 0."""
    if not text.isdecimal() or not text.isascii():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def positive(text: str) -> int:
    """Argument type: a whole number from 1."""
    value = count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return value


def view_angle(text: str) -> "ViewAngle":
    """Argument type: from where an image looks at the ground."""
    from satmap.data.view_angles import parse_view_angle

    try:
        return parse_view_angle(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def duration(text: str) -> float:
    """Argument type: a time in seconds, written in hours, minutes and seconds: 1h30m."""
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text)
    try:
        hours, minutes, seconds = (
            (float(part or 0) for part in found.groups()) if found else 3 * [0]
        )
    except ValueError:
        hours = minutes = seconds = 0
    value = 3600 * hours + 60 * minutes + seconds
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 40h, 90m, 30s or 1h30m")
    return value


def minutes(text: str) -> float:
    """Argument type: a time above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes")
    return value


def require_task(recipe: "Recipe", task: str | None) -> "Recipe":
    """The recipe, if it is for the task that the user named.

    Raises:
        SatmapError: it is for another task.
    """
    if task not in (None, recipe.task.name):
        raise SatmapError(
            f"recipe {recipe.name} is for {recipe.task.name}, not for {task}. Give that of the "
            "weights with --recipe."
        )
    return recipe


def with_pixel_size(recipe: "Recipe", metres: float | None) -> "Recipe":
    """The recipe with the pixel size that the user gave for rasters without georeference."""
    if metres is None or not hasattr(recipe.task, "default_metres_per_pixel"):
        return recipe
    settings = recipe.task.model_copy(update={"default_metres_per_pixel": metres})
    return recipe.model_copy(update={"task": settings})
