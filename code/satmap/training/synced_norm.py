"""Batch normalisation over the batches of all ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from satmap.runtime.ranks import Ranks
from satmap.training.parallel import total


class SyncedBatchNorm(nn.BatchNorm2d):
    """``torch.nn.SyncBatchNorm`` for CPUs, which torch's own refuses.

    Attributes:
        ranks: whose batches are normalised as one.
    """

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, float (N, C, H, W); in training by the statistics of all ranks."""
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None, "no network here averages all batches alike"
        over = (0, 2, 3)
        values = x.float()
        own = values.new_tensor([values.numel() / values.shape[1]])
        sums = total(torch.cat([values.sum(over), own]), self.ranks)
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = values - mean.view(1, -1, 1, 1)
        # In two passes: a mean of squares less a squared mean loses digits.
        variance = total(centred.square().sum(over), self.ranks) / count
        scaled = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        output = scaled * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return output.to(x.dtype)


@contextmanager
def synced_norms(network: nn.Module, ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Let the network's batch norms work over all ranks while the block runs.

    Parameters and buffers stay the same tensors, and state dicts have the same names.
    """
    if ranks.world == 1:
        yield
        return
    plain = {
        name: module for name, module in network.named_modules() if type(module) is nn.BatchNorm2d
    }
    kind = nn.SyncBatchNorm if device.type == "cuda" else SyncedBatchNorm
    synced = {name: _like(module, kind) for name, module in plain.items()}
    for module in synced.values():
        if isinstance(module, SyncedBatchNorm):
            module.ranks = ranks
    _swap(network, synced)
    try:
        yield
    finally:
        for name, module in plain.items():
            _adopt(module, synced[name])
        _swap(network, plain)


Norm = nn.BatchNorm2d | nn.SyncBatchNorm


def _like(norm: nn.BatchNorm2d, kind: type[Norm]) -> Norm:
    other = kind(norm.num_features, norm.eps, norm.momentum, device="meta")
    _adopt(other, norm)
    return other


def _adopt(norm: Norm, other: Norm) -> None:
    """Give a layer the tensors and the mode of another."""
    norm.weight, norm.bias = other.weight, other.bias
    norm.running_mean, norm.running_var = other.running_mean, other.running_var
    norm.num_batches_tracked = other.num_batches_tracked
    norm.training = other.training


def _swap(network: nn.Module, layers: dict[str, nn.BatchNorm2d] | dict[str, Norm]) -> None:
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer)
