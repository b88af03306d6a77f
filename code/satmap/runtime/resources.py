"""How many cores there are to work with."""

import errno
import os
import resource


def available_cores() -> int:
    """The cores that this process may use: a container or `taskset` may leave it but a few."""
    return len(os.sched_getaffinity(0))


# Libraries and their threads need so much address space, of which most is never memory.
_ROOMY = 8 << 30

# How the loader of libraries, C++ and torch put it.
_WORDS = ("failed to map segment", "annot allocate memory", "bad_alloc", "not enough memory")

#: What the user can do.
MEMORY_REMEDY = (
    "memory is short. Give more (`ulimit -v`, or `--memory` of a container), let less run beside "
    "it, or use fewer workers; work that goes on where it was stopped has lost nothing."
)


def is_memory_short(error: BaseException) -> bool:
    """Whether an error that nobody has thought of comes from too little memory.

    Under a tight limit of address space (``ulimit -v``) libraries are loaded by halves, and what
    fails then may be anything, so there every such error is taken for it.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if any(word in str(error) for word in _WORDS):
        return True
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and limit < _ROOMY
