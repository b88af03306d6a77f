"""Exceptions that users see as plain messages."""

from pathlib import Path


class SatmapError(Exception):
    """A problem that the user can solve: the message says what failed, where, and what to do.

    The command line prints it on stderr without a traceback and ends with status 1.
    """


class CannotWriteError(SatmapError):
    """An output cannot be written. This concerns the whole run, not a single image."""


class PeerError(Exception):
    """Another process of the job failed and has reported why. This process ends silently."""


class RestartError(SatmapError):
    """The work failed, but will succeed when the job is started again with what it has saved."""


def error_text(error: BaseException, path: Path | None = None) -> str:
    """Return the problem of one item of a batch, which an unexpected error must not end.

    Args:
        error: a SatmapError, whose message is complete, or any other error.
        path: the file, named in the text of other errors.
    """
    if isinstance(error, SatmapError):
        return str(error)
    return f"{path}: " * (path is not None) + f"{type(error).__name__}: {error}"
