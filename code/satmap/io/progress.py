"""Progress of long steps: a bar on a terminal, an occasional line in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_LINE_EVERY_S = 30.0

Item = TypeVar("Item")


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield the items and show how many of ``total`` are done."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total)
        return
    shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - shown > _LINE_EVERY_S:
            shown = time.monotonic()
            print(f"{label}: {done} of {total}", flush=True)
