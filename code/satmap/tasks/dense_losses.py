"""Losses of probability maps: dice, focal loss, cross entropy, distillation and recall."""

import torch
import torch.nn.functional as F
from torch import Tensor

from satmap.recipes.task_settings import HeadLoss
from satmap.tasks.base import Total

_FOCAL_GAMMA = 2.0

# A channel with fewer target pixels in the batch says nothing about overlap.
_LEAST_DICE_PIXELS = 100


def one_process(part: Tensor) -> Tensor:
    """The sum over the processes where there is only one."""
    return part


def head_loss(
    logits: Tensor, target: Tensor, weights: HeadLoss, total: Total = one_process
) -> Tensor:
    """Dice, focal loss and cross entropy of one head, weighted, for roads and buildings.

    Args:
        logits: float (n, maps, h, w).
        target: float (n, maps, h, w), 0 and 1.
        weights: of the losses.
        total: adds up over the processes that share the batch.

    Returns:
        A scalar of float32.
    """
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


def dice_loss(logits: Tensor, target: Tensor, total: Total = one_process) -> Tensor:
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


def recall_loss(logits: Tensor, target: Tensor, total: Total = one_process) -> Tensor:
    """One minus the soft recall, over the batch; 0 where there is no target.

    Nothing is said of what is predicted elsewhere: only beside a loss that does.
    """
    size, found = total(torch.stack([target.sum(), (logits.sigmoid() * target).sum()]))
    missed: Tensor = (size - found) / size.clamp(min=1)
    return missed
