"""Changes to timm's layers for use in encoders, and building of networks without values."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from satmap.networks.timm_import import BatchNormAct2d, Conv2dSame


class NormAct(nn.Module):
    """timm's fused batch-norm and activation, split into two modules.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` replaces a ``BatchNormAct2d`` as a whole and
    silently drops its activation. With separate modules, it replaces only the batch-norm.
    """

    def __init__(self, fused: BatchNormAct2d) -> None:
        super().__init__()
        if not isinstance(fused.drop, nn.Identity):
            raise ValueError("a BatchNormAct2d with a drop layer cannot be split")
        self.norm = nn.BatchNorm2d(fused.num_features, eps=fused.eps, momentum=fused.momentum)
        self.norm.load_state_dict(fused.state_dict())
        self.act = fused.act

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate ``x``, float (N, C, H, W)."""
        output: Tensor = self.act(self.norm(x))
        return output


def split_norm_act(module: nn.Module) -> None:
    """Replace every ``BatchNormAct2d`` inside a module by a ``NormAct``."""
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            setattr(module, name, NormAct(child))
        else:
            split_norm_act(child)


def force_padding(model: nn.Module) -> None:
    """Set the padding of every 3 x 3 convolution and max-pool to 1.

    Strided layers then halve the size exactly; the original network crops the borders.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding = (1, 1)
        elif isinstance(module, nn.MaxPool2d) and module.kernel_size == 3:
            module.padding = 1


class DepthwiseConv(nn.Conv2d):
    """Convolution that trains on CPUs in float32 if it is depthwise, even under autocast.

    oneDNN computes gradients of depthwise convolutions in bfloat16 without fast kernels. In float32
    they take a tenth of the time or less, and a step of a network with an EfficientNet encoder half
    of it. Other convolutions, GPUs and predictions keep the precision of autocast.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.groups == 1 or x.device.type != "cpu" or not torch.is_grad_enabled():
            result: Tensor = super()._conv_forward(x, weight, bias)
            return result
        with torch.autocast("cpu", enabled=False):
            result = super()._conv_forward(x.float(), weight, bias)
        return result.to(x.dtype)


class StridedConv(DepthwiseConv):
    """Convolution of stride 2 with TensorFlow's "same" padding for even input sizes.

    TensorFlow's padding depends on the size and is larger at the bottom and right. timm's
    ``Conv2dSame`` computes it for every image, which an exported graph for any image size cannot
    do. For even sizes, which encoders always have, the padding is constant.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, float (N, C, H, W), H and W even, to (N, out, H / 2, W / 2)."""
        before = (self.kernel_size[0] - 2) // 2
        after = self.kernel_size[0] - 2 - before
        return super().forward(F.pad(x, (before, after, before, after)))


def replace_convolutions(module: nn.Module) -> None:
    """Replace convolutions by ours with the same parameters.

    Every ``Conv2dSame``, square and of stride 2, becomes a ``StridedConv``, and every other
    depthwise convolution a ``DepthwiseConv``.
    """
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, _like(child, StridedConv))
        elif isinstance(child, nn.Conv2d) and 1 < child.groups == child.in_channels:
            setattr(module, name, _like(child, DepthwiseConv))
        else:
            replace_convolutions(child)


def _like(conv: nn.Conv2d, kind: type[DepthwiseConv]) -> DepthwiseConv:
    """Return a convolution of another kind with the same parameters."""
    replaced = kind(
        conv.in_channels,
        conv.out_channels,
        cast(tuple[int, int], conv.kernel_size),
        stride=cast(tuple[int, int], conv.stride),
        padding=0 if kind is StridedConv else cast(tuple[int, int], conv.padding),
        dilation=cast(tuple[int, int], conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    replaced.weight, replaced.bias = conv.weight, conv.bias
    return replaced


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Build networks on torch's meta device, for the names and shapes of their parameters.

    Their initialisation is skipped. On the meta device it would have no effect, but torch imports
    its compiler for it, which takes seconds.
    """
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """Returns tensors unchanged where ``torch.nn.init`` or a network would draw their values."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        module = getattr(func, "__module__", None)
        if func in (Tensor.normal_, Tensor.uniform_) or module == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
