"""The starter networks that come with satmap: one trained network per task.

docs/models/ describes their data, licences and scores.
"""

from importlib import resources
from pathlib import Path

from satmap.errors import SatmapError

# Directory in the package, with one directory per task that holds a weight file.
_DIRECTORY = "starters"


def starter_tasks() -> list[str]:
    """Return the names of the tasks that have a starter network."""
    starters = Path(str(resources.files("satmap") / _DIRECTORY))
    return sorted(file.parent.name for file in starters.glob("*/*.safetensors"))


def starter_weights(task: str | None) -> Path:
    """Return the directory of weights of a task's starter network.

    Raises:
        SatmapError: no task is given, or satmap has no starter network for it.
    """
    tasks = starter_tasks()
    if not tasks:
        raise SatmapError(
            "the starter networks are missing from this installation of satmap. Install it again, "
            "or give your own with --weights."
        )
    if task in tasks:
        return Path(str(resources.files("satmap") / _DIRECTORY / task))
    choice = " or ".join(f"--task {name}" for name in tasks)
    if task is None:
        raise SatmapError(
            f"say what to map: {choice}. satmap then uses its starter network. For your own "
            "networks give --weights."
        )
    raise SatmapError(
        f"satmap has no starter network for {task}. Give {choice}, or your own networks with "
        "--weights."
    )
