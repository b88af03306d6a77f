"""Losses of the planes of buildings, with weights by place and size of the buildings."""

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
from satmap.tasks.dense_losses import head_loss

_BITS = {BUILDING: BODY_BIT, BORDER: BORDER_BIT, CONTACT: CONTACT_BIT}
_WEIGHTS = torch.from_numpy(weight_table())


def building_loss(
    logits: Tensor,
    map_names: tuple[str, ...],
    target: Tensor,
    losses: BuildingLosses,
    total: Total,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over all planes.

    Args:
        logits: float (n, planes, h, w).
        map_names: names of the planes, which must hold all of ``losses.map_names``.
        target: uint8 (n, h, w, 2) as in ``satmap.tasks.buildings.targets``.
        losses: weights by plane.
        total: adds up over the ranks that share the batch.

    Returns:
        The loss, whose mean over the ranks is that of the whole batch, and, for display, each
        plane's part of it (detached).
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
    """Mean over all pixels of weight x cross entropy.

    One logit a pixel: the difference of the two that the original has, whose softmax over two
    classes is the same.

    Args:
        logits: float (n, 1, h, w).
        target: float (n, 1, h, w), 0 and 1.
        weights: float (n, 1, h, w), above 0.
    """
    return F.binary_cross_entropy_with_logits(logits, target, weight=weights)
