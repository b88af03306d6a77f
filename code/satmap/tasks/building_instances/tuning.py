"""Fit the least score and size of buildings found as instances, per area of interest, by F1.

Both settings only leave buildings out. So they are fitted to an out-of-fold submission that also
has uncertain buildings: with ``least_score`` and ``least_px`` near 0 in the recipe.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from satmap.data.folds import assign_folds
from satmap.data.layouts.spacenet_buildings import parse_building_name
from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import group_of, match_buildings
from satmap.evaluation.metrics.figures import Counts
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv
from satmap.submissions.formats import Format, detect
from satmap.tasks.building_instances.settings import TUNED, MergeSettings, MergeSettingsByArea
from satmap.tasks.buildings.tuning import PooledF1
from satmap.tuning.chips import Tuning, TuningRequest
from satmap.tuning.search import MIN_CHIPS, Fit, Grids, RecordTable, Trial, cross_validated

#: The values tried for each setting.
GRIDS: Grids = {
    "least_score": tuple(round(0.05 * step, 2) for step in range(1, 19)),
    "least_px": (0, 10, 20, 40, 60, 80, 100, 150, 200),
}


@dataclass(frozen=True)
class _Image:
    """An image of a submission, with its predicted and true buildings."""

    rows: Sequence[BuildingRow]
    truth: Sequence[BuildingRow]
    place: str
    area: str

    def score(self, settings: MergeSettings) -> Counts:
        kept = [
            row
            for row in self.rows
            if row.score >= settings.least_score and row.polygon.area >= settings.least_px
        ]
        return match_buildings(self.truth, kept).counts


def tune_instances(request: TuningRequest, start: MergeSettingsByArea) -> Tuning:
    """Fit the settings of every area of interest to a submission.

    ``request.maps`` is the submission, and ``request.truth`` a SpaceNet CSV of the same images.

    Raises:
        SatmapError: a file is not a SpaceNet buildings CSV, they have no image in common, or no
            area has enough places.
    """
    images, warnings = _images(request)
    fits: dict[str, Fit[MergeSettings]] = {}
    areas = sorted({image.area for image in images})
    for number, area in enumerate(areas):
        members = [image for image in images if image.area == area]
        places = [image.place for image in members]
        if len(set(places)) < MIN_CHIPS:
            warnings.append(
                f"{area}: too few places for a fit ({len(set(places))} of {MIN_CHIPS}); it keeps "
                "the settings of the recipe"
            )
            continue

        def work(
            trials: Sequence[Trial[MergeSettings]], members: Sequence[_Image] = members
        ) -> Generator[Sequence[Counts]]:
            for image, tried in trials:
                yield [members[image].score(settings) for settings in tried]

        halves = assign_folds(dict.fromkeys(places, area).items(), 2, 0)
        first, second = (
            [index for index, place in enumerate(places) if halves[place] == half]
            for half in (0, 1)
        )
        left = (request.deadline - time.monotonic()) / (len(areas) - number)
        table = RecordTable(PooledF1([area] * len(places), places), work)
        fits[area] = cross_validated(
            table, start.of(area), GRIDS, (first, second), left, f"{area}, "
        )
    if not fits:
        raise SatmapError(
            f"{'; '.join(warnings)}. A fit needs at least {MIN_CHIPS} places of an area, because "
            "it is validated on held-out places."
        )
    changed = {
        area: {name: float(getattr(fit.settings, name)) for name in sorted(TUNED)}
        for area, fit in fits.items()
        if fit.kept
    }
    settings = start.model_copy(update={"areas": {**start.areas, **changed}})
    return Tuning(settings, "F1 at IoU .5", fits, {}, tuple(warnings))


def _images(request: TuningRequest) -> tuple[list[_Image], list[str]]:
    """Return the images of submission and truth, and warnings about the others."""
    tables = []
    for path in (request.maps, request.truth):
        if path.is_dir() or (kind := detect(path)) is not Format.BUILDINGS_CSV:
            what = "a directory" if path.is_dir() else kind
            raise SatmapError(
                f"{path} is {what}. Tuning of instances needs the submission of `predict "
                "--out-of-fold` and the truth, both as SpaceNet buildings CSV."
            )
        tables.append(read_buildings_csv(path))
    found, truth = tables
    common = [name for name in found if name in truth]
    if not common:
        raise SatmapError(f"{request.maps} and {request.truth} have no image in common.")
    warnings = []
    if left := len(found) + len(truth) - 2 * len(common):
        warnings.append(f"{left} images are only in one of the two files and are left out")
    scores = [row.score for name in common for row in found[name]]
    if scores and np.min(scores) > GRIDS["least_score"][1]:
        warnings.append(
            f"the lowest score in {request.maps.name} is {np.min(scores):.2f}: predict with a "
            "lower least_score in the recipe, so that the fit can choose among more buildings"
        )
    if not scores:
        raise SatmapError(f"{request.maps} has no building, so there is nothing to fit to.")
    images = []
    for name in common:
        parsed = parse_building_name(f"Pan-Sharpen_{name}")
        place = (parsed and parsed.place) or name
        images.append(_Image(found[name], truth[name], place, group_of(name)))
    return images, warnings
