"""A network as training calls it: compiled, and copied to every rank that shares the work."""

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from satmap.errors import SatmapError
from satmap.runtime.ranks import Ranks
from satmap.training.run_context import RunContext


class Forward:
    """The call of a network in training; its gradients are the mean over the ranks.

    Make it anew when other parameters learn: ``DistributedDataParallel`` looks only once.

    Attributes:
        network: the bare network, whose state dict is everybody's.
    """

    def __init__(self, network: nn.Module, context: RunContext) -> None:
        self.network = network
        self._parallel: DistributedDataParallel | None = None
        module: nn.Module = network
        if context.ranks.world > 1:
            on_gpu = context.device.type == "cuda"
            with warnings.catch_warnings():
                # torch renames the argument, and its older versions do not know the new name.
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                module = self._parallel = DistributedDataParallel(
                    network,
                    device_ids=[context.device] if on_gpu else None,
                    # Batch-norm statistics are the same everywhere, for they are joint.
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )
        self._call: Any = torch.compile(module) if context.compile else module

    def __call__(self, *inputs: Tensor) -> Any:
        """What the network returns for the task's inputs."""
        return self._call(*inputs)

    def gradients_stay(self, stay: bool) -> contextlib.AbstractContextManager[None]:
        """Whether the gradients of what runs inside wait for a later part of the batch."""
        if stay and self._parallel is not None:
            waiting: contextlib.AbstractContextManager[None] = self._parallel.no_sync()
            return waiting
        return contextlib.nullcontext()


def sum_over_ranks(part: Tensor, ranks: Ranks) -> Tensor:
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
        sums = sum_over_ranks(torch.cat([values.sum(over), own]), self.ranks)
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = values - mean.view(1, -1, 1, 1)
        # In two passes: a mean of squares less a squared mean loses digits.
        variance = sum_over_ranks(centred.square().sum(over), self.ranks) / count
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


def require_compiler(device: torch.device) -> None:
    """Compile something small, forwards and backwards, on the device.

    Raises:
        SatmapError: torch cannot; says why and what it needs.
    """
    values = torch.ones(64, device=device, requires_grad=True)
    try:
        compiled = torch.compile(_something)
        compiled(values).backward()  # type: ignore[no-untyped-call]
    # What compilers, linkers and torch's own layers raise has no common type.
    except Exception as error:
        needed = "triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++)"
        raise SatmapError(
            f"--compile: torch cannot compile for {device} here ({_reason(error)}). It needs "
            f"{needed} and Python's headers; $CXX names another compiler. Leave --compile out to "
            "train without."
        ) from error


def _something(values: torch.Tensor) -> torch.Tensor:
    return (values * 2).sigmoid().sum()


def _reason(error: Exception) -> str:
    """The first line that says more than that something went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
