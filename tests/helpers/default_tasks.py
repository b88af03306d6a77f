"""Tasks with default settings, for tests."""

from typing import Any

from satmap.tasks.base import default_task
from satmap.tasks.buildings.task import BuildingTask
from satmap.tasks.roads.task import RoadTask


def road_task(**settings: Any) -> RoadTask:
    """Return a road task; ``settings`` override the defaults of the recipe's ``task``."""
    task = default_task("roads", **settings)
    assert isinstance(task, RoadTask)
    return task


def building_task(**settings: Any) -> BuildingTask:
    """Likewise, buildings."""
    task = default_task("buildings", **settings)
    assert isinstance(task, BuildingTask)
    return task
