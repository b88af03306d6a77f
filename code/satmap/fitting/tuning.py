"""Fitting the road vectoriser's settings to a network's planes by the challenge's own score.

The best settings depend on the network: how wide and how sure its roads are, how often they break.
They are fitted on planes of images that the network has not seen, and judged by two-fold
cross-validation on chips that the fit has not seen.
"""

import contextlib
import json
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import yaml

from satmap.data.folds import assign_folds
from satmap.errors import SatmapError
from satmap.files import require_writable, write_text
from satmap.fitting.coordinate_search import Gain, Grids, ScoreTable, Task, descend
from satmap.mask_files import read_mask
from satmap.metrics.apls import aoi_of, apls
from satmap.planes import ROAD
from satmap.recipe import Recipe
from satmap.roads.rows import to_rows
from satmap.roads.settings import RoadSettings
from satmap.roads.vectorize import vectorize
from satmap.runtime.workers import start_pool
from satmap.submissions.roads_csv import RoadRow, read_roads_csv
from satmap.vectorizing import find_masks

_SUFFIXES = (".yaml", ".yml")

#: What is fitted, most important first as measured on made masks (tests/degraded_masks.py), and
#: the values that it may take.
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

# Two halves of two: with fewer there is no telling a gain from chance.
_FEWEST = 4
# More chips say little more and take their time.
_MOST = 96

# Shares of the time by the end of the fits to either half and to all. The last finds most of its
# scores worked out by the others.
_SHARES = (0.42, 0.84, 1.0)

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Tuning:
    """What a fit found.

    Attributes:
        settings: the fitted settings, or the recipe's where the fit gains nothing.
        changes: name of a setting that the fit moves to its value before and after, whether or not
            it is kept.
        weight: ``time`` or ``length``: which APLS the scores are.
        chips: how many were fitted to.
        before: score of the recipe's settings, all chips.
        after: score of the fitted settings on the chips that they were fitted to.
        unseen: what fits gain on chips that they were not fitted to, by cross-validation.
        complete: whether there was time for the whole search.
        faults: image id to what is wrong, for masks that cannot be read.
        warnings: what the user should know.
    """

    settings: RoadSettings
    changes: dict[str, tuple[float, float]]
    weight: str
    chips: int
    before: float
    after: float
    unseen: Gain
    complete: bool
    faults: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether the fit took the place of the recipe's settings."""
        return bool(self.changes) and self.unseen.counts

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"APLS {self.weight} of {self.chips} chips: {self.before:.4f} before, "
            f"{self.after:.4f} after on the chips fitted to",
            f"on chips not fitted to (two-fold cross-validation): {self.before:.4f} before, "
            f"{self.before + self.unseen.mean:.4f} after, gain {self.unseen.mean:+.4f} "
            f"+- {self.unseen.error:.4f}",
        ]
        lines += [f"  {name}: {old:g} -> {new:g}" for name, (old, new) in self.changes.items()]
        if not self.complete:
            lines.append("time ran out before the search was complete; --minutes gives more")
        if not self.changes:
            lines.append(
                "no other values are better by more than chance: the settings stay as they were"
            )
        elif not self.kept:
            lines.append(
                "no gain beyond chance on chips not fitted to: the settings stay as they were"
            )
        return "\n".join(lines)


def tune_recipe(
    masks: Path,
    truth: Path,
    output: Path,
    recipe: Recipe,
    *,
    metres_per_pixel: float = 0.3,
    minutes: float = 5.0,
    workers: int = 0,
) -> Tuning:
    """Fit a recipe's road settings and write the recipe with them.

    The score is APLS by travel time, by length where the truth has no times: the mean over areas of
    the means over chips. The same input gives the same settings unless time runs out.

    Args:
        masks: rasters as ``satmap.vectorizing.vectorize_directory`` takes them.
        truth: roads CSV of the same images.
        output: the ``.yaml`` file to write.
        recipe: where to start.
        metres_per_pixel: size of pixels where a mask has no georeference.
        minutes: time for the search; when it is over the best so far is the result.
        workers: processes that vectorise; 0 does it in this one.

    Raises:
        SatmapError: no masks, no truth for them, fewer than four chips, nothing in masks or truth,
            a worker that was killed.
        CannotWriteError: ``output`` cannot be written.
    """
    if workers < 0 or not metres_per_pixel > 0 or not minutes > 0:
        raise ValueError(f"workers {workers}, size {metres_per_pixel}, minutes {minutes}")
    if output.suffix.lower() not in _SUFFIXES:
        raise SatmapError(f"{output}: a recipe's name ends in {' or '.join(_SUFFIXES)}.")
    require_writable(output)
    with _workers(workers) as run:
        tuning = _tune(masks, truth, recipe.roads, metres_per_pixel, minutes * 60, run)
    write_text(output, tuned_text(recipe, tuning, masks, truth))
    return tuning


def tuned_text(recipe: Recipe, tuning: Tuning, masks: Path, truth: Path) -> str:
    """YAML of the recipe with the settings of a fit, and where they are from as a comment."""
    # A path may hold anything, line ends too.
    source = f"Fitted by `satmap tune` on {json.dumps(str(masks))} by {json.dumps(str(truth))}."
    comment = [f"Recipe {recipe.name} with the road vectoriser's settings fitted.", source]
    comment += tuning.summary().splitlines()
    content = recipe.model_dump(exclude_unset=True) | {"roads": tuning.settings.model_dump()}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {line}\n" for line in comment) + text


@dataclass(frozen=True)
class _Chip:
    """A mask with its truth, as a worker is given it."""

    image_id: str
    path: Path
    truth: tuple[RoadRow, ...]
    metres_per_pixel: float


class _Run(Protocol):
    """Runs a function on jobs and gives the results in order."""

    def __call__(
        self, function: Callable[[_Job], _Result], jobs: Sequence[_Job]
    ) -> Generator[_Result]: ...


def _tune(
    masks: Path,
    truth: Path,
    start: RoadSettings,
    metres_per_pixel: float,
    seconds: float,
    run: _Run,
) -> Tuning:
    began = time.monotonic()
    chips, warnings = _find_chips(masks, truth, metres_per_pixel)
    chips, faults = _readable(chips, run)
    timed = all(isfinite(row.travel_time_s) for chip in chips for row in chip.truth)

    def score(tasks: Sequence[Task]) -> Generator[Sequence[float]]:
        return run(_scores, [(chips[chip], settings, timed) for chip, settings in tasks])

    table = ScoreTable([aoi_of(chip.image_id) for chip in chips], score)
    everyone = range(len(chips))
    halves = assign_folds([(chip.image_id, _stratum(chip.image_id)) for chip in chips], 2, seed=0)
    sides = [[i for i in everyone if halves[chips[i].image_id] == half] for half in (0, 1)]
    table.fill([start], everyone)
    before = table.scores(start, everyone)
    unseen = before.copy()
    sets = ((sides[0], "half 1"), (sides[1], "half 2"), (everyone, "all"))
    fits = [
        descend(table, start, GRIDS, own, began + seconds * share, f"fitting to {label}")
        for (own, label), share in zip(sets, _SHARES, strict=True)
    ]
    for fit, other in zip(fits, sides[::-1], strict=False):
        table.fill([fit.settings], other)
        unseen[other] = table.scores(fit.settings, other)
    fitted = fits[-1].settings
    gain = table.gain(unseen - before, everyone)
    changes = {
        name: (getattr(start, name), getattr(fitted, name))
        for name in GRIDS
        if getattr(start, name) != getattr(fitted, name)
    }
    return Tuning(
        settings=fitted if gain.counts else start,
        changes=changes,
        weight="time" if timed else "length",
        chips=len(chips),
        before=table.mean(before, everyone),
        after=table.mean(table.scores(fitted, everyone), everyone),
        unseen=gain,
        complete=all(fit.complete for fit in fits),
        faults=faults,
        warnings=warnings,
    )


def _find_chips(
    masks: Path, truth: Path, metres_per_pixel: float
) -> tuple[list[_Chip], tuple[str, ...]]:
    """The masks that the truth knows, at most ``_MOST`` of all areas, in natural order."""
    paths = find_masks(masks)
    rows = read_roads_csv(truth)
    common = [image_id for image_id in paths if image_id in rows]
    if not common:
        raise SatmapError(
            f"{masks} and {truth} have no image in common, for example {next(iter(paths))} and "
            f"{next(iter(rows), 'none')}. Check that they belong together and whether one keeps "
            "the challenge's prefix."
        )
    warnings = []
    for what, number in (("truth", len(paths)), ("mask", len(rows))):
        if number > len(common):
            warnings.append(f"{number - len(common)} images without a {what} are left out")
    if len(common) > _MOST:
        strata = [(image_id, _stratum(image_id)) for image_id in common]
        parts = assign_folds(strata, ceil(len(common) / _MOST), seed=1)
        warnings.append(f"of {len(common)} images a part, spread over all areas, is fitted to")
        common = [image_id for image_id in common if parts[image_id] == 0]
    chips = [_Chip(name, paths[name], tuple(rows[name]), metres_per_pixel) for name in common]
    return chips, tuple(warnings)


def _stratum(image_id: str) -> str:
    """The area of an image; images whose names tell none are of one."""
    area = aoi_of(image_id)
    return "" if area == image_id else area


def _readable(chips: Sequence[_Chip], run: _Run) -> tuple[list[_Chip], dict[str, str]]:
    """The chips whose masks can be read, and what is wrong with the others.

    Raises:
        SatmapError: too few are left, or there is nothing to fit to in all of them.
    """
    good, faults, brightest = [], {}, 0
    for chip, result in zip(chips, run(_brightest, chips), strict=True):
        if isinstance(result, str):
            faults[chip.image_id] = result
        else:
            good.append(chip)
            brightest = max(brightest, result)
    if len(good) < _FEWEST:
        wrong = [f" ({len(faults)} more cannot be read: {fault})" for fault in faults.values()]
        raise SatmapError(
            f"{len(good)} masks with truth{''.join(wrong[:1])}, but a fit takes {_FEWEST} or "
            "more: it is judged on chips that it has not seen."
        )
    if not brightest:
        raise SatmapError(
            f"all {len(good)} masks are empty, so there is nothing to fit to. Check that they are "
            "the network's planes."
        )
    if not any(chip.truth for chip in good):
        raise SatmapError(
            f"the truth has no road in any of the {len(good)} masks' images, so there is nothing "
            "to fit to."
        )
    return good, faults


def _brightest(chip: _Chip) -> int | str:
    """The highest road probability of a mask, 0..255, or what is wrong with it."""
    try:
        planes, _ = read_mask(chip.path, chip.metres_per_pixel)
    except SatmapError as error:
        return str(error)
    return int(planes[ROAD].max())


def _scores(job: tuple[_Chip, tuple[RoadSettings, ...], bool]) -> list[float]:
    """APLS of a chip under each of the settings."""
    chip, tried, timed = job
    planes, _ = read_mask(chip.path, chip.metres_per_pixel)
    metres = float(np.mean(planes.metres_per_pixel))
    scores = []
    for settings in tried:
        try:
            rows = to_rows(vectorize(planes, settings))
            score = apls(chip.truth, rows, metres_per_pixel=metres)
        # Settings that break on a chip are no good there, which is no reason to end the fit.
        except Exception:
            scores.append(0.0)
            continue
        scores.append((score.time if timed and score.time else score.length).score)
    return scores


@contextlib.contextmanager
def _workers(workers: int) -> Generator[_Run]:
    """So many processes that jobs run in, or this one."""

    def run_here(function: Callable[[_Job], _Result], jobs: Sequence[_Job]) -> Generator[_Result]:
        yield from map(function, jobs)

    if not workers:
        yield run_here
        return
    pool = start_pool(workers)

    def run(function: Callable[[_Job], _Result], jobs: Sequence[_Job]) -> Generator[_Result]:
        try:
            futures = [pool.submit(function, job) for job in jobs]
        except OSError as error:
            raise SatmapError(
                f"worker processes cannot be started ({error.strerror or error}); use fewer."
            ) from error
        try:
            for future in futures:
                yield future.result()
        finally:
            # Left off in the middle when time is up.
            for future in futures:
                future.cancel()

    try:
        yield run
    except BrokenProcessPool as error:
        raise SatmapError(
            "a worker process was killed or could not start. Most often memory is short: use "
            "fewer workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
