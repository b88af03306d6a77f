"""Distillation: the ensemble that a single network learns from, and what it makes of the chips.

Source: knowledge distillation, https://arxiv.org/abs/1503.02531. All networks and views of the
ensemble look at every training chip once; their mean is a soft target beside the label. A network
of the ensemble has been trained with most of these chips, so its planes there are somewhat too
sure. That does no harm here: where the teacher only repeats the label it says nothing new, and what
it adds, the doubts of all the others, is worth having. What it does forbid is to call any chip
unseen by the student: see ``satmap.training.checkpoints``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from satmap.data.cache import CachedChip
from satmap.data.soft_targets import SoftTarget
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

# Raise when the same teacher's planes change.
_FORMAT = "2"

# Inference settings that do not change probability maps. All others are part of the digest, so that
# a new setting makes soft targets stale until somebody decides otherwise. The checkpoints choose
# the files, which are part of it.
_SETTINGS_WITHOUT_EFFECT = {"batch", "checkpoints"}


@dataclass(frozen=True)
class Teacher:
    """An ensemble to learn from.

    Attributes:
        files: its networks.
        task: of the recipe that they were trained with.
        map_names: the student's probability maps, in its order.
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
        """How many bands of an image its networks need at most."""
        return max(file.network.in_channels for file in self.files)

    @property
    def passes(self) -> int:
        """Networks times views: how often an image is looked at."""
        return len(self.files) * self.recipe.inference.tta

    @property
    def digest(self) -> str:
        """Hexadecimal digits that change with the networks' weights and how they predict."""
        inference = self.recipe.inference
        settings = inference.model_dump_json(exclude=_SETTINGS_WITHOUT_EFFECT)
        networks = sorted((_checksum(file), file.votes) for file in self.files)
        described = [_FORMAT, settings, self.map_names, networks]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def find_teacher(directory: Path, student: Recipe) -> Teacher:
    """The ensemble in a directory of weights; the student's own, if they lie there, left out.

    Raises:
        SatmapError: there is no ensemble, there are several, or it sees images in another way.
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
            f"{f'those of {names}' if names else f'those of {student.name} alone'}."
        )
    (recipe,) = recipes.values()
    task = task_of(recipe)
    same = (recipe.task, recipe.stretch) == (student.task, student.stretch)
    if not same or not isinstance(task, DenseTask):
        raise SatmapError(
            f"the teacher in {directory}, recipe {recipe.name}, has another task or stretches "
            f"images in another way than {student.name}: `task` and `stretch` must agree."
        )
    chosen = choose(files, recipe)
    for file in chosen:
        task.check_weights(file)
    return Teacher(tuple(chosen), task, student.map_names)


def predict_soft_targets(
    chips: Sequence[CachedChip], teacher: Teacher, context: RunContext
) -> list[CachedChip]:
    """The chips with their soft targets, made where they are not in the cache yet.

    The ranks of a machine, all of which call this, share the work.

    Raises:
        SatmapError: a network or a chip cannot be read, or the cache cannot be written.
        Terminated: the process was asked to end; what is made is kept.
    """
    digest = teacher.digest
    taught = [replace(chip, soft=SoftTarget.of(chip.path, digest)) for chip in chips]
    failure: Exception | Terminated | None = None
    try:
        _make(taught[context.ranks.local_rank :: local_processes()], teacher, context)
    except (Exception, Terminated) as error:
        failure = error
    # Nobody begins before all are made, and all end where one fails.
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
