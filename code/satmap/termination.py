"""SIGTERM as an exception, so that what is open is closed and what is done is kept."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

#: The exit status of a process that SIGTERM ended, as shells count.
STATUS = 128 + signal.SIGTERM


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
def raising_terminated() -> Iterator[None]:
    """Within the block the first SIGTERM raises :class:`Terminated`, later ones do nothing.

    Only in the main thread; elsewhere signals are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
