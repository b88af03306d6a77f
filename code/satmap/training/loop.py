"""The training of one member: stages and their epochs."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch.optim import Adam, AdamW, Optimizer

from satmap.data.cache import CachedChip
from satmap.data.crops import CropDataset
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord
from satmap.networks.unet import UNet
from satmap.recipes.schema import Member, Recipe, Stage
from satmap.tasks.objectives import objective_of
from satmap.training.budget import EpochPlan, plan_epoch
from satmap.training.checkpoints import (
    record_run,
    require_finite,
    save_checkpoints,
    write_logs,
    write_manifests,
)
from satmap.training.distributed import Forward, synced_norms
from satmap.training.epoch import Job, step_items, train_epoch
from satmap.training.loading import member_seed
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
from satmap.training.validation import validate


def train_member(
    network: UNet,
    member: Member,
    recipe: Recipe,
    training: Sequence[CachedChip],
    validation: Sequence[CachedChip],
    context: RunContext,
    *,
    pretrained: bool = False,
    until: int | None = None,
    seconds: Sequence[float] | None = None,
    starts_from: Sequence[FileRecord] = (),
) -> Progress:
    """Train one network through its stages, going on from where an earlier call stopped.

    After every validation the last weights, and the best if they are, go to ``context.weights``;
    after every epoch, and within long ones, the whole training state does. All of ``context.ranks``
    call this together.

    Args:
        network: initialised; changed in context.
        member: what to train.
        recipe: the recipe that ``member`` is of.
        training: chips to learn from, at least one.
        validation: chips to score; without any there are no best checkpoints, only the last.
        context: device and directories.
        pretrained: the encoder has ImageNet weights. Only such a one is ever frozen.
        until: the stage before which to stop; None to train all.
        seconds: what each stage may take; None for no limit.
        starts_from: the files that ``network`` was initialised from.

    Raises:
        SatmapError: the loss is not finite, or a left-over state does not fit.
        Terminated: the process was asked to end; the work is saved.
    """
    until = len(member.stages) if until is None else until
    ranks = context.ranks
    fingerprint = _fingerprint(recipe, member, training, validation)
    job = Job(member, recipe, training, validation, context, fingerprint)
    state_file = context.state_file(member)
    if len(set(ranks.gather(hashlib.sha256(fingerprint.encode()).hexdigest()))) > 1:
        ranks.raise_on_all(
            SatmapError(
                f"{member.name}: the machines have found different chips. Give all of them the "
                "same images and labels; what a machine cannot read is left out there alone."
            )
        )
    state = ranks.on_first(lambda: None if context.restart else load_state(state_file, fingerprint))
    files = [record.model_dump() for record in starts_from]
    progress = Progress(pretrained=pretrained, starts_from=files)
    if state:
        progress = Progress(**state["progress"])
    if progress.stage >= until:
        ranks.on_first(lambda: _require_weights(member, context))
        if until == len(member.stages):
            ranks.say(f"{member.name}: already trained")
        return progress
    network.to(context.device).to(memory_format=torch.channels_last)
    decay = recipe.optimizer.ema_decay
    average = MovingAverage(network, decay) if decay else None
    train_state = TrainState(network, _make_optimizer(network, recipe), average)
    if state:
        progress = restore(state, train_state, context.device, ranks.rank)
        within = f"step {progress.step} of epoch {progress.epoch + 1}"
        ranks.say(
            f"{member.name}: going on after "
            f"{within if progress.step else f'epoch {progress.epoch}'} of stage "
            f"{progress.stage + 1}"
        )
        if progress.split > 1:
            ranks.say(
                f"{member.name}: memory was short, so batches are computed in {progress.split} "
                "parts until the stage ends"
            )
    progress.world = _same_world(progress, bool(state), job)
    record_run(progress, context)
    if ranks.world > 1 and not state:
        # What a rank notes in the state when it runs out of memory needs a state to be noted in.
        _save(train_state, job, progress)
    while progress.stage < until:
        limit = seconds[progress.stage] if seconds else None
        progress = _train_stage(train_state, job, progress, limit)
    return progress


def _require_weights(member: Member, context: RunContext) -> None:
    if not context.weight_file(member, "last").exists():
        raise SatmapError(
            f"{member.name} is trained according to {context.state_file(member)}, but its weights "
            "are gone. Put them back, or pass --restart to train anew."
        )


def _train_stage(
    train_state: TrainState, job: Job, progress: Progress, seconds: float | None
) -> Progress:
    """What is left of a stage; gives the beginning of the next."""
    context, member = job.context, job.member
    index = progress.stage
    stage = member.stages[index]
    dataset = CropDataset(
        _chips_of(stage, job),
        stage.crop,
        member.bands,
        stage.passes,
        job.recipe.augmentation,
        # Members and stages draw different crops.
        seed=member_seed(job.recipe, member, index),
        equal_areas=job.recipe.sampling == "equal_areas",
    )
    with ExitStack() as stack, context.stop.deferred():
        stack.enter_context(synced_norms(train_state.network, context.ranks, context.device))
        forward, was_frozen = None, False
        while progress.stage == index:
            frozen = progress.pretrained and progress.schedule < stage.freeze_encoder_epochs
            if forward is None or frozen != was_frozen:
                train_state.network.freeze_encoder(frozen, stage.freeze_encoder_stages)
                forward, was_frozen = Forward(train_state.network, context), frozen
            steps = len(step_items(dataset, job, progress))
            # The ranks' clocks differ a little, and their plans must not.
            plan = context.ranks.on_first(partial(plan_epoch, stage, steps, progress, seconds))
            save = partial(_save, train_state, job, progress)
            record = train_epoch(train_state, forward, dataset, plan, job, progress, save)
            trained = time.perf_counter()
            progress = _finish_epoch(train_state, job, progress, plan, record)
            if progress.stage == index:
                # What saving and watching took; validation is counted already.
                between = time.perf_counter() - trained
                progress.saving_seconds = between - progress.validation_seconds * plan.validate
                progress.stage_seconds += progress.saving_seconds
    return progress


def _chips_of(stage: Stage, job: Job) -> Sequence[CachedChip]:
    """The chips of a stage, in their order: all, or so many that a hash of their ids chooses."""
    if stage.chips is None or stage.chips >= len(job.training):
        return job.training

    def rank(number: int) -> bytes:
        image_id = job.training[number].image_id
        return hashlib.sha256(f"{job.recipe.seed}:{image_id}".encode()).digest()

    chosen = sorted(sorted(range(len(job.training)), key=rank)[: stage.chips])
    return [job.training[number] for number in chosen]


def _finish_epoch(
    train_state: TrainState, job: Job, progress: Progress, plan: EpochPlan, record: dict[str, float]
) -> Progress:
    """Validate if it is time, keep the weights and the state; gives where the next epoch begins."""
    context, stage = job.context, job.member.stages[progress.stage]
    progress.step_seconds = progress.seconds / progress.step
    if plan.validate:
        # All ranks have the same weights, so this ends all of them or none.
        require_finite(train_state.result, job.member, progress, context)
        # A validation may take long, and what is before it must not be lost.
        _save(train_state, job, progress)
        started = time.perf_counter()
        if job.validation:
            record |= validate(
                train_state.result,
                job.validation,
                job.recipe,
                context.device,
                context.ranks,
                context.stop,
                pictures=context.weights / f"{job.member.name}.pictures",
            )
        learned = {chip.image_id for chip in job.training}
        # What a teacher was trained with, its student has seen through its eyes.
        taught = any(chip.soft for chip in job.training)
        unseen = [] if taught else job.validation
        held_out = [chip.image_id for chip in unseen if chip.image_id not in learned]

        def keep() -> dict[str, float]:
            files = save_checkpoints(
                train_state.result, job.member, job.recipe, record, progress, context, held_out
            )
            write_manifests(files, job, record, progress)
            return progress.best

        progress.best = context.ranks.on_first(keep)
        progress.validation_seconds = time.perf_counter() - started
        progress.stage_seconds += progress.validation_seconds
        progress.validated_at = progress.stage_seconds + progress.seconds
    progress.history.append(record)
    progress.epoch, progress.schedule = progress.epoch + 1, plan.end
    progress.stage_seconds += progress.seconds
    progress.step, progress.seconds, progress.sums = 0, 0.0, []
    objective = objective_of(job.recipe)
    context.ranks.say(_line(job.member, stage, progress, record, objective.scores))
    if progress.schedule >= stage.epochs:
        progress = progress.next_stage()
        # The next stage starts with an optimizer that has seen nothing.
        train_state.optimizer = _make_optimizer(train_state.network, job.recipe)
    context.ranks.on_first(lambda: write_logs(job.member, progress, context, objective))
    _save(train_state, job, progress)
    return progress


def _save(train_state: TrainState, job: Job, progress: Progress) -> None:
    random = job.context.ranks.gather(random_state(job.context.device))
    file = job.context.state_file(job.member)
    job.context.ranks.on_first(
        lambda: save_state(file, job.fingerprint, train_state, progress, random)
    )


def _same_world(progress: Progress, resumed: bool, job: Job) -> int:
    """The number of ranks, if the state can be gone on with by so many.

    Raises:
        SatmapError: another number of ranks was within an epoch.
    """
    world = job.context.ranks.world
    if resumed and world != progress.world:
        stage = job.member.stages[progress.stage]
        if progress.step:
            raise SatmapError(
                f"{job.member.name} was stopped within an epoch of {progress.world} processes, "
                f"and here are {world}. Go on with --processes {progress.world}; after an epoch "
                "their number may change."
            )
        if stage.sync_batch_norm and progress.epoch:
            job.context.ranks.say(
                f"{job.member.name}: going on with {world} processes instead of {progress.world}; "
                f"a step now has {world * stage.batch} crops, not {progress.world * stage.batch}"
            )
    return world


def _make_optimizer(network: UNet, recipe: Recipe) -> Optimizer:
    settings = recipe.optimizer
    kind = Adam if settings.name == "adam" else AdamW
    return kind(network.parameters(), lr=0.0, weight_decay=settings.weight_decay)


def _fingerprint(
    recipe: Recipe,
    member: Member,
    training: Sequence[CachedChip],
    validation: Sequence[CachedChip],
) -> str:
    """What a state must agree on to be gone on with."""
    chips = [[chip.image_id for chip in part] for part in (training, validation)]
    teachers = sorted({chip.soft.teacher for chip in training if chip.soft})
    return json.dumps([recipe.training_fingerprint, member.name, *chips, *teachers])


def _line(
    member: Member,
    stage: Stage,
    progress: Progress,
    record: dict[str, float],
    names: Sequence[str],
) -> str:
    scores = "  ".join(f"{name} {record[name]:.3f}" for name in names if name in record)
    epochs = f"{progress.epoch}/{stage.epochs}"
    if progress.schedule != progress.epoch:
        # Under a time limit an epoch is as long as the time makes it.
        epochs = f"{progress.epoch} ({progress.schedule / stage.epochs:.0%} of the stage)"
    return (
        f"{member.name}  stage {progress.stage + 1}/{len(member.stages)}  "
        f"epoch {epochs}  loss {record['loss']:.3f}  "
        f"{record['ms_per_step']:.0f} ms/step  {record['crops_per_second']:.1f} crops/s  {scores}"
    ).rstrip()
