"""Start a command as several processes, one per GPU, with torch's launcher."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from satmap.errors import SatmapError
from satmap.runtime.device import visible_gpus
from satmap.runtime.launched import OURS, is_rank
from satmap.runtime.resources import available_cores, limit_nccl_shared_memory
from satmap.runtime.termination import PEER_FAILED, RESTART, SIGNALS, STATUSES, Terminated

# Seconds that processes get to finish their step and save after a request to stop.
_LAST_STEP_S = 300


def processes_for(device: str, processes: int | None) -> int:
    """Return how many processes to start, by default one per GPU.

    1 means that this process does the work itself. A device with a number is a single GPU.

    Raises:
        SatmapError: more processes than GPUs, or GPUs that this build of torch cannot use.
    """
    if is_rank():
        return 1
    if processes and processes > 1 and ":" in device:
        raise SatmapError(
            f"--device {device} is one GPU, which {processes} processes cannot share. Give "
            "--device cuda, or leave --processes out."
        )
    gpus = visible_gpus(device)
    if processes and gpus and processes > gpus:
        raise SatmapError(
            f"{processes} processes, but there are {gpus} GPUs here. Lower --processes, or give "
            "--device cpu."
        )
    return processes or max(gpus, 1)


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``satmap ARGUMENTS`` in several processes on this machine; return the exit status.

    It is 0, or the status of the process that failed.

    Raises:
        SatmapError: a process was killed, or the processes lost their connections.
        Terminated: this process was asked to end. The started processes have ended already.
    """
    # The processes report their errors themselves.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    # All processes are on this machine, even if its host name resolves to another address.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ[OURS] = "1"
    limit_nccl_shared_memory()
    while True:
        with tempfile.TemporaryDirectory(prefix="satmap-") as logs:
            status = _launch_once(arguments, processes, logs)
        if status != RESTART:
            return status
        # The next attempt resumes; it must not start from the beginning again.
        arguments = [argument for argument in arguments if argument != "--restart"]


def _launch_once(arguments: Sequence[str], processes: int, logs: str) -> int:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )
    # Newer versions of torch have a time limit before they kill processes that still save.
    if hasattr(config, "shutdown_timeout"):
        config.shutdown_timeout = _LAST_STEP_S
    if hasattr(config, "signals_to_handle"):
        handled = (number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN)
        config.signals_to_handle = ",".join(signal.Signals(number).name for number in handled)
    try:
        launch_agent(config, sys.executable, ["-m", "satmap", *arguments])
    except SignalException as error:
        raise Terminated(error.sigval) from error
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        return _status(statuses)
    return 0


def _status(statuses: dict[int, int]) -> int:
    """Return the exit status of a job from those of its processes (negative: killed by a signal).

    When one process fails, torch ends the others by SIGTERM and later by SIGKILL. Therefore a
    status that a process returned itself takes precedence over the signals that ended others.
    """
    returned = [status for status in statuses.values() if status > 0]
    if RESTART in returned:
        return RESTART
    for status in returned:
        if status not in (PEER_FAILED, *STATUSES):
            return status
    for rank, status in statuses.items():
        if status < 0 and -status != signal.SIGTERM:
            raise SatmapError(
                f"process {rank} was killed by {signal.Signals(-status).name}, so the others were "
                "stopped. If the system killed it, memory may have run out: lower --workers. "
                "Run the same command again to resume."
            )
    for status in returned:
        if status in STATUSES:
            return status
    if PEER_FAILED not in returned:
        return 128 + signal.SIGTERM
    raise SatmapError(
        "the processes lost their connections to each other, and none reported an error. Check "
        "the network between them and the output with --debug, and run the same command again to "
        "resume."
    )
