"""Predict a submission file from directories of images."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from satmap.data.view_angles import ViewAngle
from satmap.io.checksums import FileRecord
from satmap.io.files import require_writable
from satmap.networks.ensemble import EnsembleMember
from satmap.prediction.journal import Journal
from satmap.prediction.outputs import (
    PredictionReport,
    found_nothing,
    record_weights,
    remove_leftovers,
    write_outputs,
    write_submission_manifest,
)
from satmap.prediction.plan import Plan, Request, Work, make_plan, work_left
from satmap.prediction.share import predict_rank_share
from satmap.provenance.manifest import Run, run_here
from satmap.rasters.map_store import MapStore
from satmap.runtime.device import pick_device
from satmap.runtime.ranks import Ranks, joined
from satmap.runtime.resources import reuse_memory
from satmap.submissions.output_checks import require_outputs

#: Writes the outputs of a prediction, given its plan, the request, the journal with the results,
#: tile index to the reason for images that could not be predicted, the records of the networks and
#: of this run.
Finish = Callable[
    [Any, Any, Journal, Mapping[int, str], tuple[FileRecord, ...], Run],
    PredictionReport,
]


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
    cache: Path | None = None,
    workers: int = 0,
    command: Sequence[str] = (),
    view_angle: ViewAngle | None = None,
    crs: str | None = None,
    least_confidence: float | None = None,
) -> PredictionReport:
    """Predict every image of the directories and write the submission with its manifest.

    An image that cannot be read or predicted is reported and gets an empty row. A stopped run
    resumes with its unfinished images, also with another number of workers or processes, because
    the result of an image depends only on the image and its neighbours.

    Under ``torchrun`` every process calls this and predicts its share. All processes need access to
    the directory of the output.

    Args:
        directories: image directories, searched to any depth.
        output: the submission: a CSV file, or for buildings also .json for COCO results; for masks
            a directory, .zip or .tgz.
        weights: directory of trained weights; all checkpoints of the recipe are averaged.
        device: device for the networks, as for ``satmap.runtime.device.pick_device``.
        recipe_name: name or path of the recipe; None for that of the weights.
        maps: directory for the averaged probability maps, one GeoTIFF per image, named by the id in
            the file, as ``satmap.prediction.vectorize.vectorize_directory`` reads them. Images that
            could not be predicted have none.
        exports: files for the roads or buildings in the formats of ``satmap.exports``.
        out_of_fold: predict each image only by the networks whose training held it out, and leave
            out images that no training held out.
        cache: directory of prepared chips, where an out-of-fold prediction finds or cuts the tiles
            of a recipe with ``tiles``; None for the default one.
        workers: processes that write and vectorise probability maps, per process that predicts.
            With at least one, a thread also reads images ahead. 0 does everything in turn in this
            process.
        command: satmap's arguments, for the manifest.
        view_angle: off-nadir angle, for images whose names lack it.
        crs: reference system of the exports, as for :meth:`satmap.tasks.base.Task.export`.
        least_confidence: leave out objects with a lower confidence; None to keep all.

    Returns:
        The result, under ``torchrun`` the same in every process.

    Raises:
        SatmapError: there are no images, no weights or no image that was held out, an output cannot
            be written, another run is writing it, or a process was killed.
    """
    request = Request(
        tuple(directories), output, weights, str(device), recipe_name, maps, tuple(exports),
        out_of_fold, cache, workers, tuple(command), view_angle=view_angle, crs=crs,
        least_confidence=least_confidence,
    )  # fmt: skip
    require_outputs(output, exports)
    if maps:
        require_writable(maps / "maps.tif")
    return run(request, make_plan, _finish)


def run(request: Request, plan_of: Callable[[Any], Plan], finish: Finish) -> PredictionReport:
    """Predict, resume and distribute any plan.

    Args:
        request: the user's request.
        plan_of: makes the plan in the first process.
        finish: writes the outputs in the first process when all images are predicted.

    Returns:
        What ``finish`` returned, under ``torchrun`` the same in every process.
    """
    # Processes exchange maps and results through files, so the group needs no GPU.
    with joined(torch.device("cpu")) as ranks:
        return _predict(ranks, request, plan_of, finish)


def _predict(
    ranks: Ranks, request: Request, plan_of: Callable[[Any], Plan], finish: Finish
) -> PredictionReport:
    """Predict the share of this process; the first process also plans and writes the outputs."""
    device = pick_device(request.device)
    if device.type == "cpu":
        reuse_memory()
    with contextlib.ExitStack() as stack:
        members: list[EnsembleMember] = []
        journal: Journal | None = None
        weights: tuple[FileRecord, ...] = ()

        def begin() -> tuple[Plan, Work]:
            nonlocal members, journal, weights
            plan = plan_of(request)
            _require_channels(plan)
            # Before loading, because a training may replace the files during the prediction.
            weights = record_weights(plan)
            members = plan.task.load_ensemble(plan.files, device)
            journal = stack.enter_context(Journal(request.output, plan.fingerprint, plan.task))
            store = MapStore(request.output, plan.fingerprint)
            store.remove_leftovers([tile.key for tile in plan.tiles])
            remove_leftovers(plan, request)
            plan.forget_incomplete(journal, store)
            return plan, work_left(plan, journal, store, request.maps)

        plan, work = ranks.on_first(begin)
        if journal is None:
            members = plan.task.load_ensemble(plan.files, device)
            journal = stack.enter_context(
                Journal(request.output, plan.fingerprint, plan.task, ranks.rank)
            )
        faults = predict_rank_share(plan, work, request, ranks, members, device, journal)
        if not ranks.first:
            # The first process merges this journal.
            journal.close()
        parts = ranks.gather(faults)

        def end() -> PredictionReport:
            journal.merge_parts()
            faults = {index: fault for part in parts for index, fault in part.items()}
            run_by = run_here(request.command, device, request.started, ranks.world)
            done = finish(plan, request, journal, faults, weights, run_by)
            if not done.unfinished:
                journal.remove()
                MapStore(request.output, plan.fingerprint).remove()
            return done

        return ranks.on_first(end)


def _require_channels(plan: Plan) -> None:
    """Fail if all images have too few bands for all networks."""
    least = min(file.in_channels for file in plan.files)
    chips = [tile.chip for tile in plan.tiles]
    if chips and all(chip.channels < least for chip in chips):
        chips[0].require_channels(least)


def _finish(
    plan: Plan,
    request: Request,
    journal: Journal,
    found: Mapping[int, str],
    weights: tuple[FileRecord, ...],
    run_by: Run,
) -> PredictionReport:
    """Write the results of all processes, in the order of the images, and the manifest."""
    faults = dict(plan.faults)
    warnings = dict.fromkeys(plan.warnings)
    for index, tile in enumerate(plan.tiles):
        if index in found:
            faults[tile.chip.image_id] = found[index]
        warnings |= dict.fromkeys(journal.notes.get(tile.key, ()))
    images, export_warnings = write_outputs(plan, request, journal, list(faults))
    warnings |= dict.fromkeys(export_warnings)
    if plan.tiles and len(found) < len(plan.tiles) and not any(images.values()):
        warnings[found_nothing(plan.task.noun)] = None
    write_submission_manifest(plan, request, weights, faults, run_by)
    return PredictionReport(plan.task.noun, images, faults, tuple(warnings))
