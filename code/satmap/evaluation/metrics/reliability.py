"""Whether confidences are right: reliability, expected calibration error, risk by coverage.

The confidence of an object is the probability that it is right. Of all objects with a confidence of
.7, 70 % should be right. The *expected calibration error* (Naeini, Cooper, Hauskrecht 2015) sorts
the objects into ten bins of equal width and averages, weighted by the number of objects, how far
the mean confidence of a bin is from the share of its objects that are right.

*Risk by coverage* (El-Yaniv, Wiener 2010) tells what the confidence is good for: how many of the
most confident objects are right if only so many are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Number of bins of equal width.
BINS = 10

#: Shares of the objects that are kept, for risk by coverage.
COVERAGES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Bin:
    """The objects whose confidence lies between two limits.

    Attributes:
        low, high: the limits; the upper one belongs to the next bin, except in the last.
        count: number of objects.
        confidence: their mean confidence.
        right: the share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Kept:
    """The most confident objects.

    Attributes:
        coverage: share of the objects that is kept.
        least_confidence: the lowest confidence among them.
        precision: share of the kept objects that is right.
    """

    coverage: float
    least_confidence: float
    precision: float

    @property
    def risk(self) -> float:
        """Share of the kept objects that is wrong."""
        return 1 - self.precision


@dataclass(frozen=True)
class Reliability:
    """How well confidences agree with what is right.

    Attributes:
        count: number of objects.
        confidence: mean confidence.
        right: share of the objects that is right.
        error: expected calibration error.
        bins: the bins that hold objects, lowest first.
        coverage: risk by coverage.
        groups: the same for parts of the objects, without further groups: by size and by class.
    """

    count: int
    confidence: float
    right: float
    error: float
    bins: tuple[Bin, ...]
    coverage: tuple[Kept, ...]
    groups: Mapping[str, "Reliability"] = field(default_factory=dict)


@dataclass(frozen=True)
class Rated:
    """Objects with a confidence, and whether each is right.

    Attributes:
        confidences: float64 (n,), 0..1.
        right: bool (n,).
        groups: for each object the names of the groups that it belongs to.
    """

    confidences: Floats
    right: Bools
    groups: Sequence[Sequence[str]]


def reliability(rated: Rated, group_order: Sequence[str] = ()) -> Reliability:
    """Measure the reliability of one or more confidences, in total and by group.

    ``group_order`` names groups that come first; the others follow in alphabetical order.
    """
    whole = _reliability(rated.confidences, rated.right)
    members: dict[str, list[int]] = {}
    for index, names in enumerate(rated.groups):
        for name in names:
            members.setdefault(name, []).append(index)
    names = [name for name in group_order if name in members]
    names += sorted(members.keys() - set(group_order))
    groups = {
        name: _reliability(rated.confidences[members[name]], rated.right[members[name]])
        for name in names
    }
    return Reliability(
        whole.count, whole.confidence, whole.right, whole.error, whole.bins, whole.coverage, groups
    )


def _reliability(confidences: Floats, right: Bools) -> Reliability:
    bins = tuple(_bins(confidences, right))
    return Reliability(
        len(confidences),
        float(confidences.mean()),
        float(right.mean()),
        sum(each.count * abs(each.confidence - each.right) for each in bins) / len(confidences),
        bins,
        tuple(kept_at(confidences, right, share) for share in COVERAGES),
    )


def calibration_error(confidences: Floats, right: Bools) -> float:
    """Return the expected calibration error of one or more confidences, 0..1."""
    return _reliability(confidences, right).error


def _bins(confidences: Floats, right: Bools) -> Iterator[Bin]:
    # Rounding keeps .3 * 10 in the bin that begins at .3.
    number = np.minimum(np.floor(np.round(confidences * BINS, 9)), BINS - 1)
    for index in np.unique(number).tolist():
        here = number == index
        yield Bin(
            index / BINS,
            (index + 1) / BINS,
            int(here.sum()),
            float(confidences[here].mean()),
            float(right[here].mean()),
        )


def kept_at(confidences: Floats, right: Bools, coverage: float) -> Kept:
    """Return what is kept at a coverage, 0..1: at least one object.

    Of objects with the same confidence, of which only some are kept, each counts with the share of
    them that is right, so the result does not depend on their order.
    """
    order = np.argsort(-confidences, kind="stable")
    _, group = np.unique(confidences, return_inverse=True)
    share = np.bincount(group, right) / np.bincount(group)
    count = max(round(coverage * len(confidences)), 1)
    chosen = order[:count]
    return Kept(coverage, float(confidences[chosen[-1]]), float(share[group[chosen]].mean()))
