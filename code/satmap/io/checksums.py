"""What files hold, in a form that can be written down and compared: their SHA-256."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from satmap.errors import SatmapError
from satmap.runtime.resources import available_cores
from satmap.settings import Settings

Item = TypeVar("Item")
Result = TypeVar("Result")


class FileRecord(Settings):
    """A file as it was: its name without directory, its size and its SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


#: Id of a chip to what it is made of: ``PS-MS``, ``PS-RGB``, ``label`` to file.
ChipRecords = Mapping[str, Mapping[str, FileRecord]]


def record_file(path: Path) -> FileRecord:
    """The file as it is now.

    Raises:
        SatmapError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return FileRecord(name=path.name, bytes=file.tell(), sha256=digest.hexdigest())
    except OSError as error:
        raise SatmapError(f"{path}: cannot be read ({error.strerror}).") from error


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The work done on every item, as many at a time as there are cores; hashing needs no more."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(work, items))


def data_fingerprint(chips: ChipRecords) -> str:
    """SHA-256 over all files of a data set, whatever the order and wherever they lie.

    Directories do not count, for they are mounted here and there; names do, for ids come from them.
    """
    lines = sorted(
        f"{image_id}\t{kind}\t{record.name}\t{record.bytes}\t{record.sha256}\n"
        for image_id, files in chips.items()
        for kind, record in files.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
