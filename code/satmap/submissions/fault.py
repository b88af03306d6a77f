"""What the validators of all formats share: problem reports and the search for repetitions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satmap.errors import SatmapError


@dataclass(frozen=True)
class Fault:
    """Problem that would get a submission rejected or a row dropped.

    Attributes:
        line: line of the file, from 1; None if the problem has no line (a missing image).
        message: description of the problem.
    """

    line: int | None
    message: str


def read_first_line(path: Path) -> tuple[bytes, list[Fault]]:
    """Return the first line without its byte order mark, and a fault if there was one.

    Raises:
        SatmapError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 16)
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    bare = line.removeprefix(b"\xef\xbb\xbf")
    faults = [] if bare == line else [Fault(1, "the file starts with a byte order mark")]
    return bare, faults


def in_file_order(faults: list[Fault]) -> list[Fault]:
    """Sort faults by line, stably; those without a line come last."""
    return sorted(faults, key=lambda fault: (fault.line is None, fault.line or 0))


def repetitions(keys: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the index of every repeated row of ``keys`` (n, k), and that of its first occurrence.

    They come in the order of the sorted rows, whose last column is the main sort key.
    """
    # The sort is stable, so each run of equal rows starts with the first in the file.
    order = np.lexsort(keys.T)
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    yield from zip(order[~is_first].tolist(), first[~is_first].tolist(), strict=True)
