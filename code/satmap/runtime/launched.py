"""Environment variables of torch's launcher: whether and how it started this process.

This module does not import torch, which takes seconds. :mod:`satmap.runtime.ranks` does.
"""

import os

#: Environment variable of processes that :mod:`satmap.runtime.launcher` started.
OURS = "SATMAP_LAUNCHER"


def is_rank() -> bool:
    """Return whether torch's launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_rank() -> bool:
    """Return whether this process is the one of its job that reports to the user."""
    return not is_rank() or os.environ["RANK"] == "0"


def local_processes() -> int:
    """Return how many processes of the job run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_rank() else 1


def is_started_again() -> bool:
    """Return whether the launcher restarted the job, as ``torchrun --max-restarts`` does."""
    return is_rank() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def is_ours() -> bool:
    """Return whether satmap's own command started this process, not the user's ``torchrun``."""
    return is_rank() and OURS in os.environ
