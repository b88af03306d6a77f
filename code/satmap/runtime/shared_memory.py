"""``/dev/shm``, of which containers have 64 MB unless told otherwise (``docker run --shm-size``).

torch's loaders hand batches over in it, NCCL gradients, and locks between processes lie there.
"""

import multiprocessing
import os
from pathlib import Path

#: Where Linux keeps shared memory.
SHARED_MEMORY = Path("/dev/shm")

#: How to have more of it.
SHARED_MEMORY_REMEDY = "In a container, pass --ipc=host or --shm-size 4G."

# More than the queues of a worker, or those of a pool, are made of.
_LOCKS_EACH = 8

# What NVIDIA's containers ask for.
_ENOUGH_FOR_NCCL = 2**30


def free_shared_memory() -> int:
    """Bytes that are free; 0 where there is no shared memory."""
    try:
        state = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return state.f_bavail * state.f_frsize


def can_share_locks(workers: int) -> bool:
    """Whether so many processes can share locks with this one: not under ``--ipc none``."""
    context = multiprocessing.get_context("spawn")
    try:
        # All at once, for each is given back as soon as nobody holds it.
        held = [context.Lock() for _ in range((1 + workers) * _LOCKS_EACH)]
    except OSError:
        return False
    return bool(held)


def limit_nccl_shared_memory() -> None:
    """Let NCCL, in processes yet to be started, send through sockets where there is too little.

    GPUs that reach each other directly do so in any case. It fails where its buffers do not fit.
    """
    if free_shared_memory() < _ENOUGH_FOR_NCCL:
        os.environ.setdefault("NCCL_SHM_DISABLE", "1")
