"""Schedules of the learning rate within a training stage, as recipes state them."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from satmap.settings import Settings


class StepSchedule(Settings):
    """Learning rates by the epoch from which they apply: ``{0: 5e-4, 1: 1e-4}``."""

    kind: Literal["steps"] = "steps"
    rates: dict[NonNegativeInt, PositiveFloat]

    @model_validator(mode="after")
    def _starts_at_zero(self) -> Self:
        if 0 not in self.rates:
            raise ValueError("rates need a value for epoch 0")
        return self


class CosineSchedule(Settings):
    """Linear warm-up to ``peak``, then half a cosine down to ``final``."""

    kind: Literal["cosine"] = "cosine"
    peak: PositiveFloat
    final: NonNegativeFloat = 0.0
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the stage's steps")


class PlateauSchedule(Settings):
    """Learning rate that is multiplied by ``factor`` when scores stop improving.

    This happens after ``patience`` validations without a better score.
    Only scores of the same stage count. A reduction restarts the count, as in torch's
    ``ReduceLROnPlateau``. The rate never falls below ``least``.
    """

    kind: Literal["plateau"] = "plateau"
    rate: PositiveFloat
    factor: float = Field(0.5, gt=0, lt=1)
    patience: PositiveInt = 3
    least: NonNegativeFloat = 1e-6


class CyclicSchedule(Settings):
    """Learning rate that oscillates between ``high``, where it starts, and ``low``.

    ``half_period`` is the number of epochs from one to the other. The way is a straight line or
    half a cosine, as in the second place of the Open Cities AI Challenge. With triangles this is
    https://arxiv.org/abs/1506.01186.
    """

    kind: Literal["cyclic"] = "cyclic"
    high: PositiveFloat
    low: NonNegativeFloat
    half_period: PositiveFloat = 5.0
    shape: Literal["triangle", "cosine"] = "triangle"

    @model_validator(mode="after")
    def _low_is_lower(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class RestartSchedule(Settings):
    """Half a cosine from ``peak`` down to ``final``, again and again (warm restarts).

    The first one takes ``period`` epochs, and every further one ``factor`` times as many as the one
    before. Source: SGDR, https://arxiv.org/abs/1608.03983.
    """

    kind: Literal["restarts"] = "restarts"
    peak: PositiveFloat
    final: NonNegativeFloat = 0.0
    period: float = Field(ge=0.1)
    factor: float = Field(1.0, ge=1)


#: The schedule of a stage; ``kind`` chooses it.
Schedule = Annotated[
    StepSchedule | CosineSchedule | PlateauSchedule | CyclicSchedule | RestartSchedule,
    Field(discriminator="kind"),
]
