"""Losses of probability maps: dice, focal loss, cross entropy, distillation and recall."""

import torch
import torch.nn.functional as F
from torch import Tensor

from satmap.recipes.task_settings import HeadLoss
from satmap.tasks.base import Total

_FOCAL_GAMMA = 2.0

# A channel counts for dice only with at least this many target pixels in the batch.
_LEAST_DICE_PIXELS = 100


def one_process(part: Tensor) -> Tensor:
    """Return a tensor unchanged: its sum over one process."""
    return part


def head_loss(
    logits: Tensor, target: Tensor, weights: HeadLoss, total: Total = one_process
) -> Tensor:
    """Compute the weighted sum of dice, focal loss and cross entropy of one head.

    Args:
        logits: float (n, maps, h, w).
        target: float (n, maps, h, w), 0 and 1.
        weights: weights of the losses.
        total: sums a tensor over the processes that share the batch.

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
    """Return one minus the soft dice of each channel over the batch, averaged over channels.

    Channels with fewer than 100 target pixels do not count; the loss is 0 if none counts.
    """
    probabilities = logits.sigmoid()
    over = (0, 2, 3)
    # Sum over the whole batch first: the dice of a batch is not the mean dice of its parts.
    size, overlap, predicted = total(
        torch.stack([target.sum(over), (probabilities * target).sum(over), probabilities.sum(over)])
    )
    # The prediction enters linearly, as in the reference, not squared.
    dice = 1 - 2 * overlap / (predicted + size + 1e-3)
    counted = (size >= _LEAST_DICE_PIXELS).float()
    mean: Tensor = (dice * counted).sum() / counted.sum().clamp(min=1)
    return mean


def distillation_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of the network's probabilities from a teacher's.

    Each map is a binary classification. There is no temperature, because the mean over several
    networks and test-time augmentations is not overconfident.

    Args:
        logits: float (n, maps, h, w).
        teacher: probabilities, float (n, maps, h, w).
    """
    complement = 1 - teacher
    # Subtract the teacher's entropy, so that the loss is 0 if both agree.
    entropy = -(torch.xlogy(teacher, teacher) + torch.xlogy(complement, complement)).mean()
    return F.binary_cross_entropy_with_logits(logits, teacher) - entropy


def recall_loss(logits: Tensor, target: Tensor, total: Total = one_process) -> Tensor:
    """Return one minus the soft recall over the batch; 0 without target pixels.

    It does not penalise false positives, so use it only together with a loss that does.
    """
    size, found = total(torch.stack([target.sum(), (logits.sigmoid() * target).sum()]))
    missed: Tensor = (size - found) / size.clamp(min=1)
    return missed
