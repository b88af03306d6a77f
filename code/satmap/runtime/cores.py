"""How many cores there are to work with."""

import os


def available_cores() -> int:
    """The cores that this process may use: a container or `taskset` may leave it but a few."""
    return len(os.sched_getaffinity(0))
