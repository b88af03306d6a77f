"""SIGTERM: asked to end, a training ends at the next moment that costs nothing."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from satmap.termination import Terminated, on_sigterm


class StopRequest:
    """Whether SIGTERM has come.

    Outside of ``deferred`` it ends what is running by ``Terminated``; inside, whoever works
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
            raise Terminated

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.made = True
        if not self._deferred:
            raise Terminated


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen to SIGTERM while the block runs; not in threads, where signals never arrive."""
    request = StopRequest()
    with on_sigterm(request._handle):
        yield request


def obey_parent_only(worker: int) -> None:
    """Let a data loader's process be ended by its parent alone.

    Launchers send SIGTERM to whole process groups, but the parent needs its crops to finish a step.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_await_parent, args=(os.getppid(),), daemon=True).start()


def _await_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
