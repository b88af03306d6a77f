"""MixUp: train with weighted means of two images and of their losses.

Source: https://arxiv.org/abs/1710.09412. The mean of two cross entropies is the cross entropy of
the mean of both targets, a soft target. Dice and Lovasz losses take no soft targets, so as in the
second place of the Open Cities AI Challenge the mean of the losses is taken. This works for the
targets of any task, and the ignored pixels of each image stay ignored.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from satmap.tasks.base import Batch

#: The mixed images, once with each set of targets, and the weight of each set in the loss. The
#: weights add up to 1.
Mixture = Sequence[tuple[Batch, float]]


def mix_up(batch: Batch, alpha: float, seed: tuple[int, ...]) -> Mixture:
    """Mix every image of a batch with that of another sample.

    Args:
        batch: samples on the device; ``image`` is uint8 (n, channels, h, w).
        alpha: the share is drawn from a Beta distribution with this value as both parameters.
        seed: the same seed gives the same share and pairs.

    Returns:
        The mixed images twice: with the targets of the first and of the second sample of each pair.
    """
    random = np.random.default_rng(seed)
    share = float(random.beta(alpha, alpha))
    order = random.permutation(len(batch)).tolist()
    images = batch["image"].float()
    mixed = torch.lerp(images[order], images, share).round().to(torch.uint8)
    others = {
        # Tasks may have lists, such as the points of each sample.
        name: [value[i] for i in order] if isinstance(value, list) else value[order]
        for name, value in batch.tensors.items()
    }
    chips = [batch.chips[i] for i in order]
    first = Batch({**batch.tensors, "image": mixed}, batch.chips)
    return [(first, share), (Batch({**others, "image": mixed}, chips), 1 - share)]


def mean_loss(
    mixture: Mixture, loss_of: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean of the losses of the batches of a mixture, and of their parts by name."""
    found = [(*loss_of(batch), share) for batch, share in mixture]
    mean = torch.stack([share * loss for loss, _, share in found]).sum()
    parts = {
        name: torch.stack([share * each[name] for _, each, share in found]).sum()
        for name in found[0][1]
    }
    return mean, parts
