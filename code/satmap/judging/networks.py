"""Networks that predict training images, each image by those that have not learned from it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from satmap.data.chip import Chip
from satmap.data.judgement import Reason
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord, record_file
from satmap.networks.ensemble import EnsembleMember
from satmap.prediction.images import prepare_image
from satmap.provenance.manifest import learned_images
from satmap.recipes.schema import Recipe
from satmap.tasks.base import task_of
from satmap.tasks.buildings.settings import BUILDING
from satmap.tasks.dense import DenseTask
from satmap.weights.members import WeightFile, choose, find_weights, recipe_of


@dataclass(frozen=True)
class HeldOutNetworks:
    """The networks of a directory of weights, loaded.

    Attributes:
        task: their task; it predicts footprints.
        files: the weight files.
        members: the network of each.
        learned: for each network, the SHA-256 of the images that it has learned from.
        device: of the networks.
    """

    task: DenseTask
    files: tuple[WeightFile, ...]
    members: tuple[EnsembleMember, ...]
    learned: tuple[frozenset[str], ...]
    device: torch.device

    @classmethod
    def load(cls, weights: Path, device: torch.device) -> "HeldOutNetworks":
        """Load the networks of a training.

        Raises:
            SatmapError: there are none, they do not fit together, or predict no footprints.
        """
        found = find_weights(weights)
        recipe: Recipe = recipe_of(found)
        files = choose(found, recipe)
        task = task_of(recipe)
        if not isinstance(task, DenseTask) or BUILDING not in task.map_names:
            raise SatmapError(
                f"{weights}: networks for {task.noun}. Labels of buildings are judged by networks "
                "that predict probability maps of buildings."
            )
        for file in files:
            task.check_weights(file)
        members = task.load_ensemble(files, device)
        return cls(task, tuple(files), tuple(members), tuple(map(learned_images, files)), device)

    @property
    def bands(self) -> int:
        """Number of channels that the networks need."""
        return max(file.in_channels for file in self.files)

    @property
    def records(self) -> tuple[FileRecord, ...]:
        """Records of the weight files."""
        return tuple(record_file(file.path) for file in self.files)

    def predict(self, chip: Chip) -> tuple[NDArray[np.uint8], Reason]:
        """Predict the buildings of an image by the networks that held it out.

        If no network did, those that have never seen it predict.

        Returns:
            The probability, uint8 (h, w), 0..255 for 0..1, and the reason for these networks.

        Raises:
            SatmapError: all networks have learned from the image, or it cannot be read.
        """
        chosen = [n for n, file in enumerate(self.files) if chip.image_id in (file.held_out or ())]
        reason: Reason = "held out" if chosen else "unseen"
        if not chosen:
            checksum = record_file(chip.image.path).sha256
            chosen = [n for n, learned in enumerate(self.learned) if checksum not in learned]
        if not chosen:
            raise SatmapError(
                f"{chip.image.path}: all networks have learned from it. Train with folds, so that "
                "each image is held out by a network."
            )
        members = [self.members[number] for number in chosen]
        image = prepare_image(chip, members, self.task)
        return self.task.predict(image, self.device).get()[BUILDING], reason
