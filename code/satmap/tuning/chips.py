"""What the fits of roads and of buildings have in common: masks with a truth, and the outcome."""

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

#: More chips say little more and take their time.
MAX_CHIPS = 96

# Fewer places tell a gain from chance badly.
_PLACES = 24


@dataclass(frozen=True)
class Tuning:
    """What a fit of a vectoriser found.

    Attributes:
        settings: of the recipe's vectoriser, fitted where that gains something.
        score: what was measured, as messages call it.
        fits: for each category of looks that was fitted by itself; of all chips under "".
        faults: image id to what is wrong, for masks that were left out.
        warnings: what the user should know.
    """

    settings: Settings
    score: str
    fits: Mapping[str, Fit[Any]]
    faults: dict[str, str]
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """A few lines for people."""
        lines = []
        for category, fit in self.fits.items():
            lines += fit.summary(f"{category}: {self.score}" if category else self.score)
        return "\n".join(lines)


@dataclass(frozen=True)
class TuningRequest:
    """What a fit works with.

    Attributes:
        maps: directory of probability rasters.
        truth: the truth of the same images.
        metres_per_pixel: pixel size of rasters without georeference.
        deadline: when the search ends, on the clock of ``time.monotonic``.
        run: runs jobs in worker processes.
        view_angle: of images whose names do not tell it.
    """

    maps: Path
    truth: Path
    metres_per_pixel: float
    deadline: float
    run: Runner
    view_angle: ViewAngle | None = None


class TuningChip(Protocol):
    """A mask with its truth, as a worker is given it."""

    @property
    def image_id(self) -> str:
        """The image."""

    @property
    def site(self) -> str:
        """What must not be in both halves: all looks at one place."""

    @property
    def area(self) -> str:
        """Its area of interest; "" for images whose names tell none."""


_Chip = TypeVar("_Chip", bound=TuningChip)


def common_images(
    masks: Path, truth: Path, paths: Collection[str], known: Collection[str]
) -> tuple[list[str], list[str]]:
    """The ids of the masks that the truth knows, in the masks' order, and what to say of others.

    Args:
        masks: their directory.
        truth: the file.
        paths: ids of the masks.
        known: ids of the truth.

    Raises:
        SatmapError: there is none.
    """
    common = [image_id for image_id in paths if image_id in known]
    if not common:
        raise SatmapError(
            f"{masks} and {truth} have no image in common, for example {next(iter(paths))} and "
            f"{next(iter(known), 'none')}. Check that they belong together and whether one keeps "
            "the challenge's prefix."
        )
    warnings = []
    for what, number in (("truth", len(paths)), ("mask", len(known))):
        if number > len(common):
            warnings.append(f"{number - len(common)} images without a {what} are left out")
    return common, warnings


def subsample(chips: Sequence[_Chip], warnings: list[str]) -> list[_Chip]:
    """About ``MAX_CHIPS`` chips at most, of all areas; warns of the rest.

    Many looks at few places say less than few looks at many: of the places stay ``_PLACES`` or
    more, and then looks are left out instead.
    """
    if len(chips) <= MAX_CHIPS:
        return [*chips]
    places = len({chip.site for chip in chips})
    of = ceil(len(chips) / MAX_CHIPS)
    if places < len(chips):
        of = min(of, max(places // _PLACES, 1))
    parts = _assigned(chips, of, seed=1)
    view_angles: dict[str, list[_Chip]] = {}
    for chip, part in zip(chips, parts, strict=True):
        if part == 0:
            view_angles.setdefault(chip.site, []).append(chip)
    most = max(MAX_CHIPS // len(view_angles), 1)
    kept = {chip.image_id for its in view_angles.values() for chip in _spread(its, most)}
    warnings.append(f"of {len(chips)} images {len(kept)}, spread over all areas, are fitted to")
    return [chip for chip in chips if chip.image_id in kept]


def _spread(chips: Sequence[_Chip], most: int) -> list[_Chip]:
    """At most so many, from the first to the last."""
    step = max(len(chips) / most, 1)
    return [chips[int(number * step)] for number in range(min(len(chips), most))]


def split_in_halves(chips: Sequence[_Chip]) -> tuple[list[int], list[int]]:
    """Numbers of the chips of two halves of every area, all looks at a place in one."""
    parts = _assigned(chips, 2, seed=0)
    first, second = ([n for n, part in enumerate(parts) if part == half] for half in (0, 1))
    return first, second


def readable_chips(
    chips: Sequence[_Chip], run: Runner, max_probability: Callable[[_Chip], int | str]
) -> tuple[list[_Chip], dict[str, str]]:
    """The chips whose masks can be read, and what is wrong with the others.

    Args:
        chips: all.
        run: where to read them.
        max_probability: gives the highest probability of a mask, 0..255, or what is wrong with it.

    Raises:
        SatmapError: too few are left, or there is nothing to fit to in all of them.
    """
    good, faults, most = [], {}, 0
    for chip, result in zip(chips, run(max_probability, chips), strict=True):
        if isinstance(result, str):
            faults[chip.image_id] = result
        else:
            good.append(chip)
            most = max(most, result)
    if len(good) < MIN_CHIPS:
        wrong = [f" ({len(faults)} more cannot be read: {fault})" for fault in faults.values()]
        raise SatmapError(
            f"{len(good)} masks with truth{''.join(wrong[:1])}, but a fit takes {MIN_CHIPS} or "
            "more: it is judged on chips that it has not seen."
        )
    if not most:
        raise SatmapError(
            f"all {len(good)} masks are empty, so there is nothing to fit to. Check that they are "
            "the network's planes."
        )
    return good, faults


def _assigned(chips: Sequence[_Chip], folds: int, seed: int) -> list[int]:
    parts = assign_folds({chip.site: chip.area for chip in chips}.items(), folds, seed)
    return [parts[chip.site] for chip in chips]
