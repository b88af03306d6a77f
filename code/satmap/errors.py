"""The exceptions that users see as plain messages."""


class SatmapError(Exception):
    """A fault the user can mend: the message says what, where and what to do.

    The command line prints it on stderr without a traceback and ends with status 1.
    """


class CannotWriteError(SatmapError):
    """Nothing can be written there: a fault of the whole run, never of a single image."""


class PeerError(Exception):
    """Another process of the job failed. It has said why, so this one ends without a word."""


class RestartError(SatmapError):
    """Work that failed will succeed when the job is started again, for it has noted how."""
