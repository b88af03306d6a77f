"""Fit settings to all chips, and judge the fit by two-fold cross-validation."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from satmap.tuning.coordinate_search import (
    Gain,
    Grids,
    Record,
    RecordTable,
    SettingsT,
    coordinate_descent,
)

#: Two chips per half: with fewer, a gain cannot be told from chance.
MIN_CHIPS = 4

# Share of the time that has passed at the end of the fits to half 1, to half 2 and to all chips.
# The last fit finds most of its records already computed.
_SHARES = (0.42, 0.84, 1.0)


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

    Args:
        table: computes and stores the records.
        start: settings at which the search begins.
        grids: settings to fit and their values, as in ``coordinate_descent``.
        halves: numbers of the chips of each half, at least two each.
        seconds: time limit; the search then returns the best settings so far.
        of_what: name of the chips in the progress display.
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
