"""Which crops an epoch shows, in which order, and to which rank."""

import zlib

import torch

from satmap.recipe import Member, Recipe


def member_seed(recipe: Recipe, member: Member, stage: int) -> int:
    """A seed of its own for every member and stage, whatever else the recipe trains."""
    return zlib.crc32(f"{recipe.seed} {member.name} {stage}".encode())


def epoch_order(length: int, seed: int) -> list[int]:
    """A random order of 0..length-1 that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    # A DataLoader with this generator would have drawn its workers' seed first, and once did.
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return torch.randperm(length, generator=generator).tolist()


def deal(order: list[int], share: int, rank: int, world: int) -> list[list[int]]:
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
