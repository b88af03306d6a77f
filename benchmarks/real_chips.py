"""Training and held-out chips of real data, and a training step, for the benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from satmap.data.cache import prepare_chips
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.networks.unet import UNet
from satmap.recipes.schema import Recipe
from satmap.runtime.device import autocast
from satmap.tasks.base import Task, task_of
from satmap.tasks.roads.losses import road_loss
from satmap.tasks.roads.settings import RoadLosses as Losses

#: One chip out of this many is held out.
HELD_OUT = 5


@dataclass(frozen=True)
class Place:
    """Labelled images: a directory of SpaceNet roads, or images with masks of the same names.

    Attributes:
        images: directory.
        masks: directory of masks; None for SpaceNet.
        pattern: which files of ``images`` to use if there are masks.
        metres_per_pixel: pixel size of images with masks.
    """

    images: Path
    masks: Path | None = None
    pattern: str = "*"
    metres_per_pixel: float | None = None

    def names(self) -> list[str]:
        """Return the names of all images."""
        if self.masks:
            return sorted(path.name for path in self.images.glob(self.pattern))
        return [chip.image_id for chip in scan_roads([self.images]).chips]

    def chips(self, names: Sequence[str], task: Task, cache: Path) -> list[Chip]:
        """Return the chips of some images."""
        if self.masks:
            return list(find_own_chips(self._own(names, self.masks), task, 3, cache).chips)
        return [chip for chip in scan_roads([self.images]).chips if chip.image_id in names]

    def to_train(self, names: Sequence[str], folder: Path) -> tuple[list[Path], OwnData | None]:
        """Return the arguments for a training on some images: directories, and ``own``."""
        if self.masks:
            return [], self._own(names, self.masks)
        chosen = [chip for chip in scan_roads([self.images]).chips if chip.image_id in names]
        link(chosen, folder)
        return [folder], None

    def _own(self, names: Sequence[str], masks: Path) -> OwnData:
        paths = tuple(str(self.images / name) for name in names)
        return OwnData(paths, masks, metres_per_pixel=self.metres_per_pixel)


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
