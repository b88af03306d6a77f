"""Fitting the models of confidence to an out-of-fold prediction.

``satmap predict --out-of-fold --probabilities DIR`` predicts training images with networks that
were not trained on them, and records this in the manifest. The models learn only from such
predictions. They are written to the weights directory of these networks and are valid only for
them.

There are two. The *selection model* chooses among the candidates of buildings, if the networks have
probability maps. The *calibration* computes the probability that a road or building is right. It is
fitted to the objects that `satmap predict` would find: with a selection model, each part of the
images is decoded with a model that was fitted to the other parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
import torch
import yaml

from satmap.data.cache import default_cache
from satmap.data.chip import Chip, record_images
from satmap.data.folds import assign_folds
from satmap.data.view_angles import parse_view_angle
from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import match_buildings
from satmap.evaluation.metrics.right_roads import right_roads
from satmap.io.checksums import FileRecord, in_threads, record_file
from satmap.io.files import require_writable, write_text
from satmap.io.progress import track
from satmap.provenance.manifest import (
    SubmissionManifest,
    WeightsManifest,
    manifest_path,
    read_manifest,
    record_data,
    run_here,
    write_manifest,
)
from satmap.rasters.map_files import open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import parse_recipe
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv
from satmap.tasks.base import Task, task_of
from satmap.tasks.building_instances.settings import MergeSettings
from satmap.tasks.building_instances.task import BuildingInstanceTask
from satmap.tasks.buildings.labels import ignored_pixels, read_building_labels
from satmap.tasks.buildings.measures import building_features, measure_buildings
from satmap.tasks.buildings.selection import (
    SELECTION_FILE,
    CandidateSample,
    SelectionModel,
    fit_selection,
    sample,
)
from satmap.tasks.buildings.settings import BUILDING_FILE_MAPS
from satmap.tasks.buildings.targets import draw_instances
from satmap.tasks.buildings.task import BuildingTask
from satmap.tasks.buildings.vectorizer.tracing import Floats, Labels
from satmap.tasks.buildings.vectorizer.vectorize_buildings import (
    selected_outlines,
    vectorize_buildings,
)
from satmap.tasks.calibration import CALIBRATION_FILE, Labelled, fit_calibration
from satmap.tasks.roads.labels import read_true_roads
from satmap.tasks.roads.measures import measure_roads
from satmap.tasks.roads.settings import ROAD_FILE_MAPS
from satmap.tasks.roads.task import RoadTask
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.buildings import UNCALIBRATED, Building

# Number of cross-validation parts. All images of a site share one part.
_PARTS = 4
# With at least so many areas of interest, these are the parts of the calibration.
_LEAST_AREAS = 3


@dataclass(frozen=True)
class ConfidenceFit:
    """What a fit has written.

    Attributes:
        lines: file and summary of each model, for the user.
        faults: image id to reason, for images left out.
    """

    lines: tuple[str, ...]
    faults: Mapping[str, str]


@dataclass(frozen=True)
class _Image:
    """An image with labels.

    Attributes:
        chip: the chip.
        part: its part of the cross-validation.
        place: what the calibration leaves out together.
        raster: file of its probability maps; None if the task has none.
        found: buildings that a cascade found.
    """

    chip: Chip
    part: int
    place: str
    raster: Path | None
    found: Sequence[BuildingRow] = ()


@dataclass(frozen=True)
class _Prediction:
    """The prediction that is fitted to.

    Attributes:
        manifest: of the submission.
        task: of its recipe.
        images: those with labels.
        command: satmap's arguments, for the manifests.
    """

    manifest: SubmissionManifest
    task: Task
    images: Sequence[_Image]
    command: Sequence[str]


def fit_to_prediction(
    submission: Path,
    maps: Path | None,
    weights: Path,
    directories: Sequence[Path] = (),
    command: Sequence[str] = (),
    cache: Path | None = None,
    judgement: Path | None = None,
    forest: bool = False,
    with_selection: bool = True,
) -> ConfidenceFit:
    """Fit the models of confidence to an out-of-fold prediction; write them beside the networks.

    ``submission`` and the directory ``maps`` come from one run of ``satmap predict --out-of-fold``
    with the networks in ``weights``; cascades without probability maps need no ``maps``. The
    ``directories`` of images and labels are by default those in its manifest. ``command`` are
    satmap's arguments, for the models' manifests. ``cache`` is the directory of prepared chips for
    a recipe with ``tiles``; None for the default one. ``judgement`` is the directory of judged
    labels; None for the images' own. ``forest`` fits a random forest as selection model instead of
    boosted trees. Without ``with_selection`` no selection model is fitted.

    Raises:
        SatmapError: the prediction is not an out-of-fold prediction of roads or buildings, or comes
            from other networks; too few images have labels and probability maps; the selection
            model predicts held-out images no better than the mean; or roads cannot be calibrated.
        CannotWriteError: a model cannot be written.
    """
    manifest = _out_of_fold(submission)
    _require_networks(manifest, weights)
    recipe = parse_recipe(yaml.safe_dump(manifest.recipe.content), "of the manifest")
    task = task_of(recipe)
    if not isinstance(task, RoadTask | BuildingTask | BuildingInstanceTask):
        raise SatmapError(
            f"{submission} is a submission of {task.noun}; only roads and buildings have a "
            "confidence."
        )
    selects = with_selection and bool(task.map_names) and not isinstance(task, RoadTask)
    calibration, selection = weights / CALIBRATION_FILE, weights / SELECTION_FILE
    require_writable(calibration)
    if selects:
        require_writable(selection)
    elif selection.exists():
        raise SatmapError(
            f"{selection} chooses among the candidates of buildings, so the buildings that are "
            "calibrated without it are not those of `satmap predict`. Leave --no-selection out, or "
            "move the file elsewhere."
        )
    needs_maps = bool(task.map_names) and (selects or not isinstance(task, BuildingInstanceTask))
    if needs_maps and maps is None:
        raise SatmapError(
            "give MAPS, the directory of the probability maps of that run (`satmap predict "
            "--out-of-fold --probabilities MAPS`)."
        )
    # Buildings of a cascade are candidates, too, with their scores.
    found = read_buildings_csv(submission) if isinstance(task, BuildingInstanceTask) else {}
    view_angle = parse_view_angle(manifest.view_angle) if manifest.view_angle else None
    began_in = Path(manifest.run.directory)
    sources = directories or [began_in / directory for directory in manifest.directories]
    inventory = task.find_images(
        sources, view_angle, cache=cache or default_cache(), judgement=judgement
    )
    chips = [chip for chip in inventory.chips if chip.image_id in manifest.images]
    parts = assign_folds({c.site: c.aoi for c in chips}.items(), _PARTS, recipe.seed)
    by_area = len({chip.aoi for chip in chips}) >= _LEAST_AREAS
    images = []
    for chip in chips:
        name = chip.long_id if recipe.submission.keep_prefix else chip.image_id
        part = parts[chip.site]
        images.append(
            _Image(
                chip, part, chip.aoi if by_area else str(part),
                maps / f"{name}.tif" if needs_maps and maps else None, found.get(name, ()),
            )
        )  # fmt: skip
    prediction = _Prediction(manifest, task, images, command)
    if isinstance(task, RoadTask):
        names = task.confidence_features()
        labelled, faults = _measured(images, lambda image: _roads(image, task))
        return _calibrate(prediction, calibration, names, labelled, faults, (), ())
    lines: list[str] = []
    starts_from: tuple[FileRecord, ...] = ()
    models: Mapping[int, SelectionModel] = {}
    left_out: dict[str, str] = {}
    if selects:
        # A calibration is for the buildings of one selection model.
        calibration.unlink(missing_ok=True)
        manifest_path(calibration).unlink(missing_ok=True)
        line, models, left_out = _fit_selection(prediction, selection, forest)
        lines, starts_from = [line], (record_file(selection),)
        prediction = replace(
            prediction, images=[i for i in images if i.chip.image_id not in left_out]
        )
    names = building_features(
        () if isinstance(task, BuildingInstanceTask) else task.map_names,
        selects or isinstance(task, BuildingInstanceTask),
    )
    if selects and not models:
        reason = f"confidence: {UNCALIBRATED}; a fit needs images of at least three parts"
        return ConfidenceFit((*lines, reason), left_out)
    labelled, faults = _measured(
        prediction.images, lambda image: _buildings(image, task, names, models.get(image.part))
    )
    return _calibrate(
        prediction, calibration, names, labelled, left_out | faults, lines, starts_from
    )


def _out_of_fold(submission: Path) -> SubmissionManifest:
    manifest = read_manifest(submission)
    if not isinstance(manifest, SubmissionManifest):
        raise SatmapError(
            f"{submission} is not a submission: its manifest is of kind {manifest.kind}."
        )
    if not manifest.out_of_fold:
        raise SatmapError(
            f"{submission} was not predicted out of fold: the networks may have been trained on "
            "the images, and overconfident maps would teach that everything is right. Run "
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


def _measured(
    images: Sequence[_Image], measure: Callable[[_Image], Labelled]
) -> tuple[dict[str, Labelled], dict[str, str]]:
    """Return the objects of all images by id, and the reasons for images left out."""
    labelled, faults = {}, {}
    for image in track(images, "comparing with the truth", len(images)):
        try:
            labelled[image.chip.image_id] = measure(image)
        except SatmapError as error:
            faults[image.chip.image_id] = str(error)
    return labelled, faults


def _calibrate(
    prediction: _Prediction,
    path: Path,
    names: Sequence[str],
    labelled: Mapping[str, Labelled],
    faults: Mapping[str, str],
    lines: Sequence[str],
    starts_from: tuple[FileRecord, ...],
) -> ConfidenceFit:
    """Fit and write the calibration; ``lines`` are about the selection model before it."""
    task = prediction.task
    try:
        fit = fit_calibration(task.recipe.task.name, names, list(labelled.values()))
    except ValueError as error:
        reason = next((f" The first problem: {fault}" for fault in faults.values()), "")
        if lines:
            return ConfidenceFit((*lines, f"confidence: {UNCALIBRATED}; {error}.{reason}"), faults)
        raise SatmapError(
            f"not enough data to fit the confidence: {error}; {len(labelled)} images have labels "
            f"and a prediction.{reason}"
        ) from error
    write_text(path, fit.calibration.model_dump_json(indent=1) + "\n")
    scores = {"right": fit.right, "calibration_error": fit.error}
    used = [i.chip for i in prediction.images if i.chip.image_id in labelled]
    _write_manifest(path, prediction, used, scores, faults, starts_from)
    summary = (
        f"{path}: {fit.count} {task.noun} of {len(labelled)} images, {fit.right:.1%} right; "
        f"calibration error on left-out places {fit.error:.3f}"
    )
    return ConfidenceFit((*lines, summary), faults)


def _roads(image: _Image, task: RoadTask) -> Labelled:
    """Measure the roads of an image, and compare them with the true ones."""
    chip = image.chip
    true, ignored = read_true_roads(chip)
    assert image.raster is not None
    maps = _read_maps(image.raster, task.recipe.task.default_metres_per_pixel, ROAD_FILE_MAPS, chip)
    if ignored is not None:
        maps = replace(maps, values=maps.values * ~ignored)
    graph = vectorize_roads(maps, task.recipe.task.vectorizer)
    right = right_roads(true, [edge.line for edge in graph.edges], maps.metres_per_pixel)
    return Labelled(image.place, measure_roads(graph, maps), right)


def _buildings(
    image: _Image,
    task: BuildingTask | BuildingInstanceTask,
    names: Sequence[str],
    model: SelectionModel | None,
) -> Labelled:
    """Measure the buildings of an image, and match them with the true ones.

    The buildings are those that ``predict`` would find with a selection ``model``.
    """
    truth = read_building_labels(image.chip).outlines
    settings = task.result_decoder(image.chip).settings
    maps = None
    if image.raster is None:
        found = [Building(row.polygon, row.score) for row in image.found]
    elif isinstance(settings, MergeSettings):
        assert model is not None, "without a selection model, cascades need no maps"
        known, drawn, _ = _drawn(image)
        found = [
            Building(outline, iou)
            for outlines, ious in selected_outlines(
                known, settings.watershed, settings.least_iou, model, drawn
            )
            for outline, iou in zip(outlines.tolist(), ious.tolist(), strict=True)
        ]
    else:
        maps, _, _ = _drawn(image)
        found = vectorize_buildings(maps, settings, model)
    rows = [BuildingRow(building.polygon, building.score) for building in found]
    matches = match_buildings([BuildingRow(each) for each in shapely.get_parts(truth)], rows)
    features = measure_buildings(found, maps, names)
    return Labelled(image.place, features[matches.counted], (matches.taken >= 0)[matches.counted])


def _fit_selection(
    prediction: _Prediction, path: Path, forest: bool
) -> tuple[str, dict[int, SelectionModel], dict[str, str]]:
    """Fit and write the selection model.

    Returns:
        File and summary, for the user; for each part a model that was fitted to the other parts,
        none if there are too few; and image id to reason, for images left out.
    """
    samples: dict[str, CandidateSample] = {}
    faults: dict[str, str] = {}
    images = prediction.images
    for image in track(images, "measuring candidates", len(images)):
        try:
            samples[image.chip.image_id] = _sample(image, prediction.task)
        except SatmapError as error:
            faults[image.chip.image_id] = str(error)
    useful = [entry for entry in samples.values() if len(entry.ious)]
    try:
        fit = fit_selection(useful, forest)
    except ValueError as error:
        reason = next((f" The first problem: {fault}" for fault in faults.values()), "")
        raise SatmapError(
            f"not enough data to fit: {error}; {len(samples)} images have labels and probability "
            f"maps.{reason}"
        ) from error
    if fit.error >= fit.spread:
        raise SatmapError(
            f"the model fitted to {len(samples)} images is no better than the mean: its error on "
            f"held-out images is {fit.error:.3f}, that of the mean {fit.spread:.3f}. Train the "
            "networks longer, or predict more images out of fold."
        )
    write_text(path, fit.model.text)
    used = [image.chip for image in images if image.chip.image_id in samples]
    scores = {"error": fit.error, "spread": fit.spread}
    _write_manifest(path, prediction, used, scores, faults)
    candidates = sum(len(entry.ious) for entry in samples.values())
    summary = (
        f"{path}: {candidates} candidates from {len(samples)} images, {fit.trees} trees; IoU error "
        f"on held-out images {fit.error:.3f} (predicting the mean: {fit.spread:.3f})"
    )
    models = {}
    try:
        for part in {image.part for image in images}:
            others = [entry for entry in useful if entry.fold != part]
            models[part] = fit_selection(others, forest).model
    except ValueError:
        models = {}
    return summary, models, faults


def _sample(image: _Image, task: Task) -> CandidateSample:
    """Measure the candidates of an image against its true buildings."""
    maps, drawn, truth = _drawn(image)
    settings = task.result_decoder(image.chip).settings  # type: ignore[attr-defined]
    if isinstance(settings, MergeSettings):
        return sample(maps, truth, image.part, settings.watershed, drawn)
    return sample(maps, truth, image.part, settings)


def _drawn(image: _Image) -> tuple[ProbabilityMaps, tuple[Labels, Floats], Labels]:
    """Return the maps of an image, the buildings of a cascade with their scores, and the truth.

    Where the label does not say what is there, nothing is found: it would count as wrong.
    """
    assert image.raster is not None
    labels = read_building_labels(image.chip)
    # The pixel size is not used here; any value will do.
    maps = _read_maps(image.raster, 1.0, BUILDING_FILE_MAPS, image.chip)
    known = ~ignored_pixels(image.chip, maps.shape)
    polygons = np.array([row.polygon for row in image.found], np.object_)
    scores = np.array([row.score for row in image.found], np.float64)
    return (
        replace(maps, values=maps.values * known),
        (draw_instances(polygons, maps.shape) * known, scores),
        draw_instances(labels.outlines, maps.shape),
    )


def _read_maps(
    raster: Path, metres: float, kinds: Mapping[int, tuple[str, ...]], chip: Chip
) -> ProbabilityMaps:
    with open_map_file(raster, metres, kinds) as file:
        maps = file.scene.at_once()
    shape = chip.image.height, chip.image.width
    if maps.shape != shape:
        raise SatmapError(f"{raster} has {maps.shape} pixels, but its image has {shape}.")
    return maps


def _write_manifest(
    path: Path,
    prediction: _Prediction,
    chips: Sequence[Chip],
    scores: Mapping[str, float],
    faults: Mapping[str, str],
    more: tuple[FileRecord, ...] = (),
) -> None:
    records = in_threads(record_images, chips)
    images = {chip.image_id: files for chip, files in zip(chips, records, strict=True)}
    manifest = prediction.manifest
    facts = {
        "recipe": manifest.recipe.model_copy(update={"content": None}),
        "member": None,
        "seeds": {"recipe": manifest.seeds["recipe"]},
        "stage": None,
        "epoch": None,
        "scores": dict(scores),
        "data": record_data(images, None),
        "starts_from": (*manifest.weights, *more),
        "skipped": dict(sorted(faults.items())),
        "runs": [run_here(prediction.command, torch.device("cpu"))],
    }
    write_manifest(path, WeightsManifest, facts)
