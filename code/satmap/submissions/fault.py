"""Problem report and search for repetitions, shared by the validators of all formats."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fault:
    """Problem that would get a submission rejected or a row dropped.

    Attributes:
        line: line of the file, from 1; None if the problem has no line (a missing image).
        message: description of the problem.
    """

    line: int | None
    message: str


def in_file_order(faults: list[Fault]) -> list[Fault]:
    """Sort faults by line, stably; those without a line come last."""
    return sorted(faults, key=lambda fault: (fault.line is None, fault.line or 0))


def repetitions(keys: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the index of every repeated row of ``keys`` (n, k), and that of its first occurrence.

    The order is that of the keys; the last column counts most.
    """
    # The sort is stable, so each run of equal rows starts with the first in the file.
    order = np.lexsort(keys.T)
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    yield from zip(order[~is_first].tolist(), first[~is_first].tolist(), strict=True)
