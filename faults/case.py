"""Data class for a case of the campaign."""

from collections.abc import Callable
from dataclasses import dataclass

from faults.bench import Bench


@dataclass(frozen=True)
class Case:
    """One fault, and how satmap must handle it.

    Attributes:
        group: group for ``--only`` and the short table, such as ``tiff``.
        name: description of the fault.
        play: causes the fault, runs the commands, records findings and returns the outcome in a
            few words.
        limit_s: time limit of each command, seconds.
        long: whether the case is skipped unless its group or ``--all`` is given.
    """

    group: str
    name: str
    play: Callable[[Bench], str]
    limit_s: float = 120.0
