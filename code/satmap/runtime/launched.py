"""What torch's launcher has told this process of the job that it is one of.

Apart from :mod:`satmap.runtime.ranks`, because torch takes seconds to load.
"""

import os

#: Set in the environment of what :mod:`satmap.runtime.launcher` starts.
OURS = "SATMAP_LAUNCHER"


def is_rank() -> bool:
    """Whether torch's launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_rank() -> bool:
    """Whether this process is the one of its job that tells the user what was done."""
    return not is_rank() or os.environ["RANK"] == "0"


def local_processes() -> int:
    """How many processes of the job share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_rank() else 1


def is_started_again() -> bool:
    """Whether the launcher has started the job before; ``torchrun --max-restarts`` does."""
    return is_rank() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def is_ours() -> bool:
    """Whether it was satmap's own command that used the launcher to start this process."""
    return is_rank() and OURS in os.environ
