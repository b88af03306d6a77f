"""Training and held-out chips of real data, and a training step, for the benchmarks."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from satmap.data.cache import prepare_chips
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.networks.unet import UNet
from satmap.recipes.schema import Recipe
from satmap.runtime.device import autocast
from satmap.tasks.base import task_of
from satmap.tasks.roads.losses import road_loss
from satmap.tasks.roads.settings import RoadLosses as Losses

#: One chip out of this many is held out.
HELD_OUT = 5


def split(
    area: Path, work: Path, recipe: Recipe
) -> tuple[Sequence[CachedChip], Sequence[CachedChip]]:
    """Return an area's training chips and held-out chips, prepared under ``work``."""
    found, task = scan_roads([area]).chips, task_of(recipe)
    chips = prepare_chips(found, 3, work / "cache", recipe.stretch, task).chips
    held_out = chips[::HELD_OUT]
    return [chip for chip in chips if chip not in held_out], held_out


def link(chips: Sequence[Chip], directory: Path) -> None:
    """Make a directory for ``satmap train`` with links to the chips' images and labels."""
    directory.mkdir(parents=True, exist_ok=True)
    for chip in chips:
        paths = [info.path for info in chip.images.values()]
        for path in [*paths, *([chip.label] if chip.label else [])]:
            place = directory / path.name
            if not place.exists():
                place.symlink_to(path.resolve())


def learn(
    network: UNet, optimizer: Optimizer, images: Tensor, targets: Tensor, losses: Losses
) -> float:
    """Take one training step and return its loss."""
    device = next(network.parameters()).device
    pixels = network.encoder.normalize(images.to(device))
    with autocast(device):
        logits = network(pixels.contiguous(memory_format=torch.channels_last))
    loss, _ = road_loss(logits, network.map_names, targets.to(device), losses)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.item()
