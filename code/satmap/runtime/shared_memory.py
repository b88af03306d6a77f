"""Shared memory, ``/dev/shm``. Containers have 64 MB by default (``docker run --shm-size``).

torch's data loaders pass batches through it, NCCL passes gradients, and multiprocessing keeps its
locks in it.
"""

import multiprocessing
import os
from pathlib import Path

#: Where Linux keeps shared memory.
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
