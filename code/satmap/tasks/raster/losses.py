"""Losses of building masks: cross entropy, dice and focal loss, and the Lovasz losses."""

import torch
from torch import Tensor

from satmap.tasks.base import Total
from satmap.tasks.buildings.settings import BORDER, BUILDING, CONTACT
from satmap.tasks.buildings.targets import BODY_BIT, BORDER_BIT, CONTACT_BIT
from satmap.tasks.losses import Ignored, head_loss
from satmap.tasks.raster.settings import FootprintLoss, RasterLosses

BITS = {BUILDING: BODY_BIT, BORDER: BORDER_BIT, CONTACT: CONTACT_BIT}


def raster_loss(
    logits: Tensor,
    map_names: tuple[str, ...],
    target: Tensor,
    losses: RasterLosses,
    total: Total,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the weighted sum of the losses of all maps, as :meth:`satmap.tasks.base.Task.loss`.

    The logits are float (n, maps, h, w); ``map_names`` names their channels. The target is uint8
    (n, h, w), see :mod:`satmap.tasks.raster.task`. The parts of the loss are named after the maps.
    """
    parts, ignored = {}, Ignored.of(target, total)
    counted = ~ignored.where[:, 0]
    for name, head in losses.heads.items():
        picked = ignored.silence(logits[:, map_names.index(name)].float().unsqueeze(1))
        truth = (target & BITS[name]) > 0
        part = head_loss(picked, truth.float().unsqueeze(1), head, total, ignored.scale)
        if isinstance(head, FootprintLoss):
            if head.lovasz_softmax:
                errors = (picked[:, 0].sigmoid() - truth.float()).abs()
                part = part + head.lovasz_softmax * lovasz_loss(errors, truth, counted)
            if head.lovasz_hinge:
                errors = (1 - picked[:, 0] * (2 * truth.float() - 1)).relu()
                part = part + head.lovasz_hinge * lovasz_loss(errors, truth, counted)
        parts[name] = part
    loss = torch.stack(list(parts.values())).sum()
    return loss, {name: part.detach() for name, part in parts.items()}


def lovasz_loss(errors: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Return the Lovasz extension of one minus the Jaccard index, the mean over both classes.

    The index is computed over all pixels of the batch together; with several processes, each uses
    its own part of the batch. A class without pixels does not count. Building and background have
    the same errors, so one sort serves both. Source: https://arxiv.org/abs/1705.08790.

    Args:
        errors: error of every pixel, float, any shape; 0 where the prediction is right.
        truth: bool, True on buildings.
        counted: bool, False for ignored pixels.
    """
    # Pixels without error add nothing wherever they are, so ignored ones need not be removed.
    errors = (errors * counted).flatten()
    order = errors.detach().argsort(descending=True, stable=True)
    weights = [_jaccard_steps((side & counted).flatten()[order]) for side in (truth, ~truth)]
    present = torch.stack([(side & counted).any() for side in (truth, ~truth)]).float()
    losses = torch.stack([(errors[order] * steps).sum() for steps in weights])
    mean: Tensor = (losses * present).sum() / present.sum().clamp(min=1)
    return mean


def _jaccard_steps(truth: Tensor) -> Tensor:
    """Return how much one minus the Jaccard index grows with each further wrong pixel.

    ``truth`` is bool (pixels,), in the order in which the pixels become wrong.
    """
    # Counts are integers: float32 is not exact beyond 16 million pixels.
    present = truth.long()
    size = present.sum()
    left = size - present.cumsum(0)
    union = size + (1 - present).cumsum(0)
    loss = 1 - left.double() / union.clamp(min=1).double()
    steps: Tensor = torch.diff(loss, prepend=loss.new_zeros(1)).float()
    return steps
