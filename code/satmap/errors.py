"""The one exception that users see as a plain message."""


class SatmapError(Exception):
    """A fault the user can mend: the message says what, where and what to do.

    The command line prints it on stderr without a traceback and ends with status 1.
    """
