"""Fitting the second-level model of buildings to planes that networks predicted out of fold.

``satmap predict --out-of-fold --maps`` predicts training images by networks that have not seen
them, and its manifest says so: that is what the model may learn from. It comes to lie beside the
networks, and counts for them alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from satmap.data.chip import Chip
from satmap.data.folds import assign_folds
from satmap.data.view_angles import parse_view_angle
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord, in_threads, record_file
from satmap.io.files import require_writable
from satmap.io.progress import track
from satmap.prediction.manifests import record_images
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
from satmap.tasks.base import task_of
from satmap.tasks.buildings.confidence import (
    CONFIDENCE_FILE,
    CandidateSample,
    ConfidenceFitResult,
    fit_confidence,
    sample,
    write_confidence,
)
from satmap.tasks.buildings.labels import read_building_labels
from satmap.tasks.buildings.settings import BUILDING_FILE_MAPS
from satmap.tasks.buildings.targets import draw_instances
from satmap.tasks.buildings.task import BuildingTask

# Parts that images are dealt into, all looks at a place in one: how many trees there are to be is
# found on a part that the others' trees have not seen.
_PARTS = 4


@dataclass(frozen=True)
class ConfidenceFit:
    """What a fit found.

    Attributes:
        path: the model.
        fit: what it is worth.
        images: how many it was fitted to.
        candidates: in all of them.
        faults: image id to the reason, for images that were left out.
    """

    path: Path
    fit: ConfidenceFitResult
    images: int
    candidates: int
    faults: Mapping[str, str]

    def summary(self) -> str:
        """A line for people."""
        return (
            f"{self.candidates} candidates of {self.images} images; their IoU is expected with an "
            f"error of {self.fit.error:.3f} on images not fitted to, {self.fit.spread:.3f} by the "
            f"mean alone; {self.fit.trees} trees"
        )


def fit_to_prediction(
    submission: Path,
    maps: Path,
    weights: Path,
    directories: Sequence[Path] = (),
    command: Sequence[str] = (),
) -> ConfidenceFit:
    """Fit a confidence model to an out-of-fold prediction and write it beside the networks.

    Args:
        submission: what ``satmap predict --out-of-fold`` wrote; its manifest is read.
        maps: the directory of planes of the same run.
        weights: the directory of its networks; the model goes there.
        directories: of the images and labels; by default where the manifest says.
        command: satmap's arguments, for the model's manifest.

    Raises:
        SatmapError: the prediction is none of buildings out of fold, or by other networks; too few
            images have labels and planes; there is nothing to learn from, or it does not help.
        CannotWriteError: the model cannot be written.
    """
    manifest = _out_of_fold(submission)
    path = weights / CONFIDENCE_FILE
    require_writable(path)
    networks = _networks(manifest, weights)
    recipe = parse_recipe(yaml.safe_dump(manifest.recipe.content), "of the manifest")
    task = task_of(recipe)
    if not isinstance(task, BuildingTask):
        raise SatmapError(f"{submission} is of {task.noun}; only buildings have this model.")
    view_angle = parse_view_angle(manifest.view_angle) if manifest.view_angle else None
    began_in = Path(manifest.run.directory)
    places = directories or [began_in / directory for directory in manifest.directories]
    inventory = task.find_images(places, view_angle)
    chips = [chip for chip in inventory.chips if chip.image_id in manifest.images]
    parts = assign_folds({c.site: c.aoi for c in chips}.items(), _PARTS, recipe.seed)
    samples: dict[str, CandidateSample] = {}
    faults: dict[str, str] = {}
    for chip in track(chips, "measuring candidates", len(chips)):
        name = chip.long_id if recipe.submission.keep_prefix else chip.image_id
        try:
            samples[chip.image_id] = _sample(chip, maps / f"{name}.tif", parts[chip.site], task)
        except SatmapError as error:
            faults[chip.image_id] = str(error)
    fit = _fit(samples, faults, maps)
    if fit.error >= fit.spread:
        raise SatmapError(
            f"the candidates of {len(samples)} images teach nothing: on images not fitted to, the "
            f"model's error is {fit.error:.3f}, and {fit.spread:.3f} by the mean alone. Train the "
            "networks longer, or predict more images out of fold."
        )
    write_confidence(path, fit.model)
    used = [chip for chip in chips if chip.image_id in samples]
    _write_manifest(path, manifest, networks, used, fit, faults, command)
    return ConfidenceFit(
        path, fit, len(samples), sum(len(its.ious) for its in samples.values()), faults
    )


def _out_of_fold(submission: Path) -> SubmissionManifest:
    manifest = read_manifest(submission)
    if not isinstance(manifest, SubmissionManifest):
        raise SatmapError(f"{submission} is no submission by its manifest, but {manifest.kind}.")
    if not manifest.out_of_fold:
        raise SatmapError(
            f"{submission} was not predicted out of fold: its networks may have seen the images, "
            "and their planes would teach that every candidate is good. Run `satmap predict "
            "--out-of-fold --probabilities DIR` with the training images."
        )
    return manifest


def _networks(manifest: SubmissionManifest, weights: Path) -> tuple[FileRecord, ...]:
    """The networks of a prediction, which must be those of the directory."""
    for record in manifest.weights:
        path = weights / record.name
        if not path.is_file() or record_file(path).sha256 != record.sha256:
            raise SatmapError(
                f"{path} is not there, or is not the network that made the planes. Give the "
                "directory with --weights, or predict out of fold anew."
            )
    return manifest.weights


def _sample(chip: Chip, raster: Path, part: int, task: BuildingTask) -> CandidateSample:
    """The candidates of an image beside its true buildings.

    Raises:
        SatmapError: label or planes cannot be read or do not fit together.
    """
    labels = read_building_labels(chip)
    # Nobody asks for the size of pixels here.
    with open_map_file(raster, 1, BUILDING_FILE_MAPS) as mask:
        found = mask.scene.at_once()
    shape = chip.image.height, chip.image.width
    if found.shape != shape:
        raise SatmapError(f"{raster} is of {found.shape} pixels and its image of {shape}.")
    truth = draw_instances(labels.outlines, shape)
    return sample(found, truth, part, task.decoder(chip).settings)


def _fit(
    samples: Mapping[str, CandidateSample], faults: Mapping[str, str], maps: Path
) -> ConfidenceFitResult:
    try:
        return fit_confidence([its for its in samples.values() if len(its.ious)])
    except ValueError as error:
        reason = next((f" The first fault: {fault}" for fault in faults.values()), "")
        raise SatmapError(
            f"nothing to fit to: {error}; {len(samples)} images have labels and planes in "
            f"{maps}.{reason}"
        ) from error


def _write_manifest(
    path: Path,
    manifest: SubmissionManifest,
    networks: Sequence[FileRecord],
    chips: Sequence[Chip],
    fit: ConfidenceFitResult,
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
        "starts_from": networks,
        "skipped": dict(sorted(faults.items())),
        "runs": [run_here(command, torch.device("cpu"))],
    }
    write_manifest(path, WeightsManifest, facts)
