"""The file that a fitted recipe is written to."""

from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import require_writable

_SUFFIXES = (".yaml", ".yml")


def require_recipe_output(path: Path) -> None:
    """Check that a recipe can be written to a file.

    Raises:
        SatmapError: the name has another suffix.
        CannotWriteError: the file cannot be written.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise SatmapError(f"{path}: the name of a recipe must end in {' or '.join(_SUFFIXES)}.")
    require_writable(path)
