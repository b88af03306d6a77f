"""A network as training calls it: compiled, and copied to every rank that shares the work."""

import contextlib
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from satmap.models.unet import UNet
from satmap.runtime.ranks import Ranks
from satmap.training.workplace import Workplace


class Forward:
    """The call of a network in training; its gradients are the mean over the ranks.

    Make it anew when other parameters learn: ``DistributedDataParallel`` looks only once.

    Attributes:
        network: the bare network, whose state dict is everybody's.
    """

    def __init__(self, network: UNet, place: Workplace) -> None:
        self.network = network
        self._parallel: DistributedDataParallel | None = None
        module: nn.Module = network
        if place.ranks.world > 1:
            on_gpu = place.device.type == "cuda"
            with warnings.catch_warnings():
                # torch renames the argument, and its older versions do not know the new name.
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                module = self._parallel = DistributedDataParallel(
                    network,
                    device_ids=[place.device] if on_gpu else None,
                    # Batch-norm statistics are the same everywhere, for they are joint.
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )
        self._call: Any = torch.compile(module) if place.compile else module

    def __call__(self, images: Tensor, category: Tensor | None = None) -> Tensor:
        """Logits (n, planes, h, w) of normalised images (n, channels, h, w), for networks with
        categories by the index of each image's."""
        logits: Tensor = self._call(images, *([] if category is None else [category]))
        return logits

    def gradients_stay(self, stay: bool) -> contextlib.AbstractContextManager[None]:
        """Whether the gradients of what runs inside wait for a later part of the batch."""
        if stay and self._parallel is not None:
            waiting: contextlib.AbstractContextManager[None] = self._parallel.no_sync()
            return waiting
        return contextlib.nullcontext()


def total(part: Tensor, ranks: Ranks) -> Tensor:
    """The sum over the ranks; gradients flow back through it to every rank's part."""
    if ranks.world == 1:
        return part
    summed: Tensor = _Total.apply(part)
    return summed


class _Total(torch.autograd.Function):
    """The sum over all ranks, forwards and backwards."""

    @staticmethod
    def forward(context: Any, part: Tensor) -> Tensor:
        summed = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed
