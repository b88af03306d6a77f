"""Scores of many chips and the standard errors of what they gain, for fits.

A mean of chips' scores has its standard error by the textbook. F1 and average precision are no
means of chips' scores: their errors are the jackknife's, which looks at how the gain changes as one
place after another is left out (Efron and Stein 1981); of a mean it gives the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from math import sqrt
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from satmap.evaluation.metrics.building_f1 import Counts
from satmap.evaluation.metrics.coco_ap import ImageMatches, average_precision
from satmap.tuning.coordinate_search import Gain, Record

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class MeanOverAreas:
    """The mean over areas of the means over their chips; a record is a chip's score."""

    def __init__(self, areas: Sequence[Hashable]) -> None:
        """The area of every chip; areas count alike, whatever their size."""
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
    """A score of all records together, with the jackknife's error of a gain."""

    def __init__(self, sites: Sequence[Hashable]) -> None:
        """What lies in one place, such as all looks at a tile, is left out together."""
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
            # Of one place nobody can say what chance does.
            return Gain(mean, float("inf"))
        without = []
        for its in sites.tolist():
            kept = np.flatnonzero(site != its).tolist()
            left = [chips[index] for index in kept]
            there = self.score([after[index] for index in kept], left)
            without.append(there - self.score([before[index] for index in kept], left))
        spread = float(((np.array(without) - np.mean(without)) ** 2).sum())
        return Gain(mean, sqrt(spread * (len(sites) - 1) / len(sites)))


class PooledF1(Jackknifed[Counts]):
    """SpaceNet's F1: the mean over areas of the F1 of their chips' summed counts."""

    def __init__(self, areas: Sequence[Hashable], sites: Sequence[Hashable]) -> None:
        """The area of every chip, and its place."""
        super().__init__(sites)
        self._areas = _numbered(areas)

    def score(self, records: Sequence[Counts], chips: Sequence[int]) -> float:
        """See :class:`satmap.tuning.coordinate_search.Measure`."""
        _, area = np.unique(self._areas[list(chips)], return_inverse=True)
        found = np.bincount(area, [record.tp for record in records])
        wrong = np.bincount(area, [record.fp + record.fn for record in records])
        return float((2 * found / np.maximum(2 * found + wrong, 1)).mean())


class PooledPrecision(Jackknifed[ImageMatches]):
    """COCO's average precision at an IoU of .5 over the detections of all chips."""

    def score(self, records: Sequence[ImageMatches], chips: Sequence[int]) -> float:
        """See :class:`satmap.tuning.coordinate_search.Measure`."""
        return average_precision(records)


def _numbered(names: Sequence[Hashable]) -> Ints:
    """A number for each, equal ones for equal names."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)
