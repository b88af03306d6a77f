"""Fit a training to a time limit: the length of each stage and each epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from satmap.recipes.schema import Member, Recipe, Stage
from satmap.training.state import Progress

# Longest epoch, and longest time between two validations, as a share of the stage's time.
_SHARE = 0.1

# The first epoch of a stage measures the speed. It is this share of a whole epoch, but at most this
# many steps, because their duration is not known yet.
_PROBE, _PROBE_STEPS = 0.05, 50

# Share of the time that is reserved for saving and for a slow last validation.
_RESERVE = 0.03


@dataclass(frozen=True)
class EpochPlan:
    """Plan of the next epoch.

    Attributes:
        steps: number of optimizer steps.
        start, end: the part of the stage's schedule that the epoch covers, in epochs of the recipe.
        validate: whether a validation follows.
    """

    steps: int
    start: float
    end: float
    validate: bool


def plan_epoch(
    stage: Stage, steps: int, progress: Progress, seconds: float | None = None
) -> EpochPlan:
    """Plan the next epoch of a stage.

    ``steps`` are the optimizer steps of a whole epoch. ``seconds`` is the time limit of the whole
    stage; without it the epoch has the length that the recipe states.
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
    # Number of epochs between two validations; their time is counted below.
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


def round_work(recipe: Recipe, members: Sequence[Member], chips: Mapping[str, int]) -> float:
    """Return how many pixels the members of a recipe's last round train on.

    Crops of unlabelled images count too.
    """
    share = recipe.rounds[-1].share if recipe.rounds else 0.0
    stages = [(member, index) for member in members for index in range(len(member.stages))]
    return sum(_work(member, index, chips) for member, index in stages) / (1 - share)


def allocate_time(
    members: Sequence[Member], world: int, seconds: float, chips: Mapping[str, int]
) -> dict[str, list[float]]:
    """Divide a time limit between all stages of all members, in proportion to their pixels.

    ``world`` processes share the work as in ``assign_stages``. ``chips`` is the number of training
    chips by member name; a stage may use fewer.

    Returns:
        Member name to the seconds of each of its stages.
    """
    shares = {member.name: [0.0] * len(member.stages) for member in members}
    total = 0.0
    for index, (own, shared) in enumerate(assign_stages(members, world)):
        work = [sum(_work(member, index, chips) for member in rank) for rank in own]
        longest = max(work)
        total += longest
        for rank, sum_of_rank in zip(own, work, strict=True):
            for member in rank:
                # A process with less work gets the same time as the others: it would wait anyway.
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
    """Assign members to ``world`` processes, stage by stage.

    Returns:
        For each stage two lists: the members that each process trains alone, evenly distributed,
        and the members that all processes train together afterwards.
    """
    phases = []
    for index in range(max(len(member.stages) for member in members)):
        having = [member for member in members if index < len(member.stages)]
        shared = [member for member in having if member.stages[index].sync_batch_norm]
        own = [member for member in having if not member.stages[index].sync_batch_norm]
        phases.append(([own[rank::world] for rank in range(world)], shared))
    return phases


def _work(member: Member, index: int, chips: Mapping[str, int]) -> float:
    """Return the number of pixels that a stage trains on."""
    stage, count = member.stages[index], chips[member.name]
    shown = count if stage.chips is None else min(stage.chips, count)
    return float(stage.epochs * stage.passes * stage.crop**2 * shown)
