"""The task families that recipes can name: each in one line, loaded when it is needed.

A task has two halves. Its settings say what a recipe may hold and load in milliseconds; its
:class:`satmap.tasks.base.Task` does the work and loads torch. Both are named here by their
addresses, so that nothing is imported for a task that is not used.

Another package adds a task with an entry point of the group ``satmap.tasks`` that names a
:class:`TaskEntry`.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from satmap.errors import SatmapError
from satmap.recipes.task_settings import TaskLosses, TaskSettings

_GROUP = "satmap.tasks"


@dataclass(frozen=True)
class TaskEntry:
    """Where a task family is defined. Addresses are written ``package.module:name``.

    Attributes:
        name: what recipes call the task.
        settings: the :class:`TaskSettings` of its recipes.
        losses: the :class:`TaskLosses` of their members.
        task: the :class:`satmap.tasks.base.Task`.
        formats: a list of :class:`satmap.evaluation.result_format.ResultFormat`, for results in a
            format that none of the challenges has; None for none.
    """

    name: str
    settings: str
    losses: str
    task: str
    formats: str | None = None

    def settings_type(self) -> type[TaskSettings]:
        """The type of the task's part of a recipe."""
        found: type[TaskSettings] = _load(self.settings)
        return found

    def losses_type(self) -> type[TaskLosses]:
        """The type of the losses of a recipe's members."""
        found: type[TaskLosses] = _load(self.losses)
        return found

    def task_type(self) -> Any:
        """The task itself; this imports torch."""
        return _load(self.task)

    def result_formats(self) -> list[Any]:
        """Formats of results beside those of the challenges."""
        return list(_load(self.formats)) if self.formats else []


#: The tasks that satmap ships.
BUILT_IN = (
    TaskEntry(
        "roads",
        "satmap.tasks.roads.settings:RoadTaskSettings",
        "satmap.tasks.roads.settings:RoadLosses",
        "satmap.tasks.roads.task:RoadTask",
    ),
    TaskEntry(
        "buildings",
        "satmap.tasks.buildings.settings:BuildingTaskSettings",
        "satmap.tasks.buildings.settings:BuildingLosses",
        "satmap.tasks.buildings.task:BuildingTask",
    ),
)


def task_names() -> tuple[str, ...]:
    """The names of the tasks that satmap ships."""
    return tuple(entry.name for entry in BUILT_IN)


def find_task(name: str) -> TaskEntry:
    """The entry of a task.

    Raises:
        SatmapError: no task has this name.
    """
    for entry in BUILT_IN:
        if entry.name == name:
            return entry
    if name in installed_tasks():
        return installed_tasks()[name]
    known = ", ".join((*task_names(), *installed_tasks()))
    raise SatmapError(f"no task is called {name!r:.60}; there are {known}.")


@cache
def installed_tasks() -> Mapping[str, TaskEntry]:
    """The tasks of other installed packages, by name."""
    entries: list[TaskEntry] = [point.load() for point in entry_points(group=_GROUP)]
    return {entry.name: entry for entry in entries}


def _load(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)
