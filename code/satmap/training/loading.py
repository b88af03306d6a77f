"""Batches of crops from worker processes, by way of shared memory where there is enough of it.

torch's workers hand batches over in ``/dev/shm`` and are killed where that is full. Containers have
64 MB of it unless told otherwise (``docker run --shm-size``); there the batches go through pipes,
copied twice.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from satmap.data.crops import CropDataset
from satmap.errors import SatmapError
from satmap.rasters.probability_maps import ROAD_MAPS
from satmap.recipes.schema import Losses, Member, Recipe
from satmap.runtime.shared_memory import (
    SHARED_MEMORY,
    SHARED_MEMORY_REMEDY,
    can_share_locks,
    free_shared_memory,
)
from satmap.runtime.termination import ignore_signals_in_worker
from satmap.training.run_context import RunContext


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


# As the data loader collates the items: images, targets, indices of chips.
Batch = tuple[Tensor, Tensor, Tensor]

# Batches that each worker makes ahead, torch's default; two more are with the one that trains.
_AHEAD = 2
_IN_USE = 2


def batches(
    dataset: CropDataset, items: Sequence[list[int]], context: RunContext
) -> Iterator[Batch]:
    """Batches of a dataset's items, in order.

    Args:
        dataset: the crops.
        items: those of every batch.
        context: with how many workers, and the way they hand batches over.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=items,
        num_workers=context.workers,
        pin_memory=context.device.type == "cuda",
        # One of its own: the draws of the default one belong to the network.
        generator=torch.Generator(),
        worker_init_fn=ignore_signals_in_worker,
        collate_fn=_stack if context.pipes else None,
    )
    return _with_clear_errors(_tensors(loader) if context.pipes else loader)


def fit_shared_memory(context: RunContext, members: Sequence[Member], processes: int) -> RunContext:
    """The place with workers that do with the shared memory there is; a change is said once.

    Args:
        context: as the user wants it.
        members: what is trained.
        processes: that train on this machine.
    """
    if not context.workers:
        return context
    if not can_share_locks(context.workers):
        context.ranks.say(
            f"{SHARED_MEMORY} is full or not there: no workers cut crops, which is slower. {SHARED_MEMORY_REMEDY}"
        )
        return replace(context, workers=0)
    free, needed = free_shared_memory(), processes * _bytes_in_flight(members, context.workers)
    if free < needed:
        context.ranks.say(
            f"{SHARED_MEMORY} has {free // 2**20} MB free and the workers would need "
            f"{-(-needed // 2**20)} MB: crops go through pipes, which is slower. {SHARED_MEMORY_REMEDY}"
        )
        return replace(context, pipes=True)
    return context


def _bytes_in_flight(members: Sequence[Member], workers: int) -> int:
    """The shared memory that one process's batches take at most, over the stages of all members."""
    return max(
        (workers * _AHEAD + _IN_USE) * stage.batch * _maps(member) * stage.crop**2
        for member in members
        for stage in member.stages
    )


def _maps(member: Member) -> int:
    """Bytes a pixel of a crop: the image's bands, a target and what a teacher says."""
    # As satmap.tasks.roads.targets and satmap.tasks.buildings.targets pack them.
    target = 1 if isinstance(member.losses, Losses) else 2
    return member.bands + target + (len(ROAD_MAPS) if member.needs_teacher else 0)


def _with_clear_errors(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; what goes wrong in a loader's process comes without that one's traceback."""
    try:
        yield from batches
    except SatmapError as error:
        raise SatmapError(str(error).rpartition(f"{SatmapError.__name__}: ")[2]) from error
    except RuntimeError as error:
        # torch's own words, of a process that is gone.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise SatmapError(
            f"a process that cuts crops was killed. Most often {SHARED_MEMORY} is too small: "
            f"{SHARED_MEMORY_REMEDY} Fewer --workers help too. The same command goes on from the last epoch."
        ) from error


def _stack(items: Sequence[tuple[Tensor, Tensor, int]]) -> tuple[NDArray[Any], ...]:
    """A batch of arrays: torch would put tensors into shared memory."""
    images, targets, numbers = zip(*items, strict=True)
    return np.stack(images), np.stack(targets), np.array(numbers)


def _tensors(batches: Iterable[tuple[NDArray[Any], ...]]) -> Iterator[Batch]:
    for images, targets, numbers in batches:
        yield torch.from_numpy(images), torch.from_numpy(targets), torch.from_numpy(numbers)
