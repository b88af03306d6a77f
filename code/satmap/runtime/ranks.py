"""The processes of a training or a prediction, as torch's launcher numbers them.

A ``Ranks`` is all that the rest of the work knows of them: one process alone is one of them too,
and every question to it has its answer without a process group.
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

# Ranks wait for each other as long as another one's fold takes. One that dies is noticed at once
# all the same, for the system closes its connections. A machine that falls silent (no power, no
# network) closes none: the others wait for it until somebody ends them.
_PATIENCE = datetime.timedelta(days=30)

# What torch says, through various types, when another process is gone.
_LOST = ("gloo", "nccl", "connection", "process group", "socket", "tcpstore")

_LOOK_FOR_PARENT_S = 0.5


@dataclass(frozen=True)
class Ranks:
    """The processes that work on one thing, and which of them this one is.

    Every method but ``alone`` and ``say`` must be called by all of them, in the same order.

    Attributes:
        rank: this process, 0..world-1; 0 writes files.
        world: how many there are.
        local_rank: this process among those of its machine, the index of its GPU.
        job_rank: this process among all of the job, of which ``alone`` makes no secret.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    job_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes what all of them made."""
        return self.rank == 0

    def alone(self) -> "Ranks":
        """This process by itself."""
        return Ranks(local_rank=self.local_rank, job_rank=self.job_rank)

    def say(self, text: str) -> None:
        """Print a line, once for all."""
        if self.first:
            # In one piece: other ranks may print too.
            print(f"{text}\n", end="", flush=True)

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in their order; any object that can be pickled."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with peer_errors():
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all have come so far."""
        self.gather(None)

    def agree(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank has raised it."""
        if self.world == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        with peer_errors():
            dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def on_first(self, work: Callable[[], Value]) -> Value:
        """Let rank 0 do something and give everybody its outcome.

        Raises:
            PeerError: it failed; rank 0 itself raises the cause.
        """
        if self.world == 1:
            return work()
        outcome: list[Value] = [self._done(work, self.first)]
        with peer_errors():
            # Not gathered: states are large, and the others' are None.
            dist.broadcast_object_list(outcome)
        return outcome[0]

    def on_first_of_machine(self, work: Callable[[], Value]) -> Value:
        """Let one process of every machine do something and give all there its outcome.

        Raises:
            PeerError: it failed on some machine; there the cause is raised.
        """
        return self._share(work, self.local_rank == 0)[self.rank - self.local_rank]

    def _share(self, work: Callable[[], Value], mine: bool) -> list[Value]:
        return [work()] if self.world == 1 else self.gather(self._done(work, mine))

    def _done(self, work: Callable[[], Value], mine: bool) -> Any:
        """What the work gives where it is to be done, else None; a failure is everybody's."""
        outcome: Any = None
        failure: Exception | Terminated | None = None
        try:
            outcome = work() if mine else None
        except (Exception, Terminated) as error:
            failure = error
        self.raise_on_all(failure)
        return outcome

    def raise_on_all(self, failure: Exception | Terminated | None) -> None:
        """Raise the failure of the lowest rank that has one, there; all others raise PeerError."""
        failed = self.gather(failure is not None)
        if any(failed):
            if failure is not None and failed.index(True) == self.rank:
                raise failure
            raise PeerError


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks of this job while the block runs: those of torchrun, or this process alone.

    A block that fails leaves torch's process group behind, whose threads may be in the middle of
    what the others have no part in any more. End the process by ``termination.end`` then.

    Args:
        device: of the tensors that travel; flags and objects travel on any.

    Raises:
        PeerError: another rank is gone, whatever way torch found to say so.
    """
    world = int(os.environ.get("WORLD_SIZE", "1")) if is_rank() else 1
    if world == 1:
        yield Ranks()
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with peer_errors():
        # Objects and flags travel through gloo even where gradients go through NCCL.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Torch waits for the others without hearing what Python would do at a signal; there is
        # nothing to lose yet.
        with on_signals(signal.SIG_DFL):
            dist.init_process_group(backend, timeout=_PATIENCE)
        ranks = Ranks(rank, world, local_rank, rank)
        yield ranks
        # Nobody leaves while others still talk.
        ranks.wait()
        # Ends torch's threads: one that still holds a tensor of the last exchange wants the
        # interpreter's lock to give it back, and aborts the process if Python is already ending.
        dist.destroy_process_group()


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Turn torch's many errors about a process that is gone into ``PeerError``."""
    try:
        yield
    except (SatmapError, PeerError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, OSError) as error:
        text = str(error).lower()
        if is_rank() and any(word in text for word in _LOST):
            raise PeerError from error
        raise


def _end_with_parent(parent: int) -> None:
    """A rank whose launcher was killed would go on beside the next one that is started."""
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT_S)
    os._exit(1)
