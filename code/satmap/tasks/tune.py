"""Fitting a vectoriser's settings to a network's planes by the challenge's own score.

The best settings depend on the network: how wide and how sure its roads are and how often they
break, how its buildings run into one another. They are fitted on planes of images that the network
has not seen, and judged by two-fold cross-validation on chips that the fit has not seen.
"""

import json
import time
from pathlib import Path
from typing import Any

import yaml

from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.io.files import require_writable, write_text
from satmap.recipes.schema import Recipe
from satmap.runtime.workers import working
from satmap.tasks.base import task_of
from satmap.tuning.chips import Tuning, TuningRequest

_SUFFIXES = (".yaml", ".yml")


def tune_recipe(
    maps: Path,
    truth: Path,
    output: Path,
    recipe: Recipe,
    *,
    metres_per_pixel: float | None = None,
    minutes: float = 5.0,
    workers: int = 0,
    view_angle: ViewAngle | None = None,
) -> Tuning:
    """Fit the settings of a recipe's vectoriser and write the recipe with them.

    Of roads the score is APLS by travel time, by length where the truth has no times: the mean over
    areas of the means over chips. Of buildings it is SpaceNet's F1, or by COCO annotations the
    average precision at an IoU of .5; a recipe with heads by look gets settings for each category
    of looks. The same input gives the same settings unless time runs out.

    Args:
        maps: rasters as :func:`satmap.prediction.vectorize.vectorize_directory` takes them.
        truth: roads CSV of the same images; buildings CSV or COCO annotations.
        output: the ``.yaml`` file to write.
        recipe: where to start.
        metres_per_pixel: pixel size of rasters without georeference; None for the recipe's.
        minutes: time for the search; when it is over the best so far is the result.
        workers: processes that vectorise; 0 does it in this one.
        view_angle: of images whose names do not say from where they were taken.

    Raises:
        SatmapError: no masks, no truth for them, fewer than four chips, nothing in masks or truth,
            a worker that was killed.
        CannotWriteError: ``output`` cannot be written.
    """
    if workers < 0 or not minutes > 0:
        raise ValueError(f"workers {workers}, minutes {minutes}")
    if output.suffix.lower() not in _SUFFIXES:
        raise SatmapError(f"{output}: a recipe's name ends in {' or '.join(_SUFFIXES)}.")
    require_writable(output)
    deadline = time.monotonic() + 60 * minutes
    with working(workers) as run:
        task = task_of(recipe)
        metres = metres_per_pixel or task.default_metres_per_pixel or 1.0
        tuning = task.tune(TuningRequest(maps, truth, metres, deadline, run, view_angle))
    write_text(output, tuned_text(recipe, tuning, maps, truth))
    return tuning


def tuned_text(recipe: Recipe, tuning: Tuning, masks: Path, truth: Path) -> str:
    """YAML of the recipe with the settings of a fit, and where they are from as a comment."""
    # A path may hold anything, line ends too.
    source = f"Fitted by `satmap tune` on {json.dumps(str(masks))} by {json.dumps(str(truth))}."
    comment = [
        f"Recipe {recipe.name} with the settings of the {recipe.task.name} vectoriser fitted.",
        source,
    ]
    comment += tuning.summary().splitlines()
    content: dict[str, Any] = recipe.model_dump(exclude_unset=True)
    content["task"] = {**content["task"], "vectorizer": tuning.settings.model_dump()}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {line}\n" for line in comment) + text
