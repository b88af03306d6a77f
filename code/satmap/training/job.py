"""The training of one ensemble member as a job: inputs, train state and resumption."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from satmap.data.crops import CachedChip
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord, record_file
from satmap.provenance.machine import this_hardware, this_software
from satmap.provenance.manifest import Learning, TrainingRun, learned_images
from satmap.recipes.pseudo_labels import PseudoLabels
from satmap.recipes.schema import LAST, Member, Recipe, Stage
from satmap.tasks.base import Task
from satmap.training.loading import CropDataset, member_seed
from satmap.training.run_context import RunContext
from satmap.training.state import (
    MovingAverage,
    Progress,
    TrainState,
    load_state,
    random_state,
    restore,
    save_state,
)
from satmap.weights.members import BAND_MEAN_KEY, BAND_STD_KEY, GSD_KEY, WeightFile

# Sample of the training images for their statistics: number of chips, and side in pixels.
_SAMPLED_CHIPS = 64
_SAMPLED_PX = 256
# Momentum of SGD, that of the reference solutions.
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Job:
    """The fixed inputs of a member's training.

    Attributes:
        task: the task of the recipe.
        member: the member of the recipe to train.
        training: chips to learn from, at least one.
        validation: chips to score. Without any, only the last checkpoint is written.
        context: device, directories, processes.
        start: the trained network that the member starts from, if any.
        unlabelled: chips to learn from by pseudo-labels.
        pseudo_labels: how to learn from pseudo-labels; None in the first round.
        learning: whether the networks learn from test images.
    """

    task: Task
    member: Member
    training: Sequence[CachedChip]
    validation: Sequence[CachedChip]
    context: RunContext
    start: WeightFile | None = None
    unlabelled: Sequence[CachedChip] = ()
    pseudo_labels: PseudoLabels | None = None
    learning: Learning = "inductive"

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the loss and of its parts, in the order in which they are shown."""
        taught = ("pseudo_labels",) if self.pseudo_labels else ()
        return ("loss", *self.task.loss_parts, *taught)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the member."""
        return self.task.recipe

    @cached_property
    def fingerprint(self) -> str:
        """Text that a saved train state must match to be resumed."""
        chips = [[chip.image_id for chip in part] for part in (self.training, self.validation)]
        taught = (*self.training, *self.unlabelled)
        others = sorted({chip.soft.teacher for chip in taught if chip.soft})
        others += [chip.path.name for chip in self.unlabelled]
        if self.start:
            others.append(record_file(self.start.path).sha256)
        if self.context.info.judgement:
            others.append(self.context.info.judgement.sha256)
        return json.dumps([self.recipe.training_fingerprint, self.member.name, *chips, *others])

    @cached_property
    def data_statistics(self) -> dict[str, str]:
        """Metadata about the training images: pixel size, and mean and spread of each band.

        The bands are sampled: the middle of up to ``_SAMPLED_CHIPS`` chips, without pixels that
        have no data. Chips without georeference count with the pixel size that the user stated or
        the recipe assumes; if there is none, the pixel size is left out.
        """
        assumed = self.task.default_metres_per_pixel is not None
        sizes = [
            chip.gsd_m or float(np.mean(chip.metres_per_pixel))
            for chip in self.training
            if chip.gsd_m or assumed
        ]
        found = {GSD_KEY: json.dumps(round(sum(sizes) / len(sizes), 4))} if sizes else {}
        chosen = np.linspace(0, len(self.training) - 1, min(_SAMPLED_CHIPS, len(self.training)))
        sums = np.zeros((3, self.member.bands))
        for number in np.unique(chosen.astype(int)).tolist():
            chip = self.training[number]
            rows, columns = map(_middle, chip.shape[:2])
            pixels = chip.read_image(self.member.bands, rows, columns)
            values = pixels[:, pixels.any(axis=0)].astype(np.float64)
            sums += [np.full(len(values), values.shape[1]), values.sum(1), (values**2).sum(1)]
        count, total, squares = sums
        if count.any():
            mean = total / count
            spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
            found[BAND_MEAN_KEY] = json.dumps(mean.round(2).tolist())
            found[BAND_STD_KEY] = json.dumps(spread.round(2).tolist())
        return found

    @cached_property
    def seen(self) -> frozenset[str]:
        """Ids of the chips that the network has seen before this training.

        These are the training chips of the network that it starts from, by the checksums of their
        images. Without the manifest of that network none are known.
        """
        if self.start is None:
            return frozenset()
        known = learned_images(self.start)
        return frozenset(
            chip.image_id
            for chip in (*self.training, *self.validation)
            if any(file.sha256 in known for kind, file in chip.sources.items() if kind != "label")
        )

    def stage_dataset(self, index: int) -> CropDataset:
        """Return the crops of a stage."""
        stage = self.member.stages[index]
        return CropDataset(
            self._stage_chips(stage),
            stage.crop,
            self.member.bands,
            stage.passes,
            self.recipe.augmentation,
            # Members and stages draw different crops.
            member_seed(self.recipe, self.member, index),
            self.task,
            sampling=self.recipe.sampling,
            unlabelled=self.unlabelled,
            pseudo_labels=self.pseudo_labels,
        )

    def _stage_chips(self, stage: Stage) -> Sequence[CachedChip]:
        """Return the chips of a stage: all, or a subset that a hash of their ids selects."""
        if stage.chips is None or stage.chips >= len(self.training):
            return self.training

        def rank(number: int) -> bytes:
            image_id = self.training[number].image_id
            return hashlib.sha256(f"{self.recipe.seed}:{image_id}".encode()).digest()

        chosen = sorted(sorted(range(len(self.training)), key=rank)[: stage.chips])
        return [self.training[number] for number in chosen]


def _middle(side: int) -> slice:
    """Return the middle of a side of an image, at most ``_SAMPLED_PX`` pixels."""
    length = min(side, _SAMPLED_PX)
    return slice((side - length) // 2, (side + length) // 2)


def begin_or_resume(
    network: nn.Module,
    job: Job,
    until: int,
    pretrained: bool,
    starts_from: Sequence[FileRecord],
) -> tuple[TrainState, Progress]:
    """Start a training, or resume it from the saved train state. Arguments as in ``train_member``.

    Raises:
        SatmapError: the saved state does not match, or the machines found different chips.
    """
    name, context, ranks = job.member.name, job.context, job.context.ranks
    if len(set(ranks.gather(hashlib.sha256(job.fingerprint.encode()).hexdigest()))) > 1:
        ranks.raise_on_all(
            SatmapError(
                f"{name}: the machines found different chips. Give all machines the same images "
                "and labels, and check that each can read them."
            )
        )
    file = context.state_file(job.member)
    saved = ranks.on_first(lambda: None if context.restart else load_state(file, job.fingerprint))
    files = [record.model_dump() for record in starts_from]
    progress = Progress(pretrained=pretrained, starts_from=files)
    if saved:
        progress = Progress(**saved["progress"])
    if progress.stage >= until:
        ranks.on_first(lambda: _require_weights(job))
        if until == len(job.member.stages):
            ranks.say(f"{name}: already trained")
        return TrainState(network, make_optimizer(network, job, progress.stage)), progress
    network.to(context.device).to(memory_format=torch.channels_last)
    decay = job.recipe.optimizer.ema_decay
    average = MovingAverage(network, decay) if decay else None
    state = TrainState(network, make_optimizer(network, job, progress.stage), average)
    if saved:
        progress = restore(saved, state, context.device, ranks.rank)
        within = f"step {progress.step} of epoch {progress.epoch + 1}"
        ranks.say(
            f"{name}: resuming after {within if progress.step else f'epoch {progress.epoch}'} of "
            f"stage {progress.stage + 1}"
        )
        if progress.split > 1:
            ranks.say(
                f"{name}: memory was short, so batches are computed in {progress.split} parts "
                "until the stage ends"
            )
        _check_world(progress, job)
    progress.world = ranks.world
    _record_run(progress, context)
    if ranks.world > 1 and not saved:
        # A process that runs out of memory records this in the saved state, so there must be one.
        save_train_state(job, state, progress)
    return state, progress


def save_train_state(job: Job, state: TrainState, progress: Progress) -> None:
    """Save everything that the training needs to resume, in process 0."""
    random = job.context.ranks.gather(random_state(job.context.device))
    file = job.context.state_file(job.member)
    job.context.ranks.on_first(lambda: save_state(file, job.fingerprint, state, progress, random))


def make_optimizer(network: nn.Module, job: Job, stage: int) -> Optimizer:
    """Make the optimizer of a stage, without state.

    Parameters whose learning rate has a factor other than 1 form groups of their own, with the
    factor as ``rate``. The first group has none.
    """
    settings, stages = job.recipe.optimizer, job.member.stages
    encoder_rate = stages[stage].encoder_rate if stage < len(stages) else None
    encoder: set[int] = set()
    if encoder_rate not in (None, 1):
        encoder = {id(parameter) for parameter in job.task.encoder_parameters(network)}
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in network.named_parameters():
        rate = (encoder_rate or 1.0) if id(parameter) in encoder else 1.0
        if settings.bias_rate and name.endswith("bias"):
            rate *= settings.bias_rate
        groups.setdefault(rate, []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": members} if rate == 1 else {"params": members, "rate": rate}
        for rate, members in groups.items()
        if members
    ]
    decay = settings.weight_decay
    if settings.name == "sgd":
        return SGD(described, lr=0.0, momentum=_MOMENTUM, weight_decay=decay)
    kind = Adam if settings.name == "adam" else AdamW
    return kind(described, lr=0.0, weight_decay=decay)


def _record_run(progress: Progress, context: RunContext) -> None:
    """Add this run to the runs of a training, unless it is the last one already."""
    known = context.info
    run = TrainingRun(
        command=known.command,
        directory=str(Path.cwd()),
        started=known.started,
        processes=context.ranks.world,
        software=this_software(),
        hardware=this_hardware(context.device),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        time_limit_s=known.time_limit_s,
        from_stage=progress.stage + 1,
        from_epoch=progress.epoch,
        from_step=progress.step,
    ).model_dump(mode="json")
    # With several processes a run resumes the same member for every stage.
    identity = ("command", "started", "processes")
    if not progress.runs or any(progress.runs[-1][key] != run[key] for key in identity):
        progress.runs = [*progress.runs, run]


def _require_weights(job: Job) -> None:
    if not job.context.weight_file(job.member, LAST).exists():
        raise SatmapError(
            f"{job.member.name} is trained according to {job.context.state_file(job.member)}, but "
            "its weights are gone. Put them back, or pass --restart to train again."
        )


def _check_world(progress: Progress, job: Job) -> None:
    """Check that this number of processes can resume the saved state."""
    name, world, stage = job.member.name, job.context.ranks.world, job.member.stages[progress.stage]
    if world == progress.world:
        return
    if progress.step:
        raise SatmapError(
            f"{name} was stopped within an epoch of {progress.world} processes, and this run has "
            f"{world}. Resume with --processes {progress.world}; the number may only change "
            "between epochs."
        )
    if stage.sync_batch_norm and progress.epoch:
        job.context.ranks.say(
            f"{name}: resuming with {world} processes instead of {progress.world}; a step now has "
            f"{world * stage.batch} crops, not {progress.world * stage.batch}"
        )
