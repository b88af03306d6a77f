"""Training crops of chips, and batches of them from worker processes.

torch's workers pass batches through shared memory, ``/dev/shm``, and are killed when it is full.
Containers have 64 MB of it by default (``docker run --shm-size``). If it does not suffice, batches
go through pipes, which copies them twice.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from satmap.data.crops import (
    CachedChip,
    Geometry,
    degrade,
    draw_geometry,
    jitter_colours,
    read_soft_crop,
)
from satmap.errors import SatmapError
from satmap.recipes.pseudo_labels import PseudoLabels
from satmap.recipes.schema import Augmentation, Member, Recipe
from satmap.runtime.resources import (
    SHARED_MEMORY,
    SHARED_MEMORY_REMEDY,
    can_share_locks,
    free_shared_memory,
)
from satmap.runtime.termination import ignore_signals_in_worker
from satmap.tasks.base import Batch, Task
from satmap.training.run_context import RunContext

# Arrays of a sample by name, and the index of its chip.
_Sample = tuple[dict[str, NDArray[Any]], int]

# Arrays or tensors of a batch by name, and the chip index of each crop.
_Loaded = tuple[dict[str, Any], list[int]]


@dataclass(eq=False)
class CropDataset(Dataset[_Sample]):
    """Random crops of chips, reproducible for any number of workers.

    Item ``i`` depends only on the seed, the epoch and ``i``. It is a pair: the task's sample, and
    the index of the chip. The sample is a dictionary of arrays, with ``image`` as uint8 (channels,
    crop, crop). Items and indices of unlabelled chips follow those of labelled chips.

    With ``pseudo_labels`` samples also hold ``taught``, bool (crop, crop): which pixels have
    pseudo-labels. If an ensemble is the teacher, ``soft`` holds its probability maps, uint8 (maps,
    crop, crop). If the average of the network's weights is, ``clean`` holds the image before its
    colours are changed.

    Attributes:
        chips: chips with labels to cut crops from.
        crop: height and width of a crop, pixels.
        channels: number of image channels.
        passes: average number of crops per chip and epoch.
        augmentation: None for random positions only.
        seed: seed of the crops.
        task: cuts the samples.
        sampling: ``equal_areas`` gives all areas of interest the same number of crops (or one
            more); the chips of an area take turns. ``equal_scenes`` draws chips with replacement,
            those of every scene of an area equally often on average. None gives every chip the same
            number.
        unlabelled: further chips, which take turns.
        pseudo_labels: how to learn from pseudo-labels, and the share of unlabelled chips.
        epoch: changes the crops; set it before iterating the data loader.
    """

    chips: Sequence[CachedChip]
    crop: int
    channels: int
    passes: int
    augmentation: Augmentation | None
    seed: int
    task: Task
    sampling: str | None = None
    unlabelled: Sequence[CachedChip] = ()
    pseudo_labels: PseudoLabels | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        self._labelled = len(self.chips) * self.passes
        self._length = self._labelled
        if self.unlabelled and self.pseudo_labels:
            # At least one, so that a short epoch learns from pseudo-labels, too.
            share = self.pseudo_labels.share
            self._length += max(round(self._labelled * share / (1 - share)), 1)
        classes: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, chip in enumerate(self.chips):
            of_kind = {"equal_areas": (chip.aoi,), "equal_scenes": (chip.aoi, chip.scene)}
            classes[of_kind.get(self.sampling or "", ())].append(number)
        self._classes = list(classes.values())

    def __len__(self) -> int:
        return self._length

    def order(self) -> list[int]:
        """Return the random order of the epoch's items, with unlabelled chips spread evenly."""
        labelled = iter(epoch_order(self._labelled, self.seed + self.epoch))
        others = iter(range(self._labelled, self._length))
        count, total = self._length - self._labelled, self._length
        return [
            next(others if (place + 1) * count // total > place * count // total else labelled)
            for place in range(total)
        ]

    def chip(self, number: int) -> CachedChip:
        """Return a chip by its index."""
        known = len(self.chips)
        return self.chips[number] if number < known else self.unlabelled[number - known]

    def chip_of(self, index: int) -> int:
        """Return the index of the chip that item ``index`` shows."""
        if index >= self._labelled:
            # The chips that an epoch does not reach come first in the next.
            place = index - self._labelled + self.epoch * (self._length - self._labelled)
            turn, place = divmod(place, len(self.unlabelled))
            return len(self.chips) + _shuffled(len(self.unlabelled), self.seed + turn)[place]
        if self.sampling == "equal_scenes":
            # A random stream of its own, because the crop must not depend on the sampling.
            random = np.random.default_rng((self.seed, self.epoch, index, 1))
            numbers = self._classes[random.integers(len(self._classes))]
            return numbers[random.integers(len(numbers))]
        if len(self._classes) == 1:
            return index % len(self.chips)
        turn, area = divmod(index, len(self._classes))
        # Chips of large areas that are not used in this epoch come first in the next.
        turns = -(-self._labelled // len(self._classes))
        numbers = self._classes[area]
        return numbers[(turn + self.epoch * turns) % len(numbers)]

    def __getitem__(self, index: int) -> _Sample:
        random = np.random.default_rng((self.seed, self.epoch, index))
        number, settings = self.chip_of(index), self.augmentation
        chip = self.chip(number)
        geometry = draw_geometry(random, chip.shape[:2], self.crop, settings)
        sample = self.task.crop(chip, geometry, self.crop, self.channels)
        if self.pseudo_labels:
            sample |= self._teach(chip, geometry, sample["image"], self.pseudo_labels)
        if settings is not None and random.random() < settings.colour_jitter_probability:
            sample["image"] = jitter_colours(random, sample["image"])
        if settings is not None and random.random() < (settings.quality_probability or 0):
            sample["image"] = degrade(random, sample["image"])
        return sample, number

    def _teach(
        self,
        chip: CachedChip,
        geometry: Geometry,
        image: NDArray[np.uint8],
        settings: PseudoLabels,
    ) -> dict[str, NDArray[Any]]:
        """Return what pseudo-labels add to a sample. Pixels without data have none."""
        is_taught = settings.labelled or not chip.is_labelled
        taught = {"taught": np.asarray(image.any(axis=0) & is_taught)}
        if settings.teacher == "average":
            return taught | {"clean": image}
        if is_taught:
            return taught | {"soft": read_soft_crop(chip, geometry, self.crop)}
        maps = self.task.values_per_pixel
        return taught | {"soft": np.zeros((maps, self.crop, self.crop), np.uint8)}


@lru_cache(maxsize=2)
def _shuffled(length: int, seed: int) -> list[int]:
    return epoch_order(length, seed)


def member_seed(recipe: Recipe, member: Member, stage: int) -> int:
    """Return the seed of a member's stage, independent of the recipe's other members."""
    return zlib.crc32(f"{recipe.seed} {member.name} {stage}".encode())


def epoch_order(length: int, seed: int) -> list[int]:
    """Return a random order of 0..length-1 that depends only on the seed."""
    generator = torch.Generator().manual_seed(seed)
    # Skip one draw: earlier versions drew the workers' seed first, and orders must not change.
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return torch.randperm(length, generator=generator).tolist()


def split_between_ranks(order: list[int], share: int, rank: int, world: int) -> list[list[int]]:
    """Return the items of process ``rank`` of ``world`` for every step, ``share`` items per step.

    All processes have the same number of steps. Items that do not fill the last step are left out,
    because short batches have noisy statistics. An epoch shorter than one step becomes one short
    step with equal shares.
    """
    share = min(share, len(order) // world)
    whole = share * world
    starts = range(0, len(order) - whole + 1, whole) if share else ()
    return [order[start + rank * share : start + (rank + 1) * share] for start in starts]


# Batches that each worker prepares ahead (torch's default), and batches that the training holds.
_AHEAD = 2
_IN_USE = 2


def batches(
    dataset: CropDataset, items: Sequence[list[int]], context: RunContext
) -> Iterator[Batch]:
    """Yield batches of a dataset on the device; ``items`` are the dataset indices of each batch."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=items,
        num_workers=context.workers,
        pin_memory=context.device.type == "cuda",
        # A separate generator, so that loading does not change the random numbers of the network.
        generator=torch.Generator(),
        worker_init_fn=ignore_signals_in_worker,
        # Workers pass tensors through shared memory, arrays through pipes.
        collate_fn=partial(_collate, dataset.task, as_arrays=context.pipes),
    )

    def on_device(values: Any) -> Tensor:
        return torch.as_tensor(values).to(context.device, non_blocking=True)

    for arrays, numbers in _with_clear_errors(loader):
        tensors = {name: _apply(on_device, value) for name, value in arrays.items()}
        yield Batch(tensors, [dataset.chip(number) for number in numbers])


def _collate(task: Task, samples: Sequence[_Sample], as_arrays: bool) -> _Loaded:
    arrays = task.collate([sample for sample, _ in samples])
    if not as_arrays:
        arrays = {name: _apply(torch.as_tensor, value) for name, value in arrays.items()}
    return arrays, [number for _, number in samples]


def _apply(function: Callable[[Any], Tensor], value: Any) -> Any:
    """Apply a function to an array, or to the arrays of a list."""
    return [function(item) for item in value] if isinstance(value, list) else function(value)


def _with_clear_errors(batches: Iterable[_Loaded]) -> Iterator[_Loaded]:
    """Yield the batches. Errors of worker processes are raised without the worker's traceback."""
    try:
        yield from batches
    except SatmapError as error:
        raise SatmapError(str(error).rpartition(f"{SatmapError.__name__}: ")[2]) from error
    except RuntimeError as error:
        # torch's message about a worker that was killed.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise SatmapError(
            f"a worker process that cuts crops was killed. Most often {SHARED_MEMORY} is too "
            f"small: {SHARED_MEMORY_REMEDY} Fewer --workers help too. Run the same command again "
            "to resume from the last saved state."
        ) from error


def fit_shared_memory(
    context: RunContext, task: Task, chip: CachedChip, members: Sequence[Member], processes: int
) -> RunContext:
    """Choose how the workers of all ``processes`` on this machine pass crops on.

    Crops of all chips have the same size, so any ``chip`` will do.

    Returns:
        The context, changed to pipes or to no workers if the free shared memory does not suffice. A
        change is printed.
    """
    if not context.workers:
        return context
    if not can_share_locks(context.workers):
        context.ranks.say(
            f"{SHARED_MEMORY} is full or missing: crops are cut without workers, which is "
            f"slower. {SHARED_MEMORY_REMEDY}"
        )
        return replace(context, workers=0)
    in_flight = context.workers * _AHEAD + _IN_USE
    needed = processes * max(
        in_flight * stage.batch * _sample_bytes(task, chip, member, stage.crop)
        for member in members
        for stage in member.stages
    )
    free = free_shared_memory()
    if free < needed:
        context.ranks.say(
            f"{SHARED_MEMORY} has {free // 2**20} MB free and the workers would need "
            f"{-(-needed // 2**20)} MB: crops go through pipes, which is slower. "
            f"{SHARED_MEMORY_REMEDY}"
        )
        return replace(context, pipes=True)
    return context


def _sample_bytes(task: Task, chip: CachedChip, member: Member, crop: int) -> int:
    height, width = chip.shape[:2]
    sample = task.crop(chip, Geometry((width / 2, height / 2)), crop, member.bands)
    # The most that pseudo-labels take: all maps or the clean image, and the map of taught pixels.
    taught = crop**2 * (max(task.values_per_pixel, member.bands) + 1) if task.recipe.rounds else 0
    return taught + sum(array.nbytes for array in sample.values())
