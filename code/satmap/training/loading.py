"""Load batches of crops with worker processes.

torch's workers pass batches through shared memory, ``/dev/shm``, and are killed when it is full.
Containers have 64 MB of it by default (``docker run --shm-size``). If it does not suffice, batches
go through pipes, which copies them twice.
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
from satmap.runtime.resources import (
    SHARED_MEMORY,
    SHARED_MEMORY_REMEDY,
    can_share_locks,
    free_shared_memory,
)
from satmap.runtime.termination import ignore_signals_in_worker
from satmap.tasks.base import Batch, Task
from satmap.training.run_context import RunContext

# Arrays or tensors of a batch by name, and the chip index of each crop.
_Loaded = tuple[dict[str, Any], list[int]]


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
    """Return one process's items of every step. All processes have the same number of steps.

    Args:
        order: the items of the epoch.
        share: items per step and process.
        rank: number of the process.
        world: number of processes.

    Returns:
        One list per step. Items that do not fill the last step are left out, because short batches
        have noisy statistics. An epoch shorter than one step becomes one short step with equal
        shares.
    """
    share = min(share, len(order) // world)
    whole = share * world
    starts = range(0, len(order) - whole + 1, whole) if share else ()
    return [order[start + rank * share : start + (rank + 1) * share] for start in starts]


def chunks(items: list[int], size: int) -> list[list[int]]:
    """Split a list into lists of at most ``size`` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


# Batches that each worker prepares ahead (torch's default), and batches that the training holds.
_AHEAD = 2
_IN_USE = 2


def batches(
    dataset: CropDataset, items: Sequence[list[int]], task: Task, context: RunContext
) -> Iterator[Batch]:
    """Yield batches of a dataset, in order, on the device.

    Args:
        dataset: the crops.
        items: dataset indices of every batch.
        task: joins samples into batches.
        context: device, number of workers, and whether they use pipes.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=items,
        num_workers=context.workers,
        pin_memory=context.device.type == "cuda",
        # A separate generator, so that loading does not change the random numbers of the network.
        generator=torch.Generator(),
        worker_init_fn=ignore_signals_in_worker,
        # Workers pass tensors through shared memory, arrays through pipes.
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
    """Choose how workers pass crops on, by the amount of free shared memory.

    Args:
        context: the user's choice.
        task: cuts crops.
        chip: any chip; crops of all chips have the same size.
        members: the members to train.
        processes: number of training processes on this machine.

    Returns:
        The context, changed to pipes or to no workers if the shared memory does not suffice. A
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
    """Return the most shared memory that the batches of one process need in any stage, bytes."""
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


def _collate(
    task: Task, samples: Sequence[tuple[dict[str, NDArray[Any]], int]], as_arrays: bool
) -> _Loaded:
    arrays = task.collate([sample for sample, _ in samples])
    if not as_arrays:
        arrays = {name: _as_tensor(value) for name, value in arrays.items()}
    return arrays, [number for _, number in samples]


def _as_tensor(value: Any) -> Any:
    """Turn arrays into tensors, also within lists."""
    if isinstance(value, list):
        return [_as_tensor(item) for item in value]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_on_device(item, device) for item in value]
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
