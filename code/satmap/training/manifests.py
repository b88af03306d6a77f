"""The manifests of weights that a training leaves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from satmap.files import write_text
from satmap.provenance.checksums import ChipRecords, FileRecord
from satmap.provenance.machine import this_hardware, this_software
from satmap.provenance.manifest import (
    DataRecord,
    TrainingRun,
    WeightsManifest,
    record_data,
    record_recipe,
    write_manifest,
)
from satmap.training.checkpoint import Progress
from satmap.training.epoch import Job
from satmap.training.objectives import objective_of
from satmap.training.order import member_seed
from satmap.training.workplace import Workplace

# Digits of the data's fingerprint in the name of the file that lists them.
_NAME_DIGITS = 16


def note_run(progress: Progress, place: Workplace) -> None:
    """Add this run to those that had a part in a training, once however often it is asked to."""
    known = place.circumstances
    run = TrainingRun(
        command=known.command,
        directory=str(Path.cwd()),
        started=known.started,
        processes=place.ranks.world,
        software=this_software(),
        hardware=this_hardware(place.device),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        time_limit_s=known.time_limit_s,
        from_stage=progress.stage + 1,
        from_epoch=progress.epoch,
        from_step=progress.step,
    ).model_dump(mode="json")
    # With several processes a member is trained stage by stage, and is gone on with in between.
    mine = ("command", "started", "processes")
    if not progress.runs or any(progress.runs[-1][key] != run[key] for key in mine):
        progress.runs = [*progress.runs, run]


def write_manifests(
    files: Sequence[Path], job: Job, record: Mapping[str, float], progress: Progress
) -> None:
    """Write the manifests of weights that were just kept.

    The chips, of which there may be thousands, are listed once for all, in ``data-*.json``.

    Args:
        files: the weights.
        job: what is trained.
        record: of the epoch.
        progress: with the runs so far.

    Raises:
        SatmapError: something cannot be written.
    """
    member, recipe = job.member, job.recipe
    chips = {chip.image_id: chip.sources for chip in (*job.training, *job.validation)}
    stages = range(len(member.stages))
    facts = {
        "recipe": record_recipe(recipe, content=False),
        "member": member.name,
        "seeds": {
            "recipe": recipe.seed,
            "network": member_seed(recipe, member, 0),
            **{f"stage {index + 1}": member_seed(recipe, member, index) for index in stages},
        },
        "stage": int(record["stage"]),
        "epoch": int(record["epoch"]),
        "scores": {name: record[name] for name in objective_of(recipe).scores if name in record},
        "data": _list_data(job.place.weights, chips),
        "starts_from": [FileRecord.model_validate(file) for file in progress.starts_from],
        "skipped": dict(job.place.circumstances.skipped),
        "runs": [TrainingRun.model_validate(run) for run in progress.runs],
    }
    for file in files:
        write_manifest(file, WeightsManifest, facts)


def _list_data(directory: Path, chips: ChipRecords) -> DataRecord:
    """The data set, its files listed in a file of the directory, named by what they are."""
    data = record_data(chips, None)
    name = f"data-{data.fingerprint[:_NAME_DIGITS]}.json"
    file = directory / name
    if not file.exists():
        listed = {
            image_id: {kind: record.model_dump() for kind, record in sorted(files.items())}
            for image_id, files in sorted(chips.items())
        }
        write_text(file, json.dumps(listed, indent=1) + "\n")
    return data.model_copy(update={"list": name})
