"""Files that a training writes after an epoch: weights, manifests, a log and curves."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from satmap.io.checksums import ChipRecords, FileRecord
from satmap.io.files import write_text
from satmap.provenance.manifest import (
    DataRecord,
    TrainingRun,
    WeightsManifest,
    manifest_path,
    record_data,
    record_recipe,
    write_manifest,
)
from satmap.recipes.schema import LAST
from satmap.report.curves import Curves, draw_curves
from satmap.report.panels import write_picture
from satmap.training.job import Job
from satmap.training.loading import member_seed
from satmap.training.state import Progress, TrainState
from satmap.weights.members import LEARNING_KEY

# Number of digits of the data fingerprint in the name of the file that lists the data.
_NAME_DIGITS = 16


def save_checkpoints(
    job: Job, state: TrainState, progress: Progress, record: Mapping[str, float]
) -> dict[str, float]:
    """Write the last weights, the best weights of each improved score, and their manifests.

    ``record`` holds the losses and scores of the epoch.

    Returns:
        The best value of every score so far.

    Raises:
        SatmapError: a file cannot be written.
    """
    task, member, context = job.task, job.member, job.context
    learned = {chip.image_id for chip in job.training}
    # The teacher has seen the validation chips, so they do not count as held out for a network that
    # learns from its predictions of labelled chips.
    taught = any(chip.soft for chip in job.training)
    unseen = [] if taught else job.validation
    held_out = [chip.image_id for chip in unseen if chip.image_id not in learned | job.seen]
    scores = {name: round(record[name], 5) for name in task.scores if name in record}
    metadata = {
        "recipe": job.recipe.model_dump_json(),
        "member": member.name,
        "stage": f"{record['stage']:.0f}",
        "epoch": f"{record['epoch']:.0f}",
        "scores": json.dumps(scores),
        "held_out": json.dumps(held_out),
        LEARNING_KEY: job.learning,
        **job.data_statistics,
    }
    best = dict(progress.best)
    written = [context.weight_file(member, LAST)]
    for score, checkpoint in job.recipe.task.best_checkpoints.items():
        file = context.weight_file(member, checkpoint)
        if score in record and record[score] > best.get(score, -1.0):
            best[score] = record[score]
            task.save_network(file, state.result, metadata)
            written.append(file)
        elif score not in best:
            # Delete the file of an earlier training that this one replaces.
            file.unlink(missing_ok=True)
            manifest_path(file).unlink(missing_ok=True)
    task.save_network(written[0], state.result, metadata)
    _write_manifests(written, job, record, progress)
    return best


def _write_manifests(
    files: Sequence[Path], job: Job, record: Mapping[str, float], progress: Progress
) -> None:
    """Write the manifests of weight files.

    The list of chips may be long. It is written once per data set, into ``data-*.json``.
    """
    member, recipe = job.member, job.recipe
    chips = {chip.image_id: chip.sources for chip in (*job.training, *job.validation)}
    unlabelled = {chip.image_id: chip.sources for chip in job.unlabelled}
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
        "scores": {name: record[name] for name in job.task.scores if name in record},
        "data": _list_data(job.context.weights, chips),
        "unlabelled": _list_data(job.context.weights, unlabelled) if unlabelled else None,
        "learning": job.learning,
        "starts_from": [FileRecord.model_validate(file) for file in progress.starts_from],
        "skipped": dict(job.context.info.skipped),
        "judgement": job.context.info.judgement,
        "runs": [TrainingRun.model_validate(run) for run in progress.runs],
    }
    for file in files:
        write_manifest(file, WeightsManifest, facts)


def _list_data(directory: Path, chips: ChipRecords) -> DataRecord:
    """Record the data set, and list its files in ``data-<fingerprint>.json`` if not done yet."""
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


_COLUMNS = ("stage", "epoch", "learning_rate", "seconds", "ms_per_step", "crops_per_second")


def write_logs(job: Job, progress: Progress) -> None:
    """Update the member's log, curves and TensorBoard events to the last epoch.

    Log and curves are rewritten, so an epoch that is repeated after a kill has only one row.

    Raises:
        SatmapError: a file cannot be written.
    """
    context, member = job.context, job.member
    stem = context.weights / member.name
    figures = job.loss_names, job.task.scores
    write_text(Path(f"{stem}.log.csv"), _table(progress.history, [*figures[0], *figures[1]]))
    panels = [_curves(progress.history, names) for names in figures]
    write_picture(Path(f"{stem}.curves.png"), draw_curves([panel for panel in panels if panel]))
    if context.tensorboard is not None:
        _write_tensorboard(context.tensorboard / member.name, progress.history)


def _table(history: Sequence[dict[str, float]], figures: Sequence[str]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, (*_COLUMNS, *figures), lineterminator="\n")
    table.writeheader()
    for record in history:
        table.writerow({name: f"{value:.6g}" for name, value in record.items()})
    return text.getvalue()


def _curves(history: Sequence[dict[str, float]], names: Sequence[str]) -> Curves:
    """Return the curves of named values over the epochs of all stages, without empty ones."""
    points = {
        name: [(epoch, record[name]) for epoch, record in enumerate(history, 1) if name in record]
        for name in names
    }
    return {name: found for name, found in points.items() if found}


def _write_tensorboard(directory: Path, history: Sequence[dict[str, float]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    epoch = len(history)
    # Hide the events of this epoch that an earlier, killed run may have left.
    with SummaryWriter(str(directory), purge_step=epoch) as writer:
        for name, value in history[-1].items():
            writer.add_scalar(name, value, epoch)
