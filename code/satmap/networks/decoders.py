"""Decoder blocks: each doubles the resolution and merges the encoder feature of that resolution.

A decoder is four blocks of one kind, and the kinds are the entries of ``DECODERS``. The blocks have
no normalisation: the reference has none, and batch statistics of small batches would be noisy.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DecoderBlock(nn.Module):
    """Decoder block of the reference: upsample, 3 x 3 convolution, concatenate, 3 x 3 convolution.

    Source: selim_sef's third place in SpaceNet 5. Its published weights can be loaded.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.skip_conv = nn.Conv2d(out_channels + skip_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Decode float (N, in_channels, H, W) to (N, out_channels, 2 H, 2 W).

        ``skip`` is (N, skip_channels, 2 H, 2 W); None if the encoder has no feature of that size.
        """
        x = F.relu(self.up_conv(upsample(x, skip)), inplace=True)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return F.relu(self.skip_conv(x), inplace=True)


class ScseBlock(DecoderBlock):
    """Decoder block with concurrent spatial and channel squeeze and excitation.

    Channels are squeezed to half their number, and the outputs weighted by channel and by pixel are
    added. Source: https://arxiv.org/abs/1803.02579.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, skip_channels, out_channels)
        squeezed = -(-out_channels // 2)
        self.squeeze = nn.Conv2d(out_channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, out_channels, 1)
        self.spatial = nn.Conv2d(out_channels, 1, 1)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Decode one scale; shapes as in ``DecoderBlock``."""
        x = super().forward(x, skip)
        pooled = x.mean(dim=(2, 3), keepdim=True)
        channel: Tensor = self.excite(F.relu(self.squeeze(pooled)))
        spatial: Tensor = self.spatial(x)
        return x * (channel.sigmoid() + spatial.sigmoid())


class LightBlock(nn.Module):
    """Cheap decoder block: 1 x 1 convolutions of both inputs, then two 3 x 3 convolutions.

    Most of the reference's arithmetic goes into 3 x 3 convolutions of wide inputs: the upsampled
    feature and the encoder feature. Here 1 x 1 convolutions reduce both to the output's width
    first. The upsampled input is reduced before it is upsampled: the result is the same at a
    quarter of the cost. The two reduced inputs are added, which equals a convolution of their
    concatenation. With one 3 x 3 convolution instead of two, the block learns less
    (``benchmarks/decoders.py``).
    Source of the lateral 1 x 1 convolutions: https://arxiv.org/abs/1612.03144.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(in_channels, out_channels, 1)
        if skip_channels:
            self.lateral = nn.Conv2d(skip_channels, out_channels, 1, bias=False)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Decode one scale; shapes as in ``DecoderBlock``."""
        x = upsample(self.narrow(x), skip)
        if skip is not None:
            x = x + self.lateral(skip)
        x = F.relu(self.conv1(F.relu(x, inplace=True)), inplace=True)
        return F.relu(self.conv2(x), inplace=True)


#: Decoder blocks by their names in recipes.
DECODERS: Mapping[str, type[nn.Module]] = {
    "plain": DecoderBlock,
    "scse": ScseBlock,
    "light": LightBlock,
}


def upsample(x: Tensor, like: Tensor | None) -> Tensor:
    """Upsample float (N, C, H, W) by a factor of two with nearest-neighbour interpolation.

    The size of ``like`` is used, if it is given: an exported graph for any image size cannot prove
    that it equals twice the size of ``x``.
    """
    if like is None:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")
