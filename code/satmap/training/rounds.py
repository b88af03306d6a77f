"""The rounds of a training: networks learn from labels, later ones also from earlier ones.

The first round trains the recipe's ``members``; each of its ``rounds`` follows. The weights of the
last round lie in the directory of weights, those of the others in ``round1``, ``round2`` and so on
below it. A round is the training of the recipe up to this round, so a changed round leaves the
earlier ones valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from satmap.data.crops import CachedChip
from satmap.data.unlabelled import Unlabelled
from satmap.errors import SatmapError
from satmap.provenance.manifest import Learning
from satmap.recipes.schema import Member, Recipe, Round
from satmap.tasks.base import Task, task_of
from satmap.training.pseudo_labels import find_teacher, predict_by_ensemble
from satmap.training.run_context import RunContext
from satmap.weights.members import WeightFile, choose, choose_starts, find_weights


@dataclass(frozen=True)
class TrainingRound:
    """One round of a training.

    Attributes:
        number: counted from 0.
        task: the task of the recipe up to this round.
        members: the networks to train.
        context: context of the training, with the round's own directory of weights.
        encoders: directory of weights of the last round, where ImageNet weights are.
    """

    number: int
    task: Task
    members: Sequence[Member]
    context: RunContext
    encoders: Path

    @property
    def recipe(self) -> Recipe:
        """The recipe up to this round."""
        return self.task.recipe

    @property
    def settings(self) -> Round | None:
        """How the round learns from the one before; None in the first."""
        return self.recipe.rounds[-1] if self.number else None

    @property
    def starts_from_previous(self) -> bool:
        """Whether the networks start from those of the round before."""
        return self.settings is not None and self.settings.start == "previous"

    def learning(self, unlabelled: Unlabelled) -> Learning:
        """Return whether this round or an earlier one learns from test images."""
        uses_tests = any(each.share and each.test_images for each in self.recipe.rounds)
        return "transductive" if uses_tests and unlabelled.tests else "inductive"


def rounds_of(recipe: Recipe, context: RunContext, folds: Sequence[int]) -> list[TrainingRound]:
    """Return the rounds of a recipe, with the members of the given folds, or all if none are given.

    Raises:
        SatmapError: there is more than one round, and folds are given.
    """
    if recipe.rounds and folds:
        raise SatmapError(
            f"--fold: a round of recipe {recipe.name} learns from all networks of the round "
            "before. Leave --fold out."
        )
    rounds = []
    for number in range(len(recipe.rounds) + 1):
        task = task_of(recipe.up_to_round(number))
        members = [m for m in task.recipe.ensemble if not folds or m.fold in folds]
        own = context
        if number < len(recipe.rounds):
            name, board = f"round{number + 1}", context.tensorboard
            own = replace(
                context, weights=context.weights / name, tensorboard=board and board / name
            )
        rounds.append(TrainingRound(number, task, members, own, context.weights))
    return rounds


def require_usable(recipe: Recipe, unlabelled: Unlabelled) -> None:
    """Check that each round has unlabelled images that it may use.

    Raises:
        SatmapError: a round must not use test images, and there are no others.
    """
    for number, each in enumerate(recipe.rounds):
        if each.share and not unlabelled.of_round(each.test_images):
            first = next(c.image_id for c in unlabelled.chips if c.image_id in unlabelled.tests)
            raise SatmapError(
                f"rounds.{number} of recipe {recipe.name} must not use test images, and all "
                f"--unlabelled images are: `test` is part of their path, for example of {first}. "
                "Give other images, or set `test_images: true` if the rules allow it."
            )


@dataclass(frozen=True)
class Lesson:
    """What the networks of a round learn from.

    Attributes:
        chips: all labelled chips.
        unlabelled: the unlabelled chips of this round.
        starts: the network that each member starts from, by its name; without those of ``--init``.
        teacher: the networks that made the pseudo-labels.
    """

    chips: Sequence[CachedChip]
    unlabelled: Sequence[CachedChip] = ()
    starts: dict[str, WeightFile] | None = None
    teacher: tuple[WeightFile, ...] = ()


def prepare_lesson(
    this: TrainingRound,
    before: TrainingRound | None,
    chips: Sequence[CachedChip],
    found: Unlabelled,
) -> Lesson:
    """Let the networks of the round before predict what this round learns from.

    All processes call this. Finished predictions are in the cache.

    Raises:
        SatmapError: a network or a chip cannot be read, or the cache cannot be written.
        Terminated: the process was asked to end.
    """
    settings, context = this.settings, this.context
    if before is None or settings is None:
        return Lesson(chips)
    unlabelled: Sequence[CachedChip] = ()
    if settings.share:
        unlabelled = found.of_round(settings.test_images)
    starts = None
    directory = before.context.weights
    if this.starts_from_previous:
        files = choose(find_weights(directory), before.recipe)
        starts = choose_starts(files, this.recipe, f"round {this.number + 1}")
    teacher = find_teacher(directory, before.recipe, settings.tta)
    names = f"round {this.number + 1} of {this.task.recipe.name}: {len(chips)} labelled chips"
    names += f", {len(unlabelled)} unlabelled" if unlabelled else ""
    if settings.teacher == "average":
        context.ranks.say(f"{names}; each network learns from its own average")
        return Lesson(chips, unlabelled, starts)
    context.ranks.say(
        f"{names}; learns from {teacher.passes} predictions per chip (networks: "
        f"{len(teacher.files)}, test-time augmentations: {teacher.recipe.inference.tta})"
    )
    if settings.labelled:
        chips = predict_by_ensemble(chips, teacher, context)
    unlabelled = predict_by_ensemble(unlabelled, teacher, context)
    return Lesson(chips, unlabelled, starts, teacher.files)
