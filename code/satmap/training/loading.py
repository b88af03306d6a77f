"""Batches of crops from worker processes, by way of shared memory where there is enough of it.

torch's workers hand batches over in ``/dev/shm`` and are killed where that is full. Containers have
64 MB of it unless told otherwise (``docker run --shm-size``); there the batches go through pipes,
copied twice.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from satmap.data.augmentation import Geometry
from satmap.data.cache import CachedChip
from satmap.data.crops import CropDataset
from satmap.errors import SatmapError
from satmap.recipes.schema import Member, Recipe
from satmap.runtime.shared_memory import (
    SHARED_MEMORY,
    SHARED_MEMORY_REMEDY,
    can_share_locks,
    free_shared_memory,
)
from satmap.runtime.termination import ignore_signals_in_worker
from satmap.tasks.base import Batch, Task
from satmap.training.run_context import RunContext

# Arrays or tensors of a batch by name, and the indices of its chips.
_Loaded = tuple[dict[str, Any], list[int]]


def member_seed(recipe: Recipe, member: Member, stage: int) -> int:
    """A seed of its own for every member and stage, whatever else the recipe trains."""
    return zlib.crc32(f"{recipe.seed} {member.name} {stage}".encode())


def epoch_order(length: int, seed: int) -> list[int]:
    """A random order of 0..length-1 that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    # A DataLoader with this generator would have drawn its workers' seed first, and once did.
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return torch.randperm(length, generator=generator).tolist()


def split_between_ranks(order: list[int], share: int, rank: int, world: int) -> list[list[int]]:
    """A rank's items of every step; each item is one rank's, all ranks have as many steps.

    Args:
        order: the epoch's items.
        share: items a step on each rank.
        rank: whose items.
        world: how many ranks.

    Returns:
        One list a step. What does not fill a last step is left out: short batches have noisy
        statistics. Only an epoch shorter than one step is one short step, with equal shares.
    """
    share = min(share, len(order) // world)
    whole = share * world
    starts = range(0, len(order) - whole + 1, whole) if share else ()
    return [order[start + rank * share : start + (rank + 1) * share] for start in starts]


def chunks(items: list[int], size: int) -> list[list[int]]:
    """The items in lists of at most ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]


# Batches that each worker makes ahead, torch's default; two more are with the one that trains.
_AHEAD = 2
_IN_USE = 2


def batches(
    dataset: CropDataset, items: Sequence[list[int]], task: Task, context: RunContext
) -> Iterator[Batch]:
    """Batches of a dataset's items, in order, on the device.

    Args:
        dataset: the crops.
        items: those of every batch.
        task: joins samples into batches.
        context: device, number of workers, and the way they hand batches over.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=items,
        num_workers=context.workers,
        pin_memory=context.device.type == "cuda",
        # One of its own: the draws of the default one belong to the network.
        generator=torch.Generator(),
        worker_init_fn=ignore_signals_in_worker,
        # torch puts tensors into shared memory, but not arrays.
        collate_fn=partial(_collate, task, as_arrays=context.pipes),
    )
    for arrays, numbers in _with_clear_errors(loader):
        tensors = {
            name: _on_device(_as_tensor(value), context.device) for name, value in arrays.items()
        }
        yield Batch(tensors, [dataset.chips[number] for number in numbers])


def fit_shared_memory(
    context: RunContext, task: Task, chip: CachedChip, members: Sequence[Member], processes: int
) -> RunContext:
    """Choose how workers hand over crops, by the shared memory there is.

    Args:
        context: as the user wants it.
        task: cuts crops.
        chip: any chip; all have crops of the same size.
        members: what is trained.
        processes: that train on this machine.

    Returns:
        The context, with pipes or without workers if the shared memory does not suffice. A change
        is reported.
    """
    if not context.workers:
        return context
    if not can_share_locks(context.workers):
        context.ranks.say(
            f"{SHARED_MEMORY} is full or not there: no workers cut crops, which is slower. "
            f"{SHARED_MEMORY_REMEDY}"
        )
        return replace(context, workers=0)
    needed = processes * _bytes_in_flight(task, chip, members, context.workers)
    free = free_shared_memory()
    if free < needed:
        context.ranks.say(
            f"{SHARED_MEMORY} has {free // 2**20} MB free and the workers would need "
            f"{-(-needed // 2**20)} MB: crops go through pipes, which is slower. "
            f"{SHARED_MEMORY_REMEDY}"
        )
        return replace(context, pipes=True)
    return context


def _bytes_in_flight(task: Task, chip: CachedChip, members: Sequence[Member], workers: int) -> int:
    """The most shared memory that the batches of one process take, over all stages."""
    return max(
        (workers * _AHEAD + _IN_USE) * stage.batch * _sample_bytes(task, chip, member, stage.crop)
        for member in members
        for stage in member.stages
    )


def _sample_bytes(task: Task, chip: CachedChip, member: Member, crop: int) -> int:
    height, width = chip.shape[:2]
    sample = task.crop(chip, Geometry((width / 2, height / 2)), crop, member.bands)
    return sum(array.nbytes for array in sample.values())


def _with_clear_errors(batches: Iterable[_Loaded]) -> Iterator[_Loaded]:
    """The batches. Errors of a worker process come without its traceback."""
    try:
        yield from batches
    except SatmapError as error:
        raise SatmapError(str(error).rpartition(f"{SatmapError.__name__}: ")[2]) from error
    except RuntimeError as error:
        # torch's own words about a process that is gone.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise SatmapError(
            f"a process that cuts crops was killed. Most often {SHARED_MEMORY} is too small: "
            f"{SHARED_MEMORY_REMEDY} Fewer --workers help too. The same command resumes from the "
            "last epoch."
        ) from error


def _collate(
    task: Task, samples: Sequence[tuple[dict[str, NDArray[Any]], int]], as_arrays: bool
) -> _Loaded:
    arrays = task.collate([sample for sample, _ in samples])
    if not as_arrays:
        arrays = {name: _as_tensor(value) for name, value in arrays.items()}
    return arrays, [number for _, number in samples]


def _as_tensor(value: Any) -> Any:
    """Arrays as tensors, also within lists."""
    if isinstance(value, list):
        return [_as_tensor(item) for item in value]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_on_device(item, device) for item in value]
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
