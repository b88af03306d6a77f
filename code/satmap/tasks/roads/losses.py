"""The losses of roads: one for each head, summed with the weights of the recipe."""

import torch
from torch import Tensor

from satmap.tasks.base import Total
from satmap.tasks.dense_losses import distillation_loss, head_loss, one_process, recall_loss
from satmap.tasks.roads.settings import JUNCTION, ROAD, ROAD_MAPS, SPEED_MAPS, RoadLosses
from satmap.tasks.roads.targets import CENTRE_BIT, CLASS_BITS, JUNCTION_BIT
from satmap.vectors.speeds import SPEED_BINS


def split_heads(target: Tensor) -> dict[str, Tensor]:
    """Targets of the heads from packed bytes.

    Args:
        target: uint8 (n, h, w) as in ``satmap.tasks.roads.targets``.

    Returns:
        ``road``, ``centre`` (the middles of roads) and ``junction`` bool (n, 1, h, w), ``speed``
        bool (n, 10, h, w).
    """
    packed = target.unsqueeze(1)
    classes = packed & CLASS_BITS
    bins = torch.arange(1, SPEED_BINS + 1, dtype=torch.uint8, device=target.device)
    return {
        "road": classes > 0,
        "centre": (packed & CENTRE_BIT) > 0,
        "speed": classes == bins.view(1, -1, 1, 1),
        "junction": packed >= JUNCTION_BIT,
    }


def road_loss(
    logits: Tensor,
    map_names: tuple[str, ...],
    target: Tensor,
    losses: RoadLosses,
    total: Total = one_process,
    soft: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over all heads.

    The ten speed bins are one head with one weight: dice is taken per bin, focal loss and cross
    entropy over all bins together (:func:`satmap.tasks.dense_losses.head_loss`).

    Args:
        logits: float (n, planes, h, w).
        map_names: names of the planes, which must hold all of ``ROAD_MAPS``.
        target: uint8 (n, h, w), as :mod:`satmap.tasks.roads.targets` packs it.
        losses: weights by head.
        total: adds up over the ranks that share the batch.
        soft: a teacher's probabilities of ``ROAD_MAPS``, uint8 (n, 12, h, w), 0..255 for 0..1.

    Returns:
        The loss, whose mean over the ranks is that of the whole batch, and, for display, each
        head's part of it (detached).
    """
    targets = split_heads(target)
    channels = {"road": (ROAD,), "speed": SPEED_MAPS, "junction": (JUNCTION,)}
    weights = {"road": losses.road, "speed": losses.speed, "junction": losses.junction}
    parts = {}
    for head, names in channels.items():
        picked = logits[:, [map_names.index(name) for name in names]].float()
        parts[head] = head_loss(picked, targets[head].float(), weights[head], total)
        if losses.distillation and soft is not None:
            taught = soft[:, [ROAD_MAPS.index(name) for name in names]].float() / 255
            parts[head] = parts[head] + losses.distillation * distillation_loss(picked, taught)
    if losses.road.recall:
        road = logits[:, [map_names.index(ROAD)]].float()
        missed = recall_loss(road, targets["centre"].float(), total)
        parts["road"] = parts["road"] + losses.road.recall * missed
    loss = torch.stack(list(parts.values())).sum()
    return loss, {head: part.detach() for head, part in parts.items()}
