"""One epoch of a training: steps, learning rates, checks, splitting of batches, and saving."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from satmap.errors import RestartError, SatmapError
from satmap.recipes.schedules import (
    CosineSchedule,
    CyclicSchedule,
    PlateauSchedule,
    RestartSchedule,
    Schedule,
)
from satmap.runtime.launched import is_ours
from satmap.runtime.ranks import peer_errors
from satmap.tasks.base import Batch
from satmap.training.budget import plan_epoch
from satmap.training.distributed import sum_over_ranks
from satmap.training.job import Job, save_train_state
from satmap.training.loading import CropDataset, batches, split_between_ranks
from satmap.training.mixup import Mixture, mix_up
from satmap.training.state import Progress, TrainState, save_split

# How a job that must be restarted resumes, by whether satmap's own launcher started it.
_HOW_TO_RESUME = {
    True: "Resuming from the last state.",
    False: "Start the same command again, without --restart, to resume from the last state "
    "(torchrun does this itself with --max-restarts).",
}


class Epoch:
    """The current epoch of a training.

    Attributes:
        job: the training.
        state: network and optimizer; the steps change them.
        progress: progress of the training; the steps update it.
        losses: the weights of the losses in this epoch.
        pseudo_labels: how to learn from pseudo-labels; None without.
        plan: length of the epoch.
        items: this process's crops of every step, as dataset indices.
        sums: sums of the loss and its parts over this process's steps.
    """

    def __init__(
        self,
        job: Job,
        state: TrainState,
        progress: Progress,
        dataset: CropDataset,
        limit: float | None,
    ) -> None:
        """Plan the epoch. ``limit`` is the time limit of the whole stage in seconds, if any.

        Raises:
            SatmapError: there are more processes than crops.
        """
        self.job, self.state, self.progress, self.dataset = job, state, progress, dataset
        self.ranks, self.name = job.context.ranks, job.member.name
        self.stage = job.member.stages[progress.stage]
        self.losses = job.member.losses_of(progress.stage, progress.schedule)
        self.clip_norm = job.recipe.optimizer.clip_norm
        self.mixup = job.recipe.augmentation.mixup
        dataset.epoch = progress.epoch
        items = self._step_items()
        # The plan depends on the clock, but must be the same in all processes.
        plan = partial(plan_epoch, self.stage, len(items), progress, limit)
        self.plan = self.ranks.on_first(plan)
        self._whole = len(items)
        self.items = items[: max(self.plan.steps, progress.step)]
        self.loss_names, self.pseudo_labels = job.loss_names, job.pseudo_labels
        self.sums = torch.zeros(len(self.loss_names), device=job.context.device)
        if progress.sums:
            self.sums += torch.tensor(progress.sums[self.ranks.rank], device=job.context.device)
        self._saved = time.perf_counter()
        # The time of earlier runs that were stopped within this epoch counts too.
        self._started = self._saved - progress.seconds
        self._out_of_memory = False
        self._scores = [
            record[scored]
            for scored in job.task.scores[:1]
            for record in progress.history
            if record["stage"] == progress.stage + 1 and scored in record
        ]

    def _step_items(self) -> list[list[int]]:
        """Return this process's crops of every step."""
        order = self.dataset.order()
        share = self.stage.batch * (self.stage.accumulation or 1)
        steps = split_between_ranks(order, share, self.ranks.rank, self.ranks.world)
        if not steps:
            raise SatmapError(
                f"{self.name}: {len(order)} crops per epoch are too few for {self.ranks.world} "
                "processes. Lower --processes, or raise `passes` in the recipe."
            )
        return steps

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.progress.step >= len(self.items)

    @property
    def seconds(self) -> float:
        """Time spent in the epoch, seconds."""
        return time.perf_counter() - self._started

    @property
    def seconds_unsaved(self) -> float:
        """Time since the state was last saved, seconds."""
        return time.perf_counter() - self._saved

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step of this epoch.

        Under a time limit the epoch may be shorter or longer than the part of the schedule that it
        covers.
        """
        plan, whole = self.plan, self._whole
        done = plan.start * whole + (plan.end - plan.start) * whole * step / len(self.items)
        return learning_rate(self.stage.schedule, done, whole, self.stage.epochs, self._scores)

    def steps_left(self) -> Iterator["Step"]:
        """Yield the remaining steps, with a progress bar."""
        first, size = self.progress.step, -(-self.stage.batch // self.progress.split)
        parts = [
            step[start : start + size]
            for step in self.items[first:]
            for start in range(0, len(step), size)
        ]
        crops = batches(self.dataset, parts, self.job.context)
        bar = tqdm(
            range(first, len(self.items)),
            desc=f"{self.name} epoch {self.progress.epoch + 1}",
            initial=first,
            total=len(self.items),
            leave=False,
            disable=None if self.ranks.job_rank == 0 else True,
        )
        for number in bar:
            yield Step(self, number, crops, bar)

    @contextlib.contextmanager
    def catching_out_of_memory(self) -> Iterator[None]:
        """End the block early, without an error, if it runs out of memory.

        Call :meth:`split_if_needed` after the block. Until the block has ended, the error's stack
        frames hold the memory of the failed step.
        """
        try:
            with peer_errors():
                yield
        except torch.OutOfMemoryError:
            self._out_of_memory = True

    def split_if_needed(self) -> None:
        """Split batches into twice as many parts if the last block ran out of memory.

        Raises:
            SatmapError: the memory does not suffice for a single crop.
            RestartError: with several processes the job must be restarted to use smaller parts.
        """
        if not self._out_of_memory:
            return
        self._out_of_memory = False
        context, progress, batch = self.job.context, self.progress, self.stage.batch
        if progress.split >= batch:
            raise SatmapError(
                f"{self.name}: the memory of {context.device} does not suffice for a single crop. "
                "Lower `crop` in the recipe, or use a smaller encoder."
            )
        progress.split *= 2
        warning = (
            f"{self.name}: out of memory on {context.device}; from now on "
            f"{-(-batch // progress.split)} crops at a time instead of "
            f"{-(-batch // (progress.split // 2))}, with as many crops per step as before"
        )
        if self.ranks.world > 1:
            save_split(context.state_file(self.job.member), progress.split)
            raise RestartError(f"{warning}. {_HOW_TO_RESUME[is_ours()]}")
        print(f"satmap: {warning}", file=sys.stderr, flush=True)
        if context.device.type == "cuda":
            torch.cuda.empty_cache()

    def note_progress(self) -> None:
        """Update the progress to the last step, before it is saved."""
        self.progress.sums = self.ranks.gather(self.sums.tolist())
        self.progress.seconds = self.seconds
        self._saved = time.perf_counter()

    def record(self) -> dict[str, float]:
        """Return mean losses, learning rate and speed of the finished epoch."""
        self.note_progress()
        world, steps = self.ranks.world, len(self.items)
        seconds = max(self.progress.seconds, 1e-9)
        means = (sum_over_ranks(self.sums, self.ranks) / world / steps).tolist()
        return {
            "stage": float(self.progress.stage + 1),
            "epoch": float(self.progress.epoch + 1),
            "learning_rate": self.learning_rate(steps - 1),
            "seconds": seconds,
            "ms_per_step": 1000 * seconds / steps,
            "crops_per_second": steps * len(self.items[0]) * world / seconds,
            **dict(zip(self.loss_names, means, strict=True)),
        }

    def require_finite_weights(self) -> None:
        """Raise SatmapError if a weight is not finite, before the weights replace saved ones.

        All processes have the same weights, so all of them fail or none.
        """
        weights = self.state.result.state_dict().values()
        if not all(bool(value.isfinite().all()) for value in weights):
            raise SatmapError(
                f"{self.name}: the weights are not finite after epoch {self.progress.epoch + 1}. "
                f"The checkpoints so far are intact in {self.job.context.weights}; lower the "
                "learning rate."
            )

    def summary(self, record: dict[str, float]) -> str:
        """Return one line about the finished epoch."""
        progress, stage, names = self.progress, self.stage, self.job.task.scores
        scores = "  ".join(f"{name} {record[name]:.3f}" for name in names if name in record)
        epochs = f"{progress.epoch}/{stage.epochs}"
        if progress.schedule != progress.epoch:
            # Under a time limit the length of epochs varies, so show the share of the stage.
            epochs = f"{progress.epoch} ({progress.schedule / stage.epochs:.0%} of the stage)"
        speed = f"{record['ms_per_step']:.0f} ms/step  {record['crops_per_second']:.1f} crops/s"
        return (
            f"{self.name}  stage {progress.stage + 1}/{len(self.job.member.stages)}  "
            f"epoch {epochs}  loss {record['loss']:.3f}  {speed}  {scores}"
        ).rstrip()


class Step:
    """One optimizer step of an epoch. Its parts are the next batches of ``crops``."""

    def __init__(self, epoch: Epoch, number: int, crops: Iterator[Batch], bar: "tqdm[int]") -> None:
        self._epoch, self._number, self._crops, self._bar = epoch, number, crops, bar
        self._share = len(epoch.items[number])
        self._image_ids: list[str] = []
        # The loss and its parts, averaged over this process's crops.
        self._losses = torch.zeros_like(epoch.sums)

    def set_learning_rate(self) -> None:
        """Set the optimizer's learning rate for this step."""
        for group in self._epoch.state.optimizer.param_groups:
            group["lr"] = self._epoch.learning_rate(self._number) * group.get("rate", 1.0)

    def parts(self) -> Iterator[tuple[Mixture, float, bool]]:
        """Yield the parts of the step's batch, which fit into memory.

        Yields:
            A batch on the device, or two of them with MixUp; their share of the step's crops; and
            whether they are the last.
        """
        epoch, done = self._epoch, 0
        mixup = epoch.mixup
        while done < self._share:
            batch = next(self._crops)
            done += len(batch)
            self._image_ids += [chip.image_id for chip in batch.chips]
            mixture: Mixture = [(batch, 1.0)]
            if mixup:
                seed = epoch.dataset.seed, epoch.progress.epoch, self._number, done
                mixture = mix_up(batch, mixup, seed)
            yield mixture, len(batch) / self._share, done == self._share

    def add(self, loss: Tensor, parts: dict[str, Tensor], weight: float) -> None:
        """Add the loss of a part of the batch and its detached components to the step's losses."""
        components = [parts[name] for name in self._epoch.loss_names[1:]]
        self._losses += weight * torch.stack([loss.detach(), *components])

    def clip_gradients(self) -> Tensor:
        """Clip the global norm of the gradients if the recipe says so.

        Returns:
            The norm before clipping; the loss if the recipe does not clip.
        """
        if not self._epoch.clip_norm:
            return self._losses[0]
        parameters = self._epoch.state.network.parameters()
        return torch.nn.utils.clip_grad_norm_(parameters, self._epoch.clip_norm)

    def check(self, norm: Tensor) -> bool:
        """Check the loss and the norm of the gradients before they change the weights.

        Returns:
            Whether to stop after this step.

        Raises:
            SatmapError: the loss or a gradient is not finite.
        """
        epoch, loss = self._epoch, self._losses[0]
        context, ranks = epoch.job.context, epoch.ranks
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        more = self._number + 1 < len(epoch.items)
        due = epoch.seconds_unsaved > 60 * context.save_minutes and more
        failed, stop, self._due = ranks.agree(not finite, context.stop.made, due)
        if failed:
            what, value = ("loss", loss) if not loss.isfinite() else ("gradient", norm)
            cause = SatmapError(
                f"{epoch.name}: the {what} is {value.item()} at epoch {epoch.progress.epoch + 1}, "
                f"step {self._number + 1}, on crops of "
                f"{', '.join(dict.fromkeys(self._image_ids))}. The checkpoints so far are intact "
                f"in {context.weights}; lower the learning rate or check these chips."
            )
            ranks.raise_on_all(None if finite else cause)
        return stop

    def log(self) -> None:
        """Count the step and update the progress bar."""
        epoch = self._epoch
        epoch.sums.add_(self._losses)
        epoch.progress.step = self._number + 1
        if not self._bar.disable:
            seconds = max(epoch.seconds, 1e-9) / epoch.progress.step
            self._bar.set_postfix(
                loss=f"{self._losses[0].item():.3f}",
                lr=f"{epoch.learning_rate(self._number):.1e}",
                ms=f"{1000 * seconds:.0f}",
                crops_per_s=f"{self._share * epoch.ranks.world / seconds:.1f}",
            )

    def save(self, stop: bool) -> None:
        """Save the train state if it is due, or if the training must stop.

        Raises:
            Terminated: the training must stop; the state is saved.
        """
        epoch = self._epoch
        if stop or self._due:
            epoch.note_progress()
            save_train_state(epoch.job, epoch.state, epoch.progress)
        if stop:
            raise epoch.job.context.stop.ended(
                f"{epoch.name}: stopped after step {self._number + 1} of epoch "
                f"{epoch.progress.epoch + 1}; the same command resumes from there"
                if epoch.ranks.first
                else ""
            )


def learning_rate(
    schedule: Schedule,
    step: float,
    steps_per_epoch: int,
    epochs: int,
    scores: Sequence[float] = (),
) -> float:
    """Return the learning rate of a step.

    ``step`` counts the optimizer steps of the stage so far. Under a time limit it is scaled to the
    length that the stage has without the limit. ``scores`` are the stage's validation scores so
    far, for plateau schedules.
    """
    if isinstance(schedule, PlateauSchedule):
        return _after_plateaus(schedule, scores)
    if isinstance(schedule, CosineSchedule):
        total = steps_per_epoch * epochs
        warmup = schedule.warmup * total
        if step < warmup:
            return schedule.peak * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(total - warmup, 1)
        return schedule.final + (schedule.peak - schedule.final) * _half_cosine(min(progress, 1.0))
    epoch = step / steps_per_epoch
    if isinstance(schedule, CyclicSchedule):
        # From 0 up to 1 at the low rate and back.
        way = 1 - abs(epoch / schedule.half_period % 2 - 1)
        height = 1 - way if schedule.shape == "triangle" else _half_cosine(way)
        return schedule.low + (schedule.high - schedule.low) * height
    if isinstance(schedule, RestartSchedule):
        period = schedule.period
        while epoch >= period:
            epoch, period = epoch - period, period * schedule.factor
        return schedule.final + (schedule.peak - schedule.final) * _half_cosine(epoch / period)
    return schedule.rates[max(start for start in schedule.rates if start <= epoch)]


def _half_cosine(progress: float) -> float:
    """Return half a cosine, from 1 at a progress of 0 to 0 at 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def _after_plateaus(schedule: PlateauSchedule, scores: Sequence[float]) -> float:
    """Compute the rate from all scores so far, so that a resumed training has the same rate."""
    rate, best, waited = schedule.rate, -math.inf, 0
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited == schedule.patience:
            rate, waited = rate * schedule.factor, 0
    return max(rate, schedule.least)
