"""Common parts of road and building fits: chips with a truth, and the result of a fit."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Protocol, TypeVar

from satmap.data.folds import assign_folds
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.runtime.workers import Runner
from satmap.settings import Settings
from satmap.tuning.cross_validation import MIN_CHIPS, Fit

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


class TuningChip(Protocol):
    """A probability raster with its truth, as sent to a worker process."""

    @property
    def image_id(self) -> str:
        """Image id."""

    @property
    def site(self) -> str:
        """Place of the image; all views of a place must be in the same half."""

    @property
    def area(self) -> str:
        """Area of interest, "" if the image's name does not tell."""


_Chip = TypeVar("_Chip", bound=TuningChip)


def common_images(
    maps: Path, truth: Path, map_ids: Collection[str], truth_ids: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return the image ids that rasters and truth share, and warnings about the others.

    The ids keep the order of the rasters.

    Args:
        maps: directory of the rasters.
        truth: path of the truth.
        map_ids: image ids of the rasters.
        truth_ids: image ids of the truth.

    Raises:
        SatmapError: there is no common image.
    """
    common = [image_id for image_id in map_ids if image_id in truth_ids]
    if not common:
        raise SatmapError(
            f"{maps} and {truth} have no image in common, for example {next(iter(map_ids))} and "
            f"{next(iter(truth_ids), 'none')}. Check that they belong together and that both or "
            "neither of them use the challenge's prefix in image ids."
        )
    warnings = []
    for what, number in (("truth", len(map_ids)), ("probability raster", len(truth_ids))):
        if number > len(common):
            warnings.append(f"{number - len(common)} images without a {what} are left out")
    return common, warnings


def subsample(chips: Sequence[_Chip], warnings: list[str]) -> list[_Chip]:
    """Pick about ``MAX_CHIPS`` chips at most from all areas, and warn if some are left out.

    Few views of many places tell more than many views of few places. So at least ``_MIN_SITES``
    places are kept if there are as many, and views are left out instead.
    """
    if len(chips) <= MAX_CHIPS:
        return [*chips]
    sites = len({chip.site for chip in chips})
    folds = ceil(len(chips) / MAX_CHIPS)
    if sites < len(chips):
        folds = min(folds, max(sites // _MIN_SITES, 1))
    parts = _assigned(chips, folds, seed=1)
    by_site: dict[str, list[_Chip]] = {}
    for chip, part in zip(chips, parts, strict=True):
        if part == 0:
            by_site.setdefault(chip.site, []).append(chip)
    per_site = max(MAX_CHIPS // len(by_site), 1)
    kept = {chip.image_id for at_site in by_site.values() for chip in _spread(at_site, per_site)}
    warnings.append(f"the fit uses {len(kept)} of {len(chips)} images, spread over all areas")
    return [chip for chip in chips if chip.image_id in kept]


def _spread(chips: Sequence[_Chip], most: int) -> list[_Chip]:
    """Pick at most ``most`` chips, evenly spaced from first to last."""
    step = max(len(chips) / most, 1)
    return [chips[int(number * step)] for number in range(min(len(chips), most))]


def split_in_halves(chips: Sequence[_Chip]) -> tuple[list[int], list[int]]:
    """Split the chips of every area into two halves, and return the chips' numbers.

    All views of a place are in the same half.
    """
    parts = _assigned(chips, 2, seed=0)
    first, second = ([n for n, part in enumerate(parts) if part == half] for half in (0, 1))
    return first, second


def readable_chips(
    chips: Sequence[_Chip], run: Runner, max_probability: Callable[[_Chip], int | str]
) -> tuple[list[_Chip], dict[str, str]]:
    """Return the chips whose rasters can be read, and the problems of the others.

    Args:
        chips: all chips.
        run: runs the jobs.
        max_probability: returns the highest probability of a raster, 0..255, or why it cannot be
            read.

    Raises:
        SatmapError: fewer than ``MIN_CHIPS`` rasters can be read, or all of them are empty.
    """
    good, faults, highest = [], {}, 0
    for chip, result in zip(chips, run(max_probability, chips), strict=True):
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
    return good, faults


def _assigned(chips: Sequence[_Chip], folds: int, seed: int) -> list[int]:
    parts = assign_folds({chip.site: chip.area for chip in chips}.items(), folds, seed)
    return [parts[chip.site] for chip in chips]
