"""Score report of every metric: figures per image, per area and in total."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from satmap.evaluation.metrics.reliability import Reliability

#: Figures by name; None where the files do not provide one (no travel times).
Figures = Mapping[str, float | int | None]


@dataclass(frozen=True)
class Counts:
    """True positives, false positives and false negatives: objects or pixels of some images."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    @classmethod
    def of_pixels(cls, truth: NDArray[np.bool_], proposal: NDArray[np.bool_]) -> Self:
        """Compare two masks, bool (h, w)."""
        both = int((truth & proposal).sum())
        return cls(both, int(proposal.sum()) - both, int(truth.sum()) - both)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


@dataclass(frozen=True)
class Report:
    """Scores of a proposal against a truth, ids in natural order.

    The official scorers leave images that are in only one file out of the totals, which a
    submission can exploit. ``total`` and ``aois`` therefore hold the official figures and, with the
    prefix ``fair_``, figures that count those images as missed or false.

    Attributes:
        metric: name of the score: ``apls``, ``building_f1``, ``coco_ap``, ``jaccard``.
        total: over all images.
        aois: per area of interest, or per other group of images in the challenge.
        images: per image that is in both files.
        truth_only: images that the proposal lacks.
        proposal_only: images that the truth lacks.
        confidence: reliability of the proposal's confidences; ``uncalibrated`` if it states none,
            and None if objects of this kind have none.
    """

    metric: str
    total: Figures
    aois: Mapping[str, Figures]
    images: Mapping[str, Figures]
    truth_only: tuple[str, ...] = ()
    proposal_only: tuple[str, ...] = ()
    confidence: Reliability | str | None = None

    def to_json(self) -> dict[str, object]:
        """Return the object that ``satmap score --json`` prints: the attributes by name."""
        return asdict(self)
