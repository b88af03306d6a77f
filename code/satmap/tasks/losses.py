"""Losses of probability maps, which the tasks combine."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from satmap.errors import SatmapError
from satmap.networks.encoders import build_encoder
from satmap.recipes.pseudo_labels import PseudoLabels
from satmap.recipes.task_settings import HeadLoss
from satmap.tasks.base import Total
from satmap.weights.network_files import load_pretrained_encoder
from satmap.weights.pretrained import how_to_get, installed_file

#: Bit in the first byte of targets: the loss and the score ignore the pixel.
IGNORED_BIT = 0x20

# Logit of ignored pixels. Together with a target of 0 they add exactly 0 to every loss.
_CERTAIN = -1e4

_FOCAL_GAMMA = 2.0

# A channel counts for dice only with at least this many target pixels in the batch.
_LEAST_DICE_PIXELS = 100

# Erosions of the soft skeleton: objects up to 15 pixels wide become lines.
_EROSIONS = 7

# Frozen network whose features compare a map with its target, and the number of its stages.
_FEATURE_ENCODER = "efficientnet_lite0"
_FEATURE_STAGES = 3


def one_process(part: Tensor) -> Tensor:
    """Return the tensor: with one process there is nothing to sum."""
    return part


@dataclass(frozen=True)
class Ignored:
    """Pixels of a batch that the loss ignores.

    Attributes:
        where: bool (n, 1, h, w).
        scale: all pixels of the batch over those that count. Multiplied by it, a mean over all
            pixels becomes the mean over those that count.
    """

    where: Tensor
    scale: Tensor

    @classmethod
    def of(cls, target: Tensor, total: Total) -> "Ignored":
        """Find the ignored pixels in the first bytes of targets, uint8 (n, h, w)."""
        where = ((target & IGNORED_BIT) > 0).unsqueeze(1)
        counts = torch.stack([where.new_full((), where.numel(), dtype=torch.float32),
                              where.numel() - where.sum().float()])  # fmt: skip
        pixels, counted = total(counts)
        return cls(where, pixels / counted.clamp(min=1))

    def silence(self, logits: Tensor) -> Tensor:
        """Make a network certain that there is nothing in ignored pixels, as the target says."""
        return logits.masked_fill(self.where, _CERTAIN)


def head_loss(
    logits: Tensor,
    target: Tensor,
    weights: HeadLoss,
    total: Total = one_process,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """Compute the weighted sum of dice, focal loss and cross entropy of one head.

    Logits and target, which holds 0 and 1, are float32 (n, maps, h, w). Means over the pixels are
    multiplied by ``scale``, see :class:`Ignored`.
    """
    loss = logits.new_zeros(())
    if weights.dice:
        loss = loss + weights.dice * dice_loss(logits, target, total)
    if weights.focal or weights.bce:
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        # exp(-cross entropy) is the probability given to the true class: focal loss
        # (arXiv 1708.02002) without a second pass over sigmoid.
        surprise = -torch.expm1(-cross_entropy)
        focal = (surprise**_FOCAL_GAMMA * cross_entropy).mean() * scale
        loss = loss + weights.focal * focal + weights.bce * (cross_entropy.mean() * scale)
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


def pseudo_label_loss(
    logits: Tensor,
    probabilities: Tensor,
    taught: Tensor,
    settings: PseudoLabels,
    total: Total = one_process,
) -> Tensor:
    """Return the mean Kullback-Leibler divergence of a network from its teacher.

    Each map is a binary classification. The mean is over all pixels with pseudo-labels. Ignored
    ones add 0 to it, so uncertain batches weigh less, as in FixMatch (arXiv 2001.07685).

    Args:
        logits: float (n, maps, h, w).
        probabilities: of the teacher, uint8 (n, maps, h, w), 0..255 for 0..1.
        taught: bool (n, h, w): where there are pseudo-labels.
        settings: hard or soft labels, temperature, ignored and weighted pixels.
        total: sums a tensor over the processes that share the batch.

    Returns:
        The loss, whose mean over the processes is the loss of the whole batch.
    """
    teacher = probabilities.float() / 255
    where = taught.unsqueeze(1).expand_as(teacher)
    weights = where.float()
    if settings.ignore is not None:
        low, high = settings.ignore
        weights = weights.masked_fill((teacher > low) & (teacher < high), 0)
    if settings.confidence_weights:
        weights = weights * (2 * teacher - 1).abs()
    logits, temperature = logits.float(), 1.0
    if settings.labels == "hard":
        teacher = (probabilities >= 128).float()
    elif settings.temperature != 1:
        temperature = settings.temperature
        # Half a step of uint8 keeps the logits finite.
        teacher = (teacher.logit(eps=0.5 / 255) / temperature).sigmoid()
    entropy = -(torch.xlogy(teacher, teacher) + torch.xlogy(1 - teacher, 1 - teacher))
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits / temperature, teacher, reduction="none"
    )
    # Subtract the teacher's entropy, so that the loss is 0 if both agree. Gradients of softened
    # logits are smaller by the square of the temperature.
    loss = (temperature**2 * (cross_entropy - entropy) * weights).sum()
    pixels, counted = total(
        torch.stack([weights.new_tensor(float(weights.numel())), where.sum().float()])
    )
    mean: Tensor = loss / weights.numel() * (pixels / counted.clamp(min=1))
    return mean


def recall_loss(logits: Tensor, target: Tensor, total: Total = one_process) -> Tensor:
    """Return one minus the soft recall over the batch; 0 without target pixels.

    It does not penalise false positives, so use it only together with a loss that does.
    """
    size, found = total(torch.stack([target.sum(), (logits.sigmoid() * target).sum()]))
    missed: Tensor = (size - found) / size.clamp(min=1)
    return missed


def centreline_dice_loss(
    logits: Tensor, target: Tensor, centre: Tensor, total: Total = one_process
) -> Tensor:
    """Return one minus the centreline dice (clDice, arXiv 2003.07311) over the batch.

    It is the harmonic mean of the share of the target's centre lines that the network finds, and
    the share of the predicted skeleton that lies in the target. The skeleton of the probabilities
    is a soft one. Without target pixels the loss is 0.

    Args:
        logits: float (n, 1, h, w).
        target: the objects, float 0 or 1, of the same shape.
        centre: their centre lines, of the same shape.
        total: sums a tensor over the processes that share the batch.
    """
    probabilities = logits.sigmoid()
    skeleton = soft_skeleton(probabilities)
    length, inside, size, found = total(
        torch.stack([skeleton.sum(), (skeleton * target).sum(),
                     centre.sum(), (probabilities * centre).sum()])
    )  # fmt: skip
    precision, recall = (inside + 1) / (length + 1), (found + 1) / (size + 1)
    loss: Tensor = (1 - 2 * precision * recall / (precision + recall)) * (size > 0)
    return loss


def soft_skeleton(probabilities: Tensor, erosions: int = _EROSIONS) -> Tensor:
    """Thin probability maps to lines of about one pixel, differentiably.

    Source: arXiv 2003.07311, algorithm 1.

    Args:
        probabilities: float (n, maps, h, w).
        erosions: half the width of the widest object that becomes a line, pixels.
    """
    thinned = probabilities
    skeleton = (thinned - _dilate(_erode(thinned))).relu()
    for _ in range(erosions):
        thinned = _erode(thinned)
        rest = (thinned - _dilate(_erode(thinned))).relu()
        skeleton = skeleton + (rest - skeleton * rest).relu()
    return skeleton


def _erode(values: Tensor) -> Tensor:
    """Take the least value among each pixel and its four neighbours."""
    across = -F.max_pool2d(-values, (1, 3), 1, (0, 1))
    down = -F.max_pool2d(-values, (3, 1), 1, (1, 0))
    return torch.minimum(across, down)


def _dilate(values: Tensor) -> Tensor:
    """Take the largest value in the 3 x 3 pixels around each pixel."""
    return F.max_pool2d(values, 3, 1, 1)


def feature_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the difference between a map and its target in the features of an ImageNet network.

    It is the mean squared difference of the features of the first three stages, each divided by
    its mean square in the target. Gaps, spurs and false connections change these features more than
    pixels along an edge do. Source: Mosinska et al., arXiv 1712.02190, with the installed
    EfficientNet-Lite0 instead of VGG19.

    Args:
        logits: float (n, 1, h, w), of ignored pixels as from :meth:`Ignored.silence`.
        target: float 0 or 1, of the same shape.

    Raises:
        SatmapError: the package with the weights of EfficientNet-Lite0 is missing or damaged.
    """
    stages = _feature_stages(logits.device)
    predicted, wanted = logits.sigmoid(), target
    # White on black, in the range that the network was trained with.
    predicted, wanted = (values.expand(-1, 3, -1, -1) * 2 - 1 for values in (predicted, wanted))
    parts = []
    for stage in stages:
        predicted = stage(predicted)
        with torch.no_grad():
            wanted = stage(wanted)
            scale = (wanted**2).mean().clamp(min=1e-6)
        parts.append(((predicted - wanted) ** 2).mean() / scale)
    mean: Tensor = torch.stack(parts).mean()
    return mean


@cache
def _feature_stages(device: torch.device) -> nn.ModuleList:
    """Load the first stages of EfficientNet-Lite0, frozen. They are kept for later batches."""
    encoder = build_encoder(_FEATURE_ENCODER, 3)
    file = installed_file(_FEATURE_ENCODER)
    if file is None:
        raise SatmapError(
            f"a loss needs the ImageNet weights of {_FEATURE_ENCODER}, which are not installed. "
            f"{how_to_get(_FEATURE_ENCODER)}"
        )
    load_pretrained_encoder(encoder, file)
    stages = nn.ModuleList(list(encoder.stages)[:_FEATURE_STAGES])
    return stages.requires_grad_(False).eval().to(device)
