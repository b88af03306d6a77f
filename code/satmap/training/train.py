"""The training loop of one ensemble member, from the first step to the last checkpoint.

Other modules do the details: ``epoch.py`` plans an epoch, checks losses and decides when to save;
``distributed.py`` runs the network on several processes; ``checkpoints.py`` writes weights, logs
and manifests; ``state.py`` saves and restores the train state.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from satmap.io.checksums import FileRecord
from satmap.tasks.base import Batch
from satmap.tasks.losses import pseudo_label_loss
from satmap.training.checkpoints import save_checkpoints, write_logs
from satmap.training.distributed import Forward, sum_over_ranks, synced_norms
from satmap.training.epoch import Epoch, Step
from satmap.training.job import Job, begin_or_resume, make_optimizer, save_train_state
from satmap.training.mixup import mean_loss
from satmap.training.pseudo_labels import predict_by_average
from satmap.training.state import Progress, TrainState
from satmap.training.validation import validate


def train_member(
    network: nn.Module,
    job: Job,
    *,
    pretrained: bool = False,
    until: int | None = None,
    seconds: Sequence[float] | None = None,
    starts_from: Sequence[FileRecord] = (),
) -> Progress:
    """Train one network through its stages, or resume where an earlier call stopped.

    All processes of ``job.context.ranks`` call this together.

    Args:
        network: initialised; changed in place.
        job: member, chips and context of the training.
        pretrained: whether the encoder is trained already. Only such an encoder can be frozen.
        until: index of the stage before which to stop; None to train all stages.
        seconds: time limit of each stage; None for no limit.
        starts_from: the files that ``network`` was initialised from.

    Raises:
        SatmapError: the loss is not finite, or a saved train state does not match.
        Terminated: the process was asked to end; the work is saved.
    """
    until = len(job.member.stages) if until is None else until
    state, progress = begin_or_resume(network, job, until, pretrained, starts_from)
    while progress.stage < until:
        limit = seconds[progress.stage] if seconds else None
        progress = _train_stage(job, state, progress, limit)
    return progress


def _train_stage(job: Job, state: TrainState, progress: Progress, limit: float | None) -> Progress:
    """Train the rest of a stage; returns the start of the next one."""
    index, context = progress.stage, job.context
    stage, dataset = job.member.stages[index], job.stage_dataset(index)
    with context.stop.deferred(), synced_norms(state.network, context.ranks, context.device):
        forward, was_frozen = None, False
        while progress.stage == index:
            frozen = progress.pretrained and progress.schedule < stage.freeze_encoder_epochs
            if forward is None or frozen != was_frozen:
                job.task.freeze_encoder(state.network, frozen, stage.freeze_encoder_stages)
                forward, was_frozen = Forward(state.network, context), frozen
            epoch = Epoch(job, state, progress, dataset, limit)
            record = _train_epoch(epoch, forward)
            trained = time.perf_counter()
            progress = _finish_epoch(epoch, record)
            if progress.stage == index:
                # Time for saving and logging, without the validation, which is counted already.
                between = time.perf_counter() - trained
                progress.saving_seconds = (
                    between - progress.validation_seconds * epoch.plan.validate
                )
                progress.stage_seconds += progress.saving_seconds
    return progress


def _train_epoch(epoch: Epoch, forward: Forward) -> dict[str, float]:
    """Do the remaining steps of an epoch; returns its mean losses and its speed."""
    epoch.state.network.train()
    while not epoch.finished:
        with epoch.catching_out_of_memory():
            for step in epoch.steps_left():
                _train_step(step, epoch, forward)
        # When memory runs out, the block ends early, and the steps continue with smaller parts.
        epoch.split_if_needed()
    return epoch.record()


def _train_step(step: Step, epoch: Epoch, forward: Forward) -> None:
    task, state = epoch.job.task, epoch.state
    step.set_learning_rate()
    state.optimizer.zero_grad(set_to_none=True)
    for mixture, weight, is_last in step.parts():
        inputs = task.inputs(state.network, mixture[0][0])
        with forward.gradients_stay(not is_last):
            outputs = forward(*inputs)
            loss_of, is_mixed = partial(_loss, epoch, outputs), len(mixture) > 1
            loss, parts = mean_loss(mixture, loss_of) if is_mixed else loss_of(mixture[0][0])
            (loss * weight).backward()  # type: ignore[no-untyped-call]
        step.add(loss, parts, weight)
    stop = step.check(step.clip_gradients())
    state.step(epoch.name, epoch.job.context.device)
    step.log()
    step.save(stop)


def _loss(epoch: Epoch, outputs: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and its parts, with that of the pseudo-labels."""
    job, average = epoch.job, epoch.state.average
    total = partial(sum_over_ranks, ranks=epoch.ranks)
    loss, parts = job.task.loss(outputs, batch, epoch.losses, total)
    settings = epoch.pseudo_labels
    if settings is None:
        return loss, parts
    soft = batch.tensors.get("soft")
    if soft is None:
        assert average is not None, "the recipe has a moving average"
        soft = predict_by_average(average, batch, job.task, settings, job.context.device)
    taught = settings.weight * pseudo_label_loss(outputs, soft, batch["taught"], settings, total)
    return loss + taught, parts | {"pseudo_labels": taught.detach()}


def _finish_epoch(epoch: Epoch, record: dict[str, float]) -> Progress:
    """Validate if due, and write weights, logs and state; returns the start of the next epoch."""
    job, state, progress = epoch.job, epoch.state, epoch.progress
    context, stage = job.context, job.member.stages[progress.stage]
    progress.step_seconds = progress.seconds / progress.step
    if epoch.plan.validate:
        epoch.require_finite_weights()
        # A validation may take long; a kill meanwhile must not lose the steps before it.
        save_train_state(job, state, progress)
        started = time.perf_counter()
        if job.validation:
            pictures = context.weights / f"{job.member.name}.pictures"
            record |= validate(state.result, job.task, job.validation, context, pictures)
        best = context.ranks.on_first(lambda: save_checkpoints(job, state, progress, record))
        progress.best = best
        progress.validation_seconds = time.perf_counter() - started
        progress.stage_seconds += progress.validation_seconds
        progress.validated_at = progress.stage_seconds + progress.seconds
    progress.history.append(record)
    progress.epoch, progress.schedule = progress.epoch + 1, epoch.plan.end
    progress.stage_seconds += progress.seconds
    progress.step, progress.seconds, progress.sums = 0, 0.0, []
    context.ranks.say(epoch.summary(record))
    if progress.schedule >= stage.epochs:
        progress = progress.next_stage()
        # The next stage starts with a fresh optimizer.
        state.optimizer = make_optimizer(state.network, job, progress.stage)
    context.ranks.on_first(lambda: write_logs(job, progress))
    save_train_state(job, state, progress)
    return progress
