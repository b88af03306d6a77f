"""Fitting the building vectoriser's settings to probability rasters, by F1 or average precision.

If the recipe has heads by view angle, each view-angle category gets its own settings. Leaning
buildings are fainter, and hide more, at larger off-nadir angles; SpaceNet 4 solutions used a
different minimum size per category.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satmap.data.layouts.spacenet_buildings import building_image_id, parse_building_name
from satmap.data.view_angles import ViewAngle, require_category
from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import group_of, match_buildings
from satmap.evaluation.metrics.coco_ap import ImageMatches, match_image
from satmap.evaluation.metrics.figures import Counts
from satmap.rasters.map_files import find_map_files, open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Recipe
from satmap.runtime.workers import Runner
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv
from satmap.submissions.coco_json import CocoBuilding, detections_of, read_coco_truth, results_of
from satmap.submissions.formats import Format, detect
from satmap.tasks.buildings.settings import (
    BUILDING,
    BUILDING_FILE_MAPS,
    BuildingLosses,
    BuildingSettings,
    BuildingSettingsByCategory,
    BuildingTaskSettings,
)
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tuning.chips import (
    Tuning,
    TuningRequest,
    common_images,
    readable_chips,
    split_in_halves,
    subsample,
)
from satmap.tuning.coordinate_search import Grids, RecordTable, Trial
from satmap.tuning.cross_validation import MIN_CHIPS, Fit, cross_validated
from satmap.tuning.measures import PooledF1, PooledPrecision

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

# A worker's result for one chip and settings: counts for F1, or matches for average precision.
_Record = Counts | ImageMatches


@dataclass(frozen=True)
class _Chip:
    """A probability raster with its truth, as sent to a worker.

    Attributes:
        image_id: id of the image.
        path: the probability raster.
        truth: its buildings, as rows of a CSV or as masks of COCO annotations.
        size: width and height of the image from COCO annotations; None for a CSV.
        category: view-angle category; None if the recipe has a single head.
    """

    image_id: str
    path: Path
    truth: tuple[BuildingRow, ...] | tuple[CocoBuilding, ...]
    size: tuple[int, int] | None
    category: str | None

    @property
    def site(self) -> str:
        """Key of the place, shared by all images of it."""
        name = parse_building_name(f"Pan-Sharpen_{self.image_id}")
        return (name.place if name else "") or self.image_id

    @property
    def area(self) -> str:
        """Group of images that the image is scored with."""
        return group_of(self.image_id)


def tune_buildings(
    request: TuningRequest, recipe: Recipe[BuildingTaskSettings, BuildingLosses]
) -> Tuning:
    """Fit the settings of the building vectoriser, by F1 or average precision.

    Args:
        request: the probability rasters; the truth is a SpaceNet CSV or COCO annotations.
        recipe: its settings are the starting point of the search.

    Raises:
        SatmapError: the truth has no buildings, is in another format, or covers too few places.
    """
    run, deadline, heads = request.run, request.deadline, recipe.task.view_angle_heads
    chips, warnings, unknown = _find_chips(request.maps, request.truth, heads, request.view_angle)
    if unknown and not chips:
        raise SatmapError(next(iter(unknown.values())))
    categories: tuple[str | None, ...] = recipe.task.categories or (None,)
    chips = [
        chip
        for category in categories
        for chip in subsample([chip for chip in chips if chip.category == category], warnings)
    ]
    chips, faults = readable_chips(chips, run, _max_probability)
    if not any(chip.truth for chip in chips):
        raise SatmapError(
            f"the truth has no building in any of the {len(chips)} images with probability maps, "
            "so there is nothing to fit to."
        )
    by_precision = any(chip.size for chip in chips)
    common = recipe.task.vectorizer
    fits: dict[str, Fit[Any]] = {}
    groups = {name: [chip for chip in chips if chip.category == name] for name in categories}
    fitted: dict[str, BuildingSettings] = {}
    for number, (category, members) in enumerate(groups.items()):
        if (places := len({chip.site for chip in members})) < MIN_CHIPS:
            if members:
                prefix = f"{category}: " if category else ""
                warnings.append(f"{prefix}too few places for a fit ({places})")
            continue
        left = (deadline - time.monotonic()) / (len(groups) - number)
        fits[category or ""] = fit = _fit(
            members, common.of(category), by_precision, left, run, category
        )
        if fit.kept:
            fitted[category or ""] = fit.settings
    if not fits:
        raise SatmapError(
            f"{'; '.join(warnings)}. A fit needs at least {MIN_CHIPS} places, because it is "
            "validated on held-out places."
        )
    score = "AP at IoU .5" if by_precision else "F1 at IoU .5"
    return Tuning(_settings(common, fitted), score, fits, faults | unknown, tuple(warnings))


def _find_chips(
    masks: Path, truth: Path, heads: int | None, view_angle: ViewAngle | None
) -> tuple[list[_Chip], list[str], dict[str, str]]:
    """Match probability rasters with the truth.

    Returns:
        The chips in both; warnings about the others; errors by image id for images whose view-angle
        category is unknown.
    """
    paths = find_map_files(masks, building_image_id)
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
    common, warnings = common_images(masks, truth, paths, rows)
    chips, unknown = [], {}
    for name in common:
        angle = view_angle
        if parsed := parse_building_name(f"Pan-Sharpen_{name}"):
            angle = parsed.view_angle or view_angle
        try:
            category = require_category(paths[name].name, angle, heads) if heads else None
        except SatmapError as error:
            unknown[name] = str(error)
            continue
        size = sizes.get(int(name)) if sizes else None
        chips.append(_Chip(name, paths[name], tuple(rows[name]), size, category))
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


def _fit(
    chips: Sequence[_Chip],
    start: BuildingSettings,
    by_precision: bool,
    seconds: float,
    run: Runner,
    category: str | None,
) -> Fit[BuildingSettings]:
    """Fit the settings to the chips of one category."""

    def work(tasks: Sequence[Trial[BuildingSettings]]) -> Generator[Sequence[Any]]:
        return run(_records, [(chips[chip], settings) for chip, settings in tasks])

    sites = [chip.site for chip in chips]
    measure = (
        PooledPrecision(sites) if by_precision else PooledF1([chip.area for chip in chips], sites)
    )
    table: RecordTable[BuildingSettings, Any] = RecordTable(measure, work)
    label = f"{category}, " if category else ""
    return cross_validated(table, start, GRIDS, split_in_halves(chips), seconds, label)


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


def _max_probability(chip: _Chip) -> int | str:
    """Return the highest body probability of a raster, 0..255, or an error message."""
    try:
        maps = _read(chip.path)
    except SatmapError as error:
        return str(error)
    if chip.size is not None and maps.shape != chip.size[::-1]:
        height, width = maps.shape
        return (
            f"{chip.path}: {width} x {height} pixels, but the annotations say "
            f"{chip.size[0]} x {chip.size[1]} for the image."
        )
    return int(maps[BUILDING].max())


def _read(path: Path) -> ProbabilityMaps:
    # The pixel size is not used here; any value will do.
    with open_map_file(path, 1, BUILDING_FILE_MAPS) as mask:
        maps = mask.scene.at_once()
        mask.check_scale()
        return maps


def _records(job: tuple[_Chip, tuple[BuildingSettings, ...]]) -> list[_Record]:
    """Evaluate a chip with each of the settings."""
    chip, tried = job
    maps = _read(chip.path)
    return [_record(chip, maps, settings) for settings in tried]


def _record(chip: _Chip, maps: ProbabilityMaps, settings: BuildingSettings) -> _Record:
    try:
        found = vectorize_buildings(maps, settings)
    # Settings that fail on a chip find nothing there; the fit goes on.
    except Exception:
        found = []
    if chip.size is not None:
        results = results_of(detections_of(found, maps.shape), chip.size)
        return match_image([true for true in chip.truth if isinstance(true, CocoBuilding)], results)
    rows = [BuildingRow(building.polygon, building.confidence) for building in found]
    truth = [true for true in chip.truth if isinstance(true, BuildingRow)]
    return match_buildings(truth, rows).counts
