"""Settings of pseudo-labels: predictions of networks that other networks learn from."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from satmap.settings import Settings


class PseudoLabels(Settings):
    """What the networks of a round learn from predictions.

    Attributes:
        teacher: ``ensemble``, the mean of all networks of the round before, predicted once; or
            ``average``, the moving average of the network's own weights, predicted at every step
            (mean teacher, arXiv 1703.01780). The latter needs ``optimizer.ema_decay`` and
            ``start: previous``.
        labels: ``soft``, the probabilities, or ``hard``, 0 or 1.
        temperature: divides the logits of teacher and network for soft labels, as in knowledge
            distillation (arXiv 1503.02531). Above 1 the labels are softer.
        ignore: probabilities between these two are ignored. A single number is the confidence,
            .5..1, below which pixels are ignored: .9 means (.1, .9).
        confidence_weights: weight every pixel by the teacher's confidence: 0 at .5, 1 at 0 and 1.
        weight: weight of the loss, beside the losses of the labels.
        share: share of unlabelled images in every batch; 0 for none.
        labelled: learn from predictions of the labelled images, too (distillation).
        test_images: whether test images may be among the unlabelled ones.
        tta: test-time augmentation of the ensemble; None for that of ``inference``.
    """

    teacher: Literal["ensemble", "average"] = "ensemble"
    labels: Literal["soft", "hard"] = "soft"
    temperature: PositiveFloat = 1.0
    ignore: tuple[float, float] | None = None
    confidence_weights: bool = False
    weight: PositiveFloat = 1.0
    share: float = Field(0.5, ge=0, le=0.9)
    labelled: bool = False
    test_images: bool = False
    tta: Literal[1, 4, 8] | None = None

    @field_validator("ignore", mode="before")
    @classmethod
    def _from_confidence(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return (1 - value, value) if is_number else value

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.ignore and not 0 <= self.ignore[0] < self.ignore[1] <= 1:
            raise ValueError("ignore must be a confidence above .5, or two rising probabilities")
        if not self.share and not self.labelled:
            raise ValueError("with `share: 0` and without `labelled` there is nothing to learn")
        return self
