"""Decoder blocks: each doubles the size and mixes in the encoder's feature of that size.

A decoder is four of a kind, and a kind is an entry of ``DECODERS``. None has normalisation: the
reference's has none, and small batches of large crops would make it noisy.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DecoderBlock(nn.Module):
    """The reference's: 3 x 3 convolution after enlarging, another after concatenating.

    Source: selim_sef's third place in SpaceNet 5; its published weights fit.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.skip_conv = nn.Conv2d(out_channels + skip_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Decode one scale.

        Args:
            x: float (N, in_channels, H, W).
            skip: float (N, skip_channels, 2 H, 2 W), or None where the encoder has no feature of
                that size.

        Returns:
            (N, out_channels, 2 H, 2 W).
        """
        x = F.relu(self.up_conv(upsample(x, skip)), inplace=True)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return F.relu(self.skip_conv(x), inplace=True)


class ScseBlock(DecoderBlock):
    """The reference's, its result weighted by channel and by place.

    Source: concurrent spatial and channel squeeze and excitation,
    https://arxiv.org/abs/1803.02579: channels are squeezed to half as many, and the two weighted
    results are added.
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
    """A 1 x 1 convolution of what is concatenated, then two of 3 x 3, at the output's width.

    Most of the reference's arithmetic goes into 3 x 3 convolutions of wide inputs: the upsampled
    feature and the encoder's. Here a 1 x 1 convolution narrows both first. That of the upsampled
    half is computed before enlarging, at a quarter of the work, for both orders give the same;
    concatenating is left out, for a convolution of it is the sum of two. With one 3 x 3
    convolution instead of two it learns less (``benchmarks/decoders.py``).
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


#: Kinds of decoders by the names that recipes call them.
DECODERS: Mapping[str, type[nn.Module]] = {
    "plain": DecoderBlock,
    "scse": ScseBlock,
    "light": LightBlock,
}


def upsample(x: Tensor, like: Tensor | None) -> Tensor:
    """Repeat every pixel of (N, C, H, W) twice along both sides.

    Args:
        x: what to enlarge.
        like: float (N, any, 2 H, 2 W), if there is one. Its size is taken as it is, for a graph
            exported for any image size cannot prove that the two agree.
    """
    if like is None:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")
