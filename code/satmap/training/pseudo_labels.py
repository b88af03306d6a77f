"""Predict pseudo-labels: by the networks of the round before, or by a network's own average.

The ensemble predicts every chip once, with test-time augmentation. The mean of all probability maps
is kept beside the chip in the cache, one byte per map and pixel, as a soft target.

Most of the ensemble's networks were trained with any labelled chip, so their probabilities there
are too confident. This does no harm: a teacher that repeats the label adds nothing, and the
uncertainty of the other networks is useful. But then no chip counts as held out, see
``satmap.training.checkpoints``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from satmap.data.crops import CachedChip, SoftTarget
from satmap.io.progress import track
from satmap.networks.ensemble import predict_maps
from satmap.recipes.pseudo_labels import PseudoLabels
from satmap.recipes.schema import Recipe
from satmap.runtime.device import autocast
from satmap.runtime.launched import local_processes
from satmap.runtime.termination import Terminated
from satmap.tasks.base import Batch, Task, task_of
from satmap.tasks.dense import DenseTask
from satmap.training.run_context import RunContext
from satmap.training.state import MovingAverage
from satmap.weights.header import CHECKSUM, read_metadata
from satmap.weights.members import WeightFile, choose, find_weights

# Increase this when the soft targets of the same teacher change.
_FORMAT = "2"

# Inference settings that do not change probability maps. All others are part of the digest, so a
# new setting invalidates soft targets by default. ``checkpoints`` selects the weight files; the
# digest contains their checksums instead.
_SETTINGS_WITHOUT_EFFECT = {"batch", "checkpoints", "join_chips"}


@dataclass(frozen=True)
class Teacher:
    """An ensemble to learn from.

    Attributes:
        files: weight files of the networks.
        task: task of the recipe that the networks were trained with.
    """

    files: tuple[WeightFile, ...]
    task: DenseTask

    @property
    def recipe(self) -> Recipe:
        """The recipe that the networks were trained with."""
        return self.task.recipe

    @property
    def passes(self) -> int:
        """Forward passes per image: networks times test-time augmentations."""
        return len(self.files) * self.recipe.inference.tta

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the networks' weights and of how they predict."""
        inference = self.recipe.inference
        settings = inference.model_dump_json(exclude=_SETTINGS_WITHOUT_EFFECT)
        networks = sorted((_checksum(file), file.votes) for file in self.files)
        described = [_FORMAT, settings, self.task.map_names, networks]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def find_teacher(directory: Path, recipe: Recipe, tta: int | None) -> Teacher:
    """Return the trained networks of a round as a teacher.

    Args:
        directory: their weights.
        recipe: the recipe up to their round.
        tta: test-time augmentation; None for that of the recipe.
    """
    inference = recipe.inference.model_copy(update={"tta": tta or recipe.inference.tta})
    task = task_of(recipe.model_copy(update={"inference": inference}))
    assert isinstance(task, DenseTask), "rounds need probability maps"
    return Teacher(tuple(choose(find_weights(directory), recipe)), task)


def predict_by_ensemble(
    chips: Sequence[CachedChip], teacher: Teacher, context: RunContext
) -> list[CachedChip]:
    """Return the chips with their soft targets, which are predicted if not in the cache yet.

    All processes call this; the processes of each machine share the work.

    Raises:
        SatmapError: a network or a chip cannot be read, or the cache cannot be written.
        Terminated: the process was asked to end; finished soft targets are kept.
    """
    digest = teacher.digest
    taught = [replace(chip, soft=SoftTarget.of(chip.path, digest)) for chip in chips]
    failure: Exception | Terminated | None = None
    try:
        _make(taught[context.ranks.local_rank :: local_processes()], teacher, context)
    except (Exception, Terminated) as error:
        failure = error
    # Training starts after all soft targets are predicted; if a process fails, all end.
    context.ranks.raise_on_all(failure)
    return taught


def _make(chips: Sequence[CachedChip], teacher: Teacher, context: RunContext) -> None:
    missing = [
        (chip, chip.soft) for chip in chips if chip.soft and not chip.soft.exists(chip.shape[:2])
    ]
    if not missing:
        return
    members = teacher.task.load_ensemble(teacher.files, context.device)
    for chip, soft in track(missing, "predicting pseudo-labels", len(missing)):
        image, _ = chip.read()
        settings = teacher.recipe.inference
        soft.write(predict_maps(members, image, settings, context.device, chip.category))


@torch.no_grad()
def predict_by_average(
    average: MovingAverage, batch: Batch, task: Task, settings: PseudoLabels, device: torch.device
) -> Tensor:
    """Predict the clean crops of a batch by the average of a network's weights.

    Returns:
        uint8 (n, maps, h, w), 0..255 for 0..1; 0 for crops without pseudo-labels.
    """
    clean = batch["clean"]
    shape = (len(batch), task.values_per_pixel, *clean.shape[2:])
    maps = torch.zeros(shape, dtype=torch.uint8, device=device)
    chips = batch.chips
    taught = [i for i, chip in enumerate(chips) if settings.labelled or not chip.is_labelled]
    if taught:
        part = Batch({"image": clean[taught]}, [chips[i] for i in taught])
        network = average.network.eval()
        with autocast(device):
            logits = network(*task.inputs(network, part))
        maps[taught] = (logits.float().sigmoid() * 255).round().to(torch.uint8)
    return maps


def _checksum(file: WeightFile) -> str:
    recorded = read_metadata(file.path).get(CHECKSUM)
    if recorded is not None:
        return recorded
    with file.path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
