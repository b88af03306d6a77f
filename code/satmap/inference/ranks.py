"""Several processes that share one prediction: on the GPUs of a machine, or of many.

They are torch's: started by ``torchrun``, or by ``torch.multiprocessing`` where one command is to
use all GPUs by itself. Planes and roads travel through files beside the output; over the network
(gloo) goes only what the processes must agree on.
"""

import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from satmap.cores import available_cores
from satmap.errors import SatmapError
from satmap.termination import STATUS, Terminated, raising_terminated
from satmap.workers import end_with_parent

Value = TypeVar("Value")
Arguments = ParamSpec("Arguments")

# The slowest process is waited for; one that is gone is noticed by its connection, or its launcher.
_PATIENCE = timedelta(days=30)

# Time for a launcher to end the others of a process that is gone, and to say which it was.
_LAUNCHERS_TURN_S = 10.0


@dataclass(frozen=True)
class Ranks:
    """One of the processes that share a prediction.

    Attributes:
        rank: which one; the first, 0, plans and writes the output.
        count: of how many.
        local: which one on its machine.
        local_count: of how many on its machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process plans and writes the output."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device that this process is to use where the run is given ``name``."""
        several = self.local_count > 1 and name in ("auto", "cuda") and torch.cuda.is_available()
        return f"cuda:{self.local % torch.cuda.device_count()}" if several else name

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, in all of them, or its fault.

        Raises:
            SatmapError: the first process raised it; or it has ended.
        """
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = make()
            except SatmapError as error:
                outcome[1] = error
        _talk(lambda: dist.broadcast_object_list(outcome, src=0))
        if outcome[1] is not None:
            raise outcome[1]
        value: Value = outcome[0]
        return value

    def gathered(self, value: Value) -> list[Value]:
        """What every process gives, by rank, in the first; in the others nothing.

        All processes have come so far when the first has its list.

        Raises:
            SatmapError: a process has ended.
        """
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.is_first else None
        _talk(lambda: dist.gather_object(value, found))
        return found or []

    def wait(self) -> None:
        """Wait until all processes have come so far.

        Raises:
            SatmapError: a process has ended.
        """
        if self.count > 1:
            _talk(dist.barrier)


def _talk(exchange: Callable[[], object]) -> None:
    try:
        exchange()
    except RuntimeError as error:
        # The launcher knows which one and why, and ends this process meanwhile.
        time.sleep(_LAUNCHERS_TURN_S)
        raise SatmapError(
            "another process of this run has ended; its message says why. The same command goes "
            "on from here."
        ) from error


def launched() -> Ranks | None:
    """This process among those that ``torchrun`` has started; None if it has not."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    return Ranks(rank, count, local, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def local_processes() -> int:
    """How many processes ``torchrun`` has started on this machine; 0 if it has not."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0"))


def is_first_launched() -> bool:
    """Whether this process is the one to tell the user what was done."""
    return os.environ.get("RANK", "0") == "0"


def run_ranks(
    count: int,
    work: Callable[Concatenate[Ranks, Arguments], Value],
    *arguments: Arguments.args,
    **named: Arguments.kwargs,
) -> Value:
    """Start processes on this machine that all do the same work; if one ends, all end.

    Args:
        count: how many.
        work: a function that a process can be sent; its first argument says which one it is.
        arguments: the others.
        named: likewise.

    Returns:
        What the first process returned.

    Raises:
        SatmapError: a process raised it, or was killed.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    messages: SimpleQueue[tuple[int, bytes]] = torch.multiprocessing.get_context(
        "spawn"
    ).SimpleQueue()
    processes = start_processes(  # type: ignore[no-untyped-call]
        _run_rank,
        (count, store.port, messages, work, arguments, named),
        nprocs=count,
        join=False,
        start_method="spawn",
    )
    said: dict[int, Any] = {}
    try:
        running = True
        while running:
            running = not processes.join(timeout=0.1)
            _collect(messages, said)
    except ProcessRaisedException as error:
        raise SatmapError(f"process {error.error_index} of {count} failed: {error}") from error
    except ProcessExitedException as error:
        _collect(messages, said)
        if isinstance(fault := said.get(error.error_index), SatmapError):
            raise fault from error
        how = error.signal_name or f"status {error.exit_code}"
        raise SatmapError(
            f"process {error.error_index + 1} of {count} (pid {error.error_pid}) was ended by "
            f"{how}; if nobody did that, memory was most likely short. What is finished is kept: "
            "the same command goes on from here, also with another number of processes."
        ) from error
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.terminate()
        for process in processes.processes:
            process.join()
    result: Value = said[0]
    return result


def _collect(messages: "SimpleQueue[tuple[int, bytes]]", said: dict[int, Any]) -> None:
    while not messages.empty():
        rank, content = messages.get()
        said[rank] = pickle.loads(content)


def _run_rank(
    rank: int,
    count: int,
    port: int,
    messages: "SimpleQueue[tuple[int, bytes]]",
    work: Callable[..., object],
    arguments: tuple[object, ...],
    named: dict[str, object],
) -> None:
    """One process, from its start."""
    end_with_parent()
    # All are on this machine, whatever its name resolves to.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(available_cores() // count, 1))
    try:
        with raising_terminated():
            store = TCPStore("127.0.0.1", port, is_master=False)
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=count, timeout=_PATIENCE
            )
            ranks = Ranks(rank, count, rank, count)
            result = work(ranks, *arguments, **named)
            # They leave together: one that is gone early looks like one that failed.
            ranks.wait()
    except SatmapError as error:
        messages.put((rank, pickle.dumps(error)))
        sys.exit(1)
    except Terminated:
        sys.exit(STATUS)
    if rank == 0:
        messages.put((rank, pickle.dumps(result)))
