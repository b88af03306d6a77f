"""Commands, and ranks as torch's launcher starts them, forked from a process that has imported
everything."""

import multiprocessing
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

import satmap.cli
import satmap.runtime.device
from satmap.cli import main
from satmap.networks.unet import UNet
from satmap.runtime.termination import PEER_FAILED
from tiny_trainings import add_tiny_encoders

# What is forked from a process that has imported everything starts in no time.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["satmap.cli", "satmap.training.train_ensemble", "satmap.prediction.run", "pytest"]
)

# Longer than it takes a process to notice that another one is gone, and to end by itself.
_ALONE_S = 5


# The processes that tests start import this module, and no fixture runs in them.
if multiprocessing.current_process().name != "MainProcess":
    add_tiny_encoders(pytest.MonkeyPatch())


def be_rank(
    rank: int, world: int, port: int, arguments: Sequence[str], output: Path, twist: str
) -> None:
    """Run a command as torch's launcher would: in a process of its own, told who it is."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in told.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    # Nobody ends the others here as soon as one has ended.
    satmap.cli._PEER_FIRST_S = 0.0
    if arguments[0] == "train":
        # Processors with bfloat16 round each share of a batch to three digits.
        satmap.runtime.device._fast_bfloat16 = lambda device: False
    if twist:
        {"memory": little_memory, "disk": full_disk, "nohup": no_hangup}[twist](rank)
    be_command(arguments, output / f"rank{rank}.txt")


def be_command(arguments: Sequence[str], output: Path) -> None:
    """Run a command whose words, on either stream, go to a file."""
    # As in a terminal, wherever the tests run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # And as there its workers are forks, not of the kind that this process is.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    main(arguments)


def little_memory(rank: int) -> None:
    """Rank 1 has no room for two crops."""
    if rank == 1:
        limit_batch(1)


def full_disk(rank: int) -> None:
    """Rank 0 cannot write the weights of a network, as if no space were left."""
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY))


def no_hangup(rank: int) -> None:
    """What ``nohup`` does to a command."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def limit_batch(most: int) -> Callable[..., torch.Tensor]:
    """Let networks run out of memory in training; gives their own ``forward``."""
    original = UNet.forward

    def forward(self: UNet, x: torch.Tensor, category: torch.Tensor | None = None) -> torch.Tensor:
        if self.training and len(x) > most:
            raise torch.OutOfMemoryError("no room")
        return original(self, x, category)

    UNet.forward = forward  # type: ignore[method-assign]
    return original


def start_command(arguments: Sequence[str], output: Path) -> ForkServerProcess:
    """Start ``satmap ARGUMENTS``, a process like any other but for ``tiny`` encoders."""
    process = SERVER.Process(target=be_command, args=(arguments, output))
    process.start()
    return process


def start_ranks(arguments: Sequence[str], output: Path, twist: str = "") -> list[ForkServerProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        (output / f"rank{rank}.txt").unlink(missing_ok=True)
        process = SERVER.Process(target=be_rank, args=(rank, 2, port, arguments, output, twist))
        process.start()
        processes.append(process)
    return processes


def kill_one(processes: Sequence[ForkServerProcess], moments: random.Random, output: Path) -> bool:
    """Kill one of two ranks after up to a fifth of a second; whether it was still there.

    The other one must then end by itself and without a word of its own.
    """
    time.sleep(moments.uniform(0, 0.2))
    victim = moments.randrange(2)
    processes[victim].kill()
    codes = finish(processes)
    if codes[victim] != -signal.SIGKILL:
        assert codes == [0, 0]
        return False
    assert codes[1 - victim] in (PEER_FAILED, -signal.SIGTERM)
    assert "satmap:" not in (output / f"rank{1 - victim}.txt").read_text()
    return True


def finish(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    """Their exit codes; as torch's launcher does, those that others leave alone are ended.

    One that waits for the others to join cannot know that they will not come.
    """
    deadline = time.monotonic() + 120
    while any(process.is_alive() for process in processes):
        sentinels = [process.sentinel for process in processes if process.is_alive()]
        wait(sentinels, max(deadline - time.monotonic(), 0))
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + _ALONE_S)
        if time.monotonic() >= deadline:
            for process in processes:
                process.terminate()
            deadline += 120
    return [process.exitcode for process in processes]
