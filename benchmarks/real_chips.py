"""Training and held-out chips of real data, and short trainings, for the benchmarks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

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
from satmap.training.job import Job
from satmap.training.loading import member_seed
from satmap.training.run_context import RunContext
from satmap.training.train import train_member
from satmap.weights.members import choose, find_weights
from satmap.weights.pretrained import installed_file

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


def train_for(
    task: Task, chips: Sequence[CachedChip], weights: Path, seconds: float
) -> tuple[nn.Module, int, float]:
    """Train the first member as `satmap train --time-limit` does, by CPU time instead of time.

    So trainings can be compared that ran beside other programs. The encoder starts from the
    ImageNet weights of its Python package, unless the member says otherwise.

    Args:
        task: with the recipe. Its first member has one stage.
        chips: chips to learn from.
        weights: directory of the weights, empty or not there.
        seconds: CPU time of the training.

    Returns:
        The last network on the CPU in evaluation mode, the number of its steps, and the CPU time.
    """
    member = task.recipe.members[0]
    weights.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(member_seed(task.recipe, member, 0))
    network = task.build_network(member)
    file = installed_file(member.encoder) if member.pretrained else None
    if file is not None:
        task.load_encoder(network, file)
    steps: list[None] = []
    counter = register_optimizer_step_post_hook(lambda *_: steps.append(None))
    started = time.process_time()
    job = Job(task, member, chips, (), RunContext(weights, torch.device("cpu")))
    with mock.patch("time.perf_counter", time.process_time):
        train_member(network, job, pretrained=file is not None, until=1, seconds=[seconds])
    counter.remove()
    used = time.process_time() - started
    (last,) = task.load_ensemble(choose(find_weights(weights), task.recipe), torch.device("cpu"))
    return last.network, len(steps), used
