"""Tasks with default settings, for tests."""

from collections.abc import Sequence
from typing import Any

import torch

from satmap.networks.ensemble import EnsembleMember
from satmap.tasks.base import default_task, task_of
from satmap.tasks.buildings.task import BuildingTask
from satmap.tasks.roads.task import RoadTask
from satmap.weights.members import WeightFile


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


def load_ensemble(files: Sequence[WeightFile], device: torch.device) -> list[EnsembleMember]:
    """Load the networks of an ensemble, with the task of the first file's recipe."""
    return task_of(files[0].recipe).load_ensemble(files, device)
