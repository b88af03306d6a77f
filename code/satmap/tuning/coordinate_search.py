"""Coordinate descent over small grids, on what chips say of settings.

A step is taken only if it gains more than the standard error of the gain over the chips, as in the
one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984): of many settings that are
equally good the best always looks better than it is.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from pydantic import ValidationError

from satmap.io.progress import track
from satmap.settings import Settings

#: Settings of a vectoriser, which can be told apart by their hashes.
SettingsT = TypeVar("SettingsT", bound=Settings)

#: What is known of a chip under some settings: a score, counts, matches.
Record = TypeVar("Record")
_Record = TypeVar("_Record", contravariant=True)

#: Values that each setting may take.
Grids = Mapping[str, Sequence[float]]

#: A chip and the settings that it is to be judged under.
Trial = tuple[int, tuple[SettingsT, ...]]

# Further rounds change next to nothing.
_MOST_ROUNDS = 3


class Gain(NamedTuple):
    """A difference of scores and its standard error."""

    mean: float
    error: float

    @property
    def counts(self) -> bool:
        """Whether it is more than its standard error."""
        return self.mean > self.error


class Measure(Protocol[_Record]):
    """Makes one score of the records of many chips."""

    def score(self, records: Sequence[_Record], chips: Sequence[int]) -> float:
        """The score of chips, by a record of each; the higher the better."""

    def gain(
        self, before: Sequence[_Record], after: Sequence[_Record], chips: Sequence[int]
    ) -> Gain:
        """By how much the second records of the same chips, two or more, are better."""


class RecordTable(Generic[SettingsT, Record]):
    """Records of chips under settings, each worked out once."""

    def __init__(
        self,
        measure: Measure[Record],
        work: Callable[[Sequence[Trial[SettingsT]]], Generator[Sequence[Record]]],
    ) -> None:
        """An empty table.

        Args:
            measure: what is made of the records.
            work: gives for every task, in order, a record for each of its settings; may be closed
                before the end.
        """
        self.measure = measure
        self._work = work
        self._records: dict[tuple[int, SettingsT], Record] = {}

    def fill(
        self, settings: Sequence[SettingsT], chips: Sequence[int], deadline: float = inf
    ) -> bool:
        """Work out what is missing; False if the time, as by ``time.monotonic``, ran out."""
        tasks = []
        for chip in chips:
            missing = tuple(s for s in settings if (chip, s) not in self._records)
            if missing:
                tasks.append((chip, missing))
        if tasks and time.monotonic() >= deadline:
            return False
        with closing(self._work(tasks)) as results:
            for done, (chip, missing) in enumerate(tasks, start=1):
                for its, record in zip(missing, next(results), strict=True):
                    self._records[chip, its] = record
                if done < len(tasks) and time.monotonic() >= deadline:
                    return False
        return True

    def records(self, settings: SettingsT, chips: Sequence[int]) -> list[Record]:
        """What ``fill`` has worked out, one a chip."""
        return [self._records[chip, settings] for chip in chips]


class SearchResult(NamedTuple, Generic[SettingsT]):
    """Where a descent ended.

    Attributes:
        settings: the best.
        complete: whether there was time for everything.
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

    A first sweep tries every value of every setting beside the others' start, and so measures how
    much the score depends on each. Then the settings are moved one after another, those that
    promise most first, until a round moves none.

    Args:
        table: where records come from.
        start: where to begin.
        grids: the settings to fit and their values, most important first, should time run out.
        chips: what to fit to, at least two.
        deadline: time, as by ``time.monotonic``, at which the best so far is the result.
        label: names the descent in the progress display.
    """
    table.fill([start], chips)
    promise: dict[str, float] = {}
    for name in track(grids, label, len(grids)):
        moved = _best_move(table, start, name, grids[name], chips, deadline)
        if moved is None:
            break
        promise[name] = moved[1].mean if moved[1].counts else 0.0
    complete = len(promise) == len(grids)
    # Stable: of equal ones the more important stays first.
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
        # What did not matter before may do so now.
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
    """The best other value of one setting and what it gains; None if time runs out."""
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
    """The settings with each of the values, where they are possible together."""
    for value in values:
        try:
            yield type(current).model_validate(current.model_dump() | {name: value})
        except ValidationError:
            # Such as a lower threshold above the upper one.
            continue
