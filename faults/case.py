"""A case of the campaign as data."""

from collections.abc import Callable
from dataclasses import dataclass

from faults.bench import Bench


@dataclass(frozen=True)
class Case:
    """One thing that is wrong, and how satmap must take it.

    Attributes:
        group: such as ``tiff``; what is chosen by, and a row of the short table.
        name: what is done.
        play: does it, runs the commands and notes what is not as it must be; gives the outcome in
            a word or two.
        limit_s: what each command may take.
        long: left out unless it is asked for by its group or with ``--all``.
    """

    group: str
    name: str
    play: Callable[[Bench], str]
    limit_s: float = 120.0
