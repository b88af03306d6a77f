"""Starting a command once for every GPU, by torch's own launcher."""

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
from satmap.runtime.resources import available_cores
from satmap.runtime.shared_memory import limit_nccl_shared_memory
from satmap.runtime.termination import PEER_FAILED, RESTART, SIGNALS, STATUSES, Terminated

# What ranks that were asked to end may take for the step at hand and for saving.
_LAST_STEP_S = 300


def processes_for(device: str, processes: int | None) -> int:
    """How many processes to start; 1 means that this one does the work.

    Args:
        device: what the user chose; a GPU with a number is one GPU.
        processes: how many the user wants; None for as many as there are GPUs.

    Raises:
        SatmapError: more processes than GPUs, or GPUs that this torch cannot use.
    """
    if is_rank():
        return 1
    if processes and processes > 1 and ":" in device:
        raise SatmapError(
            f"--device {device} is one GPU, which {processes} processes cannot share. Give "
            "--device cuda, or no --processes."
        )
    gpus = visible_gpus(device)
    if processes and gpus and processes > gpus:
        raise SatmapError(
            f"{processes} processes, but there are {gpus} GPUs here. Give fewer --processes, or "
            "--device cpu."
        )
    return processes or max(gpus, 1)


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``satmap ARGUMENTS`` in so many processes of this machine.

    Returns:
        The exit status: 0, or that of the rank that failed.

    Raises:
        SatmapError: a rank was killed, or they lost each other.
        Terminated: this process was asked to end; the ranks have ended before.
    """
    # The ranks say themselves what went wrong.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    # All ranks are on this machine, whatever its name resolves to.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ[OURS] = "1"
    limit_nccl_shared_memory()
    while True:
        with tempfile.TemporaryDirectory(prefix="satmap-") as logs:
            status = _launch_once(arguments, processes, logs)
        if status != RESTART:
            return status
        # What was begun anew is gone on with.
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
    # Newer torch can be told how long to wait before it kills ranks that save a last step.
    if hasattr(config, "shutdown_timeout"):
        config.shutdown_timeout = _LAST_STEP_S
    if hasattr(config, "signals_to_handle"):
        heard = (number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN)
        config.signals_to_handle = ",".join(signal.Signals(number).name for number in heard)
    try:
        launch_agent(config, sys.executable, ["-m", "satmap", *arguments])
    except SignalException as error:
        raise Terminated(error.sigval) from error
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        return _status(statuses)
    return 0


def _status(statuses: dict[int, int]) -> int:
    """The status of a job from those of its ranks.

    When one has failed torch ends the others, by SIGTERM and later by SIGKILL, before anybody can
    view_angle: what a rank says by itself counts more than how it was ended.
    """
    said = [status for status in statuses.values() if status > 0]
    if RESTART in said:
        return RESTART
    for status in said:
        if status not in (PEER_FAILED, *STATUSES):
            return status
    for rank, status in statuses.items():
        if status < 0 and -status != signal.SIGTERM:
            raise SatmapError(
                f"process {rank} was killed by {signal.Signals(-status).name}, so the others were "
                "ended. If the system did it, memory may have run out: give fewer --workers. "
                "Start the same command again to go on."
            )
    for status in said:
        if status in STATUSES:
            return status
    if PEER_FAILED not in said:
        return 128 + signal.SIGTERM
    raise SatmapError(
        "the processes lost each other without an error of their own. Look at the network between "
        "them, or at what --debug shows, and start the same command again to go on."
    )
