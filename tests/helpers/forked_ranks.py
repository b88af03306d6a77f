"""Commands, and ranks as started by torch's launcher, forked from a process with all imports.

Every wait has a deadline, after which the test fails.
"""

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

import satmap.cli
import satmap.prediction.map
import satmap.runtime.device
from satmap.cli import main
from satmap.networks.unet import UNet
from satmap.runtime.termination import PEER_FAILED
from satmap.training.job import Job, save_train_state
from satmap.training.state import Progress, TrainState
from tiny_trainings import add_tiny_encoders

# Forks of a process that has imported everything start at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["satmap.cli", "satmap.training.train_ensemble", "satmap.prediction.map", "pytest"]
)

#: Deadline for processes to end or to reach a state, seconds.
LIMIT_S = 240.0

# Time for a process to notice that another one is gone and to end by itself, seconds.
_ALONE_S = 5.0

# Time for a terminated process to end, seconds.
_TERMINATION_S = 60.0

# Time that a held training waits for the test, seconds.
_HELD_S = 120.0


# The started processes import this module and run no fixtures.
if multiprocessing.current_process().name != "MainProcess":
    add_tiny_encoders(pytest.MonkeyPatch())


def be_rank(
    rank: int, world: int, port: int, arguments: Sequence[str], output: Path, twist: str
) -> None:
    """Run a command as torch's launcher does: in its own process, with its rank in variables."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in variables.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    # No launcher ends the other ranks here as soon as one has ended.
    satmap.cli._PEER_FIRST_S = 0.0
    if arguments[0] == "train":
        # Processors with bfloat16 round each part of a batch to three digits.
        satmap.runtime.device._fast_bfloat16 = lambda device: False
    # Tests may run under nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in twist.split():
        if name == "hold":
            hold_training(output, rank)
        else:
            {"memory": little_memory, "disk": full_disk, "nohup": no_hangup,
             "blocks": small_blocks}[name](rank)  # fmt: skip
    be_command(arguments, output / f"rank{rank}.txt")


def be_command(arguments: Sequence[str], output: Path) -> None:
    """Run a command whose stdout and stderr go to a file."""
    # As in a terminal, wherever the tests run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As in a terminal, its workers are forks, unlike this process.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    main(arguments)


def little_memory(rank: int) -> None:
    """Let rank 1 run out of memory with two crops."""
    if rank == 1:
        limit_batch(1)


def full_disk(rank: int) -> None:
    """Let rank 0 fail to write weights, as on a full disk."""
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY))


def small_blocks(rank: int) -> None:
    """Make maps of small blocks, of two windows of 64 pixels without overlap."""
    satmap.prediction.map._BLOCK_PX = 96


def no_hangup(rank: int) -> None:
    """Ignore SIGHUP, as ``nohup`` does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def hold_training(place: Path, rank: int) -> None:
    """Hold a training of all ranks after a saved step until the test releases it."""

    def save(job: Job, state: TrainState, progress: Progress) -> None:
        save_train_state(job, state, progress)
        # A member alone on its rank has no other ranks, and after an epoch there is no step.
        if job.context.ranks.world == 1 or not progress.step:
            return
        (place / f"held{rank}").touch()
        deadline = time.monotonic() + _HELD_S
        while not (place / "released").exists():
            if time.monotonic() > deadline:
                raise RuntimeError("held and not released")
            time.sleep(0.002)

    pytest.MonkeyPatch().setattr("satmap.training.epoch.save_train_state", save)


def wait_for_held(place: Path, processes: Sequence[ForkServerProcess]) -> None:
    """Wait until both ranks of a training are held; see :func:`hold_training`."""
    files = [place / f"held{rank}" for rank in range(len(processes))]
    held = wait_until(lambda: all(file.exists() for file in files), lambda: all_alive(processes))
    assert held, "the training ended before it was held"


def limit_batch(most: int) -> Callable[..., torch.Tensor]:
    """Let networks run out of memory in training; return the original ``forward``."""
    original = UNet.forward

    def forward(self: UNet, x: torch.Tensor, category: torch.Tensor | None = None) -> torch.Tensor:
        if self.training and len(x) > most:
            raise torch.OutOfMemoryError("no room")
        return original(self, x, category)

    UNet.forward = forward  # type: ignore[method-assign]
    return original


def start_command(arguments: Sequence[str], output: Path) -> ForkServerProcess:
    """Start ``satmap ARGUMENTS`` with the ``tiny`` encoders in an otherwise normal process."""
    process = SERVER.Process(target=be_command, args=(arguments, output))
    process.start()
    return process


def start_ranks(arguments: Sequence[str], output: Path, twist: str = "") -> list[ForkServerProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    (output / "released").unlink(missing_ok=True)
    for rank in range(2):
        for name in (f"rank{rank}.txt", f"held{rank}"):
            (output / name).unlink(missing_ok=True)
        process = SERVER.Process(target=be_rank, args=(rank, 2, port, arguments, output, twist))
        process.start()
        processes.append(process)
    return processes


def kill_one(processes: Sequence[ForkServerProcess], moments: random.Random, output: Path) -> bool:
    """Kill one of two ranks after up to a fifth of a second; return whether it was still running.

    The other rank must then end by itself and print nothing.
    """
    time.sleep(moments.uniform(0, 0.2))
    victim = moments.randrange(2)
    processes[victim].kill()
    codes = finish(processes)
    if codes[victim] != -signal.SIGKILL:
        assert codes == [0, 0]
        return False
    assert codes[1 - victim] in (PEER_FAILED, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert "satmap:" not in (output / f"rank{1 - victim}.txt").read_text()
    return True


def finish(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    """Wait for processes to end and return their exit codes.

    Like torch's launcher, end the remaining processes after one has failed. A process that waits
    for the others to join cannot know that they will not come.
    """
    deadline = time.monotonic() + LIMIT_S
    is_ending = False
    # Poll once per round, because a process may end between two polls.
    while alive := [process for process in processes if process.is_alive()]:
        if not is_ending and any(process.exitcode for process in processes):
            is_ending = True
            deadline = min(deadline, time.monotonic() + _ALONE_S)
        wait([process.sentinel for process in alive], max(deadline - time.monotonic(), 0))
        if time.monotonic() < deadline:
            continue
        if is_ending and _end(alive):
            continue
        for process in alive:
            process.kill()
        pytest.fail(f"{len(alive)} of {len(processes)} processes have not ended in time")
    return [process.exitcode for process in processes]


def _end(processes: Sequence[ForkServerProcess]) -> bool:
    """Terminate processes; return whether they ended in time."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _TERMINATION_S
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    return not any(process.is_alive() for process in processes)


def wait_until(reached: Callable[[], bool], is_running: Callable[[], bool]) -> bool:
    """Poll until ``reached`` is true; return False if the process ends before.

    Fails the test after the deadline.
    """
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        if not is_running():
            # It may have been reached at the very end.
            return reached()
        if time.monotonic() > deadline:
            pytest.fail(f"not reached within {LIMIT_S:.0f} s")
        time.sleep(0.002)
    return True


def all_alive(processes: Sequence[ForkServerProcess]) -> bool:
    """Return whether none of the processes has ended."""
    return all(process.is_alive() for process in processes)


@contextlib.contextmanager
def killed_at_last(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Kill a session leader and all its processes when the block ends."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=LIMIT_S)
