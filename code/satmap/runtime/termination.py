"""Exit statuses, and signals that become an exception so that processes end in good order.

Open files are closed and finished work is kept.
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

#: Signals that ask a process to end: system shutdown, Ctrl-C, closed terminal.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Exit statuses of processes that such a signal ended, by the convention of shells.
STATUSES = tuple(128 + number for number in SIGNALS)

#: Exit status of a process that stopped because another process of its job failed.
PEER_FAILED = 70

#: Exit status of a process that asks for a restart of the whole job (``EX_TEMPFAIL``).
RESTART = 75


# Whether the main thread runs a step that must not stop halfway, and a signal that came meanwhile.
_deferring = threading.Event()
_deferred: list[int] = []


class Terminated(BaseException):
    """The process was asked to end.

    Like KeyboardInterrupt it is not an ``Exception``, so handlers for faulty images do not catch
    it. The message says what is kept. It is empty if another process prints the same message: the
    first process of the job, or the launcher. ``status`` is the exit status, 128 + the signal.
    """

    def __init__(self, number: int = signal.SIGTERM, message: str | None = None) -> None:
        """Take the signal and the message for the user; None for a general message."""
        if message is None and (is_ours() or not is_first_rank()):
            message = ""
        elif message is None:
            what = "interrupted" if number == signal.SIGINT else "terminated"
            message = f"{what}; finished work is kept, run the same command again to resume"
        super().__init__(message)
        self.status = 128 + number


@contextlib.contextmanager
def on_signals(
    handle: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """Call a handler on any of ``SIGNALS`` while the block runs.

    Does nothing outside the main thread, where signals never arrive. Signals that this process
    ignores from the start (``nohup``) stay ignored. If ``handle`` installs another handler for a
    signal, that one stays after the block, so that a second signal cannot interrupt the end of the
    process.
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
    """Ignore signals from now on, because this process is ending. Another Ctrl-C ends it at once.

    Processes of a launcher ignore that too, because they get a signal from the terminal and one
    from the launcher.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not is_rank():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def raising_terminated() -> Iterator[None]:
    """Raise :class:`Terminated` on the first signal in the block and ignore later ones.

    Does nothing outside the main thread.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        if _deferring.is_set():
            _deferred.append(number)
        else:
            raise Terminated(number)

    with on_signals(terminate):
        yield


@contextlib.contextmanager
def deferring_terminated() -> Iterator[None]:
    """Raise :class:`Terminated` of :func:`raising_terminated` only at the end of the block.

    Use it around short steps that must not stop halfway, such as the start of a process that has
    to be recorded. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or _deferring.is_set():
        yield
        return
    _deferring.set()
    try:
        yield
    finally:
        _deferring.clear()
    if _deferred:
        raise Terminated(_deferred.pop())


def ignore_signals_in_worker(_: int = 0) -> None:
    """Ignore signals in a worker process, except a SIGTERM from its parent.

    Signals reach whole process groups, but the parent needs its workers to finish their jobs. Call
    this before the process starts threads, or with the signals blocked.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_await_parent, args=(os.getppid(),), daemon=True).start()


def _await_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def exit_process(status: int) -> NoReturn:
    """End this process.

    If torch's process group is still open, the process ends without shutting Python down:
    torch's threads may need the interpreter during shutdown and would abort the process.
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
