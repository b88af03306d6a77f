"""Usable cores, memory shortage and shared memory."""

import ctypes
import errno
import multiprocessing
import os
import resource
from pathlib import Path


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


# Parameters of glibc's mallopt, in bytes: free memory at the end of the heap to keep, memory to add
# to the heap at once, and the size from which blocks are mapped from the system each time.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def reuse_memory() -> None:
    """Make this process keep freed memory for later, instead of giving it back to the system.

    Networks on a CPU allocate and free hundreds of megabytes in every step. By default glibc maps
    large blocks anew each time, and the system clears every page: about a quarter of the CPU time
    of a training step. The peak of memory rises by a few per cent. Other C libraries ignore it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_TOP_PAD, 1 << 28)


def is_memory_short(error: BaseException) -> bool:
    """Return whether an unexpected error comes from too little memory.

    Under a tight limit of the address space (``ulimit -v``) libraries may be loaded only in part
    and can then fail with any error. Under such a limit the answer is always yes.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if any(word in str(error) for word in _SHORTAGE_WORDS):
        return True
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and limit < _NEEDED_ADDRESS_SPACE


#: Where Linux keeps shared memory. Containers have 64 MB by default (``docker run --shm-size``).
#: It holds the batches of torch's data loaders, NCCL's gradients and multiprocessing's locks.
SHARED_MEMORY = Path("/dev/shm")

#: Advice to the user when there is too little shared memory.
SHARED_MEMORY_REMEDY = "In a container, pass --ipc=host or --shm-size 4G."

# An upper bound of the locks in the queues of one worker or one pool.
_LOCKS_EACH = 8

# The size that NVIDIA recommends for its containers, in bytes.
_ENOUGH_FOR_NCCL = 2**30


def free_shared_memory() -> int:
    """Return the free shared memory in bytes; 0 if there is none."""
    try:
        state = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return state.f_bavail * state.f_frsize


def can_share_locks(workers: int) -> bool:
    """Return whether ``workers`` processes can share locks with this one.

    They cannot in a container with ``--ipc none``.
    """
    context = multiprocessing.get_context("spawn")
    try:
        # Keep all of them at once: a lock without references is freed.
        held = [context.Lock() for _ in range((1 + workers) * _LOCKS_EACH)]
    except OSError:
        return False
    return bool(held)


def limit_nccl_shared_memory() -> None:
    """Make NCCL use sockets instead of shared memory if there is less than 1 GiB of it.

    NCCL fails if its buffers do not fit. The setting is for processes that are started afterwards.
    GPUs with a direct connection use that in any case.
    """
    if free_shared_memory() < _ENOUGH_FOR_NCCL:
        os.environ.setdefault("NCCL_SHM_DISABLE", "1")
