"""Compare the kinds of decoder: GMACs, seconds per step, and accuracy after equal steps.

    .venv/bin/python benchmarks/decoders.py ../shared/data/roads_epfl/AOI_90_Suburb_Train WORK

Every kind trains the same encoder from scratch with the reference's widths, on the same crops in
the same order. It is scored on the held-out chips (every fifth). WORK keeps the prepared chips.
The script uses one thread and takes about 5 minutes per kind and seed.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler

from networks import count_macs
from real_chips import learn, split
from satmap.data.crops import CachedChip
from satmap.networks.unet import DECODERS, UNet, build_network
from satmap.recipes.schedules import CosineSchedule
from satmap.recipes.schema import load_recipe
from satmap.runtime.device import pick_device
from satmap.tasks.base import Task, task_of
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.tasks.roads.settings import RoadLosses as Losses
from satmap.training.epoch import learning_rate
from satmap.training.loading import CropDataset
from satmap.training.run_context import RunContext
from satmap.training.validation import validate

_CROP = 160
_BATCH = 8
_SCHEDULE = CosineSchedule(peak=1e-3, warmup=0.05)


def main() -> None:
    """Train and score every kind and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("area", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--kinds", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe("small-roads")
    task, context = task_of(recipe), RunContext(options.work / "weights", pick_device())
    training, held_out = split(options.area, options.work, recipe)

    print("| decoder | seed | GMACs at 512 | s per step | last loss | dice | IoU | APLS length |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        for kind in options.kinds:
            torch.manual_seed(seed)
            network = build_network(options.encoder, 3, ROAD_MAPS, decoder_kind=kind)
            loss, seconds = _train(network, training, task, options.steps, seed)
            scores = validate(network, task, held_out, context)
            print(
                f"| {kind} | {seed} | {count_macs(network, 512) / 1e9:.1f} | {seconds:.2f} "
                f"| {loss:.3f} | {scores['dice']:.3f} | {scores['iou']:.3f} "
                f"| {scores['apls']:.3f} |",
                flush=True,
            )


def _train(
    network: UNet, chips: Sequence[CachedChip], task: Task, steps: int, seed: int
) -> tuple[float, float]:
    """Train in place; return the mean loss of the last tenth of the steps and the step time, s."""
    device = pick_device()
    network.to(device).to(memory_format=torch.channels_last).train()
    passes = -(-steps * _BATCH // len(chips))
    dataset = CropDataset(chips, _CROP, 3, passes, task.recipe.augmentation, seed, task)
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    loader = DataLoader(dataset, _BATCH, sampler=order, drop_last=True)
    optimizer = torch.optim.Adam(network.parameters())
    weights = task.recipe.members[0].losses
    assert isinstance(weights, Losses)
    losses = []
    started = time.perf_counter()
    for step, (crops, _) in zip(range(steps), loader, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(_SCHEDULE, step, steps, 1)
        losses.append(learn(network, optimizer, crops["image"], crops["target"], weights))
    seconds = time.perf_counter() - started
    last = losses[-max(steps // 10, 1) :]
    return sum(last) / len(last), seconds / steps


if __name__ == "__main__":
    main()
