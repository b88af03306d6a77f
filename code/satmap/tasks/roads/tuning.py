"""Fit the road vectoriser's settings to probability rasters, by APLS."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from satmap.data.layouts.spacenet_roads import road_image_id
from satmap.errors import SatmapError
from satmap.evaluation.metrics.apls import aoi_of, apls
from satmap.rasters.map_files import find_map_files, read_map_file
from satmap.submissions.roads_csv import RoadRow, read_roads_csv, rows_of_graph
from satmap.tasks.roads.settings import ROAD, ROAD_FILE_MAPS, RoadSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.tuning.chips import (
    Tuning,
    TuningRequest,
    common_images,
    readable_chips,
    split_in_halves,
    subsample,
)
from satmap.tuning.coordinate_search import Grids, RecordTable, Trial
from satmap.tuning.cross_validation import cross_validated
from satmap.tuning.measures import MeanOverAreas

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


@dataclass(frozen=True)
class _Chip:
    """A probability raster with its truth, as sent to a worker process."""

    image_id: str
    path: Path
    truth: tuple[RoadRow, ...]
    metres_per_pixel: float

    @property
    def site(self) -> str:
        """Place of the image; every image has its own."""
        return self.image_id

    @property
    def area(self) -> str:
        """Area of interest of the image, "" if its name does not tell."""
        area = aoi_of(self.image_id)
        return "" if area == self.image_id else area


def tune_roads(request: TuningRequest, start: RoadSettings) -> Tuning:
    """Fit the settings of the road vectoriser by APLS; the truth is a roads CSV.

    Args:
        request: probability rasters and truth.
        start: settings at which the search begins.

    Raises:
        SatmapError: rasters and truth have no image in common, too few rasters can be read, or
            there is nothing to fit to.
    """
    maps, truth, run = request.maps, request.truth, request.run
    paths = find_map_files(maps, road_image_id)
    rows = read_roads_csv(truth)
    common, warnings = common_images(maps, truth, paths, rows)
    chips = subsample(
        [_Chip(name, paths[name], tuple(rows[name]), request.metres_per_pixel) for name in common],
        warnings,
    )
    chips, faults = readable_chips(chips, run, _max_probability)
    if not any(chip.truth for chip in chips):
        raise SatmapError(
            f"the truth has no road in any of the {len(chips)} images, so there is nothing to fit "
            "to."
        )
    timed = all(isfinite(row.travel_time_s) for chip in chips for row in chip.truth)

    def work(tasks: Sequence[Trial[RoadSettings]]) -> Generator[Sequence[float]]:
        return run(_scores, [(chips[chip], settings, timed) for chip, settings in tasks])

    table = RecordTable(MeanOverAreas([aoi_of(chip.image_id) for chip in chips]), work)
    left = request.deadline - time.monotonic()
    fit = cross_validated(table, start, GRIDS, split_in_halves(chips), left)
    score = f"APLS {'time' if timed else 'length'}"
    return Tuning(fit.settings, score, {"": fit}, faults, tuple(warnings))


def _max_probability(chip: _Chip) -> int | str:
    """Return the highest road probability of a raster, 0..255, or why it cannot be read."""
    try:
        maps, _ = read_map_file(chip.path, chip.metres_per_pixel, ROAD_FILE_MAPS)
    except SatmapError as error:
        return str(error)
    return int(maps[ROAD].max())


def _scores(job: tuple[_Chip, tuple[RoadSettings, ...], bool]) -> list[float]:
    """Return the APLS of a chip under each of the settings."""
    chip, tried, timed = job
    maps, _ = read_map_file(chip.path, chip.metres_per_pixel, ROAD_FILE_MAPS)
    metres = float(np.mean(maps.metres_per_pixel))
    scores = []
    for settings in tried:
        try:
            rows = rows_of_graph(vectorize_roads(maps, settings))
            score = apls(chip.truth, rows, metres_per_pixel=metres)
        # Settings that fail on a chip score 0 there, but the fit continues.
        except Exception:
            scores.append(0.0)
            continue
        scores.append((score.time if timed and score.time else score.length).score)
    return scores
