"""Data-parallel training: compiled networks, averaged gradients and joint batch norms."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from satmap.errors import SatmapError
from satmap.runtime.device import autocast
from satmap.runtime.ranks import Ranks
from satmap.training.run_context import RunContext


class Forward:
    """Forward pass in training: mixed precision, and gradients averaged over the processes.

    Make a new one after freezing or unfreezing parameters, because ``DistributedDataParallel``
    registers the trainable parameters only once.
    """

    def __init__(self, network: nn.Module, context: RunContext) -> None:
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
                    # Batch-norm statistics are joint, so they are the same in all processes.
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )
        self._call: Any = torch.compile(module) if context.compile else module
        self._autocast = autocast(context.device)

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the network's output for the task's inputs."""
        with self._autocast:
            return self._call(*inputs)

    def gradients_stay(self, stay: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that delays averaging gradients over processes if ``stay``.

        Set ``stay`` for all parts of a batch except the last; their gradients are accumulated.
        """
        if stay and self._parallel is not None:
            return self._parallel.no_sync()
        return contextlib.nullcontext()


def sum_over_ranks(part: Tensor, ranks: Ranks) -> Tensor:
    """Sum a tensor over all processes. Gradients flow back to the part of every process."""
    if ranks.world == 1:
        return part
    summed: Tensor = _Total.apply(part)
    return summed


class _Total(torch.autograd.Function):
    """Sum over all processes, in the forward and in the backward pass."""

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
    """Batch norm over the batches of all ``ranks`` on CPUs; torch's supports only GPUs."""

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, float (n, c, h, w); in training by the statistics of all processes."""
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None, "networks without momentum are not supported"
        over = (0, 2, 3)
        values = x.float()
        own = values.new_tensor([values.numel() / values.shape[1]])
        sums = sum_over_ranks(torch.cat([values.sum(over), own]), self.ranks)
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = values - mean.view(1, -1, 1, 1)
        # Two passes: the mean of squares minus the squared mean would lose precision.
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


@contextlib.contextmanager
def synced_norms(network: nn.Module, ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Synchronise the network's batch norms over all processes while the block runs.

    The layers are replaced, but their parameters and buffers stay the same tensors, and the names
    in the state dict do not change.
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
    """Give a layer the tensors and the mode of another layer."""
    norm.weight, norm.bias = other.weight, other.bias
    norm.running_mean, norm.running_var = other.running_mean, other.running_var
    norm.num_batches_tracked = other.num_batches_tracked
    norm.training = other.training


def _swap(network: nn.Module, layers: dict[str, nn.BatchNorm2d] | dict[str, Norm]) -> None:
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer)


def require_compiler(device: torch.device) -> None:
    """Check that torch can compile for the device, with a small forward and backward pass.

    Raises:
        SatmapError: torch cannot compile; the message names the reason and what is needed.
    """
    values = torch.ones(64, device=device, requires_grad=True)
    try:
        compiled = torch.compile(_small_function)
        compiled(values).backward()  # type: ignore[no-untyped-call]
    # Errors of compilers, linkers and torch have no common type.
    except Exception as error:
        needed = "triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++)"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:200] if lines else type(error).__name__
        raise SatmapError(
            f"--compile: torch cannot compile for {device} here ({reason}). It needs "
            f"{needed} and Python's headers; $CXX selects another compiler. Leave --compile out "
            "to train without it."
        ) from error


def _small_function(values: torch.Tensor) -> torch.Tensor:
    return (values * 2).sigmoid().sum()
