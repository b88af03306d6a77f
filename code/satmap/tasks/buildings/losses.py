"""Losses of the building maps, with pixel weights by location and size of the buildings."""

import torch
import torch.nn.functional as F
from torch import Tensor

from satmap.recipes.task_settings import HeadLoss
from satmap.tasks.base import Total
from satmap.tasks.buildings.settings import (
    BORDER,
    BUILDING,
    CONTACT,
    BuildingHeadLoss,
    BuildingLosses,
)
from satmap.tasks.buildings.targets import BODY_BIT, BORDER_BIT, CONTACT_BIT, weight_table
from satmap.tasks.dense import head_loss

_BITS = {BUILDING: BODY_BIT, BORDER: BORDER_BIT, CONTACT: CONTACT_BIT}
_WEIGHTS = torch.from_numpy(weight_table())


def building_loss(
    logits: Tensor,
    map_names: tuple[str, ...],
    target: Tensor,
    losses: BuildingLosses,
    total: Total,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the weighted sum of the losses of all maps.

    Args:
        logits: float (n, maps, h, w).
        map_names: names of the channels of ``logits``; must include all of ``losses.map_names``.
        target: uint8 (n, h, w, 2) as in ``satmap.tasks.buildings.targets``.
        losses: loss weights per map.
        total: sums a value over the ranks that share the batch.

    Returns:
        The loss, whose mean over the ranks is the loss of the whole batch, and the part of each map
        for display (detached).
    """
    heads: dict[str, HeadLoss | None] = {
        BUILDING: losses.building, BORDER: losses.border, CONTACT: losses.contact
    }  # fmt: skip
    parts = {}
    for name in losses.map_names:
        head = heads[name]
        assert head is not None
        picked = logits[:, map_names.index(name)].float().unsqueeze(1)
        truth = ((target[..., 0] & _BITS[name]) > 0).float().unsqueeze(1)
        part = head_loss(picked, truth, head, total)
        if isinstance(head, BuildingHeadLoss) and head.weighted:
            weights = _WEIGHTS.to(target.device)[target[..., 1].long()].unsqueeze(1)
            part = part + head.weighted * weighted_cross_entropy(picked, truth, weights)
        parts[name] = part
    loss = torch.stack(list(parts.values())).sum()
    return loss, {name: part.detach() for name, part in parts.items()}


def weighted_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Compute the mean over all pixels of weight x binary cross entropy.

    The original has two logits per pixel and a softmax. One logit, their difference, is equivalent.

    Args:
        logits: float (n, 1, h, w).
        target: float (n, 1, h, w), 0 and 1.
        weights: float (n, 1, h, w), above 0.
    """
    return F.binary_cross_entropy_with_logits(logits, target, weight=weights)
