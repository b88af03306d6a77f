"""Fit settings: coordinate descent over small grids, judged by two-fold cross-validation.

A step is taken only if its gain exceeds the standard error of the gain over the chips, as in the
one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984). Without that rule, the best of
many equally good settings would always look better than it is.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from satmap.io.progress import track
from satmap.settings import Settings

#: Settings of a vectoriser; they must be hashable.
SettingsT = TypeVar("SettingsT", bound=Settings)

#: Result of one chip under some settings: a score, counts or matches.
Record = TypeVar("Record")

#: Values that each setting may take.
Grids = Mapping[str, Sequence[float]]

#: Number of a chip, and the settings to evaluate on it.
Trial = tuple[int, tuple[SettingsT, ...]]

#: Two chips per half: with fewer, a gain cannot be told from chance.
MIN_CHIPS = 4

# Share of the time that has passed at the end of the fits to half 1, to half 2 and to all chips.
# The last fit finds most of its records already computed.
_SHARES = (0.42, 0.84, 1.0)

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


class Measure(ABC, Generic[Record]):
    """Combines the records of many chips into one score, with the jackknife's error of a gain.

    F1 and average precision are not means of chip scores. The jackknife measures how the gain
    changes when one place after another is left out (Efron and Stein 1981). For a mean, it agrees
    with the error that follows from the spread of the scores.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        """Initialize with the place of every chip; chips of one place are left out together."""
        self._sites = numbered(sites)

    @abstractmethod
    def score(self, records: Sequence[Record], chips: Sequence[int]) -> float:
        """Return the score of chips, given one record per chip; higher is better."""

    def gain(self, before: Sequence[Record], after: Sequence[Record], chips: Sequence[int]) -> Gain:
        """Return the gain from the first to the second records of the same chips, at least two."""
        mean = self.score(after, chips) - self.score(before, chips)
        site = self._sites[list(chips)]
        sites = np.unique(site)
        if len(sites) < 2:
            # A single place says nothing about the error.
            return Gain(mean, inf)
        without = []
        for left_out in sites.tolist():
            kept = np.flatnonzero(site != left_out).tolist()
            left = [chips[index] for index in kept]
            score_after = self.score([after[index] for index in kept], left)
            without.append(score_after - self.score([before[index] for index in kept], left))
        spread = float(((np.array(without) - np.mean(without)) ** 2).sum())
        return Gain(mean, sqrt(spread * (len(sites) - 1) / len(sites)))


def numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Map names to numbers in the order of their first occurrence."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


@dataclass
class RecordTable(Generic[SettingsT, Record]):
    """Records of chips under settings, each computed once.

    ``work`` yields for every trial, in order, a record for each of its settings. The generator may
    be closed early.
    """

    measure: Measure[Record]
    work: Callable[[Sequence[Trial[SettingsT]]], Generator[Sequence[Record]]]
    _records: dict[tuple[int, SettingsT], Record] = field(default_factory=dict)

    def fill(
        self, settings: Sequence[SettingsT], chips: Sequence[int], deadline: float = inf
    ) -> bool:
        """Compute the missing records of chips; return False if the time ran out.

        The deadline is on the clock of ``time.monotonic``.
        """
        unknown = ((c, tuple(s for s in settings if (c, s) not in self._records)) for c in chips)
        tasks = [(chip, missing) for chip, missing in unknown if missing]
        if tasks and time.monotonic() >= deadline:
            return False
        with closing(self.work(tasks)) as results:
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
    """The best settings, and whether there was time for the whole search."""

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
    """Fit settings to chips, at least two.

    A first sweep tries every value of each setting while the others keep their initial values. This
    measures how much the score depends on each setting. Then the settings are changed one after
    another, most promising first, until a round changes none.

    The search begins at ``start``. ``grids`` lists the most important settings first, in case time
    runs out: at the deadline, on the clock of ``time.monotonic``, the best settings so far are
    returned. ``label`` names the descent in the progress display.
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


@dataclass(frozen=True)
class Fit(Generic[SettingsT]):
    """Result of a fit.

    Attributes:
        settings: the fitted settings, or the initial ones if the fit gains nothing.
        changes: name of each changed setting to its initial and its fitted value, even if the fit
            is rejected.
        chips: number of chips.
        before: score of the initial settings on all chips.
        after: score of the fitted settings on the same chips.
        unseen: gain on chips that were not fitted to, by cross-validation.
        complete: whether there was time for the whole search.
    """

    settings: SettingsT
    changes: dict[str, tuple[float, float]]
    chips: int
    before: float
    after: float
    unseen: Gain
    complete: bool

    @property
    def kept(self) -> bool:
        """Whether the fit was accepted."""
        return bool(self.changes) and self.unseen.counts

    def summary(self, score: str) -> list[str]:
        """Return a summary of a few lines; ``score`` is the name of the score."""
        lines = [
            f"{score} of {self.chips} chips: {self.before:.4f} before, "
            f"{self.after:.4f} after on the chips fitted to",
            f"on chips not fitted to (two-fold cross-validation): {self.before:.4f} before, "
            f"{self.before + self.unseen.mean:.4f} after, gain {self.unseen.mean:+.4f} "
            f"+- {self.unseen.error:.4f}",
        ]
        lines += [f"  {name}: {old:g} -> {new:g}" for name, (old, new) in self.changes.items()]
        if not self.complete:
            lines.append("time ran out before the search was complete; raise --minutes")
        if not self.changes:
            lines.append("no other values gain more than chance: the settings stay as they were")
        elif not self.kept:
            lines.append(
                "no gain beyond chance on chips not fitted to: the settings stay as they were"
            )
        return lines


def cross_validated(
    table: RecordTable[SettingsT, Record],
    start: SettingsT,
    grids: Grids,
    halves: tuple[Sequence[int], Sequence[int]],
    seconds: float,
    of_what: str = "",
) -> Fit[SettingsT]:
    """Fit settings to the chips of both halves, and judge the fit.

    ``halves`` are the numbers of the chips of each half, at least two each. After ``seconds``, the
    search returns the best settings so far. ``of_what`` names the chips in the progress display.
    The other arguments are those of :func:`coordinate_descent`.
    """
    began = time.monotonic()
    everyone = sorted((*halves[0], *halves[1]))
    table.fill([start], everyone)
    fits = [
        coordinate_descent(
            table, start, grids, own, began + seconds * share, f"fitting to {of_what}{label}"
        )
        for (own, label), share in zip(
            ((halves[0], "half 1"), (halves[1], "half 2"), (everyone, "all")), _SHARES, strict=True
        )
    ]
    before = dict(zip(everyone, table.records(start, everyone), strict=True))
    unseen = dict(before)
    for fit, other in zip(fits, halves[::-1], strict=False):
        table.fill([fit.settings], other)
        unseen |= zip(other, table.records(fit.settings, other), strict=True)
    fitted = fits[-1].settings
    measure = table.measure
    gain = measure.gain([*before.values()], [unseen[chip] for chip in everyone], everyone)
    return Fit(
        settings=fitted if gain.counts else start,
        changes={
            name: (getattr(start, name), getattr(fitted, name))
            for name in grids
            if getattr(start, name) != getattr(fitted, name)
        },
        chips=len(everyone),
        before=measure.score([*before.values()], everyone),
        after=measure.score(table.records(fitted, everyone), everyone),
        unseen=gain,
        complete=all(fit.complete for fit in fits),
    )
