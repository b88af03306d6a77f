"""Checks that outputs can be written, made before the work starts."""

from collections.abc import Sequence
from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import require_map_output
from satmap.recipes.task_settings import TaskSettings


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


def require_formats(task: TaskSettings, output: Path, exports: Sequence[Path] = ()) -> None:
    """Check that a task has the formats of a submission and its exports.

    Raises:
        SatmapError: a suffix is unknown, or belongs to another kind of output.
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
        SatmapError: the suffix is unknown.
    """
    _require_suffix(output, (*task.submission_suffixes, *task.export_suffixes))


def _require_suffix(path: Path, suffixes: Sequence[str], hint: str = "") -> None:
    if path.suffix.lower() not in suffixes:
        raise SatmapError(
            f"{path}: the suffix names the format, and '{path.suffix}' is none of "
            f"{', '.join(suffixes)}.{hint}"
        )
