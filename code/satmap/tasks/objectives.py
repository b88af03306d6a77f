"""What a task asks of training: its losses and its score. The loop knows none of them by name."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from satmap.data.cache import CachedChip
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Recipe
from satmap.tasks.buildings.objective import BuildingObjective
from satmap.tasks.roads.losses import BatchLoss
from satmap.tasks.roads.objective import RoadObjective


class ChipScore(Protocol):
    """What a network made of one chip, small enough to be sent to another process."""

    @property
    def caption(self) -> str:
        """The score in words, for pictures."""


class Objective(Protocol):
    """A task as training sees it."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the loss, in the order in which they are shown."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Scores of a validation, in the order in which they are shown; the first counts."""

    @property
    def best(self) -> Mapping[str, str]:
        """Score to the checkpoint that keeps its best."""

    @property
    def labelled(self) -> str:
        """What labels hold, for messages."""

    @property
    def loss(self) -> BatchLoss:
        """The loss of a batch, and, for display, its ``parts`` (detached)."""

    def score(
        self, maps: ProbabilityMaps, chip: CachedChip, target: NDArray[np.uint8]
    ) -> ChipScore:
        """Vectorise the planes of a chip and score what is found.

        Args:
            maps: a network's, of the size in which it saw the chip.
            chip: its labels.
            target: uint8, of the planes' size.
        """

    def summary(self, chips: Sequence[CachedChip], scores: Sequence[Any]) -> dict[str, float]:
        """The ``scores`` of a validation, each 0..1, from those of its chips."""

    def picture(self, chip: CachedChip, score: Any) -> NDArray[np.uint8]:
        """What was found beside the truth, uint8 (h, w, 3)."""


def objective_of(recipe: Recipe) -> Objective:
    """The objective of a recipe's task."""
    if recipe.task == "roads":
        return RoadObjective(recipe.roads)
    return BuildingObjective(recipe.maps, recipe.buildings)
