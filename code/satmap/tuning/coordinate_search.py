"""Coordinate descent over small grids of settings.

A step is taken only if its gain exceeds the standard error of the gain over the chips, as in the
one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984). Without that rule, the best of
many equally good settings would always look better than it is.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from pydantic import ValidationError

from satmap.io.progress import track
from satmap.settings import Settings

#: Settings of a vectoriser; they must be hashable.
SettingsT = TypeVar("SettingsT", bound=Settings)

#: Result of one chip under some settings: a score, counts or matches.
Record = TypeVar("Record")
_Record = TypeVar("_Record", contravariant=True)

#: Values that each setting may take.
Grids = Mapping[str, Sequence[float]]

#: Number of a chip, and the settings to evaluate on it.
Trial = tuple[int, tuple[SettingsT, ...]]

# Further rounds change almost nothing.
_MOST_ROUNDS = 3


class Gain(NamedTuple):
    """A difference of scores and its standard error."""

    mean: float
    error: float

    @property
    def counts(self) -> bool:
        """Whether the gain exceeds its standard error."""
        return self.mean > self.error


class Measure(Protocol[_Record]):
    """Combines the records of many chips into one score."""

    def score(self, records: Sequence[_Record], chips: Sequence[int]) -> float:
        """Return the score of chips, given one record per chip; higher is better."""

    def gain(
        self, before: Sequence[_Record], after: Sequence[_Record], chips: Sequence[int]
    ) -> Gain:
        """Return the gain from the first to the second records of the same chips, at least two."""


class RecordTable(Generic[SettingsT, Record]):
    """Records of chips under settings, each computed once."""

    def __init__(
        self,
        measure: Measure[Record],
        work: Callable[[Sequence[Trial[SettingsT]]], Generator[Sequence[Record]]],
    ) -> None:
        """Initialize an empty table.

        Args:
            measure: turns records into scores.
            work: yields for every trial, in order, a record for each of its settings. The generator
                may be closed early.
        """
        self.measure = measure
        self._work = work
        self._records: dict[tuple[int, SettingsT], Record] = {}

    def fill(
        self, settings: Sequence[SettingsT], chips: Sequence[int], deadline: float = inf
    ) -> bool:
        """Compute the missing records.

        Args:
            settings: settings to evaluate.
            chips: numbers of the chips to evaluate them on.
            deadline: time limit on the clock of ``time.monotonic``.

        Returns:
            False if the time ran out.
        """
        tasks = []
        for chip in chips:
            missing = tuple(s for s in settings if (chip, s) not in self._records)
            if missing:
                tasks.append((chip, missing))
        if tasks and time.monotonic() >= deadline:
            return False
        with closing(self._work(tasks)) as results:
            for done, (chip, missing) in enumerate(tasks, start=1):
                for tried, record in zip(missing, next(results), strict=True):
                    self._records[chip, tried] = record
                if done < len(tasks) and time.monotonic() >= deadline:
                    return False
        return True

    def records(self, settings: SettingsT, chips: Sequence[int]) -> list[Record]:
        """Return the records computed by ``fill``, one per chip."""
        return [self._records[chip, settings] for chip in chips]


class SearchResult(NamedTuple, Generic[SettingsT]):
    """Result of a descent.

    Attributes:
        settings: the best settings.
        complete: whether there was time for the whole search.
    """

    settings: SettingsT
    complete: bool


def coordinate_descent(
    table: RecordTable[SettingsT, Record],
    start: SettingsT,
    grids: Grids,
    chips: Sequence[int],
    deadline: float,
    label: str,
) -> SearchResult[SettingsT]:
    """Fit settings to chips.

    A first sweep tries every value of each setting while the others keep their initial values. This
    measures how much the score depends on each setting. Then the settings are changed one after
    another, most promising first, until a round changes none.

    Args:
        table: computes and stores the records.
        start: settings at which the search begins.
        grids: settings to fit and their values, most important first in case time runs out.
        chips: numbers of the chips to fit to, at least two.
        deadline: time limit on the clock of ``time.monotonic``; the search then returns the best
            settings so far.
        label: name of the descent in the progress display.
    """
    table.fill([start], chips)
    promise: dict[str, float] = {}
    for name in track(grids, label, len(grids)):
        moved = _best_move(table, start, name, grids[name], chips, deadline)
        if moved is None:
            break
        promise[name] = moved[1].mean if moved[1].counts else 0.0
    complete = len(promise) == len(grids)
    # The sort is stable: among equal settings the more important one stays first.
    order = sorted(promise, key=lambda name: -promise[name])
    names = [name for name in order if promise[name] > 0]
    current = start
    for _ in range(_MOST_ROUNDS):
        before = current
        for name in names:
            moved = _best_move(table, current, name, grids[name], chips, deadline)
            if moved is None:
                return SearchResult(current, complete=False)
            if moved[1].counts:
                current = moved[0]
        if current == before:
            break
        # Settings that did not matter before may matter now.
        names = order
    return SearchResult(current, complete)


def _best_move(
    table: RecordTable[SettingsT, Record],
    current: SettingsT,
    name: str,
    values: Sequence[float],
    chips: Sequence[int],
    deadline: float,
) -> tuple[SettingsT, Gain] | None:
    """Return the best other value of one setting and its gain; None if time runs out."""
    others = [settings for settings in _changed(current, name, values) if settings != current]
    if not others:
        return current, Gain(0.0, 0.0)
    if not table.fill([current, *others], chips, deadline):
        return None
    here = table.records(current, chips)
    gains = [table.measure.gain(here, table.records(other, chips), chips) for other in others]
    best = max(range(len(others)), key=lambda index: gains[index].mean)
    return others[best], gains[best]


def _changed(current: SettingsT, name: str, values: Sequence[float]) -> Generator[SettingsT]:
    """Yield the settings with each value, except where that makes them invalid."""
    for value in values:
        try:
            yield type(current).model_validate(current.model_dump() | {name: value})
        except ValidationError:
            # For example a low threshold above the high one.
            continue
