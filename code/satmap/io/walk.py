"""Find files under directories."""

import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.text import natural_key


def walk(directories: Iterable[Path], also_non_files: Container[str] = ()) -> Iterator[Path]:
    """Yield all files at any depth, in natural order within each directory, each once.

    Links are followed. Names that start with a dot, pipes and devices are left out. Directories,
    pipes and devices with a suffix (in lower case) in ``also_non_files`` are yielded, too, so that
    the caller can report them where it expects a file.

    Raises:
        SatmapError: one of ``directories`` is not a directory, or a name is not UTF-8.
    """
    visited = set()
    for directory in directories:
        require_directories([directory])
        for parent, subdirectories, names in os.walk(directory, followlinks=True):
            place = os.path.realpath(parent)
            if place in visited:
                subdirectories.clear()
                continue
            visited.add(place)
            subdirectories[:] = sorted(s for s in subdirectories if not s.startswith("."))
            odd = [s for s in subdirectories if Path(s).suffix.lower() in also_non_files]
            for name in sorted([*names, *odd], key=natural_key):
                if not name.startswith("."):
                    path = Path(parent, name)
                    try:
                        str(path).encode()
                    except UnicodeEncodeError as error:
                        raise SatmapError(f"{path!r}: rename it; names must be UTF-8.") from error
                    if path.suffix.lower() not in also_non_files and is_not_a_file(path):
                        continue
                    yield path


def require_directories(directories: Iterable[Path]) -> None:
    """Raise SatmapError if one of these is a file or does not exist."""
    for directory in directories:
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            raise SatmapError(f"{directory} {what}; give a directory that holds images.")


def is_not_a_file(path: Path) -> bool:
    """Return whether the path exists and is a directory, a pipe or a device."""
    return not path.is_file() and path.exists()
