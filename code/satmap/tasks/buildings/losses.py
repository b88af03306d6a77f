"""Losses of the building maps, with pixel weights by location and size of the buildings."""

import torch
import torch.nn.functional as F
from torch import Tensor

from satmap.tasks.base import Total
from satmap.tasks.buildings.settings import (
    BORDER,
    BUILDING,
    CONTACT,
    BuildingHeadLoss,
    BuildingLosses,
)
from satmap.tasks.buildings.targets import BODY_BIT, BORDER_BIT, CONTACT_BIT, weight_table
from satmap.tasks.losses import Ignored, head_loss

_BITS = {BUILDING: BODY_BIT, BORDER: BORDER_BIT, CONTACT: CONTACT_BIT}
_WEIGHTS = torch.from_numpy(weight_table())


def building_loss(
    logits: Tensor,
    map_names: tuple[str, ...],
    target: Tensor,
    losses: BuildingLosses,
    total: Total,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the weighted sum of the losses of all maps, as :meth:`satmap.tasks.base.Task.loss`.

    The logits are float (n, maps, h, w); ``map_names`` names their channels and must include all of
    ``losses.map_names``. The target is uint8 (n, h, w, 2), see ``satmap.tasks.buildings.targets``.
    The parts of the loss are named after the maps.
    """
    parts, ignored = {}, Ignored.of(target[..., 0], total)
    for name, head in losses.heads.items():
        picked = ignored.silence(logits[:, map_names.index(name)].float().unsqueeze(1))
        truth = ((target[..., 0] & _BITS[name]) > 0).float().unsqueeze(1)
        part = head_loss(picked, truth, head, total, ignored.scale)
        if isinstance(head, BuildingHeadLoss) and head.weighted:
            weights = _WEIGHTS.to(target.device)[target[..., 1].long()].unsqueeze(1)
            # The original has two logits per pixel and a softmax. One logit, their difference, is
            # equivalent.
            entropy = F.binary_cross_entropy_with_logits(picked, truth, weight=weights)
            part = part + head.weighted * (entropy * ignored.scale)
        parts[name] = part
    loss = torch.stack(list(parts.values())).sum()
    return loss, {name: part.detach() for name, part in parts.items()}
