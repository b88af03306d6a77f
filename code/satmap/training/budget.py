"""Fitting a training to a time: how long each stage and each epoch may be."""

from collections.abc import Sequence
from dataclasses import dataclass

from satmap.recipe import Member, Stage
from satmap.training.checkpoint import Progress

# A validation comes no later than this share of a member's time after the one before, and no
# epoch is longer.
_SHARE = 0.1

# The first epoch of a stage measures the speed: this share of a whole one, but at most so many
# steps, for nobody knows yet how long they take.
_PROBE, _PROBE_STEPS = 0.05, 50

# What is left for saving and for the last validation being slower than the others.
_RESERVE = 0.03


@dataclass(frozen=True)
class EpochPlan:
    """The next epoch.

    Attributes:
        steps: optimizer steps.
        start, end: the part of the stage's schedule that it covers, in epochs of the recipe.
        validate: whether a validation follows.
    """

    steps: int
    start: float
    end: float
    validate: bool


def plan_epoch(
    stage: Stage, steps: int, progress: Progress, seconds: float | None = None
) -> EpochPlan:
    """The next epoch of a stage, as long as the recipe says or as the time allows.

    Args:
        stage: of the recipe.
        steps: optimizer steps of a whole epoch.
        progress: where the training stands.
        seconds: what the whole stage may take; None for no limit.
    """
    start, whole = progress.schedule, float(stage.epochs)
    if seconds is None:
        end = min(start + 1, whole)
        number = progress.epoch + 1
        return EpochPlan(steps, start, end, number % stage.validate_every == 0 or end == whole)
    if not progress.step_seconds:
        probe = max(1, min(round(_PROBE * steps), _PROBE_STEPS))
        return EpochPlan(probe, start, min(start + probe / steps, whole), validate=True)
    left = seconds * (1 - _RESERVE) - progress.stage_seconds - progress.validation_seconds
    left -= progress.saving_seconds
    longest = max(1, min(steps, int(_SHARE * seconds / progress.step_seconds)))
    epoch_seconds = longest * progress.step_seconds
    # Validations take their time too, where there is one after every so many epochs.
    between = max(1, min(stage.validate_every, int(_SHARE * seconds / epoch_seconds)))
    epochs = int(
        left / (epoch_seconds + progress.saving_seconds + progress.validation_seconds / between)
    )
    if epochs < 1:
        last = max(1, min(longest, int(left / progress.step_seconds)))
        return EpochPlan(last, start, whole, validate=True)
    since = progress.stage_seconds - progress.validated_at + epoch_seconds
    return EpochPlan(
        longest,
        start,
        start + (whole - start) / (epochs + 1),
        validate=since >= min(between * epoch_seconds, _SHARE * seconds) * 0.99,
    )


def allot(members: Sequence[Member], world: int, seconds: float) -> dict[str, list[float]]:
    """Seconds for each stage of each member, in proportion to the pixels that it shows.

    Args:
        members: what is trained, dealt to the ranks in turn.
        world: how many ranks there are.
        seconds: for all of it.

    Returns:
        Member's name -> seconds for each of its stages.
    """
    alone = [0.0] * world
    shared = 0.0
    for index, member in enumerate(members):
        for stage in member.stages:
            if stage.sync_batch_norm:
                shared += _work(stage) / world
            else:
                alone[index % world] += _work(stage)
    total = max(alone) + shared
    return {
        member.name: [
            seconds * _work(stage) / world / total
            if stage.sync_batch_norm
            # A rank with less to do takes the time that the others need anyway.
            else seconds * max(alone) / total * _work(stage) / alone[index % world]
            for stage in member.stages
        ]
        for index, member in enumerate(members)
    }


def _work(stage: Stage) -> float:
    """Pixels for every chip."""
    return float(stage.epochs * stage.passes * stage.crop**2)
