"""Communication between the processes of a training or a prediction.

torch's launcher numbers the processes; their numbers are called ranks. The rest of the program uses
only :class:`Ranks`, which also works for a single process without a process group.
"""

import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from satmap.errors import PeerError, SatmapError
from satmap.runtime.launched import is_rank
from satmap.runtime.termination import Terminated, on_signals

Value = TypeVar("Value")

# A process may have to wait until another one has trained a whole fold. If a process dies, the
# system closes its connections, and the others notice at once. A machine that loses power or its
# network closes no connection; the others then wait until somebody stops them.
_TIMEOUT = datetime.timedelta(days=30)

# Words in torch's error messages, of various types, when another process is gone.
_LOST_PEER_WORDS = ("gloo", "nccl", "connection", "process group", "socket", "tcpstore")

_PARENT_POLL_S = 0.5


@dataclass(frozen=True)
class Ranks:
    """The group of processes that work together, and the number of this process in it.

    All processes must call every method except ``alone`` and ``say``, in the same order.

    Attributes:
        rank: number of this process, 0..world-1. Process 0 writes the files.
        world: number of processes.
        local_rank: number of this process on its machine, which is the index of its GPU.
        job_rank: number of this process in the whole job. ``alone`` keeps it.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    job_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the common results."""
        return self.rank == 0

    def alone(self) -> "Ranks":
        """Return a group of this process only."""
        return Ranks(local_rank=self.local_rank, job_rank=self.job_rank)

    def say(self, text: str) -> None:
        """Print a line in the first process only."""
        if self.first:
            # One write, so that output of other processes cannot split the line.
            print(f"{text}\n", end="", flush=True)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in their order. Values must be picklable."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with peer_errors():
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.gather(None)

    def agree(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has set it."""
        if self.world == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        with peer_errors():
            dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def on_first(self, work: Callable[[], Value]) -> Value:
        """Call a function in process 0 and return its result in all processes.

        Raises:
            PeerError: the function failed. Process 0 itself raises the cause.
        """
        if self.world == 1:
            return work()
        outcome: list[Value] = [self._done(work, self.first)]
        with peer_errors():
            # A broadcast, because results such as train states are large.
            dist.broadcast_object_list(outcome)
        return outcome[0]

    def on_first_of_machine(self, work: Callable[[], Value]) -> Value:
        """Call a function in one process per machine and return its result on that machine.

        Raises:
            PeerError: the function failed on another machine, where the cause is raised.
        """
        if self.world == 1:
            return work()
        results: list[Value] = self.gather(self._done(work, self.local_rank == 0))
        return results[self.rank - self.local_rank]

    def _done(self, work: Callable[[], Value], mine: bool) -> Any:
        """Call a function if ``mine``, else return None. A failure is raised in all processes."""
        outcome: Any = None
        failure: Exception | Terminated | None = None
        try:
            outcome = work() if mine else None
        except (Exception, Terminated) as error:
            failure = error
        self.raise_on_all(failure)
        return outcome

    def raise_on_all(self, failure: Exception | Terminated | None) -> None:
        """Raise an error in all processes if any process passes one.

        The first process with a failure raises it; all others raise PeerError.
        """
        failed = self.gather(failure is not None)
        if any(failed):
            if failure is not None and failed.index(True) == self.rank:
                raise failure
            raise PeerError


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or return a group of one, while the block runs.

    Tensors on ``device``, flags and objects can be exchanged. If the block fails, torch's process
    group stays open, and its threads may still communicate. End the process by
    ``satmap.runtime.termination.exit_process`` then.

    Raises:
        PeerError: another process is gone.
    """
    world = int(os.environ.get("WORLD_SIZE", "1")) if is_rank() else 1
    if world == 1:
        yield Ranks()
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with peer_errors():
        # Objects and flags are exchanged through gloo, gradients on GPUs through NCCL.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Python's signal handlers do not run while torch waits for the other processes. Signals
        # may end the process here, because no work has been done yet.
        with on_signals(signal.SIG_DFL):
            dist.init_process_group(backend, timeout=_TIMEOUT)
        ranks = Ranks(rank, world, local_rank, rank)
        yield ranks
        # No process may leave while others still communicate.
        ranks.wait()
        # This ends torch's threads. A thread that frees a tensor while Python shuts down aborts the
        # process.
        dist.destroy_process_group()


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Turn torch's various errors about a lost process into ``PeerError``."""
    try:
        yield
    except (SatmapError, PeerError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, OSError) as error:
        text = str(error).lower()
        if is_rank() and any(word in text for word in _LOST_PEER_WORDS):
            raise PeerError from error
        raise


def _end_with_parent(parent: int) -> None:
    """Exit when the launcher is gone; otherwise this process would run beside the next job's."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)
