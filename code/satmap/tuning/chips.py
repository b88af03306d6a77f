"""Fitting vectorisers to chips: probability rasters of images with a known truth."""

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from satmap.data.folds import assign_folds
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.rasters.map_files import read_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.runtime.workers import Runner
from satmap.settings import Settings
from satmap.tuning.search import (
    MIN_CHIPS,
    Fit,
    Grids,
    Measure,
    Record,
    RecordTable,
    SettingsT,
    Trial,
    cross_validated,
)

#: More chips take longer and add little.
MAX_CHIPS = 96

# With fewer places, a gain is hard to tell from chance.
_MIN_SITES = 24


@dataclass(frozen=True)
class Tuning:
    """Result of fitting a vectoriser.

    Attributes:
        settings: the vectoriser's settings, fitted where the fit gains something.
        score: name of the score in messages.
        fits: one fit per view-angle category; a fit to all chips has the key "".
        faults: image id to problem, for rasters that were left out.
        warnings: messages for the user.
    """

    settings: Settings
    score: str
    fits: Mapping[str, Fit[Any]]
    faults: dict[str, str]
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Return a summary of a few lines."""
        lines = []
        for category, fit in self.fits.items():
            lines += fit.summary(f"{category}: {self.score}" if category else self.score)
        return "\n".join(lines)


@dataclass(frozen=True)
class TuningRequest:
    """Input of a fit.

    Attributes:
        maps: directory of probability rasters.
        truth: file with the truth of the same images.
        metres_per_pixel: pixel size of rasters without georeference.
        deadline: time limit of the search on the clock of ``time.monotonic``.
        run: runs jobs in worker processes.
        view_angle: off-nadir angle of images whose names lack it.
    """

    maps: Path
    truth: Path
    metres_per_pixel: float
    deadline: float
    run: Runner
    view_angle: ViewAngle | None = None


@dataclass(frozen=True)
class TuningChip:
    """A probability raster with its truth, as sent to a worker process.

    Attributes:
        image_id: id of the image.
        path: the raster.
        kinds: number of bands to names of the maps, as in ``open_map_file``.
        metres_per_pixel: pixel size if the raster has no georeference.
        truth: true objects of the image.
        site: place of the image; all views of a place must be in the same half.
        area: area of interest, "" if the image's name does not tell.
        size: width and height of the image according to the truth; None if it does not tell.
        category: view-angle category; "" for networks with one head.
    """

    image_id: str
    path: Path
    kinds: Mapping[int, tuple[str, ...]]
    metres_per_pixel: float
    truth: tuple[Any, ...]
    site: str
    area: str
    size: tuple[int, int] | None = None
    category: str = ""

    def read(self) -> ProbabilityMaps:
        """Read the raster, or raise SatmapError."""
        return read_map_file(self.path, self.metres_per_pixel, self.kinds)[0]


def common_images(
    request: TuningRequest, map_ids: Collection[str], truth_ids: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return the image ids that rasters and truth share, and warnings about the others.

    The ids keep the order of the rasters.

    Raises:
        SatmapError: there is no common image.
    """
    common = [image_id for image_id in map_ids if image_id in truth_ids]
    if not common:
        raise SatmapError(
            f"{request.maps} and {request.truth} have no image in common, for example "
            f"{next(iter(map_ids))} and {next(iter(truth_ids), 'none')}. Check that they belong "
            "together and that both or neither of them use the challenge's prefix in image ids."
        )
    numbers = {"truth": len(map_ids), "probability raster": len(truth_ids)}
    return common, [
        f"{number - len(common)} images without a {what} are left out"
        for what, number in numbers.items()
        if number > len(common)
    ]


def usable_chips(
    request: TuningRequest,
    chips: Sequence[TuningChip],
    categories: Collection[str],
    noun: str,
    warnings: list[str],
) -> tuple[list[TuningChip], dict[str, str]]:
    """Return the chips whose rasters can be read, category by category, and the others' problems.

    Of too many chips, a subset is read; a warning is then added to ``warnings``. ``noun`` is one
    object of the truth, for messages.

    Raises:
        SatmapError: fewer than ``MIN_CHIPS`` rasters can be read, all of them are empty, or the
            truth of all of them is empty.
    """
    tried = []
    for category in categories:
        tried += subsample([chip for chip in chips if chip.category == category], warnings)
    good, faults, highest = [], {}, 0
    for chip, result in zip(tried, request.run(_max_probability, tried), strict=True):
        if isinstance(result, str):
            faults[chip.image_id] = result
        else:
            good.append(chip)
            highest = max(highest, result)
    if len(good) < MIN_CHIPS:
        wrong = [f" ({len(faults)} more cannot be read: {fault})" for fault in faults.values()]
        raise SatmapError(
            f"{len(good)} probability rasters with truth{''.join(wrong[:1])}, but a fit needs "
            f"{MIN_CHIPS} or more, because half of them are held out to judge it."
        )
    if not highest:
        raise SatmapError(
            f"all {len(good)} probability rasters are empty, so there is nothing to fit to. Check "
            "that they are the network's predictions."
        )
    if not any(chip.truth for chip in good):
        raise SatmapError(
            f"the truth has no {noun} in any of the {len(good)} images with probability maps, so "
            "there is nothing to fit to."
        )
    return good, faults


def subsample(chips: Sequence[TuningChip], warnings: list[str]) -> list[TuningChip]:
    """Pick about ``MAX_CHIPS`` chips at most from all areas, and warn if some are left out.

    Few views of many places tell more than many views of few places. So at least ``_MIN_SITES``
    places are kept if there are that many; views are left out instead.
    """
    if len(chips) <= MAX_CHIPS:
        return [*chips]
    sites = len({chip.site for chip in chips})
    folds = ceil(len(chips) / MAX_CHIPS)
    if sites < len(chips):
        folds = min(folds, max(sites // _MIN_SITES, 1))
    by_site: dict[str, list[TuningChip]] = {}
    for chip, part in zip(chips, _assigned(chips, folds, seed=1), strict=True):
        if part == 0:
            by_site.setdefault(chip.site, []).append(chip)
    per_site = max(MAX_CHIPS // len(by_site), 1)
    kept = {chip.image_id for at_site in by_site.values() for chip in _spread(at_site, per_site)}
    warnings.append(f"the fit uses {len(kept)} of {len(chips)} images, spread over all areas")
    return [chip for chip in chips if chip.image_id in kept]


def _spread(chips: Sequence[TuningChip], most: int) -> list[TuningChip]:
    """Pick at most ``most`` chips, evenly spaced from first to last."""
    step = max(len(chips) / most, 1)
    return [chips[int(number * step)] for number in range(min(len(chips), most))]


def _assigned(chips: Sequence[TuningChip], folds: int, seed: int) -> list[int]:
    parts = assign_folds({chip.site: chip.area for chip in chips}.items(), folds, seed)
    return [parts[chip.site] for chip in chips]


def _max_probability(chip: TuningChip) -> int | str:
    """Return the highest value of the main map, 0..255, or why the raster cannot be used."""
    try:
        maps = chip.read()
    except SatmapError as error:
        return str(error)
    if chip.size is not None and maps.shape != chip.size[::-1]:
        height, width = maps.shape
        return (
            f"{chip.path}: {width} x {height} pixels, but the annotations say "
            f"{chip.size[0]} x {chip.size[1]} for the image."
        )
    return int(maps[chip.kinds[1][0]].max())


def fit_categories(
    request: TuningRequest,
    chips: Sequence[TuningChip],
    starts: Mapping[str, SettingsT],
    grids: Grids,
    evaluate: Callable[[TuningChip, ProbabilityMaps, SettingsT], Record],
    measure: Callable[[Sequence[TuningChip]], Measure[Record]],
    warnings: list[str],
) -> dict[str, Fit[SettingsT]]:
    """Fit the settings of every view-angle category to its chips, from :func:`usable_chips`.

    The search of each category begins at its entry in ``starts``. ``evaluate`` returns the record
    of a chip under some settings; it must be picklable. ``measure`` returns the measure of some
    chips. A category with too few places adds to ``warnings``.

    Raises:
        SatmapError: every category has too few places.
    """
    fits = {}
    for number, (category, start) in enumerate(starts.items()):
        members = [chip for chip in chips if chip.category == category]
        if (places := len({chip.site for chip in members})) < MIN_CHIPS:
            if members:
                prefix = f"{category}: " if category else ""
                warnings.append(f"{prefix}too few places for a fit ({places})")
            continue

        def work(
            trials: Sequence[Trial[SettingsT]], members: Sequence[TuningChip] = members
        ) -> Generator[Sequence[Record]]:
            jobs = [(members[chip], settings) for chip, settings in trials]
            return request.run(partial(_records, evaluate), jobs)

        # All views of a place are in the same half.
        parts = _assigned(members, 2, seed=0)
        first, second = ([n for n, part in enumerate(parts) if part == half] for half in (0, 1))
        left = (request.deadline - time.monotonic()) / (len(starts) - number)
        table = RecordTable(measure(members), work)
        label = f"{category}, " if category else ""
        fits[category] = cross_validated(table, start, grids, (first, second), left, label)
    if not fits:
        raise SatmapError(
            f"{'; '.join(warnings)}. A fit needs at least {MIN_CHIPS} places, because it is "
            "validated on held-out places."
        )
    return fits


def _records(
    evaluate: Callable[[TuningChip, ProbabilityMaps, SettingsT], Record],
    job: tuple[TuningChip, tuple[SettingsT, ...]],
) -> list[Record]:
    chip, tried = job
    maps = chip.read()
    return [evaluate(chip, maps, settings) for settings in tried]
