"""Learning rates over a stage."""

import math

from satmap.recipe import CosineSchedule, Schedule


def learning_rate(schedule: Schedule, step: float, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of a step.

    Args:
        schedule: the stage's.
        step: optimizer steps taken in the stage so far; under a time limit, those that a run of
            the whole recipe would have taken at this point of the schedule.
        steps_per_epoch: > 0.
        epochs: length of the stage.
    """
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
