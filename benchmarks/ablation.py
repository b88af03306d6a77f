"""Compare the reference's training with ours at equal CPU time, and ablate the differences.

    .venv/bin/python benchmarks/ablation.py ../shared/data/roads_epfl/AOI_90_Suburb_Train WORK
    .venv/bin/python benchmarks/ablation.py ... WORK --variants reference quick-roads

Every variant trains the same encoder from scratch on the same chips for the same CPU time. It is
scored on the held-out chips (every fifth) with one view and the same vectoriser. Learning rates
follow the fraction of the time used. WORK keeps the prepared chips. The script uses one thread, so
several runs with different ``--seeds`` can run side by side.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from real_chips import learn, split
from satmap.data.crops import CachedChip
from satmap.networks.unet import build_network
from satmap.recipes.schedules import CosineSchedule, Schedule, StepSchedule
from satmap.recipes.schema import Augmentation, DecoderSettings, load_recipe
from satmap.recipes.task_settings import HeadLoss
from satmap.runtime.device import pick_device
from satmap.tasks.base import Task, task_of
from satmap.tasks.roads.settings import ROAD_MAPS, RoadHeadLoss
from satmap.tasks.roads.settings import RoadLosses as Losses
from satmap.training.epoch import learning_rate
from satmap.training.loading import CropDataset
from satmap.training.run_context import RunContext
from satmap.training.state import MovingAverage
from satmap.training.validation import validate

_CROP, _BATCH = 192, 8
# Schedule steps per epoch; the fraction of the time budget is converted to such steps.
_TICKS = 1000

_REFERENCE_EPOCHS = 38
_REFERENCE_RATES = {0: 5e-4, 1: 1e-4, 20: 5e-5, 30: 3e-5, 35: 1e-5}


@dataclass(frozen=True)
class Variant:
    """Training settings; the defaults are the reference's first stage."""

    schedule: Schedule = StepSchedule(rates=_REFERENCE_RATES)  # noqa: RUF009 (frozen)
    epochs: int = _REFERENCE_EPOCHS
    decoder: DecoderSettings = DecoderSettings()  # noqa: RUF009 (frozen)
    recall: float | None = None
    ema: float | None = None
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 (frozen)

    @property
    def losses(self) -> Losses:
        """Return the reference's loss weights with the variant's recall loss."""
        return Losses(
            road=RoadHeadLoss(dice=0.5, focal=2, bce=0.1, recall=self.recall),
            speed=HeadLoss(dice=0.1, focal=2, bce=1),
            junction=HeadLoss(dice=0.1, focal=1),
        )

    def rate(self, used: float) -> float:
        """Return the learning rate at a fraction of the time budget, 0..1."""
        return learning_rate(self.schedule, int(used * _TICKS * self.epochs), _TICKS, self.epochs)


_REFERENCE = Variant()
_LIGHT = DecoderSettings(kind="light")
_OURS = Variant(CosineSchedule(peak=2e-3, final=2e-5, warmup=0.05), 1, _LIGHT, 0.5, 0.98)


def _shipped(name: str) -> Variant:
    """Return the settings of the first stage of a recipe's first member."""
    member = load_recipe(name).members[0]
    return Variant(member.stages[0].schedule, 1, member.decoder)


VARIANTS = {
    "reference": _REFERENCE,
    "ours": _OURS,
    "ours, the reference's schedule": replace(
        _OURS, schedule=_REFERENCE.schedule, epochs=_REFERENCE.epochs
    ),
    "ours without recall loss": replace(_OURS, recall=None),
    "ours without EMA": replace(_OURS, ema=None),
    "ours, the plain decoder": replace(_OURS, decoder=DecoderSettings()),
    "quick-roads": _shipped("quick-roads"),
    "ours, flips only": replace(
        _OURS,
        augmentation=Augmentation(
            shift=0, resize_probability=0, rotation_probability=0, colour_jitter_probability=0
        ),
    ),
}


def main() -> None:
    """Train and score every variant and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("area", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe("small-roads")
    task, context = task_of(recipe), RunContext(options.work / "weights", pick_device())
    training, held_out = split(options.area, options.work, recipe)

    print("| variant | seed | steps | last loss | IoU | dice | APLS length | APLS time |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for seed in options.seeds:
        for name in options.variants:
            network, steps, loss = _train(
                VARIANTS[name], options.encoder, training, task, options.seconds, seed
            )
            scores = validate(network, task, held_out, context)
            print(
                f"| {name} | {seed} | {steps} | {loss:.3f} | {scores['iou']:.3f} "
                f"| {scores['dice']:.3f} | {scores['apls']:.3f} | {scores['apls_time']:.3f} |",
                flush=True,
            )


def _train(
    variant: Variant,
    encoder: str,
    chips: Sequence[CachedChip],
    task: Task,
    seconds: float,
    seed: int,
) -> tuple[nn.Module, int, float]:
    """Train for a number of seconds; return the network, its steps and its final mean loss."""
    device = pick_device()
    torch.manual_seed(seed)
    decoder = variant.decoder
    network = build_network(encoder, 3, ROAD_MAPS, decoder.widths, decoder.kind)
    network.to(device).to(memory_format=torch.channels_last).train()
    average = MovingAverage(network, variant.ema) if variant.ema else None
    optimizer = torch.optim.Adam(network.parameters())
    losses: list[float] = []
    started = time.process_time()
    for images, targets in _batches(chips, task, variant.augmentation, seed):
        used = (time.process_time() - started) / seconds
        if used >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = variant.rate(used)
        losses.append(learn(network, optimizer, images, targets, variant.losses))
        if average is not None:
            average.update(network)
    last = losses[-max(len(losses) // 10, 1) :]
    return average.network if average else network, len(losses), statistics.mean(last)


def _batches(
    chips: Sequence[CachedChip], task: Task, augmentation: Augmentation, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of crops endlessly."""
    dataset = CropDataset(chips, _CROP, 3, 8, augmentation, seed, task)
    generator = torch.Generator().manual_seed(seed)
    epoch = 0
    while True:
        dataset.epoch = epoch
        order = RandomSampler(dataset, generator=generator)
        for crops, _ in DataLoader(dataset, _BATCH, sampler=order, drop_last=True):
            yield crops["image"], crops["target"]
        epoch += 1


if __name__ == "__main__":
    main()
