"""Progress of long steps: a bar on a terminal, an occasional line in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

from tqdm import tqdm

_LINE_EVERY_S = 30.0

Item = TypeVar("Item")


class Progress:
    """Shows how much of a step is done and how long the rest will take.

    Attributes:
        done: units that are done.
    """

    def __init__(self, label: str, total: int, unit: str = "", *, shown: bool = True) -> None:
        """Start a step of ``total`` units, such as ``windows``; ``shown=False`` shows nothing."""
        self._label, self._total, self._unit = label, total, unit
        self._shown = shown
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(desc=label, total=total, unit=f" {unit}" if unit else "it")
        self._started = self._last = time.monotonic()
        self.done = 0

    def advance(self, count: int = 1) -> None:
        """Add units that are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and (now := time.monotonic()) - self._last > _LINE_EVERY_S:
            self._last = now
            left = (now - self._started) * (self._total - self.done) / max(self.done, 1)
            what = f"{self._total} {self._unit}".strip()
            print(f"{self._label}: {self.done} of {what}, {_duration(left)} left", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    """Return a duration in the unit that suits it: ``40 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield the items and show how many of ``total`` are done."""
    with Progress(label, total) as progress:
        for item in items:
            yield item
            progress.advance()
