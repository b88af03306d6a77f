"""Losses of the heads, one list of terms a recipe."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from satmap.rasters.probability_maps import JUNCTION, ROAD, ROAD_MAPS, SPEED_MAPS
from satmap.recipes.schema import HeadLoss, Losses
from satmap.tasks.roads.targets import CENTRE_BIT, CLASS_BITS, JUNCTION_BIT
from satmap.vectors.speeds import SPEED_BINS

_FOCAL_GAMMA = 2.0

# A channel with fewer target pixels in the batch says nothing about overlap.
_LEAST_DICE_PIXELS = 100

#: Adds up what several ranks found in their shares of a batch.
Total = Callable[[Tensor], Tensor]


class BatchLoss(Protocol):
    """The loss of a batch by the recipe's weights, which are of the same task."""

    def __call__(
        self,
        logits: Tensor,
        map_names: tuple[str, ...],
        target: Tensor,
        losses: Any,
        total: Total,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and, for display, its parts by name (detached).

        Args:
            logits: float (n, planes, h, w).
            map_names: names of the planes.
            target: uint8, as the chips' cache holds them.
            losses: weights.
            total: adds up over the ranks that share the batch.
        """


def _own(part: Tensor) -> Tensor:
    return part


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
    losses: Losses,
    total: Total = _own,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over all heads.

    Args:
        logits: float (n, planes, h, w).
        map_names: names of the planes, which must hold all of ``ROAD_MAPS``.
        target: uint8 (n, h, w), packed; or (n, 1 + 12, h, w) with a teacher's probabilities of
            ``ROAD_MAPS`` after it, 0..255 for 0..1.
        losses: weights by head.
        total: adds up over the ranks that share the batch.

    Returns:
        The loss, whose mean over the ranks is that of the whole batch, and, for display, each
        head's part of it (detached).
    """
    packed, soft = (target[:, 0], target[:, 1:]) if target.ndim == 4 else (target, None)
    targets = split_heads(packed)
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


def head_loss(logits: Tensor, target: Tensor, weights: HeadLoss, total: Total = _own) -> Tensor:
    """Dice, focal loss and cross entropy of one head, weighted; scalars of float32."""
    loss = logits.new_zeros(())
    if weights.dice:
        loss = loss + weights.dice * dice_loss(logits, target, total)
    if weights.focal or weights.bce:
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        # exp(-cross entropy) is the probability given to the true class: focal loss
        # (arXiv 1708.02002) without a second pass over sigmoid.
        surprise = -torch.expm1(-cross_entropy)
        focal = (surprise**_FOCAL_GAMMA * cross_entropy).mean()
        loss = loss + weights.focal * focal + weights.bce * cross_entropy.mean()
    return loss


def dice_loss(logits: Tensor, target: Tensor, total: Total = _own) -> Tensor:
    """One minus the soft dice, per channel over the batch, mean over channels with a target.

    0 where no channel has at least 100 target pixels.
    """
    probabilities = logits.sigmoid()
    over = (0, 2, 3)
    # The dice of shares of a batch do not add up, the sums in them do.
    size, overlap, predicted = total(
        torch.stack([target.sum(over), (probabilities * target).sum(over), probabilities.sum(over)])
    )
    # The prediction enters linearly, as in the reference, not squared.
    dice = 1 - 2 * overlap / (predicted + size + 1e-3)
    counted = (size >= _LEAST_DICE_PIXELS).float()
    mean: Tensor = (dice * counted).sum() / counted.sum().clamp(min=1)
    return mean


def distillation_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the network's probabilities from a teacher's, mean; 0 where
    they agree.

    Every plane is a question of yes or no. There is no temperature: a teacher of several networks
    and views is no surer than it should be.

    Args:
        logits: float (n, planes, h, w).
        teacher: probabilities, float (n, planes, h, w).
    """
    disbelief = 1 - teacher
    # What the teacher leaves open cannot be learnt: only what is above its own entropy counts.
    entropy = -(torch.xlogy(teacher, teacher) + torch.xlogy(disbelief, disbelief)).mean()
    return F.binary_cross_entropy_with_logits(logits, teacher) - entropy


def recall_loss(logits: Tensor, target: Tensor, total: Total = _own) -> Tensor:
    """One minus the soft recall, over the batch; 0 where there is no target.

    Nothing is said of what is predicted elsewhere: only beside a loss that does.
    """
    size, found = total(torch.stack([target.sum(), (logits.sigmoid() * target).sum()]))
    missed: Tensor = (size - found) / size.clamp(min=1)
    return missed
