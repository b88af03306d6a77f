"""Fitting the selection model of buildings to out-of-fold probability maps.

``satmap predict --out-of-fold --probabilities DIR`` predicts training images with networks that
were not trained on them, and records this in the manifest. The model learns only from such
predictions. It is written to the weights directory of these networks and is valid only for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml

from satmap.data.cache import default_cache
from satmap.data.chip import Chip, record_images
from satmap.data.folds import assign_folds
from satmap.data.view_angles import parse_view_angle
from satmap.errors import SatmapError
from satmap.io.checksums import in_threads, record_file
from satmap.io.files import require_writable, write_text
from satmap.io.progress import track
from satmap.provenance.manifest import (
    SubmissionManifest,
    WeightsManifest,
    read_manifest,
    record_data,
    run_here,
    write_manifest,
)
from satmap.rasters.map_files import open_map_file
from satmap.recipes.schema import parse_recipe
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv
from satmap.tasks.base import task_of
from satmap.tasks.building_instances.settings import MergeSettings
from satmap.tasks.building_instances.task import BuildingInstanceTask
from satmap.tasks.buildings.labels import ignored_pixels, read_building_labels
from satmap.tasks.buildings.selection import (
    SELECTION_FILE,
    CandidateSample,
    SelectionFit,
    fit_selection,
    sample,
)
from satmap.tasks.buildings.settings import BUILDING_FILE_MAPS
from satmap.tasks.buildings.targets import draw_instances
from satmap.tasks.buildings.task import BuildingTask

# Number of cross-validation parts for the number of trees. All images of a site share one part.
_PARTS = 4


def fit_to_prediction(
    submission: Path,
    maps: Path,
    weights: Path,
    directories: Sequence[Path] = (),
    command: Sequence[str] = (),
    cache: Path | None = None,
    judgement: Path | None = None,
    forest: bool = False,
) -> tuple[Path, str, dict[str, str]]:
    """Fit a selection model to an out-of-fold prediction and write it beside the networks.

    ``submission`` and the directory ``maps`` come from one run of ``satmap predict --out-of-fold``
    with the networks in ``weights``. The ``directories`` of images and labels are by default those
    in its manifest. ``command`` are satmap's arguments, for the model's manifest. ``cache`` is the
    directory of prepared chips for a recipe with ``tiles``; None for the default one.
    ``judgement`` is the directory of judged labels; None for the images' own. ``forest`` fits a
    random forest instead of boosted trees.

    Returns:
        File of the model; a summary of one line; image id to reason, for images left out.

    Raises:
        SatmapError: the prediction is not an out-of-fold prediction of buildings, or comes from
            other networks; too few images have labels and probability maps; or the model predicts
            held-out images no better than the mean.
        CannotWriteError: the model cannot be written.
    """
    manifest = _out_of_fold(submission)
    path = weights / SELECTION_FILE
    require_writable(path)
    _require_networks(manifest, weights)
    recipe = parse_recipe(yaml.safe_dump(manifest.recipe.content), "of the manifest")
    task = task_of(recipe)
    if not isinstance(task, BuildingTask | BuildingInstanceTask):
        raise SatmapError(
            f"{submission} is a submission of {task.noun}; only buildings have a selection model."
        )
    if not task.map_names:
        raise SatmapError(
            f"{submission}: its networks have no probability maps, which a selection model needs "
            "(`network: {maps: [building, border]}` in the recipe)."
        )
    # Buildings of a cascade are candidates, too, with their scores.
    found = read_buildings_csv(submission) if isinstance(task, BuildingInstanceTask) else {}
    view_angle = parse_view_angle(manifest.view_angle) if manifest.view_angle else None
    began_in = Path(manifest.run.directory)
    places = directories or [began_in / directory for directory in manifest.directories]
    inventory = task.find_images(
        places, view_angle, cache=cache or default_cache(), judgement=judgement
    )
    chips = [chip for chip in inventory.chips if chip.image_id in manifest.images]
    parts = assign_folds({c.site: c.aoi for c in chips}.items(), _PARTS, recipe.seed)
    samples: dict[str, CandidateSample] = {}
    faults: dict[str, str] = {}
    for chip in track(chips, "measuring candidates", len(chips)):
        name = chip.long_id if recipe.submission.keep_prefix else chip.image_id
        try:
            raster, part = maps / f"{name}.tif", parts[chip.site]
            samples[chip.image_id] = _sample(chip, raster, part, task, found.get(name))
        except SatmapError as error:
            faults[chip.image_id] = str(error)
    try:
        fit = fit_selection([entry for entry in samples.values() if len(entry.ious)], forest)
    except ValueError as error:
        reason = next((f" The first problem: {fault}" for fault in faults.values()), "")
        raise SatmapError(
            f"not enough data to fit: {error}; {len(samples)} images have labels and probability "
            f"maps in {maps}.{reason}"
        ) from error
    if fit.error >= fit.spread:
        raise SatmapError(
            f"the model fitted to {len(samples)} images is no better than the mean: its error on "
            f"held-out images is {fit.error:.3f}, that of the mean {fit.spread:.3f}. Train the "
            "networks longer, or predict more images out of fold."
        )
    write_text(path, fit.model.text)
    used = [chip for chip in chips if chip.image_id in samples]
    _write_manifest(path, manifest, used, fit, faults, command)
    candidates = sum(len(entry.ious) for entry in samples.values())
    summary = (
        f"{candidates} candidates from {len(samples)} images, {fit.trees} trees; IoU error on "
        f"held-out images {fit.error:.3f} (predicting the mean: {fit.spread:.3f})"
    )
    return path, summary, faults


def _out_of_fold(submission: Path) -> SubmissionManifest:
    manifest = read_manifest(submission)
    if not isinstance(manifest, SubmissionManifest):
        raise SatmapError(
            f"{submission} is not a submission: its manifest is of kind {manifest.kind}."
        )
    if not manifest.out_of_fold:
        raise SatmapError(
            f"{submission} was not predicted out of fold: the networks may have been trained on "
            "the images, and overconfident maps would teach that every candidate is good. Run "
            "`satmap predict --out-of-fold --probabilities DIR` on the training images."
        )
    return manifest


def _require_networks(manifest: SubmissionManifest, weights: Path) -> None:
    """Check that the directory holds the networks of a prediction."""
    for record in manifest.weights:
        path = weights / record.name
        if not path.is_file() or record_file(path).sha256 != record.sha256:
            raise SatmapError(
                f"{path} is missing, or is not the network that made the probability maps. Give "
                "the right directory with --weights, or predict out of fold again."
            )


def _sample(
    chip: Chip,
    raster: Path,
    part: int,
    task: BuildingTask | BuildingInstanceTask,
    rows: Sequence[BuildingRow] | None = None,
) -> CandidateSample:
    """Measure the candidates of an image against its true buildings.

    ``rows`` are the buildings that a cascade found, if the networks are cascades. Where the label
    does not say what is there, there are no candidates: they would count as wrong.
    """
    labels = read_building_labels(chip)
    # The pixel size is not used here; any value will do.
    with open_map_file(raster, 1, BUILDING_FILE_MAPS) as mask:
        found = mask.scene.at_once()
    shape = chip.image.height, chip.image.width
    if found.shape != shape:
        raise SatmapError(f"{raster} has {found.shape} pixels, but its image has {shape}.")
    known = ~ignored_pixels(chip, shape)
    found = replace(found, values=found.values * known)
    truth = draw_instances(labels.outlines, shape)
    settings = task.result_decoder(chip).settings
    if not isinstance(settings, MergeSettings):
        return sample(found, truth, part, settings)
    polygons = np.array([row.polygon for row in rows or ()], np.object_)
    drawn = draw_instances(polygons, shape) * known
    scores = np.array([row.score for row in rows or ()], np.float64)
    return sample(found, truth, part, settings.watershed, (drawn, scores))


def _write_manifest(
    path: Path,
    manifest: SubmissionManifest,
    chips: Sequence[Chip],
    fit: SelectionFit,
    faults: Mapping[str, str],
    command: Sequence[str],
) -> None:
    records = in_threads(record_images, chips)
    images = {chip.image_id: files for chip, files in zip(chips, records, strict=True)}
    facts = {
        "recipe": manifest.recipe.model_copy(update={"content": None}),
        "member": None,
        "seeds": {"recipe": manifest.seeds["recipe"]},
        "stage": None,
        "epoch": None,
        "scores": {"error": fit.error, "spread": fit.spread},
        "data": record_data(images, None),
        "starts_from": manifest.weights,
        "skipped": dict(sorted(faults.items())),
        "runs": [run_here(command, torch.device("cpu"))],
    }
    write_manifest(path, WeightsManifest, facts)
