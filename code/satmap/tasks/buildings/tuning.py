"""Fitting the building vectoriser's settings to probability rasters, by F1 or average precision.

If the recipe has heads by view angle, each view-angle category gets its own settings. Leaning
buildings are fainter, and hide more, at larger off-nadir angles; SpaceNet 4 solutions used a
different minimum size per category.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from satmap.data.layouts.spacenet_buildings import building_image_id, parse_building_name
from satmap.data.view_angles import require_category
from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import group_of, match_buildings
from satmap.evaluation.metrics.coco_ap import ImageMatches, average_precision, match_image
from satmap.evaluation.metrics.figures import Counts
from satmap.rasters.map_files import find_map_files
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv
from satmap.submissions.coco_json import detections_of, read_coco_truth, results_of
from satmap.submissions.formats import Format, detect
from satmap.tasks.buildings.settings import (
    BUILDING_FILE_MAPS,
    BuildingSettings,
    BuildingSettingsByCategory,
    BuildingTaskSettings,
)
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tuning.chips import (
    Tuning,
    TuningChip,
    TuningRequest,
    common_images,
    fit_categories,
    usable_chips,
)
from satmap.tuning.search import Grids, Measure, numbered

#: The fitted settings, most important first, and the values tried for each.
GRIDS: Grids = {
    "low": (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6),
    "seed": (0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "certain": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "least_px": (20, 40, 60, 80, 100, 150, 200, 250),
    "least_confidence": (0.0, 3.0, 5.0, 7.0, 9.0, 12.0, 15.0, 20.0, 25.0),
    "dilate_px": (0, 2, 3, 4, 5),
    "split": (0.5, 0.65, 0.8, 0.9, 0.95),
    "seed_px": (0, 5, 10, 20, 40, 80),
    "seam": (2.0, 3.0, 4.0, 6.0),
    "hole_px": (0, 16, 64, 256),
}


def tune_buildings(request: TuningRequest, task: BuildingTaskSettings) -> Tuning:
    """Fit the settings of the task's vectoriser, by F1 or average precision.

    The truth is a SpaceNet CSV or COCO annotations.

    Raises:
        SatmapError: the truth has no buildings, is in another format, or covers too few places.
    """
    chips, warnings, unknown = _find_chips(request, task.view_angle_heads)
    if unknown and not chips:
        raise SatmapError(next(iter(unknown.values())))
    common = task.vectorizer
    starts = {category: common.of(category) for category in task.categories or ("",)}
    chips, faults = usable_chips(request, chips, starts, "building", warnings)
    by_precision = any(chip.size for chip in chips)
    fits = fit_categories(
        request, chips, starts, GRIDS, _record, partial(_measure, by_precision), warnings
    )
    settings = _settings(common, {name: fit.settings for name, fit in fits.items() if fit.kept})
    score = "AP at IoU .5" if by_precision else "F1 at IoU .5"
    return Tuning(settings, score, fits, faults | unknown, tuple(warnings))


def _find_chips(
    request: TuningRequest, heads: int | None
) -> tuple[list[TuningChip], list[str], dict[str, str]]:
    """Match probability rasters with the truth.

    Return the chips in both, warnings about the others, and errors by image id for images whose
    view-angle category is unknown.
    """
    paths, truth = find_map_files(request.maps, building_image_id), request.truth
    sizes: Mapping[int, tuple[int, int]] = {}
    rows: dict[str, Sequence[Any]]
    match kind := detect(truth):
        case Format.BUILDINGS_CSV:
            rows = {**read_buildings_csv(truth)}
        case Format.COCO_ANNOTATIONS:
            annotations = read_coco_truth(truth)
            sizes = annotations.sizes
            rows = {str(number): annotations.buildings.get(number, ()) for number in sizes}
            paths = _by_number(paths)
        case _:
            raise SatmapError(
                f"{truth} is {kind}, but tuning of buildings needs a SpaceNet buildings CSV or "
                "COCO annotations."
            )
    common, warnings = common_images(request, paths, rows)
    chips, unknown = [], {}
    for name in common:
        parsed = parse_building_name(f"Pan-Sharpen_{name}")
        angle = (parsed and parsed.view_angle) or request.view_angle
        try:
            category = require_category(paths[name].name, angle, heads) if heads else ""
        except SatmapError as error:
            unknown[name] = str(error)
            continue
        chips.append(
            TuningChip(
                name,
                paths[name],
                BUILDING_FILE_MAPS,
                request.metres_per_pixel,
                tuple(rows[name]),
                site=(parsed and parsed.place) or name,
                area=group_of(name),
                size=sizes[int(name)] if sizes else None,
                category=category,
            )
        )
    return chips, warnings, unknown


def _by_number(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Normalize numeric image ids: 000000000012 becomes 12."""
    found: dict[str, Path] = {}
    for name, path in paths.items():
        key = str(int(name)) if name.isdecimal() else name
        if key in found:
            raise SatmapError(
                f"{found[key]} and {path} are probability maps of the same image. Remove one."
            )
        found[key] = path
    return found


def _settings(
    common: BuildingSettingsByCategory, fitted: Mapping[str, BuildingSettings]
) -> BuildingSettingsByCategory:
    """Merge fitted settings into the recipe's; a category keeps only what differs."""
    if "" in fitted:
        return BuildingSettingsByCategory(
            **fitted[""].model_dump(), categories=dict(common.categories)
        )
    base = common.of(None).model_dump()
    categories = dict(common.categories)
    for category, settings in fitted.items():
        values = settings.model_dump()
        categories[category] = {name: values[name] for name in values if values[name] != base[name]}
    return common.model_copy(update={"categories": categories})


def _record(
    chip: TuningChip, maps: ProbabilityMaps, settings: BuildingSettings
) -> Counts | ImageMatches:
    """Count the buildings of a chip for F1, or match them for average precision."""
    try:
        found = vectorize_buildings(maps, settings)
    # Settings that fail on a chip find nothing there; the fit goes on.
    except Exception:
        found = []
    if chip.size is not None:
        return match_image(chip.truth, results_of(detections_of(found, maps.shape), chip.size))
    rows = [BuildingRow(building.polygon, building.score) for building in found]
    return match_buildings(chip.truth, rows).counts


class PooledF1(Measure[Counts]):
    """SpaceNet's F1: the mean over areas of the F1 of the summed counts of their chips."""

    def __init__(self, areas: Sequence[str], sites: Sequence[str]) -> None:
        super().__init__(sites)
        self._areas = numbered(areas)

    def score(self, records: Sequence[Counts], chips: Sequence[int]) -> float:
        """Return the score of some chips, 0..1."""
        _, area = np.unique(self._areas[list(chips)], return_inverse=True)
        found = np.bincount(area, [record.tp for record in records])
        wrong = np.bincount(area, [record.fp + record.fn for record in records])
        return float((2 * found / np.maximum(2 * found + wrong, 1)).mean())


class PooledPrecision(Measure[ImageMatches]):
    """COCO's average precision at an IoU of 0.5 over the detections of all chips."""

    def score(self, records: Sequence[ImageMatches], chips: Sequence[int]) -> float:
        """Return the score of some chips, 0..1."""
        return average_precision(records)


def _measure(by_precision: bool, chips: Sequence[TuningChip]) -> Measure[Any]:
    sites = [chip.site for chip in chips]
    return PooledPrecision(sites) if by_precision else PooledF1([c.area for c in chips], sites)
