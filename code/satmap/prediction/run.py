"""Prediction: from directories of images to the submission file."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from satmap.data.view_angles import ViewAngle
from satmap.io.checksums import FileRecord
from satmap.io.files import require_writable
from satmap.networks.ensemble import EnsembleMember
from satmap.prediction.decoding import Outcome
from satmap.prediction.journal import Journal
from satmap.prediction.manifests import record_weights, write_submission_manifest
from satmap.prediction.outputs import remove_leftovers, write_outputs
from satmap.prediction.plan import Plan, Request, Work, make_plan, work_left
from satmap.prediction.share import predict_rank_share
from satmap.rasters.map_store import MapStore
from satmap.runtime.device import pick_device
from satmap.runtime.ranks import Ranks, joined
from satmap.submissions.outputs import require_outputs


@dataclass(frozen=True)
class Prediction:
    """What a prediction did.

    Attributes:
        noun: what was looked for, in the plural.
        images: how much was found by the id that stands in the file, every image found (out of
            fold: held out).
        faults: image id to what was wrong, for the images that could not be predicted and are
            empty in the file.
        warnings: what the user should know of the others.
    """

    noun: str
    images: dict[str, int]
    faults: dict[str, str]
    warnings: tuple[str, ...]


def predict(
    directories: Sequence[Path],
    output: Path,
    weights: Path,
    device: torch.device | str,
    recipe_name: str | None = None,
    *,
    maps: Path | None = None,
    exports: Sequence[Path] = (),
    out_of_fold: bool = False,
    workers: int = 0,
    command: Sequence[str] = (),
    view_angle: ViewAngle | None = None,
) -> Prediction:
    """Predict every image of the directories and write the submission with its manifest.

    An image that cannot be read or predicted is reported and has an empty row. A run that was
    stopped goes on with the images that it had not finished, also with other numbers of workers
    and processes: an image's roads depend on it and on those around it alone.

    Started by ``torchrun``, every process calls this and predicts its share; they all need the
    directory of the output.

    Args:
        directories: areas, or roots of many.
        output: the submission: a CSV file, of buildings also .json for COCO results.
        weights: directory of trained weights; all of the recipe's are averaged.
        device: where networks run; as ``satmap.runtime.device.pick_device`` takes it.
        recipe_name: by default that of the weights.
        maps: directory for the averaged planes, a GeoTIFF an image by the id that stands in the
            file, as ``satmap.prediction.vectorize.vectorize_directory`` takes them; an image at
            fault has none.
        exports: files for the roads or buildings in the formats of ``satmap.exports``.
        out_of_fold: predict each image only by the networks whose training held it out, and leave
            out images that none did.
        workers: processes that write and vectorise planes, for each that predicts; with any, a
            thread reads ahead. 0 does one thing after the other in this process.
        command: satmap's arguments, for the manifest.
        view_angle: of images whose names do not say from where they were taken.

    Returns:
        What was done; under ``torchrun`` the same in every process.

    Raises:
        SatmapError: no images, no weights, no image that was held out, an output that cannot be
            written, another run that writes it, a process that was killed.
    """
    request = Request(
        tuple(directories), output, weights, str(device), recipe_name, maps, tuple(exports),
        out_of_fold, workers, tuple(command), view_angle=view_angle,
    )  # fmt: skip
    require_outputs(output, exports)
    if maps:
        require_writable(maps / "maps.tif")
    # Planes and roads travel through files beside the output.
    with joined(torch.device("cpu")) as ranks:
        return _predict(ranks, request)


def _predict(ranks: Ranks, request: Request) -> Prediction:
    """What one of the processes does."""
    device = pick_device(request.device)
    with contextlib.ExitStack() as stack:
        members: list[EnsembleMember] = []
        journal: Journal | None = None
        weights: tuple[FileRecord, ...] = ()

        def begin() -> tuple[Plan, Work]:
            nonlocal members, journal, weights
            plan = make_plan(request)
            _require_channels(plan)
            # Now, for a training may replace them while they are at work.
            weights = record_weights(plan)
            members = plan.task.load_ensemble(plan.files, device)
            journal = stack.enter_context(Journal(request.output, plan.fingerprint, plan.task))
            store = MapStore(request.output, plan.fingerprint)
            store.remove_leftovers([tile.key for tile in plan.tiles])
            remove_leftovers(plan, request)
            return plan, work_left(plan, journal, store, request.maps)

        plan, work = ranks.on_first(begin)
        if journal is None:
            members = plan.task.load_ensemble(plan.files, device)
            journal = stack.enter_context(
                Journal(request.output, plan.fingerprint, plan.task, ranks.rank)
            )
        outcome = predict_rank_share(plan, work, request, ranks, members, device, journal)
        if not ranks.first:
            # The first process takes in what this one has finished.
            journal.close()
        outcomes = ranks.gather(outcome)

        def end() -> Prediction:
            journal.merge_parts()
            done = _written(plan, request, journal, outcomes)
            write_submission_manifest(plan, request, weights, done.faults, device, ranks.world)
            journal.remove()
            MapStore(request.output, plan.fingerprint).remove()
            return done

        return ranks.on_first(end)


def _require_channels(plan: Plan) -> None:
    """Fail if no image has as many bands as some network needs.

    Raises:
        SatmapError: so it is.
    """
    least = min(file.in_channels for file in plan.files)
    chips = [tile.chip for tile in plan.tiles]
    if chips and all(chip.channels < least for chip in chips):
        chips[0].require_channels(least)


def _written(
    plan: Plan, request: Request, journal: Journal, outcomes: Sequence[Outcome]
) -> Prediction:
    """Write what all processes have found, in the order of the images."""
    faults = dict(plan.faults)
    warnings = dict.fromkeys(plan.warnings)
    for index, tile in enumerate(plan.tiles):
        for outcome in outcomes:
            if index in outcome.faults:
                faults[tile.chip.image_id] = outcome.faults[index]
        warnings |= dict.fromkeys(journal.notes.get(tile.key, ()))
    images, of_exports = write_outputs(plan, request, journal, list(faults))
    warnings |= dict.fromkeys(of_exports)
    return Prediction(plan.task.noun, images, faults, tuple(warnings))
