"""Scores over many chips, and standard errors of their gains, for fits.

The standard error of a mean of chip scores follows from the spread of the scores. F1 and average
precision are not means of chip scores. Their errors come from the jackknife, which measures how the
gain changes when one place after another is left out (Efron and Stein 1981). For a mean, both
methods agree.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from math import sqrt
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from satmap.evaluation.metrics.coco_ap import ImageMatches, average_precision
from satmap.evaluation.metrics.figures import Counts
from satmap.tuning.coordinate_search import Gain, Record

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class MeanOverAreas:
    """Mean over areas of the mean over their chips; a record is the score of a chip."""

    def __init__(self, areas: Sequence[Hashable]) -> None:
        """Initialize with the area of every chip; all areas count the same, whatever their size."""
        self._areas = _numbered(areas)

    def score(self, records: Sequence[float], chips: Sequence[int]) -> float:
        """See :class:`satmap.tuning.coordinate_search.Measure`."""
        return float(self._weights(chips) @ np.asarray(records))

    def gain(self, before: Sequence[float], after: Sequence[float], chips: Sequence[int]) -> Gain:
        """See :class:`satmap.tuning.coordinate_search.Measure`."""
        differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
        weights, count = self._weights(chips), len(chips)
        mean = float(weights @ differences)
        spread = float(weights**2 @ (differences - mean) ** 2)
        return Gain(mean, sqrt(spread * count / (count - 1)))

    def _weights(self, chips: Sequence[int]) -> Floats:
        _, area, sizes = np.unique(
            self._areas[list(chips)], return_inverse=True, return_counts=True
        )
        weights: Floats = 1 / (sizes[area] * len(sizes))
        return weights


class Jackknifed(ABC, Generic[Record]):
    """Score over all records together, with the jackknife's error of a gain."""

    def __init__(self, sites: Sequence[Hashable]) -> None:
        """Initialize with the place of every chip; chips of one place are left out together."""
        self._sites = _numbered(sites)

    @abstractmethod
    def score(self, records: Sequence[Record], chips: Sequence[int]) -> float:
        """See :class:`satmap.tuning.coordinate_search.Measure`."""

    def gain(self, before: Sequence[Record], after: Sequence[Record], chips: Sequence[int]) -> Gain:
        """See :class:`satmap.tuning.coordinate_search.Measure`."""
        mean = self.score(after, chips) - self.score(before, chips)
        site = self._sites[list(chips)]
        sites = np.unique(site)
        if len(sites) < 2:
            # A single place says nothing about the error.
            return Gain(mean, float("inf"))
        without = []
        for left_out in sites.tolist():
            kept = np.flatnonzero(site != left_out).tolist()
            left = [chips[index] for index in kept]
            score_after = self.score([after[index] for index in kept], left)
            without.append(score_after - self.score([before[index] for index in kept], left))
        spread = float(((np.array(without) - np.mean(without)) ** 2).sum())
        return Gain(mean, sqrt(spread * (len(sites) - 1) / len(sites)))


class PooledF1(Jackknifed[Counts]):
    """SpaceNet's F1: the mean over areas of the F1 of the summed counts of their chips."""

    def __init__(self, areas: Sequence[Hashable], sites: Sequence[Hashable]) -> None:
        """Initialize with the area and the place of every chip."""
        super().__init__(sites)
        self._areas = _numbered(areas)

    def score(self, records: Sequence[Counts], chips: Sequence[int]) -> float:
        """See :class:`satmap.tuning.coordinate_search.Measure`."""
        _, area = np.unique(self._areas[list(chips)], return_inverse=True)
        found = np.bincount(area, [record.tp for record in records])
        wrong = np.bincount(area, [record.fp + record.fn for record in records])
        return float((2 * found / np.maximum(2 * found + wrong, 1)).mean())


class PooledPrecision(Jackknifed[ImageMatches]):
    """COCO's average precision at an IoU of 0.5 over the detections of all chips."""

    def score(self, records: Sequence[ImageMatches], chips: Sequence[int]) -> float:
        """See :class:`satmap.tuning.coordinate_search.Measure`."""
        return average_precision(records)


def _numbered(names: Sequence[Hashable]) -> Ints:
    """Map names to numbers; equal names get equal numbers."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)
