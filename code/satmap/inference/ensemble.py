"""The mean of several networks over several views, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satmap.device import autocast
from satmap.inference.views import VIEWS, View
from satmap.inference.windows import windows
from satmap.models.unet import STRIDE, UNet
from satmap.recipe import Inference

# Networks are blind close to the border: show them a mirrored margin.
_LEAST_MARGIN = 16


@dataclass(frozen=True)
class Voter:
    """A network of an ensemble and its weight in the mean.

    Attributes:
        network: on the device, in evaluation mode.
        votes: for how many checkpoints it stands; the best and the last may be one network.
    """

    network: UNet
    votes: int = 1


def predict_planes(
    voters: Sequence[Voter],
    image: NDArray[np.uint8],
    settings: Inference,
    device: torch.device,
    category: str | None = None,
) -> NDArray[np.uint8]:
    """Average the probabilities of all networks and views.

    Args:
        voters: networks with the same planes. One of three channels sees the first three of the
            image.
        image: uint8 (height, width, channels).
        settings: views, batch and windows.
        device: where to compute.
        category: of the image, for networks with a head for each; others ignore it.

    Returns:
        uint8 (planes, height, width), 0..255 for 0..1; 0 where the image has no data (0 in every
        channel), whatever the networks make of the black.
    """
    height, width = image.shape[:2]
    planes = np.empty((len(voters[0].network.plane_names), height, width), np.uint8)
    for window in windows(height, width, settings.window, settings.overlap):
        mean = _predict_window(voters, image[window.read], settings, device, category)
        planes[:, *window.core] = mean[:, *window.core_in_read]
    planes[:, ~image.any(axis=2)] = 0
    return planes


@torch.inference_mode()
def _predict_window(
    voters: Sequence[Voter],
    image: NDArray[np.uint8],
    settings: Inference,
    device: torch.device,
    category: str | None,
) -> NDArray[np.uint8]:
    top, bottom = _margins(image.shape[0])
    left, right = _margins(image.shape[1])
    padded = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="reflect")
    pixels = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1))).to(device)
    planes = len(voters[0].network.plane_names)
    total = torch.zeros((planes, *pixels.shape[1:]), dtype=torch.float32, device=device)
    for voter in voters:
        network = voter.network
        normalized = network.encoder.normalize(pixels[None, : network.encoder.in_channels])
        for views in _batches(VIEWS[: settings.views], pixels.shape[1:], settings.batch):
            batch = torch.cat([view.apply(normalized) for view in views])
            heads = [network.category_indices([category] * len(batch))] if category else []
            with autocast(device):
                logits = network(batch.contiguous(memory_format=torch.channels_last), *heads)
            for view, output in zip(views, logits.float().sigmoid(), strict=True):
                total += view.undo(output) * voter.votes
    votes = sum(voter.votes for voter in voters)
    mean = total * (255 / (votes * settings.views))
    inside: Tensor = mean[:, top : top + image.shape[0], left : left + image.shape[1]]
    return inside.round().to(torch.uint8).cpu().numpy()


def _margins(length: int) -> tuple[int, int]:
    """Padding before and after that makes a length a multiple of the network's stride."""
    padded = -(-(length + 2 * _LEAST_MARGIN) // STRIDE) * STRIDE
    before = (padded - length) // 2
    return before, padded - length - before


def _batches(views: Sequence[View], shape: Sequence[int], size: int) -> list[list[View]]:
    """Views in batches of one shape: a quarter turn swaps the sides of an oblong image."""
    upright = [view for view in views if view.quarter_turns % 2 == 0]
    turned = [view for view in views if view.quarter_turns % 2 == 1]
    groups = [list(views)] if shape[0] == shape[1] else [upright, turned]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]
