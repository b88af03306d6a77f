"""Fitting a training to a time: how long each stage and each epoch may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from satmap.recipes.schema import Member, Stage
from satmap.training.state import Progress

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


def allocate_time(
    members: Sequence[Member], world: int, seconds: float, chips: Mapping[str, int]
) -> dict[str, list[float]]:
    """Seconds for each stage of each member, in proportion to the pixels that it shows.

    Args:
        members: what is trained.
        world: how many ranks there are, which work on it as ``assign_stages`` says.
        seconds: for all of it.
        chips: member's name -> how many it learns from, of which a stage may take fewer.

    Returns:
        Member's name -> seconds for each of its stages.
    """
    shares = {member.name: [0.0] * len(member.stages) for member in members}
    total = 0.0
    for index, (own, shared) in enumerate(assign_stages(members, world)):
        work = [sum(_work(member, index, chips) for member in rank) for rank in own]
        longest = max(work)
        total += longest
        for rank, sum_of_rank in zip(own, work, strict=True):
            for member in rank:
                # A rank with less to do takes the time that the others need anyway.
                share = _work(member, index, chips) / sum_of_rank
                shares[member.name][index] = longest * share
        for member in shared:
            shares[member.name][index] = _work(member, index, chips) / world
            total += shares[member.name][index]
    return {
        name: [seconds * share / total for share in of_stages] for name, of_stages in shares.items()
    }


def assign_stages(
    members: Sequence[Member], world: int
) -> list[tuple[list[list[Member]], list[Member]]]:
    """Who works on what: one stage of all members that have it, then the next.

    Args:
        members: what is trained.
        world: how many ranks there are.

    Returns:
        For each stage the members that each rank has for itself, of which no two ranks' numbers
        differ by more than one, and those that all work on together afterwards.
    """
    phases = []
    for index in range(max(len(member.stages) for member in members)):
        having = [member for member in members if index < len(member.stages)]
        shared = [member for member in having if member.stages[index].sync_batch_norm]
        own = [member for member in having if not member.stages[index].sync_batch_norm]
        phases.append(([own[rank::world] for rank in range(world)], shared))
    return phases


def _work(member: Member, index: int, chips: Mapping[str, int]) -> float:
    """Pixels that a stage shows."""
    stage, count = member.stages[index], chips[member.name]
    shown = count if stage.chips is None else min(stage.chips, count)
    return float(stage.epochs * stage.passes * stage.crop**2 * shown)
