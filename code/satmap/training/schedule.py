"""Learning rate schedules."""

import math
from collections.abc import Sequence

from satmap.recipes.schema import CosineSchedule, PlateauSchedule, Schedule


def learning_rate(
    schedule: Schedule,
    step: float,
    steps_per_epoch: int,
    epochs: int,
    scores: Sequence[float] = (),
) -> float:
    """Return the learning rate of a step.

    Args:
        schedule: schedule of the stage.
        step: optimizer steps taken in the stage so far. Under a time limit, the steps that the
            whole recipe would have taken at this point of the schedule.
        steps_per_epoch: > 0.
        epochs: length of the stage.
        scores: scores of the stage's validations so far, for plateau schedules.
    """
    if isinstance(schedule, PlateauSchedule):
        return _after_plateaus(schedule, scores)
    if isinstance(schedule, CosineSchedule):
        total = steps_per_epoch * epochs
        warmup = schedule.warmup * total
        if step < warmup:
            return schedule.peak * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(total - warmup, 1)
        swing = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return schedule.final + (schedule.peak - schedule.final) * swing
    epoch = step // steps_per_epoch
    return schedule.rates[max(start for start in schedule.rates if start <= epoch)]


def _after_plateaus(schedule: PlateauSchedule, scores: Sequence[float]) -> float:
    """Compute the rate from all scores so far, so that a resumed training has the same rate."""
    rate, best, waited = schedule.rate, -math.inf, 0
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited == schedule.patience:
            rate, waited = rate * schedule.factor, 0
    return max(rate, schedule.least)
