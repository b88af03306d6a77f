"""Write the outputs of a prediction from its journal: submission, exports and manifest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from satmap.data.chip import record_images
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord, in_threads, record_file
from satmap.io.files import remove_temporary_files_of
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan, Request
from satmap.provenance.manifest import (
    Run,
    SubmissionManifest,
    WeightsManifest,
    learning_of,
    manifest_path,
    read_manifest,
    record_data,
    record_recipe,
    write_manifest,
)
from satmap.tasks.result_decoders import FittedModels
from satmap.weights.members import WeightFile


@dataclass(frozen=True)
class PredictionReport:
    """Result of predicting images or vectorising rasters.

    Attributes:
        noun: what was found, in the plural: ``roads``.
        images: id in the file to the number of objects, for every image (out of fold: every image
            that was held out).
        faults: image id to the reason, for images that failed and are empty in the file.
        warnings: messages about the other images.
        unfinished: whether the same command can still add to the result, so that finished work is
            kept.
    """

    noun: str
    images: dict[str, int]
    faults: dict[str, str]
    warnings: tuple[str, ...]
    unfinished: bool = False


def found_nothing(noun: str) -> str:
    """Return the warning that networks found none of the objects ``noun`` in any image."""
    return (
        f"the networks found no {noun} anywhere. Check that the images are like those of the "
        "training: pixel size, bands and contrast"
    )


def record_weights(plan: Plan) -> tuple[FileRecord, ...]:
    """Record the weight files of the ensemble, and the models fitted to it with their manifests.

    Raises:
        SatmapError: a file cannot be read, or a model was fitted to other networks.
    """
    networks = record_networks(plan.files)
    check_models(plan.models, networks)
    own = [file for path in plan.models.files for file in (path, manifest_path(path))]
    return networks + tuple(in_threads(record_file, own))


def record_networks(files: Sequence[WeightFile]) -> tuple[FileRecord, ...]:
    """Record the weight files of an ensemble."""
    paths = [path for file in files for path in (file.path, *file.duplicates)]
    return tuple(in_threads(record_file, paths))


def check_models(models: FittedModels, networks: Sequence[FileRecord]) -> None:
    """Check that models were fitted to these networks, and the calibration to the selection.

    Raises:
        SatmapError: one was fitted to others, or its manifest cannot be read.
    """
    known = {record.sha256 for record in networks}
    for path in models.files:
        fitted = read_manifest(path)
        fitted_to = fitted.starts_from if isinstance(fitted, WeightsManifest) else ()
        if {record.sha256 for record in fitted_to} != known:
            raise SatmapError(
                f"{path} was fitted to the probability maps of other networks than these "
                f"{len(networks)}. Fit it again (`satmap confidence`), or move it elsewhere."
            )
        # The calibration is for the buildings that the selection model chooses.
        known.add(record_file(path).sha256)


def write_submission_manifest(
    plan: Plan,
    request: Request,
    weights: tuple[FileRecord, ...],
    skipped: Mapping[str, str],
    run_by: Run,
) -> None:
    """Write the manifest of a complete submission; raises SatmapError if that fails.

    The checksums of all images are computed at the end. So, except for its ``run``, the manifest
    does not depend on interruptions and on the number of processes. ``skipped`` names the images
    that could not be predicted, each with the reason.
    """
    chips = [tile.chip for tile in plan.tiles]
    found = zip(chips, in_threads(record_images, chips), strict=True)
    images = {chip.image_id: files for chip, files in found}
    facts = {
        "recipe": record_recipe(plan.recipe, content=True),
        "seeds": {"recipe": plan.recipe.seed},
        "out_of_fold": request.out_of_fold,
        "view_angle": str(request.view_angle) if request.view_angle else None,
        "least_confidence": request.least_confidence,
        "directories": tuple(map(str, request.directories)),
        "weights_directory": str(request.weights),
        "weights": weights,
        "data": record_data(images, None),
        "images": images,
        "skipped": dict(sorted(skipped.items())),
        "learning": learning_of(
            plan.files, {f.sha256 for of in images.values() for f in of.values()}
        ),
        "run": run_by,
    }
    write_manifest(request.output, SubmissionManifest, facts)


def remove_leftovers(plan: Plan, request: Request) -> None:
    """Delete partly written files that killed runs left beside the outputs.

    The caller must hold the lock of the journal, so that no other run is writing these files.
    """
    rasters = (plan.rasters(index, request.maps) for index in range(len(plan.tiles)))
    outputs = (request.output, manifest_path(request.output), *request.exports)
    remove_temporary_files_of(chain(outputs, *rasters))


def write_outputs(
    plan: Plan, request: Request, journal: Journal, faults: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """Write the submission and the exports, with one image in memory at a time.

    The journal holds the results of all images except those with ids in ``faults``.

    Returns:
        Number of objects of every image, by its id in the file; and warnings about the exports.

    Raises:
        CannotWriteError: an output cannot be written.
    """
    if request.maps:
        # Delete maps that an earlier run wrote for images that this run could not predict.
        for image_id in faults:
            (request.maps / f"{plan.ids[image_id]}.tif").unlink(missing_ok=True)
    keys = {
        plan.ids[tile.chip.image_id]: tile.key
        for tile in plan.tiles
        if tile.key in journal.finished
    }

    def found(key: str) -> Any:
        return plan.task.keep_confident(journal.found(key), request.least_confidence)

    counts = plan.task.write(request.output, list(plan.ids.values()), keys, found)

    def images() -> Iterator[Any]:
        return (found(key) for key in keys.values())

    problems = {path: plan.task.export(path, images, request.crs) for path in request.exports}
    return counts, [
        f"{path} lacks {len(lacking)} images. {next(iter(lacking.values()))}"
        for path, lacking in problems.items()
        if lacking
    ]
