"""How processes end: their exit statuses, and the signals that ask them to, as an exception.

What is open is closed and what is done is kept.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from satmap.runtime.launched import is_first_rank, is_ours, is_rank

#: What asks a process to end: a system that stops, Ctrl-C, a terminal that is gone.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: The exit statuses of processes that such a signal ended, as shells count.
STATUSES = tuple(128 + number for number in SIGNALS)

#: The exit status of one process of several that another one has left.
PEER_FAILED = 70

#: The exit status of one of several that wants all to be started again (``EX_TEMPFAIL``).
RESTART = 75


class Terminated(BaseException):
    """The process was asked to end. Like KeyboardInterrupt it is no fault that costs one image.

    The message says what is kept; it is empty where another process says the same: the first one of
    a job, or the launcher.

    Attributes:
        status: the exit status that tells the signal.
    """

    def __init__(self, number: int = signal.SIGTERM, message: str | None = None) -> None:
        """With the signal and what the user should know."""
        if message is None and (is_ours() or not is_first_rank()):
            message = ""
        elif message is None:
            what = "interrupted" if number == signal.SIGINT else "terminated"
            message = f"{what}; what is finished is kept, the same command goes on"
        super().__init__(message)
        self.status = 128 + number


@contextlib.contextmanager
def on_signals(
    handle: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """Call a handler in the block at any of ``SIGNALS``; not in threads, where none ever arrives.

    Signals that this process was started to ignore (``nohup``) stay ignored. So do those that the
    handler has given away: who is about to end must not be ended before the last word.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handle)
        for number in SIGNALS
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == handle:
                signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore signals from now on, for this process is ending: only a second Ctrl-C ends it at once.

    A rank has several anyway: from the terminal and from its launcher.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not is_rank():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def raising_terminated() -> Iterator[None]:
    """Within the block the first signal raises :class:`Terminated`, later ones do nothing.

    Only in the main thread; elsewhere signals are left as they are.
    """

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        ignore_signals()
        raise Terminated(number)

    with on_signals(terminate):
        yield


def ignore_signals_in_worker(_: int = 0) -> None:
    """Let this process be ended by the one that started it alone.

    Signals reach whole process groups, but the parent needs its workers to finish what is under
    way. Call it before the process starts threads, or with the signals blocked.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_await_parent, args=(os.getppid(),), daemon=True).start()


def _await_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def exit_process(status: int) -> NoReturn:
    """End this process.

    A rank that has failed ends without taking Python down first: torch's threads, which nobody
    could end, may want its lock meanwhile, and then abort the process instead.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        sys.exit(status)
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
