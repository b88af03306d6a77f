"""What timm's layers need changed before they can be part of an encoder."""

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn


class NormAct(nn.Module):
    """timm's fused batch-norm and activation as two modules.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` replaces a ``BatchNormAct2d`` whole and so
    silently loses its activation; a plain batch-norm inside survives it.
    """

    def __init__(self, fused: BatchNormAct2d) -> None:
        super().__init__()
        if not isinstance(fused.drop, nn.Identity):
            raise ValueError("a BatchNormAct2d with a drop layer cannot be split in two")
        self.norm = nn.BatchNorm2d(fused.num_features, eps=fused.eps, momentum=fused.momentum)
        self.norm.load_state_dict(fused.state_dict())
        self.act = fused.act

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate ``x``, float (N, C, H, W)."""
        output: Tensor = self.act(self.norm(x))
        return output


def split_norm_act(module: nn.Module) -> None:
    """Replace every ``BatchNormAct2d`` inside by a ``NormAct``."""
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            setattr(module, name, NormAct(child))
        else:
            split_norm_act(child)


def force_padding(model: nn.Module) -> None:
    """Let sizes halve cleanly where the original network shrinks them at the borders.

    Every 3 x 3 convolution and max-pool gets a padding of 1.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding = (1, 1)
        elif isinstance(module, nn.MaxPool2d) and module.kernel_size == 3:
            module.padding = 1


class StridedConv(nn.Conv2d):
    """TensorFlow's convolution of stride 2 for even sizes, which encoders' always are.

    TensorFlow pads as much as each size needs, more on the far sides. timm's ``Conv2dSame``
    computes that anew for every image, which graphs for a free image size cannot follow; for even
    sizes it is constant.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, float (N, C, H, W), H and W even, to (N, out, H / 2, W / 2)."""
        before = (self.kernel_size[0] - 2) // 2
        after = self.kernel_size[0] - 2 - before
        return super().forward(F.pad(x, (before, after, before, after)))


def fix_same_padding(module: nn.Module) -> None:
    """Replace every ``Conv2dSame`` inside, all of them square and of stride 2, by ``StridedConv``.

    The parameters are the same objects.
    """
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            fixed = StridedConv(
                child.in_channels,
                child.out_channels,
                cast(tuple[int, int], child.kernel_size),
                stride=2,
                groups=child.groups,
                bias=child.bias is not None,
                device="meta",
            )
            fixed.weight, fixed.bias = child.weight, child.bias
            setattr(module, name, fixed)
        else:
            fix_same_padding(child)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, H, W) to ``size``, corners on corners.

    On a GPU the gradient of torch's own adds up in any order. Where torch is asked for
    deterministic algorithms it is two products with matrices instead.

    Returns:
        (N, C, *size), of the type of ``x``.
    """
    if torch.are_deterministic_algorithms_enabled():
        return resize_by_products(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def resize_by_products(x: Tensor, size: tuple[int, int]) -> Tensor:
    """As ``F.interpolate(x, size, mode="bilinear", align_corners=True)``, by matrix products.

    Each side is a linear map of its own: every output is a mean of two neighbours. Computed in
    float32 whatever autocast says, for in bfloat16 the weights themselves would be off by 0.4 %.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = _weights(x.shape[2], size[0], x.device)
        columns = _weights(x.shape[3], size[1], x.device)
        return (rows @ x.float() @ columns.T).to(x.dtype)


def _weights(length: int, out: int, device: torch.device) -> Tensor:
    """What each of ``length`` pixels has in each of ``out``: float32 (out, length)."""
    scale = (length - 1) / (out - 1) if out > 1 else 0.0
    # The last falls on the last, whatever rounding says.
    place = (torch.arange(out, device=device, dtype=torch.float32) * scale).clamp(max=length - 1)
    distance = place[:, None] - torch.arange(length, device=device, dtype=torch.float32)
    # A hat around every input pixel: 1 on it and 0 on its neighbours.
    return (1 - distance.abs()).clamp(min=0)
