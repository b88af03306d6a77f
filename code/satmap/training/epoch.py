"""One epoch of a training: its steps, and what may happen in them."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from satmap.data.cache import CachedChip
from satmap.data.crops import CropDataset
from satmap.errors import RestartError, SatmapError
from satmap.recipes.schema import Member, Recipe
from satmap.runtime.device import autocast
from satmap.runtime.launched import is_ours
from satmap.runtime.ranks import Ranks, peer_errors
from satmap.tasks.objectives import objective_of
from satmap.training.budget import EpochPlan
from satmap.training.distributed import Forward, sum_over_ranks
from satmap.training.loading import Batch, batches, chunks, epoch_order, split_between_ranks
from satmap.training.run_context import RunContext
from satmap.training.schedule import learning_rate
from satmap.training.state import Progress, TrainState, save_split

# How a job goes on that must be started again, by whether satmap itself has started it.
_HOW_ON = {
    True: "Going on from the last state.",
    False: "Start the same command again, without --restart, to go on from the last state "
    "(torchrun does so itself with --max-restarts).",
}


@dataclass(frozen=True)
class Job:
    """What a member's training works with and never changes.

    Attributes:
        member: what is trained.
        recipe: the recipe that it is of.
        training: chips to learn from.
        validation: chips to score.
        context: device, directories, ranks.
        fingerprint: what a state must agree on to be gone on with.
    """

    member: Member
    recipe: Recipe
    training: Sequence[CachedChip]
    validation: Sequence[CachedChip]
    context: RunContext
    fingerprint: str


def step_items(dataset: CropDataset, job: Job, progress: Progress) -> list[list[int]]:
    """This rank's items of every step of the epoch.

    Raises:
        SatmapError: there are more ranks than crops.
    """
    stage, ranks = job.member.stages[progress.stage], job.context.ranks
    order = epoch_order(len(dataset), dataset.seed + progress.epoch)
    share = stage.batch * (stage.accumulation or 1)
    steps = split_between_ranks(order, share, ranks.rank, ranks.world)
    if not steps:
        raise SatmapError(
            f"{job.member.name}: {len(order)} crops an epoch are too few for {ranks.world} "
            "processes. Give fewer --processes, or more `passes` in the recipe."
        )
    return steps


def train_epoch(
    train_state: TrainState,
    forward: Forward,
    dataset: CropDataset,
    plan: EpochPlan,
    job: Job,
    progress: Progress,
    save: Callable[[], None],
) -> dict[str, float]:
    """Do what is left of an epoch.

    Args:
        train_state: changed in context.
        forward: the call of its network.
        dataset: crops of the stage.
        plan: how long the epoch is.
        job: what is trained and where.
        progress: where it stands; its step and all that counts steps move on.
        save: writes the state; called now and then, and before the process is ended.

    Returns:
        The epoch's record: mean losses, learning rate and speed.

    Raises:
        SatmapError: a loss is not finite, or the memory does not suffice for a single crop.
        Terminated: the process was asked to end.
        TryAgainError: memory ran out where ranks cannot go on without each other.
    """
    ranks, device = job.context.ranks, job.context.device
    stage = job.member.stages[progress.stage]
    dataset.set_epoch(progress.epoch)
    items = step_items(dataset, job, progress)
    whole, items = len(items), items[: max(plan.steps, progress.step)]
    train_state.network.train()
    objective = objective_of(job.recipe)
    names = ("loss", *objective.parts)
    sums = torch.zeros(len(names), device=device)
    if progress.sums:
        sums += torch.tensor(progress.sums[ranks.rank], device=device)
    clock = _Clock(progress.seconds)
    scored = objective.scores[0]
    scores = [
        record[scored]
        for record in progress.history
        if record["stage"] == progress.stage + 1 and scored in record
    ]

    def rate(step: int) -> float:
        # As if the whole recipe ran: an epoch cut short covers as much of the schedule.
        done = plan.start * whole + (plan.end - plan.start) * whole * step / len(items)
        return learning_rate(stage.schedule, done, whole, stage.epochs, scores)

    def steps_left() -> None:
        first = progress.step
        crops = _crops(dataset, items[first:], stage.batch, progress, job.context)
        bar = tqdm(
            range(first, len(items)),
            desc=f"{job.member.name} epoch {progress.epoch + 1}",
            initial=first,
            total=len(items),
            leave=False,
            disable=None if ranks.job_rank == 0 else True,
        )
        for step in bar:
            for group in train_state.optimizer.param_groups:
                group["lr"] = rate(step)
            numbers, losses = _gradients(
                train_state, forward, crops, len(items[step]), dataset, job, progress
            )
            norm = losses[0]
            if job.recipe.optimizer.clip_norm:
                norm = torch.nn.utils.clip_grad_norm_(
                    train_state.network.parameters(), job.recipe.optimizer.clip_norm
                )
            # A step by gradients that are none would spoil the weights and the state.
            finite = bool(torch.isfinite(losses[0]) & torch.isfinite(norm))
            due = clock.since_save() > 60 * job.context.save_minutes and step + 1 < len(items)
            failed, stop, due = ranks.agree(not finite, job.context.stop.made, due)
            if failed:
                chips = dict.fromkeys(dataset.chips[number].image_id for number in numbers)
                what, value = (
                    ("loss", losses[0]) if not losses[0].isfinite() else ("gradient", norm)
                )
                cause = SatmapError(
                    f"{job.member.name}: the {what} is {value.item()} at epoch "
                    f"{progress.epoch + 1}, step {step + 1}, on crops of {', '.join(chips)}. The "
                    f"checkpoints so far are intact in {job.context.weights}; lower the learning "
                    "rate or look at these chips."
                )
                ranks.raise_on_all(None if finite else cause)
            _step(train_state, job)
            sums.add_(losses)
            progress.step = step + 1
            if not bar.disable:
                crops_per_second = len(items[step]) * ranks.world / clock.step_seconds(progress)
                bar.set_postfix(
                    loss=f"{losses[0].item():.3f}",
                    lr=f"{rate(step):.1e}",
                    ms=f"{1000 * clock.step_seconds(progress):.0f}",
                    crops_per_s=f"{crops_per_second:.1f}",
                )
            if stop or due:
                _note(progress, sums, clock, ranks)
                save()
            if stop:
                raise job.context.stop.ended(
                    f"{job.member.name}: stopped after step {step + 1} of epoch "
                    f"{progress.epoch + 1}; the same command goes on from there"
                    if ranks.first
                    else ""
                )

    while progress.step < len(items):
        if not _fits_in_memory(steps_left):
            _split(job, stage.batch, progress)
    _note(progress, sums, clock, ranks)
    seconds = max(progress.seconds, 1e-9)
    means = (sum_over_ranks(sums, ranks) / ranks.world / len(items)).tolist()
    return {
        "stage": float(progress.stage + 1),
        "epoch": float(progress.epoch + 1),
        "learning_rate": rate(len(items) - 1),
        "seconds": seconds,
        "ms_per_step": 1000 * seconds / len(items),
        "crops_per_second": len(items) * len(items[0]) * ranks.world / seconds,
        **dict(zip(names, means, strict=True)),
    }


def _gradients(
    train_state: TrainState,
    forward: Forward,
    crops: Iterable[Batch],
    share: int,
    dataset: CropDataset,
    job: Job,
    progress: Progress,
) -> tuple[list[int], Tensor]:
    """Leave the mean gradient of a step's crops in the parameters.

    Returns:
        Index of each crop's chip; the loss and its parts, mean over the crops.
    """
    network, device = train_state.network, job.context.device
    objective = objective_of(job.recipe)
    train_state.optimizer.zero_grad(set_to_none=True)
    shown: list[int] = []
    losses = torch.zeros(1 + len(objective.parts), device=device)
    for images, targets, numbers in crops:
        shown += numbers.tolist()
        images = images.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        view_angles = [dataset.chips[number].category or "" for number in numbers.tolist()]
        pixels = network.encoder.normalize(images).contiguous(memory_format=torch.channels_last)
        with forward.gradients_stay(len(shown) < share):
            with autocast(device):
                logits = forward(pixels, network.category_indices(view_angles))
            loss, parts = objective.loss(
                logits,
                network.map_names,
                targets,
                job.member.losses_of(progress.stage),
                partial(sum_over_ranks, ranks=job.context.ranks),
            )
            weight = len(numbers) / share
            (loss * weight).backward()  # type: ignore[no-untyped-call]
        losses += weight * torch.stack([loss.detach(), *(parts[name] for name in objective.parts)])
        if len(shown) == share:
            break
    return shown, losses


def _step(train_state: TrainState, job: Job) -> None:
    """Change the weights.

    Raises:
        SatmapError: the memory does not suffice for it.
    """
    try:
        train_state.optimizer.step()
        if train_state.average:
            train_state.average.update(train_state.network)
    except torch.OutOfMemoryError as error:
        # A step that is made in part cannot be made again. Nor would smaller parts of the batch
        # help: what they take is free by now.
        raise SatmapError(
            f"{job.member.name}: the memory of {job.context.device} does not suffice for the "
            "optimizer. Free what else is on it and start the same command again, which goes on "
            "from the last state, or use a smaller encoder."
        ) from error


def _crops(
    dataset: CropDataset,
    items: list[list[int]],
    batch: int,
    progress: Progress,
    context: RunContext,
) -> Iterator[Batch]:
    """The crops of the steps, in batches that fit into memory."""
    size = -(-batch // progress.split)
    return batches(dataset, [part for step in items for part in chunks(step, size)], context)


def _fits_in_memory(work: Callable[[], None]) -> bool:
    try:
        with peer_errors():
            work()
    except torch.OutOfMemoryError:
        # What the failed step held is free once its frames are gone, with the exception.
        return False
    return True


def _split(job: Job, batch: int, progress: Progress) -> None:
    """Compute batches in twice as many parts from now on."""
    if progress.split >= batch:
        raise SatmapError(
            f"{job.member.name}: the memory of {job.context.device} does not suffice for a single "
            "crop. Lower `crop` in the recipe, or use a smaller encoder."
        )
    progress.split *= 2
    size = -(-batch // progress.split)
    warning = (
        f"{job.member.name}: out of memory on {job.context.device}; from now on {size} crops at a "
        f"time instead of {-(-batch // (progress.split // 2))}, as many as before a step"
    )
    if job.context.ranks.world > 1:
        # The others wait for a part of the batch that will not come.
        save_split(job.context.state_file(job.member), progress.split)
        raise RestartError(f"{warning}. {_HOW_ON[is_ours()]}")
    print(f"satmap: {warning}", file=sys.stderr, flush=True)
    if job.context.device.type == "cuda":
        torch.cuda.empty_cache()


def _note(progress: Progress, sums: Tensor, clock: "_Clock", ranks: Ranks) -> None:
    progress.sums = ranks.gather(sums.tolist())
    progress.seconds = clock.seconds()
    clock.saved()


class _Clock:
    """Time in an epoch, over all the runs that had a part in it."""

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
