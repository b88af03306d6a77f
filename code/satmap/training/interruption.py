"""SIGTERM: asked to end, a training ends at the next moment that costs nothing."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from satmap.errors import StoppedError

_LINE = "stopped; the same command goes on"


class StopRequest:
    """Whether SIGTERM has come.

    Outside of ``deferred`` it ends what is running by ``StoppedError``; inside, whoever works
    looks at ``made`` from time to time, keeps the work and raises by himself.
    """

    def __init__(self) -> None:
        self.made = False
        self._deferred = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block finish what it must not leave half done."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if self.made and not before:
            raise StoppedError(_LINE)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.made = True
        if not self._deferred:
            raise StoppedError(_LINE)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen to SIGTERM while the block runs; not in threads, where signals never arrive."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request._handle)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_in_worker(worker: int) -> None:
    """Let a data loader's process end by its parent, not by a signal to the whole group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
