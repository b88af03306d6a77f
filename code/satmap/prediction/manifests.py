"""The manifest of a submission."""

from collections.abc import Mapping

import torch

from satmap.data.chip import Chip
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord, in_threads, record_file
from satmap.prediction.plan import Plan, Request
from satmap.provenance.manifest import (
    SubmissionManifest,
    WeightsManifest,
    manifest_path,
    read_manifest,
    record_data,
    record_recipe,
    run_here,
    write_manifest,
)


def record_weights(plan: Plan) -> tuple[FileRecord, ...]:
    """The files of the ensemble, as they are now, and the confidence model with its manifest.

    Raises:
        SatmapError: one cannot be read, or the model was fitted to the planes of other networks.
    """
    paths = [path for file in plan.files for path in (file.path, *file.duplicates)]
    networks = tuple(in_threads(record_file, paths))
    if plan.rating_model is None:
        return networks
    fitted = read_manifest(plan.rating_model)
    taught_by = fitted.starts_from if isinstance(fitted, WeightsManifest) else ()
    if {record.sha256 for record in taught_by} != {record.sha256 for record in networks}:
        raise SatmapError(
            f"{plan.rating_model} was fitted to the planes of other networks than these "
            f"{len(networks)}. Fit it anew (`satmap confidence`), or move it elsewhere."
        )
    own = (plan.rating_model, manifest_path(plan.rating_model))
    return networks + tuple(in_threads(record_file, own))


def record_images(chip: Chip) -> dict[str, FileRecord]:
    """The files of an image: product to file, without those that cannot be read."""
    records = {}
    for product, info in sorted(chip.images.items()):
        try:
            records[product] = record_file(info.path)
        except SatmapError:
            # An image that went away while it was predicted is reported as such.
            continue
    return records


def write_submission_manifest(
    plan: Plan,
    request: Request,
    weights: tuple[FileRecord, ...],
    skipped: Mapping[str, str],
    device: torch.device,
    processes: int,
) -> None:
    """Write the manifest of a submission that is complete.

    Images are read once more for their checksums, all at the end: however often the run was
    stopped, and with however many processes it was made, the manifest is the same but for its
    ``run``.

    Args:
        plan: what was predicted.
        request: where to.
        weights: the files of the ensemble.
        skipped: id to the reason, for images that could not be predicted.
        device: where this process's networks ran.
        processes: how many shared the work.

    Raises:
        SatmapError: the manifest cannot be written.
    """
    chips = [tile.chip for tile in plan.tiles]
    found = zip(chips, in_threads(record_images, chips), strict=True)
    images = {chip.image_id: files for chip, files in found}
    facts = {
        "recipe": record_recipe(plan.recipe, content=True),
        "seeds": {"recipe": plan.recipe.seed},
        "out_of_fold": request.out_of_fold,
        "view_angle": str(request.view_angle) if request.view_angle else None,
        "directories": tuple(map(str, request.directories)),
        "weights_directory": str(request.weights),
        "weights": weights,
        "data": record_data(images, None),
        "images": images,
        "skipped": dict(sorted(skipped.items())),
        "run": run_here(request.command, device, request.started, processes),
    }
    write_manifest(request.output, SubmissionManifest, facts)
