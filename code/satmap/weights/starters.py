"""The starter networks that come with satmap: one trained network per task.

docs/models/ describes their data, licences and scores.
"""

from importlib import resources
from pathlib import Path

from satmap.errors import SatmapError

# One directory per task that holds a weight file.
_STARTERS = Path(str(resources.files("satmap") / "starters"))

#: Pictures of real places for the demo; SOURCES.md there names their sources and licences.
PICTURES = _STARTERS / "pictures"


def starter_tasks() -> list[str]:
    """Return the names of the tasks that have a starter network."""
    return sorted(file.parent.name for file in _STARTERS.glob("*/*.safetensors"))


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
        return _STARTERS / task
    choice = " or ".join(f"--task {name}" for name in tasks)
    if task is None:
        raise SatmapError(
            f"say what to map: {choice}. satmap then uses its starter network. For your own "
            "networks give --weights."
        )
    raise SatmapError(
        f"satmap has no starter network for {task}, only for {' and '.join(tasks)}. Give your own "
        "networks with --weights."
    )
