"""Finding files under the directories that the organisers mount."""

import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.text import natural_key


def walk(directories: Iterable[Path], also_non_files: Container[str] = ()) -> Iterator[Path]:
    """All files at any depth, in natural order within each directory, each once.

    Links are followed; names that start with a dot are left out, and so are pipes and devices.

    Args:
        directories: where to begin.
        also_non_files: suffixes in lower case; what has one and is a directory, a pipe or a device
            is given, too, for whoever wanted a file there must hear of it.

    Raises:
        SatmapError: one of ``directories`` is not a directory, or a name is not UTF-8.
    """
    seen = set()
    for directory in directories:
        require_directories([directory])
        for parent, subdirectories, names in os.walk(directory, followlinks=True):
            place = os.path.realpath(parent)
            if place in seen:
                subdirectories.clear()
                continue
            seen.add(place)
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
    """Fail unless all of these are directories.

    Raises:
        SatmapError: one is a file, or does not exist.
    """
    for directory in directories:
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            raise SatmapError(f"{directory} {what}; give a directory that holds images.")


def is_not_a_file(path: Path) -> bool:
    """Whether a directory, a pipe or a device has the name; not for what is not there at all."""
    return not path.is_file() and path.exists()
