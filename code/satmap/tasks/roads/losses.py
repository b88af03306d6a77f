"""Losses of the road task: one per head, summed with the weights of the recipe."""

import torch
from torch import Tensor

from satmap.tasks.base import Total
from satmap.tasks.losses import (
    IGNORED_BIT,
    Ignored,
    centreline_dice_loss,
    feature_loss,
    head_loss,
    one_process,
    recall_loss,
)
from satmap.tasks.roads.settings import CROSSING, DECK, JUNCTION, ROAD, SPEED_MAPS, RoadLosses
from satmap.tasks.roads.targets import (
    CENTRE_BIT,
    CLASS_BITS,
    CROSSING_BIT,
    CROSSING_UNKNOWN_BIT,
    DECK_BIT,
    DECK_UNKNOWN_BIT,
    JUNCTION_BIT,
)
from satmap.vectors.speeds import SPEED_BINS


def split_heads(target: Tensor) -> dict[str, Tensor]:
    """Split targets, packed as in :mod:`satmap.tasks.roads.targets`, into one mask per head.

    Args:
        target: uint8 (n, h, w), or (n, h, w, 2) with levels.

    Returns:
        ``road``, ``centre`` (the roads' centre lines) and ``junction`` bool (n, 1, h, w), ``speed``
        bool (n, 10, h, w); with levels also ``crossing`` and ``deck`` bool (n, 1, h, w).
    """
    packed = first_byte(target).unsqueeze(1)
    classes = packed & CLASS_BITS
    bins = torch.arange(1, SPEED_BINS + 1, dtype=torch.uint8, device=target.device)
    heads = {
        "road": classes > 0,
        "centre": (packed & CENTRE_BIT) > 0,
        "speed": classes == bins.view(1, -1, 1, 1),
        "junction": packed >= JUNCTION_BIT,
    }
    if target.ndim == 4:
        levels = target[..., 1].unsqueeze(1)
        heads |= {CROSSING: (levels & CROSSING_BIT) > 0, DECK: (levels & DECK_BIT) > 0}
    return heads


def first_byte(target: Tensor) -> Tensor:
    """Return the classes, junctions and centre lines of targets, uint8 (n, h, w)."""
    return target if target.ndim == 3 else target[..., 0]


def road_loss(
    logits: Tensor,
    map_names: tuple[str, ...],
    target: Tensor,
    losses: RoadLosses,
    total: Total = one_process,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the losses of all heads.

    The ten speed bins form one head with one weight. Dice is computed per bin, focal loss and cross
    entropy over all bins together (:func:`satmap.tasks.losses.head_loss`).

    Args:
        logits: float (n, maps, h, w).
        map_names: names of the maps in ``logits``; they must include all of ``ROAD_MAPS``.
        target: uint8 (n, h, w), packed as in :mod:`satmap.tasks.roads.targets`; (n, h, w, 2) with
            levels.
        losses: weights by head.
        total: sums a tensor over the processes that share the batch.

    Returns:
        The loss, and the detached share of each head for display. The mean of the loss over the
        processes is the loss of the whole batch.
    """
    targets, ignored = split_heads(target), Ignored.of(first_byte(target), total)
    channels = {"road": (ROAD,), "speed": SPEED_MAPS, "junction": (JUNCTION,)}
    parts = {}
    for head, names in channels.items():
        picked = ignored.silence(logits[:, [map_names.index(name) for name in names]].float())
        weights, truth = getattr(losses, head), targets[head].float()
        parts[head] = head_loss(picked, truth, weights, total, ignored.scale)
    own = losses.road
    if own.recall or own.centreline_dice or own.features:
        road, centre = logits[:, [map_names.index(ROAD)]].float(), targets["centre"].float()
        silent, truth = ignored.silence(road), targets["road"].float()
        further = road.new_zeros(())
        if own.recall:
            further = further + own.recall * recall_loss(road, centre, total)
        if own.centreline_dice:
            apart = centreline_dice_loss(silent, truth, centre, total)
            further = further + own.centreline_dice * apart
        if own.features:
            further = further + own.features * feature_loss(silent, truth)
        parts["road"] = parts["road"] + further
    if losses.levels is not None:
        sums = []
        for name, unknown in ((CROSSING, CROSSING_UNKNOWN_BIT), (DECK, DECK_UNKNOWN_BIT)):
            untold = (target[..., 1] & unknown) > 0
            told = Ignored.of(first_byte(target) | untold * IGNORED_BIT, total)
            truth = targets[name].masked_fill(told.where, False).float()
            picked = told.silence(logits[:, [map_names.index(name)]].float())
            sums.append(head_loss(picked, truth, losses.levels, total, told.scale))
        parts["levels"] = torch.stack(sums).mean()
    loss = torch.stack(list(parts.values())).sum()
    return loss, {head: part.detach() for head, part in parts.items()}
