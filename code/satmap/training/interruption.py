"""Asked to end, a training ends at the next moment that costs nothing."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from satmap.runtime.termination import Terminated, hear_no_more, on_signals


class StopRequest:
    """Whether SIGTERM, Ctrl-C or SIGHUP has come.

    Outside of ``deferred`` it ends what is running by ``Terminated``; inside, whoever works
    looks at ``made`` from time to time, keeps the work and raises ``ended`` by himself.
    """

    def __init__(self) -> None:
        self._number = 0
        self._deferred = False

    @property
    def made(self) -> bool:
        """Whether it has come."""
        return bool(self._number)

    def ended(self, message: str | None = None) -> Terminated:
        """What to raise; also where the request was made to another process of the job."""
        return Terminated(self._number or signal.SIGTERM, message)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block finish what it must not leave half done."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if self.made and not before:
            raise self.ended()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        hear_no_more()
        self._number = number
        if not self._deferred:
            raise self.ended()


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen to signals while the block runs; not in threads, where they never arrive."""
    request = StopRequest()
    with on_signals(request._handle):
        yield request
