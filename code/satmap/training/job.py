"""The training of one ensemble member as a job: inputs, train state and resumption."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from satmap.data.crops import CachedChip
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord
from satmap.provenance.machine import this_hardware, this_software
from satmap.provenance.manifest import TrainingRun
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


@dataclass(frozen=True)
class Job:
    """The fixed inputs of a member's training.

    Attributes:
        task: the task of the recipe.
        member: the member of the recipe to train.
        training: chips to learn from, at least one.
        validation: chips to score. Without any, only the last checkpoint is written.
        context: device, directories, processes.
    """

    task: Task
    member: Member
    training: Sequence[CachedChip]
    validation: Sequence[CachedChip]
    context: RunContext

    @property
    def recipe(self) -> Recipe:
        """The recipe of the member."""
        return self.task.recipe

    @cached_property
    def fingerprint(self) -> str:
        """Text that a saved train state must match to be resumed."""
        chips = [[chip.image_id for chip in part] for part in (self.training, self.validation)]
        teachers = sorted({chip.soft.teacher for chip in self.training if chip.soft})
        return json.dumps([self.recipe.training_fingerprint, self.member.name, *chips, *teachers])

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
            equal_areas=self.recipe.sampling == "equal_areas",
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
        return TrainState(network, make_optimizer(network, job.recipe)), progress
    network.to(context.device).to(memory_format=torch.channels_last)
    decay = job.recipe.optimizer.ema_decay
    average = MovingAverage(network, decay) if decay else None
    state = TrainState(network, make_optimizer(network, job.recipe), average)
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


def make_optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    """Make the recipe's optimizer, without state."""
    settings = recipe.optimizer
    kind = Adam if settings.name == "adam" else AdamW
    return kind(network.parameters(), lr=0.0, weight_decay=settings.weight_decay)


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
