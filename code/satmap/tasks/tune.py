"""Fit a vectoriser's settings to a network's probability maps, by the challenge's own score.

The best settings depend on the network: how wide, certain and broken its roads are, or how its
buildings merge. They are fitted to probability maps of images that the network was not trained on.
Two-fold cross-validation judges the fit on chips that it was not fitted to.
"""

import json
import time
from pathlib import Path

import yaml

from satmap.data.view_angles import ViewAngle
from satmap.io.files import write_text
from satmap.recipes.schema import Recipe
from satmap.runtime.workers import working
from satmap.submissions.output_checks import require_recipe_output
from satmap.tasks.base import task_of
from satmap.tuning.chips import Tuning, TuningRequest


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
    """Fit the settings of a recipe's vectoriser, and write a ``.yaml`` recipe with them.

    The score of roads is APLS by travel time, or by length if the truth has no times: the mean over
    areas of the mean over chips. The score of buildings is SpaceNet's F1, or average precision at
    an IoU of 0.5 for COCO annotations. A recipe whose network has a head per view-angle category
    gets settings per category. The same input gives the same settings unless time runs out.

    ``maps`` is a directory of probability rasters, and ``truth`` a roads CSV, buildings CSV or COCO
    annotations of the same images. Rasters without georeference have ``metres_per_pixel``, or the
    recipe's pixel size; images whose names lack the off-nadir angle have ``view_angle``. After
    ``minutes``, the search returns the best settings so far. 0 workers run everything in this
    process.

    Raises:
        SatmapError: there are no rasters, no truth for them or fewer than four chips, rasters or
            truth are empty, or a worker was killed.
        CannotWriteError: ``output`` cannot be written.
    """
    if workers < 0 or not minutes > 0:
        raise ValueError(f"workers {workers}, minutes {minutes}")
    require_recipe_output(output)
    deadline = time.monotonic() + 60 * minutes
    with working(workers) as run:
        task = task_of(recipe)
        metres = metres_per_pixel or task.default_metres_per_pixel or 1.0
        tuning = task.tune(TuningRequest(maps, truth, metres, deadline, run, view_angle))
    write_text(output, tuned_text(recipe, tuning, maps, truth))
    return tuning


def tuned_text(recipe: Recipe, tuning: Tuning, maps: Path, truth: Path) -> str:
    """Return the recipe with fitted settings as YAML, with their origin in a comment."""
    # Paths are quoted because they can contain any character, including line ends.
    comment = [
        f"Recipe {recipe.name} with the settings of the {recipe.task.name} vectoriser fitted.",
        f"Fitted by `satmap tune` on {json.dumps(str(maps))} by {json.dumps(str(truth))}.",
        *tuning.summary().splitlines(),
    ]
    content = recipe.model_dump(exclude_unset=True)
    content["task"] = {**content["task"], "vectorizer": tuning.settings.model_dump()}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {line}\n" for line in comment) + text
