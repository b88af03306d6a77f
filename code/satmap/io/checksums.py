"""SHA-256 checksums of files and data sets."""

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
    """Identity of a file's content: name without directory, size, hexadecimal checksum."""

    name: str
    bytes: int
    sha256: str


#: Files of each chip, by image id and then by kind: ``PS-MS``, ``PS-RGB``, ``label``.
ChipRecords = Mapping[str, Mapping[str, FileRecord]]


def record_file(path: Path) -> FileRecord:
    """Record a file, or a directory by the names, sizes and checksums of its files.

    Raises:
        SatmapError: it cannot be read.
    """
    try:
        if path.is_dir():
            files = in_threads(record_file, sorted(path.iterdir()))
            lines = "".join(f"{file.name}\t{file.bytes}\t{file.sha256}\n" for file in files)
            digest = hashlib.sha256(lines.encode())
            size = sum(file.bytes for file in files)
            return FileRecord(name=path.name, bytes=size, sha256=digest.hexdigest())
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
            return FileRecord(name=path.name, bytes=file.tell(), sha256=content.hexdigest())
    except OSError as error:
        raise SatmapError(f"{path}: cannot be read ({error.strerror}).") from error


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Map a function over items in threads, one per core; keep the order.

    Threads suffice for hashing, which releases the interpreter lock.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(work, items))


def data_fingerprint(chips: ChipRecords) -> str:
    """Compute the SHA-256 over all files of a data set, independent of their order.

    Directories do not count, because mount points differ. File names count, because image ids are
    derived from them.
    """
    lines = sorted(
        f"{image_id}\t{kind}\t{record.name}\t{record.bytes}\t{record.sha256}\n"
        for image_id, files in chips.items()
        for kind, record in files.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
