"""Number of usable cores, and detection of memory shortage."""

import errno
import os
import resource


def available_cores() -> int:
    """Return the number of cores that this process may use, which `taskset` may have reduced."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Address space in bytes that the libraries and their threads need; little of it is used memory.
_NEEDED_ADDRESS_SPACE = 8 << 30

# Messages of the dynamic loader, C++ and torch about too little memory.
_SHORTAGE_WORDS = (
    "failed to map segment", "annot allocate memory", "bad_alloc", "not enough memory",
)  # fmt: skip

#: Advice to the user when memory is short.
MEMORY_REMEDY = (
    "memory is short. Raise the limit (`ulimit -v`, or `--memory` of a container), stop other "
    "programs, or use fewer workers. Run the same command again to resume."
)


def is_memory_short(error: BaseException) -> bool:
    """Return whether an unexpected error comes from too little memory.

    Under a tight limit of the address space (``ulimit -v``) libraries may be loaded only in part
    and can then fail with any error. Under such a limit every error counts.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if any(word in str(error) for word in _SHORTAGE_WORDS):
        return True
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and limit < _NEEDED_ADDRESS_SPACE
