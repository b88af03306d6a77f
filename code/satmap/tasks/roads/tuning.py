"""Fit the road vectoriser's settings to probability rasters, by APLS."""

from collections.abc import Sequence
from functools import partial
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from satmap.data.layouts.spacenet_roads import road_image_id
from satmap.evaluation.metrics.apls import aoi_of, apls
from satmap.rasters.map_files import find_map_files
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.submissions.roads_csv import read_roads_csv, rows_of_graph
from satmap.tasks.roads.settings import ROAD_FILE_MAPS, RoadSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.tuning.chips import (
    Tuning,
    TuningChip,
    TuningRequest,
    common_images,
    fit_categories,
    usable_chips,
)
from satmap.tuning.search import Gain, Grids, Measure

#: Settings to fit and their candidate values. The most important settings come first, as measured
#: on synthetic masks (tests/helpers/degraded_masks.py).
GRIDS: Grids = {
    "high": (0.4, 0.5, 0.6, 0.7, 0.8),
    "low": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "bridge_probability": (0.1, 0.15, 0.2, 0.3, 0.4),
    "bridge_m": (18.0, 25.0, 33.0, 42.0),
    "gap_m": (6.0, 11.0, 16.0, 21.0),
    "tee_m": (4.0, 7.0, 10.0, 14.0, 18.0),
    "component_m": (10.0, 20.0, 36.0, 60.0, 100.0),
    "spur_m": (3.0, 5.0, 7.0, 10.0),
    "smooth_m": (0.0, 0.4, 0.8, 1.2),
    "bridge_degrees": (20.0, 30.0, 40.0),
    "merge_m": (2.0, 4.0, 6.0),
    "edge_m": (1.5, 3.0, 6.0),
    "apart_m": (1.0, 2.0, 3.0),
    "object_m2": (4.0, 15.0, 40.0),
    "hole_m2": (9.0, 25.0, 60.0),
    "speed_evidence": (0.02, 0.05, 0.15),
    "default_speed_mph": (15.0, 20.0, 25.0, 30.0, 35.0, 45.0),
}


def tune_roads(request: TuningRequest, start: RoadSettings) -> Tuning:
    """Fit the settings of the road vectoriser by APLS, from ``start``; the truth is a roads CSV.

    Raises:
        SatmapError: rasters and truth have no image in common, too few rasters can be read, or
            there is nothing to fit to.
    """
    paths = find_map_files(request.maps, road_image_id)
    rows = read_roads_csv(request.truth)
    common, warnings = common_images(request, paths, rows)
    chips = [
        TuningChip(
            name,
            paths[name],
            ROAD_FILE_MAPS,
            request.metres_per_pixel,
            tuple(rows[name]),
            site=name,
            area="" if (area := aoi_of(name)) == name else area,
        )
        for name in common
    ]
    chips, faults = usable_chips(request, chips, [""], "road", warnings)
    timed = all(isfinite(row.travel_time_s) for chip in chips for row in chip.truth)
    measure = MeanOverAreas([aoi_of(chip.image_id) for chip in chips])
    fits = fit_categories(
        request, chips, {"": start}, GRIDS, partial(_score, timed), lambda _: measure, warnings
    )
    score = f"APLS {'time' if timed else 'length'}"
    return Tuning(fits[""].settings, score, fits, faults, tuple(warnings))


def _score(timed: bool, chip: TuningChip, maps: ProbabilityMaps, settings: RoadSettings) -> float:
    """Return the APLS of a chip under some settings."""
    metres = float(np.mean(maps.metres_per_pixel))
    try:
        rows = rows_of_graph(vectorize_roads(maps, settings))
        score = apls(chip.truth, rows, metres_per_pixel=metres)
    # Settings that fail on a chip score 0 there, but the fit continues.
    except Exception:
        return 0.0
    return (score.time if timed and score.time else score.length).score


class MeanOverAreas(Measure[float]):
    """Mean over areas of the mean over their chips; a record is the score of a chip.

    The standard error of a gain follows from the spread of the scores.
    """

    def __init__(self, areas: Sequence[str]) -> None:
        """Initialize with the area of every chip; all areas count the same, whatever their size."""
        self._areas = np.array(areas)

    def score(self, records: Sequence[float], chips: Sequence[int]) -> float:
        """Return the APLS of some chips, 0..1."""
        return float(self._weights(chips) @ np.asarray(records))

    def gain(self, before: Sequence[float], after: Sequence[float], chips: Sequence[int]) -> Gain:
        """Return the weighted mean of the chips' gains."""
        differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
        weights, count = self._weights(chips), len(chips)
        mean = float(weights @ differences)
        spread = float(weights**2 @ (differences - mean) ** 2)
        return Gain(mean, sqrt(spread * count / (count - 1)))

    def _weights(self, chips: Sequence[int]) -> NDArray[np.float64]:
        _, area, sizes = np.unique(
            self._areas[list(chips)], return_inverse=True, return_counts=True
        )
        weights: NDArray[np.float64] = 1 / (sizes[area] * len(sizes))
        return weights
