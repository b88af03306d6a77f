"""Checks that outputs can be written, made before the work starts."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from satmap.errors import CannotWriteError, SatmapError
from satmap.io.files import require_writable
from satmap.recipes.task_settings import TaskSettings
from satmap.submissions.result_format import find_format

# Text near the start of every file of a format, in lower case, by suffix.
_MARKS = {
    ".csv": b"imageid",
    ".fgb": b"fgb",
    ".geojson": b"featurecollection",
    ".gpkg": b"sqlite format 3",
    ".graphml": b"graphml",
    ".osm": b"<osm",
    ".parquet": b"par1",
    ".pbf": b"osmheader",
    ".tgz": b"\x1f\x8b",
    ".zip": b"pk\3\4",
    # COCO results of buildings are a list.
    ".json": b"[",
}

# Packages of the extra `satmap[gis]` that formats need, by suffix.
_PACKAGES = {".parquet": "pyarrow", ".pbf": "osmium"}

# Suffixes of recipes.
_RECIPE_SUFFIXES = (".yaml", ".yml")

# Number of bytes at the start of a file that are searched.
_START = 512


def require_outputs(output: Path, exports: Sequence[Path] = ()) -> None:
    """Check that a submission and its exports can be written to these files.

    Raises:
        SatmapError: an export is the same file as the submission.
        CannotWriteError: a file cannot be written, or holds something else.
    """
    for path in exports:
        if path.resolve() == output.resolve():
            raise SatmapError(f"{path} cannot be both the submission and an export.")
    for path in (output, *exports):
        require_map_output(path)


def require_map_output(path: Path) -> None:
    """Check early that a map can be written and that no other kind of file is overwritten.

    If the user forgets the last argument, an input image could otherwise be taken as the output.
    The suffix gives the format; an unknown suffix means CSV.

    Raises:
        CannotWriteError: the file cannot be written, or exists and holds something else.
    """
    if not path.suffix and (path.is_dir() or not path.exists()):
        _require_mask_directory(path)
        return
    require_writable(path)
    if not path.is_file() or not path.stat().st_size:
        return
    suffix = path.suffix.lower() if path.suffix.lower() in _MARKS else ".csv"
    with path.open("rb") as file:
        start = file.read(_START)
    if _MARKS[suffix] not in start.lower() and find_format(path) is None:
        raise CannotWriteError(
            f"{path} exists and is not a {suffix} map, so it is not overwritten. Give another "
            "name, or remove the file."
        )


def _require_mask_directory(path: Path) -> None:
    """Check early that a directory of masks can be written, and that satmap wrote what it holds.

    Masks without a manifest beside them may be labels.
    """
    # Importing GDAL takes most of a second.
    from satmap.submissions.mask_rasters import is_mask_directory

    manifest = path.parent / f"{path.name}.manifest.json"
    require_writable(manifest)
    is_ours = not path.is_dir() or (is_mask_directory(path) and manifest.is_file())
    if not is_ours and any(path.iterdir()):
        raise CannotWriteError(
            f"{path} is a directory that holds other things than masks of satmap, so it is not "
            "replaced. Give another name, or remove it."
        )


def require_formats(task: TaskSettings, output: Path, exports: Sequence[Path] = ()) -> None:
    """Check that a task has the formats of a submission and its exports.

    Raises:
        SatmapError: a suffix is unknown, belongs to another kind of output, or needs a package that
            is not installed.
    """
    others = ", ".join(task.export_suffixes)
    hint = f" For {others} add --export." if others else ""
    _require_suffix(output, task.submission_suffixes, hint)
    if exports and not others:
        raise SatmapError(f"{exports[0]}: {task.name} have no export formats. Leave out --export.")
    for path in exports:
        _require_suffix(path, task.export_suffixes)


def require_any_format(task: TaskSettings, output: Path) -> None:
    """Check that an output has the suffix of a submission or of an export.

    Raises:
        SatmapError: the suffix is unknown, or needs a package that is not installed.
    """
    _require_suffix(output, (*task.submission_suffixes, *task.export_suffixes))


def _require_suffix(path: Path, suffixes: Sequence[str], hint: str = "") -> None:
    if path.suffix.lower() not in suffixes:
        named = ", ".join(suffix or "none (a directory)" for suffix in suffixes)
        raise SatmapError(
            f"{path}: the suffix names the format, and '{path.suffix}' is none of {named}.{hint}"
        )
    package = _PACKAGES.get(path.suffix.lower())
    if package and importlib.util.find_spec(package) is None:
        raise SatmapError(
            f"{path}: this format needs the package {package}, which is not installed: "
            "pip install 'satmap[gis]'."
        )


def require_recipe_output(path: Path) -> None:
    """Check that a recipe can be written to a file.

    Raises:
        SatmapError: the name has another suffix.
        CannotWriteError: the file cannot be written.
    """
    if path.suffix.lower() not in _RECIPE_SUFFIXES:
        raise SatmapError(
            f"{path}: the name of a recipe must end in {' or '.join(_RECIPE_SUFFIXES)}."
        )
    require_writable(path)
