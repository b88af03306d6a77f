"""Coordinate descent over small grids, on scores that are means over chips.

A step is taken only if it gains more than the standard error of the gain over the chips, as in the
one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984): of many settings that are
equally good the best always looks better than it is.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satmap.progress import track
from satmap.roads.settings import RoadSettings

Floats = NDArray[np.float64]

#: Values that each setting may take.
Grids = Mapping[str, Sequence[float]]

#: A chip and the settings that it is to be scored under.
Task = tuple[int, tuple[RoadSettings, ...]]

# Further rounds change next to nothing.
_MOST_ROUNDS = 3


class Gain(NamedTuple):
    """A mean difference of scores and its standard error."""

    mean: float
    error: float

    @property
    def counts(self) -> bool:
        """Whether it is more than its standard error."""
        return self.mean > self.error


class ScoreTable:
    """Scores of chips under settings, each worked out once."""

    def __init__(
        self,
        areas: Sequence[str],
        score: Callable[[Sequence[Task]], Generator[Sequence[float]]],
    ) -> None:
        """An empty table.

        Args:
            areas: the area of every chip; areas count alike in means, whatever their size.
            score: gives for every task, in order, its settings' scores; may be closed before the
                end.
        """
        self._areas = list(areas)
        self._score = score
        self._scores: dict[tuple[int, RoadSettings], float] = {}

    def fill(
        self, settings: Sequence[RoadSettings], chips: Sequence[int], deadline: float = inf
    ) -> bool:
        """Score what is missing; False if the time, as by ``time.monotonic``, ran out."""
        tasks = []
        for chip in chips:
            missing = tuple(s for s in settings if (chip, s) not in self._scores)
            if missing:
                tasks.append((chip, missing))
        if tasks and time.monotonic() >= deadline:
            return False
        with closing(self._score(tasks)) as results:
            for done, (chip, missing) in enumerate(tasks, start=1):
                for its, score in zip(missing, next(results), strict=True):
                    self._scores[chip, its] = score
                if done < len(tasks) and time.monotonic() >= deadline:
                    return False
        return True

    def scores(self, settings: RoadSettings, chips: Sequence[int]) -> Floats:
        """What ``fill`` has worked out, (chips,)."""
        return np.array([self._scores[chip, settings] for chip in chips])

    def mean(self, scores: Floats, chips: Sequence[int]) -> float:
        """Mean over areas of the means over their chips."""
        return float(self._weights(chips) @ scores)

    def gain(self, differences: Floats, chips: Sequence[int]) -> Gain:
        """The mean of differences of scores, a chip each, and its standard error."""
        weights, count = self._weights(chips), len(chips)
        mean = float(weights @ differences)
        spread = float(weights**2 @ (differences - mean) ** 2)
        return Gain(mean, sqrt(spread * count / (count - 1)))

    def _weights(self, chips: Sequence[int]) -> Floats:
        _, area, sizes = np.unique(
            [self._areas[chip] for chip in chips], return_inverse=True, return_counts=True
        )
        weights: Floats = 1 / (sizes[area] * len(sizes))
        return weights


class Descent(NamedTuple):
    """Where a descent ended.

    Attributes:
        settings: the best.
        complete: whether there was time for everything.
    """

    settings: RoadSettings
    complete: bool


def descend(
    table: ScoreTable,
    start: RoadSettings,
    grids: Grids,
    chips: Sequence[int],
    deadline: float,
    label: str,
) -> Descent:
    """Fit settings to chips.

    A first sweep tries every value of every setting beside the others' start, and so measures how
    much the score depends on each. Then the settings are moved one after another, those that
    promise most first, until a round moves none.

    Args:
        table: where scores come from.
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
                return Descent(current, complete=False)
            if moved[1].counts:
                current = moved[0]
        if current == before:
            break
        # What did not matter before may do so now.
        names = order
    return Descent(current, complete)


def _best_move(
    table: ScoreTable,
    current: RoadSettings,
    name: str,
    values: Sequence[float],
    chips: Sequence[int],
    deadline: float,
) -> tuple[RoadSettings, Gain] | None:
    """The best other value of one setting and what it gains; None if time runs out."""
    changed = (current.model_copy(update={name: value}) for value in values)
    others = [settings for settings in changed if settings.low <= settings.high]
    others = [settings for settings in others if settings != current]
    if not others:
        return current, Gain(0.0, 0.0)
    if not table.fill([current, *others], chips, deadline):
        return None
    here = table.scores(current, chips)
    gains = [table.gain(table.scores(other, chips) - here, chips) for other in others]
    best = max(range(len(others)), key=lambda index: gains[index].mean)
    return others[best], gains[best]
