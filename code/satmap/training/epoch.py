"""One epoch of a training: plan, steps, checks, splitting of batches, and saving."""

import contextlib
import sys
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from satmap.data.crops import CropDataset
from satmap.errors import RestartError, SatmapError
from satmap.runtime.launched import is_ours
from satmap.runtime.ranks import peer_errors
from satmap.tasks.base import Batch
from satmap.training.budget import plan_epoch
from satmap.training.distributed import sum_over_ranks
from satmap.training.job import Job, save_train_state
from satmap.training.loading import batches, chunks, epoch_order, split_between_ranks
from satmap.training.schedule import learning_rate
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
        plan: length of the epoch.
        items: this process's crops of every step, as dataset indices.
    """

    def __init__(
        self,
        job: Job,
        state: TrainState,
        progress: Progress,
        dataset: CropDataset,
        limit: float | None,
    ) -> None:
        """Plan the epoch.

        Args:
            job: the training.
            state: network and optimizer.
            progress: progress of the training.
            dataset: crops of the stage.
            limit: time limit of the whole stage, seconds; None for no limit.

        Raises:
            SatmapError: there are more processes than crops.
        """
        self.job, self.state, self.progress = job, state, progress
        self.stage = job.member.stages[progress.stage]
        self.dataset = dataset
        dataset.set_epoch(progress.epoch)
        items = _step_items(dataset, job, progress)
        # The plan depends on the clock, but must be the same in all processes.
        plan = partial(plan_epoch, self.stage, len(items), progress, limit)
        self.plan = job.context.ranks.on_first(plan)
        self._whole = len(items)
        self.items = items[: max(self.plan.steps, progress.step)]
        names = ("loss", *job.task.loss_parts)
        self.sums = torch.zeros(len(names), device=job.context.device)
        if progress.sums:
            self.sums += torch.tensor(
                progress.sums[job.context.ranks.rank], device=job.context.device
            )
        self.clock = _Clock(progress.seconds)
        self._out_of_memory = False
        self._scores = [
            record[scored]
            for scored in job.task.scores[:1]
            for record in progress.history
            if record["stage"] == progress.stage + 1 and scored in record
        ]

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.progress.step >= len(self.items)

    @property
    def validate(self) -> bool:
        """Whether a validation follows the epoch."""
        return self.plan.validate

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
        first, progress = self.progress.step, self.progress
        size = -(-self.stage.batch // progress.split)
        parts = [part for step in self.items[first:] for part in chunks(step, size)]
        crops = batches(self.dataset, parts, self.job.task, self.job.context)
        bar = tqdm(
            range(first, len(self.items)),
            desc=f"{self.job.member.name} epoch {progress.epoch + 1}",
            initial=first,
            total=len(self.items),
            leave=False,
            disable=None if self.job.context.ranks.job_rank == 0 else True,
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
        """Split batches into more parts if the last block ran out of memory.

        Raises:
            SatmapError: the memory does not suffice for a single crop.
            RestartError: with several processes the job must be restarted to use smaller parts.
        """
        if self._out_of_memory:
            self._out_of_memory = False
            self._split()

    def note_progress(self) -> None:
        """Update the progress to the last step, before it is saved."""
        self.progress.sums = self.job.context.ranks.gather(self.sums.tolist())
        self.progress.seconds = self.clock.seconds()
        self.clock.saved()

    def record(self) -> dict[str, float]:
        """Return mean losses, learning rate and speed of the finished epoch."""
        self.note_progress()
        ranks, steps = self.job.context.ranks, len(self.items)
        seconds = max(self.progress.seconds, 1e-9)
        means = (sum_over_ranks(self.sums, ranks) / ranks.world / steps).tolist()
        return {
            "stage": float(self.progress.stage + 1),
            "epoch": float(self.progress.epoch + 1),
            "learning_rate": self.learning_rate(steps - 1),
            "seconds": seconds,
            "ms_per_step": 1000 * seconds / steps,
            "crops_per_second": steps * len(self.items[0]) * ranks.world / seconds,
            **dict(zip(("loss", *self.job.task.loss_parts), means, strict=True)),
        }

    def require_finite_weights(self) -> None:
        """Check the weights before they replace saved ones.

        All processes have the same weights, so all of them fail or none.

        Raises:
            SatmapError: a weight is infinite or not a number.
        """
        weights = self.state.result.state_dict().values()
        if not all(bool(value.isfinite().all()) for value in weights):
            raise SatmapError(
                f"{self.job.member.name}: the weights are not finite after epoch "
                f"{self.progress.epoch + 1}. The checkpoints so far are intact in "
                f"{self.job.context.weights}; lower the learning rate."
            )

    def summary(self, record: dict[str, float]) -> str:
        """Return one line about the finished epoch."""
        progress, stage, member = self.progress, self.stage, self.job.member
        names = self.job.task.scores
        scores = "  ".join(f"{name} {record[name]:.3f}" for name in names if name in record)
        epochs = f"{progress.epoch}/{stage.epochs}"
        if progress.schedule != progress.epoch:
            # Under a time limit the length of epochs varies, so show the share of the stage.
            epochs = f"{progress.epoch} ({progress.schedule / stage.epochs:.0%} of the stage)"
        speed = f"{record['ms_per_step']:.0f} ms/step  {record['crops_per_second']:.1f} crops/s"
        return (
            f"{member.name}  stage {progress.stage + 1}/{len(member.stages)}  "
            f"epoch {epochs}  loss {record['loss']:.3f}  {speed}  {scores}"
        ).rstrip()

    def _split(self) -> None:
        """Split batches into twice as many parts from now on."""
        name, context, progress = self.job.member.name, self.job.context, self.progress
        batch = self.stage.batch
        if progress.split >= batch:
            raise SatmapError(
                f"{name}: the memory of {context.device} does not suffice for a single crop. Lower "
                "`crop` in the recipe, or use a smaller encoder."
            )
        progress.split *= 2
        warning = (
            f"{name}: out of memory on {context.device}; from now on "
            f"{-(-batch // progress.split)} crops at a time instead of "
            f"{-(-batch // (progress.split // 2))}, with as many crops per step as before"
        )
        if context.ranks.world > 1:
            save_split(context.state_file(self.job.member), progress.split)
            raise RestartError(f"{warning}. {_HOW_TO_RESUME[is_ours()]}")
        print(f"satmap: {warning}", file=sys.stderr, flush=True)
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


class Step:
    """One optimizer step of an epoch.

    Attributes:
        losses: the loss and its parts, averaged over this process's crops.
    """

    def __init__(
        self,
        epoch: Epoch,
        number: int,
        crops: Iterator[Batch],
        bar: "tqdm[int]",
    ) -> None:
        """Begin a step. The next batches of ``crops`` are the parts of this step."""
        self._epoch, self._number, self._crops, self._bar = epoch, number, crops, bar
        self._share = len(epoch.items[number])
        self._image_ids: list[str] = []
        self.losses = torch.zeros_like(epoch.sums)

    @property
    def loss(self) -> Tensor:
        """The loss of the step so far, a scalar."""
        return self.losses[0]

    def set_learning_rate(self) -> None:
        """Set the optimizer's learning rate for this step."""
        for group in self._epoch.state.optimizer.param_groups:
            group["lr"] = self._epoch.learning_rate(self._number)

    def parts(self) -> Iterator[tuple[Batch, float, bool]]:
        """Yield the parts of the step's batch, which fit into memory.

        Yields:
            A batch on the device, its share of the step's crops, and whether it is the last.
        """
        done = 0
        while done < self._share:
            batch = next(self._crops)
            done += len(batch)
            self._image_ids += [chip.image_id for chip in batch.chips]
            yield batch, len(batch) / self._share, done == self._share

    def add(self, loss: Tensor, parts: dict[str, Tensor], weight: float) -> None:
        """Add the loss of a part of the batch and its detached components to the step's losses."""
        names = self._epoch.job.task.loss_parts
        self.losses += weight * torch.stack([loss.detach(), *(parts[name] for name in names)])

    def clip_gradients(self) -> Tensor:
        """Clip the global norm of the gradients if the recipe says so.

        Returns:
            The norm before clipping; the loss if the recipe does not clip.
        """
        clip_norm = self._epoch.job.recipe.optimizer.clip_norm
        if not clip_norm:
            return self.loss
        parameters = self._epoch.state.network.parameters()
        return torch.nn.utils.clip_grad_norm_(parameters, clip_norm)

    def check(self, norm: Tensor) -> bool:
        """Check loss and gradients before they change the weights.

        Args:
            norm: norm of the gradients.

        Returns:
            Whether to stop after this step.

        Raises:
            SatmapError: the loss or a gradient is not finite.
        """
        epoch = self._epoch
        job, clock = epoch.job, epoch.clock
        finite = bool(torch.isfinite(self.loss) & torch.isfinite(norm))
        more = self._number + 1 < len(epoch.items)
        due = clock.since_save() > 60 * job.context.save_minutes and more
        failed, stop, due = job.context.ranks.agree(not finite, job.context.stop.made, due)
        if failed:
            what, value = ("loss", self.loss) if not self.loss.isfinite() else ("gradient", norm)
            cause = SatmapError(
                f"{job.member.name}: the {what} is {value.item()} at epoch "
                f"{epoch.progress.epoch + 1}, step {self._number + 1}, on crops of "
                f"{', '.join(dict.fromkeys(self._image_ids))}. The checkpoints so far are intact "
                f"in {job.context.weights}; lower the learning rate or check these chips."
            )
            job.context.ranks.raise_on_all(None if finite else cause)
        self._due = due
        return stop

    def log(self) -> None:
        """Count the step and update the progress bar."""
        epoch = self._epoch
        epoch.sums.add_(self.losses)
        epoch.progress.step = self._number + 1
        if not self._bar.disable:
            seconds = epoch.clock.step_seconds(epoch.progress)
            crops_per_second = self._share * epoch.job.context.ranks.world / seconds
            self._bar.set_postfix(
                loss=f"{self.loss.item():.3f}",
                lr=f"{epoch.learning_rate(self._number):.1e}",
                ms=f"{1000 * seconds:.0f}",
                crops_per_s=f"{crops_per_second:.1f}",
            )

    def save(self, stop: bool) -> None:
        """Save the train state if it is due, or if the training must stop.

        Raises:
            Terminated: the training must stop; the state is saved.
        """
        epoch = self._epoch
        job = epoch.job
        if stop or self._due:
            epoch.note_progress()
            save_train_state(job, epoch.state, epoch.progress)
        if stop:
            raise job.context.stop.ended(
                f"{job.member.name}: stopped after step {self._number + 1} of epoch "
                f"{epoch.progress.epoch + 1}; the same command resumes from there"
                if job.context.ranks.first
                else ""
            )


def _step_items(dataset: CropDataset, job: Job, progress: Progress) -> list[list[int]]:
    """Return this process's crops of every step of the epoch, as dataset indices.

    Raises:
        SatmapError: there are more processes than crops.
    """
    stage, ranks = job.member.stages[progress.stage], job.context.ranks
    order = epoch_order(len(dataset), dataset.seed + progress.epoch)
    share = stage.batch * (stage.accumulation or 1)
    steps = split_between_ranks(order, share, ranks.rank, ranks.world)
    if not steps:
        raise SatmapError(
            f"{job.member.name}: {len(order)} crops per epoch are too few for {ranks.world} "
            "processes. Lower --processes, or raise `passes` in the recipe."
        )
    return steps


class _Clock:
    """Time spent in an epoch, including earlier runs that were stopped within it."""

    def __init__(self, before: float) -> None:
        self._before = before
        self._started = self._saved = time.perf_counter()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def since_save(self) -> float:
        return time.perf_counter() - self._saved

    def saved(self) -> None:
        self._saved = time.perf_counter()

    def step_seconds(self, progress: Progress) -> float:
        return max(self.seconds(), 1e-9) / progress.step
