"""Options that several commands share, and argument types."""

import argparse
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from satmap.cli.commands import Parser
from satmap.errors import SatmapError
from satmap.io.walk import require_directories
from satmap.recipes.registry import task_names
from satmap.runtime.resources import available_cores

if TYPE_CHECKING:
    from satmap.data.own_data import OwnData
    from satmap.data.view_angles import ViewAngle
    from satmap.recipes.schema import Recipe


def add_weights(sub: Parser, starters: bool = False) -> None:
    """Add the option for the directory of weights.

    With ``starters`` the default is the starter network of the task, otherwise weights/.
    """
    given = os.environ.get("WEIGHTS_DIR", "" if starters else "weights")
    other = "else the starter network of the task" if starters else "else weights"
    sub.value(
        "--weights DIR",
        Path,
        f"directory of weights (default: $WEIGHTS_DIR, {other})",
        default=Path(given) if given else None,
    )


def add_directories(sub: Parser, content: str = "images") -> None:
    """Add the argument for one or more directories."""
    sub.value("directories DIR", Path, f"directory of {content}, searched to any depth", nargs="+")


def add_networks(sub: Parser, starters: bool = False) -> None:
    """Add the options for the directory of weights and the device; see :func:`add_weights`."""
    add_weights(sub, starters)
    sub.add_argument(
        "--device",
        default="auto",
        help="device of the networks: auto, cpu, cuda, cuda:1, ... (default: %(default)s)",
    )


def add_processes(sub: Parser) -> None:
    """Add the options for the numbers of processes."""
    sub.value(
        "--workers N",
        count,
        "processes that vectorise, per process that predicts; 0 uses the predicting process "
        "(default: by the number of cores)",
    )
    sub.value(
        "--processes N",
        count,
        "processes that predict (default: one per visible GPU, without GPUs one)",
    )


def add_recipe(sub: Parser, meaning: str = "name of a recipe or .yaml file") -> None:
    """Add the option for a recipe."""
    sub.add_argument("--recipe", default="sn5-roads", help=f"{meaning} (default: %(default)s)")


def add_images(sub: Parser, meaning: str) -> None:
    """Add the option for directories of images."""
    sub.value("--images DIR", Path, meaning, nargs="+", default=[])


def add_units(sub: Parser) -> None:
    """Add the option for the units of a picture."""
    sub.add_argument(
        "--units",
        choices=("km/h", "mph"),
        default="km/h",
        help="units in pictures: km/h with metres, or mph with feet (default: %(default)s)",
    )


def add_sources(sub: Parser, shift: bool = True) -> None:
    """Add the argument for images: a challenge's directories, or any rasters with ``--labels``.

    Without ``shift`` there is no option to move the labels.
    """
    sub.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="directory of a challenge's images and labels; with --labels any raster, directory of "
        "rasters or of map tiles, or address of a GeoTIFF",
    )
    sub.value(
        "--labels LABELS",
        Path,
        "labels of your own images: a vector file (.gpkg, .shp, .fgb, .parquet, .geojson, .osm, "
        ".pbf), a directory of such files, or a directory of masks with the names of the images",
    )
    sub.value(
        "--area FILE", Path, "vector file with polygons: labels are complete only within them"
    )
    add_reading(sub, "metres per pixel of the chips (default: that of the images)")
    sub.value(
        "--metres-per-pixel M",
        pixel_size,
        "pixel size of images without georeference (default: the recipe's)",
    )
    if shift:
        sub.value(
            "--shift EAST,NORTH",
            two_numbers,
            "move vector labels by these metres, for example by the offset that inventory reports",
        )


def add_judgement(sub: Parser) -> None:
    """Add the option for judged labels."""
    sub.value(
        "--judgement JUDGED",
        Path,
        "directory that `labels judge` has written: take its moved labels, and leave out what it "
        "ignores or drops",
    )


def add_reading(sub: Parser, gsd: str) -> None:
    """Add the options for how rasters are read; ``gsd`` is the help of the pixel size."""
    sub.value(
        "--bands N,N,N",
        bands,
        "bands for red, green, blue, ... (default: those marked red, green, blue in the file, else "
        "the first)",
    )
    sub.value(
        "--source-crs CRS",
        source_system,
        "reference system of images that state none, such as EPSG:32631",
    )
    sub.value(
        "--zoom Z",
        count,
        "zoom level of map tiles and MBTiles (default: of map tiles all, the finest on top; of "
        "MBTiles the finest)",
    )
    sub.value("--gsd M", pixel_size, gsd)


def own_data(options: argparse.Namespace) -> "OwnData | None":
    """Return the user's own images and labels; None for a challenge's directories.

    Raises:
        SatmapError: a file or directory does not exist, or an option needs ``--labels``.
    """
    if options.labels is None:
        for name in ("area", "bands", "source_crs", "zoom", "gsd", "metres_per_pixel", "shift"):
            if getattr(options, name, None) is not None:
                option = name.replace("_", "-")
                raise SatmapError(f"--{option} is for your own images: give --labels, too.")
        for source in options.sources:
            if "://" in source or Path(source).is_file():
                raise SatmapError(
                    f"{source} is a single image: give its labels, too, with --labels. Without "
                    "--labels give the directory of a challenge's images and labels."
                )
        require_directories(map(Path, options.sources))
        return None
    for path in (options.labels, *([options.area] if options.area else [])):
        if not path.exists():
            raise SatmapError(f"{path} does not exist. Check the name.")
    from satmap.data.own_data import OwnData

    return OwnData(
        tuple(options.sources),
        options.labels,
        options.area,
        options.bands,
        options.source_crs,
        options.zoom,
        options.gsd,
        options.metres_per_pixel,
        getattr(options, "shift", None) or (0.0, 0.0),
    )


def add_cache(sub: Parser, needed: str) -> None:
    """Add the option for the directory of prepared chips, which the command ``needed`` uses."""
    sub.value("--cache DIR", Path, f"{needed}: directory of prepared chips (default: as in train)")


def add_view_angle(sub: Parser) -> None:
    """Add the option for the off-nadir angle."""
    sub.value(
        "--nadir ANGLE",
        view_angle,
        "off-nadir angle, for images whose names lack it, for recipes with a head per view "
        "angle: degrees, with the side if needed, such as 32 or 32south",
    )


def add_crs(sub: Parser) -> None:
    """Add the option for the reference system of exports."""
    sub.value(
        "--crs CRS",
        crs_text,
        "reference system of exports, such as EPSG:32631 (default: that of the images where it is "
        "projected, else longitude and latitude; .geojson, .graphml, .osm and .pbf are always in "
        "longitude and latitude)",
    )


def add_least_confidence(sub: Parser) -> None:
    """Add the option for the least confidence of roads and buildings."""
    sub.value(
        "--least-confidence P",
        share,
        "leave out roads and buildings with a lower confidence, 0 to 1; they must be calibrated "
        "(satmap confidence)",
    )


def add_maps(sub: Parser, default: str) -> None:
    """Add options for probability rasters; ``default`` describes the default task in the help."""
    sub.add_argument(
        "--task", choices=task_names(), help=f"what the rasters show (default: {default})"
    )
    sub.value(
        "--metres-per-pixel M",
        pixel_size,
        "pixel size of rasters without georeference (default: the recipe's, 0.3)",
    )
    sub.value(
        "--workers N",
        count,
        "processes that vectorise; 0 uses the main process (default: %(default)s)",
        default=available_cores() if available_cores() > 1 else 0,
    )


def pixel_size(text: str) -> float:
    """Argument type: a pixel size in metres, 0.001..100."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a pixel size in metres")
    return value


def metres(text: str) -> float:
    """Argument type: a length in metres, 1 to 1,000,000."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a length of 1 metre or more")
    return value


def count(text: str) -> int:
    """Argument type: a whole number, 0 or more."""
    if not text.isdecimal() or not text.isascii():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def bands(text: str) -> tuple[int, ...]:
    """Argument type: band numbers from 1, separated by commas."""
    parts = text.split(",")
    if not all(part.isdecimal() and part.isascii() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of band numbers such as 5,3,2")
    return tuple(map(int, parts))


def two_numbers(text: str) -> tuple[float, float]:
    """Argument type: two numbers, separated by a comma."""
    try:
        one, other = map(float, text.split(","))
    except ValueError:
        one = other = math.inf
    if not (math.isfinite(one) and math.isfinite(other)):
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 1.5,-0.8")
    return one, other


def value_range(text: str) -> tuple[float, float]:
    """Argument type: two numbers, the smaller one first."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range such as 0,3000")
    return low, high


def share(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def positive_number(text: str) -> float:
    """Argument type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def positive(text: str) -> int:
    """Argument type: a whole number, 1 or more."""
    value = count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is too few; give 1 or more")
    return value


def view_angle(text: str) -> "ViewAngle":
    """Argument type: an off-nadir angle, with an optional side."""
    from satmap.data.view_angles import parse_view_angle

    try:
        return parse_view_angle(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def crs_text(text: str) -> str:
    """Argument type: a reference system on the ground, returned as LON_LAT or WKT."""
    from satmap.vectors.georeference import reference_system

    try:
        return reference_system(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def source_system(text: str) -> str:
    """Argument type: as :func:`crs_text`, but returned as the user named it.

    LON_LAT differs from EPSG:4326. If other images state that, they would be resampled.
    """
    crs_text(text)
    return text.strip()


def duration(text: str) -> float:
    """Argument type: a duration in hours, minutes and seconds (1h30m), returned in seconds."""
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text)
    try:
        hours, minutes, seconds = (
            (float(part or 0) for part in found.groups()) if found else 3 * [0]
        )
    except ValueError:
        hours = minutes = seconds = 0
    value = 3600 * hours + 60 * minutes + seconds
    if not value:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration; write 40h, 90m, 30s or 1h30m"
        )
    return value


def minutes(text: str) -> float:
    """Argument type: a number of minutes above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes above 0")
    return value


def require_task(recipe: "Recipe", task: str | None) -> "Recipe":
    """Return the recipe, after checking that it is for the task that the user named.

    Raises:
        SatmapError: it is for another task.
    """
    if task not in (None, recipe.task.name):
        raise SatmapError(
            f"recipe {recipe.name} is for {recipe.task.name}, not for {task}. Give the recipe of "
            "the weights with --recipe."
        )
    return recipe


def with_pixel_size(recipe: "Recipe", metres: float | None) -> "Recipe":
    """Return a copy of the recipe with the user's pixel size for rasters without georeference."""
    if metres is None or not hasattr(recipe.task, "default_metres_per_pixel"):
        return recipe
    settings = recipe.task.model_copy(update={"default_metres_per_pixel": metres})
    return recipe.model_copy(update={"task": settings})
