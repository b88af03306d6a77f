"""How processes end: their exit statuses, and SIGTERM as an exception.

What is open is closed and what is done is kept.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

#: The exit status of a process that SIGTERM ended, as shells count.
STATUS = 128 + signal.SIGTERM

#: The exit status of one process of several that another one has left.
LEFT_ALONE = 70

#: The exit status of one of several that wants all to be started again (``EX_TEMPFAIL``).
TRY_AGAIN = 75


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it is no fault that costs one image.

    The message says what is kept; it is empty where another process of the job says the same.
    """

    def __init__(
        self, message: str = "terminated; what is finished is kept, the same command goes on"
    ) -> None:
        """With what the user should know."""
        super().__init__(message)


@contextlib.contextmanager
def on_sigterm(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call a handler at SIGTERM in the block; not in threads, where signals never arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def raising_terminated() -> Iterator[None]:
    """Within the block the first SIGTERM raises :class:`Terminated`, later ones do nothing.

    Only in the main thread; elsewhere signals are left as they are.
    """

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    with on_sigterm(terminate):
        yield
