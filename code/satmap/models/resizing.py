"""Bilinear enlarging whose gradient is the same every time."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
