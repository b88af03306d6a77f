"""Registry of the tasks that recipes can name; a task is imported only when it is used.

A task has two parts. Its settings define the content of recipes and load in milliseconds. Its
:class:`satmap.tasks.base.Task` does the work and imports torch. Another package adds a task with an
entry point of the group ``satmap.tasks`` that names a :class:`TaskEntry`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any

from satmap.errors import SatmapError
from satmap.recipes.task_settings import TaskLosses, TaskSettings


@dataclass(frozen=True)
class TaskEntry:
    """Where a task family is defined. Addresses are written ``package.module:name``.

    Attributes:
        name: what recipes call the task.
        settings: the :class:`TaskSettings` of its recipes.
        losses: the :class:`TaskLosses` of their members.
        task: the :class:`satmap.tasks.base.Task`.
        formats: a list of :class:`satmap.submissions.result_format.ResultFormat`, the formats of
            its results; None if these are formats of the challenges.
    """

    name: str
    settings: str
    losses: str
    task: str
    formats: str | None = None

    def settings_type(self) -> type[TaskSettings]:
        """Return the type of the task's settings in a recipe."""
        found: type[TaskSettings] = resolve_name(self.settings)
        return found

    def losses_type(self) -> type[TaskLosses]:
        """Return the type of the losses of a recipe's members."""
        found: type[TaskLosses] = resolve_name(self.losses)
        return found

    def task_type(self) -> Any:
        """Return the type of the task; this imports torch."""
        return resolve_name(self.task)

    def result_formats(self) -> list[Any]:
        """Return the result formats besides those of the challenges."""
        return list(resolve_name(self.formats)) if self.formats else []


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
    TaskEntry(
        "raster",
        "satmap.tasks.raster.settings:RasterTaskSettings",
        "satmap.tasks.raster.settings:RasterLosses",
        "satmap.tasks.raster.task:RasterTask",
    ),
    TaskEntry(
        "instances",
        "satmap.tasks.building_instances.settings:InstanceTaskSettings",
        "satmap.tasks.building_instances.settings:InstanceLosses",
        "satmap.tasks.building_instances.task:BuildingInstanceTask",
    ),
)


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks: those of satmap and those of other packages."""
    return (*(entry.name for entry in BUILT_IN), *installed_tasks())


def find_task(name: str) -> TaskEntry:
    """Return the entry of a task.

    Raises:
        SatmapError: no task has this name.
    """
    for entry in BUILT_IN:
        if entry.name == name:
            return entry
    if name in installed_tasks():
        return installed_tasks()[name]
    raise SatmapError(f"no task is called {name!r:.60}; there are {', '.join(task_names())}.")


@cache
def installed_tasks() -> Mapping[str, TaskEntry]:
    """Return the tasks of other installed packages, by name."""
    entries: list[TaskEntry] = [point.load() for point in entry_points(group="satmap.tasks")]
    return {entry.name: entry for entry in entries}
