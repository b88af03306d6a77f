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
from satmap.errors import SatmapError, TryAgainError
from satmap.recipes.schema import Member, Recipe
from satmap.runtime.device import autocast
from satmap.runtime.launched import is_ours
from satmap.runtime.ranks import Ranks, lost_peers
from satmap.tasks.objectives import objective_of
from satmap.training.budget import EpochPlan
from satmap.training.distributed import Forward, total
from satmap.training.loading import Batch, batches, chunks, deal, epoch_order
from satmap.training.run_context import Workplace
from satmap.training.schedule import learning_rate
from satmap.training.state import Learner, Progress, remember_split

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
        place: device, directories, ranks.
        fingerprint: what a state must agree on to be gone on with.
    """

    member: Member
    recipe: Recipe
    training: Sequence[CachedChip]
    validation: Sequence[CachedChip]
    place: Workplace
    fingerprint: str


def step_items(dataset: CropDataset, job: Job, progress: Progress) -> list[list[int]]:
    """This rank's items of every step of the epoch.

    Raises:
        SatmapError: there are more ranks than crops.
    """
    stage, ranks = job.member.stages[progress.stage], job.place.ranks
    order = epoch_order(len(dataset), dataset.seed + progress.epoch)
    share = stage.batch * (stage.accumulation or 1)
    steps = deal(order, share, ranks.rank, ranks.world)
    if not steps:
        raise SatmapError(
            f"{job.member.name}: {len(order)} crops an epoch are too few for {ranks.world} "
            "processes. Give fewer --processes, or more `passes` in the recipe."
        )
    return steps


def train_epoch(
    learner: Learner,
    forward: Forward,
    dataset: CropDataset,
    plan: EpochPlan,
    job: Job,
    progress: Progress,
    save: Callable[[], None],
) -> dict[str, float]:
    """Do what is left of an epoch.

    Args:
        learner: changed in place.
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
    ranks, device = job.place.ranks, job.place.device
    stage = job.member.stages[progress.stage]
    dataset.set_epoch(progress.epoch)
    items = step_items(dataset, job, progress)
    whole, items = len(items), items[: max(plan.steps, progress.step)]
    learner.network.train()
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
        crops = _crops(dataset, items[first:], stage.batch, progress, job.place)
        bar = tqdm(
            range(first, len(items)),
            desc=f"{job.member.name} epoch {progress.epoch + 1}",
            initial=first,
            total=len(items),
            leave=False,
            disable=None if ranks.job_rank == 0 else True,
        )
        for step in bar:
            for group in learner.optimizer.param_groups:
                group["lr"] = rate(step)
            numbers, losses = _gradients(
                learner, forward, crops, len(items[step]), dataset, job, progress
            )
            norm = losses[0]
            if job.recipe.optimizer.clip_norm:
                norm = torch.nn.utils.clip_grad_norm_(
                    learner.network.parameters(), job.recipe.optimizer.clip_norm
                )
            # A step by gradients that are none would spoil the weights and the state.
            finite = bool(torch.isfinite(losses[0]) & torch.isfinite(norm))
            due = clock.since_save() > 60 * job.place.save_minutes and step + 1 < len(items)
            failed, stop, due = ranks.agree(not finite, job.place.stop.made, due)
            if failed:
                chips = dict.fromkeys(dataset.chips[number].image_id for number in numbers)
                what, value = (
                    ("loss", losses[0]) if not losses[0].isfinite() else ("gradient", norm)
                )
                cause = SatmapError(
                    f"{job.member.name}: the {what} is {value.item()} at epoch "
                    f"{progress.epoch + 1}, step {step + 1}, on crops of {', '.join(chips)}. The "
                    f"checkpoints so far are intact in {job.place.weights}; lower the learning "
                    "rate or look at these chips."
                )
                ranks.raise_first(None if finite else cause)
            _step(learner, job)
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
                raise job.place.stop.ended(
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
    means = (total(sums, ranks) / ranks.world / len(items)).tolist()
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
    learner: Learner,
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
    network, device = learner.network, job.place.device
    objective = objective_of(job.recipe)
    learner.optimizer.zero_grad(set_to_none=True)
    shown: list[int] = []
    losses = torch.zeros(1 + len(objective.parts), device=device)
    for images, targets, numbers in crops:
        shown += numbers.tolist()
        images = images.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        looks = [dataset.chips[number].category or "" for number in numbers.tolist()]
        pixels = network.encoder.normalize(images).contiguous(memory_format=torch.channels_last)
        with forward.gradients_stay(len(shown) < share):
            with autocast(device):
                logits = forward(pixels, network.category_indices(looks))
            loss, parts = objective.loss(
                logits,
                network.plane_names,
                targets,
                job.member.losses_of(progress.stage),
                partial(total, ranks=job.place.ranks),
            )
            weight = len(numbers) / share
            (loss * weight).backward()  # type: ignore[no-untyped-call]
        losses += weight * torch.stack([loss.detach(), *(parts[name] for name in objective.parts)])
        if len(shown) == share:
            break
    return shown, losses


def _step(learner: Learner, job: Job) -> None:
    """Change the weights.

    Raises:
        SatmapError: the memory does not suffice for it.
    """
    try:
        learner.optimizer.step()
        if learner.average:
            learner.average.update(learner.network)
    except torch.OutOfMemoryError as error:
        # A step that is made in part cannot be made again. Nor would smaller parts of the batch
        # help: what they take is free by now.
        raise SatmapError(
            f"{job.member.name}: the memory of {job.place.device} does not suffice for the "
            "optimizer. Free what else is on it and start the same command again, which goes on "
            "from the last state, or use a smaller encoder."
        ) from error


def _crops(
    dataset: CropDataset,
    items: list[list[int]],
    batch: int,
    progress: Progress,
    place: Workplace,
) -> Iterator[Batch]:
    """The crops of the steps, in batches that fit into memory."""
    size = -(-batch // progress.split)
    return batches(dataset, [part for step in items for part in chunks(step, size)], place)


def _fits_in_memory(work: Callable[[], None]) -> bool:
    try:
        with lost_peers():
            work()
    except torch.OutOfMemoryError:
        # What the failed step held is free once its frames are gone, with the exception.
        return False
    return True


def _split(job: Job, batch: int, progress: Progress) -> None:
    """Compute batches in twice as many parts from now on."""
    if progress.split >= batch:
        raise SatmapError(
            f"{job.member.name}: the memory of {job.place.device} does not suffice for a single "
            "crop. Lower `crop` in the recipe, or use a smaller encoder."
        )
    progress.split *= 2
    size = -(-batch // progress.split)
    warning = (
        f"{job.member.name}: out of memory on {job.place.device}; from now on {size} crops at a "
        f"time instead of {-(-batch // (progress.split // 2))}, as many as before a step"
    )
    if job.place.ranks.world > 1:
        # The others wait for a part of the batch that will not come.
        remember_split(job.place.state_file(job.member), progress.split)
        raise TryAgainError(f"{warning}. {_HOW_ON[is_ours()]}")
    print(f"satmap: {warning}", file=sys.stderr, flush=True)
    if job.place.device.type == "cuda":
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
