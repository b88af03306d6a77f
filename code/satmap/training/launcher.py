"""Starting a command once for every GPU, by torch's own launcher."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from satmap.errors import SatmapError
from satmap.training.ranks import is_rank

#: Exit status of a rank that another one has left.
LEFT_ALONE = 70

#: Exit status of a rank that wants the job to be started again (``EX_TEMPFAIL``).
TRY_AGAIN = 75

#: Exit status after SIGTERM, as shells count.
TERMINATED = 128 + signal.SIGTERM


def processes_for(device: str, processes: int | None) -> int:
    """How many processes to start; 1 means that this one does the work.

    Args:
        device: what the user chose; a GPU with a number is one GPU.
        processes: how many the user wants; None for as many as there are GPUs.

    Raises:
        SatmapError: more processes than GPUs.
    """
    if is_rank():
        return 1
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if processes and gpus and processes > gpus:
        raise SatmapError(
            f"{processes} processes, but there are {gpus} GPUs here. Give fewer --processes, or "
            "--device cpu."
        )
    return processes or max(gpus, 1)


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``satmap ARGUMENTS`` in so many processes of this machine.

    Returns:
        The exit status: 0, that of the rank that failed first, 128 + 15 after SIGTERM.

    Raises:
        SatmapError: a rank was killed, or they lost each other.
    """
    # The ranks say themselves what went wrong.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    status = TRY_AGAIN
    while status == TRY_AGAIN:
        status = _launch_once(arguments, processes)
    return status


def _launch_once(arguments: Sequence[str], processes: int) -> int:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        launch_agent(config, sys.executable, ["-m", "satmap", *arguments])
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        return 128 + error.sigval
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        return _status(statuses)
    return 0


def _status(statuses: dict[int, int]) -> int:
    """The status of a job from those of the ranks that had failed when the launcher looked."""
    for rank, status in statuses.items():
        if status < 0 and -status != signal.SIGTERM:
            raise SatmapError(
                f"process {rank} was killed by {signal.Signals(-status).name}, so the others were "
                "ended. If the system did it, memory may have run out: give fewer --workers. "
                "Start the same command again to go on."
            )
    telling = [status for status in statuses.values() if status != LEFT_ALONE]
    if not telling:
        raise SatmapError(
            "the processes lost each other without an error of their own. Look at the network "
            "between them, and start the same command again to go on."
        )
    return TERMINATED if -signal.SIGTERM in telling else telling[0]
