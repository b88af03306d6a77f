"""Distillation: find the teacher ensemble and predict its soft targets for the training chips.

Source: knowledge distillation, https://arxiv.org/abs/1503.02531. The ensemble predicts every
training chip once, with test-time augmentation; the mean is a soft target beside the label.

Each network of the ensemble was trained with most of these chips, so its probabilities there are
too confident. This does no harm: a teacher that repeats the label adds nothing, and the
uncertainty of the other networks is useful. But no chip counts as held out for the student, see
``satmap.training.checkpoints``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from satmap.data.crops import CachedChip, SoftTarget
from satmap.errors import SatmapError
from satmap.io.progress import track
from satmap.networks.ensemble import predict_maps
from satmap.recipes.schema import Recipe
from satmap.runtime.launched import local_processes
from satmap.runtime.termination import Terminated
from satmap.tasks.base import task_of
from satmap.tasks.dense import DenseTask
from satmap.training.run_context import RunContext
from satmap.weights.header import CHECKSUM, read_metadata
from satmap.weights.members import WeightFile, choose, find_weights

# Increase this when the soft targets of the same teacher change.
_FORMAT = "2"

# Inference settings that do not change probability maps. All others are part of the digest, so a
# new setting invalidates soft targets by default. ``checkpoints`` selects the weight files; the
# digest contains their checksums instead.
_SETTINGS_WITHOUT_EFFECT = {"batch", "checkpoints"}


@dataclass(frozen=True)
class Teacher:
    """An ensemble to learn from.

    Attributes:
        files: weight files of the networks.
        task: task of the recipe that the networks were trained with.
        map_names: names of the student's probability maps, in its order.
    """

    files: tuple[WeightFile, ...]
    task: DenseTask
    map_names: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe that the networks were trained with."""
        return self.task.recipe

    @property
    def bands(self) -> int:
        """Largest number of image bands that a network needs."""
        return max(file.network.in_channels for file in self.files)

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
        described = [_FORMAT, settings, self.map_names, networks]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def find_teacher(directory: Path, student: Recipe) -> Teacher:
    """Find the ensemble in a directory of weights, without the student's own weights.

    Raises:
        SatmapError: there is no ensemble or more than one, or it has another task or stretch.
    """
    files = [
        file
        for file in find_weights(directory)
        if file.recipe.training_fingerprint != student.training_fingerprint
    ]
    recipes = {file.recipe.training_fingerprint: file.recipe for file in files}
    if len(recipes) != 1:
        names = ", ".join(sorted(recipe.name for recipe in recipes.values()))
        raise SatmapError(
            f"--teacher {directory} should hold the weights of one recipe to learn from; it holds "
            f"{f'those of {names}' if names else f'only those of {student.name}'}."
        )
    (recipe,) = recipes.values()
    task = task_of(recipe)
    student_task = task_of(student)
    ours, theirs = (
        (found.recipe.task.name, found.recipe.stretch, found.input_px)
        for found in (student_task, task)
    )
    if ours != theirs or not isinstance(task, DenseTask):
        raise SatmapError(
            f"the teacher in {directory}, recipe {recipe.name}, has another task or prepares "
            f"images differently from {student.name}: the name of the task, `stretch` and "
            "`input_px` must agree."
        )
    chosen = choose(files, recipe)
    for file in chosen:
        task.check_weights(file)
    return Teacher(tuple(chosen), task, student.map_names)


def predict_soft_targets(
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
    for member in members:
        member.network.order_maps(teacher.map_names)
    for chip, soft in track(missing, "predicting soft targets", len(missing)):
        image, _ = chip.read()
        settings = teacher.recipe.inference
        soft.write(predict_maps(members, image, settings, context.device, chip.category))


def _checksum(file: WeightFile) -> str:
    recorded = read_metadata(file.path).get(CHECKSUM)
    if recorded is not None:
        return recorded
    with file.path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
