"""U-Net over a pretrained encoder, with one logit map per named plane.

Source: https://arxiv.org/abs/1505.04597; decoder widths and layers as in selim_sef's third place
in SpaceNet 5, so that the published weights fit (``satmap.models.reference``).
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from satmap.models.encoders import Encoder, build_encoder

#: The reference's decoder widths, at strides 16, 8, 4 and 2.
DECODER_WIDTHS = (256, 256, 128, 64)

#: Bias of the logits in an untrained network, a probability of 0.05.
PRIOR_LOGIT = -2.944

#: Sizes are padded to a multiple of this, the encoder's deepest stride.
STRIDE = 32


class DecoderBlock(nn.Module):
    """Doubles the size, then mixes in the encoder's feature of that size."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.skip_conv = nn.Conv2d(out_channels + skip_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Decode one scale.

        Args:
            x: float (N, in_channels, H, W).
            skip: float (N, skip_channels, 2 H, 2 W).

        Returns:
            (N, out_channels, 2 H, 2 W).
        """
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.relu(self.up_conv(x), inplace=True)
        x = torch.cat([x, skip], dim=1)
        return F.relu(self.skip_conv(x), inplace=True)


class UNet(nn.Module):
    """Logits of named planes, at the input's size.

    Attributes:
        encoder: the contracting path.
        plane_names: one name per output channel.
        decoder_widths: channels at strides 16, 8, 4 and 2.
    """

    def __init__(
        self,
        encoder: Encoder,
        planes: Sequence[str],
        decoder_widths: Sequence[int] = DECODER_WIDTHS,
    ) -> None:
        super().__init__()
        if not planes or len(set(planes)) != len(planes):
            raise ValueError(f"planes need names, all different, not {list(planes)}")
        self.plane_names = tuple(planes)
        self.decoder_widths = tuple(decoder_widths)
        self.encoder = encoder
        *skips, deepest = encoder.channels
        blocks = []
        for width, skip in zip(decoder_widths, reversed(skips), strict=True):
            blocks.append(DecoderBlock(deepest, skip, width))
            deepest = width
        self.decoder = nn.ModuleList(blocks)
        self.head = nn.Conv2d(deepest, len(planes), 1)
        for name, parameter in self.decoder.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        # Most pixels are no road: begin there, or the first steps go into unlearning one half
        # everywhere (https://arxiv.org/abs/1708.02002, section 4.1).
        nn.init.constant_(cast(Tensor, self.head.bias), PRIOR_LOGIT)
        self._encoder_frozen = False

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            x: images as ``encoder.normalize`` makes them, float (N, C, H, W) of
                any size from 1 x 1.

        Returns:
            (N, planes, H, W), of the precision in which the convolutions ran.
        """
        height, width = x.shape[-2:]
        x = _pad_to_stride(x)
        *skips, x = self.encoder(x)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(x, skip)
        # The reference enlarges first. Bilinear weights sum to one, so a 1 x 1 convolution gives
        # the same before; it then enlarges a dozen planes rather than 64, at a quarter the work.
        # Aligned corners are what the published weights were trained with.
        x = F.interpolate(self.head(x), scale_factor=2, mode="bilinear", align_corners=True)
        return x[..., :height, :width]

    def freeze_encoder(self, frozen: bool) -> None:
        """Stop (or resume) the encoder's learning, its batch-norm statistics included.

        ``DistributedDataParallel`` looks at ``requires_grad`` only when it is made: wrap the
        network anew after a change.
        """
        self._encoder_frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "UNet":
        """Switch to training or evaluation; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self._encoder_frozen:
            self.encoder.eval()
        return self


def build_network(
    encoder: str,
    in_channels: int,
    planes: Sequence[str],
    decoder_widths: Sequence[int] = DECODER_WIDTHS,
) -> UNet:
    """An untrained network; nothing is downloaded.

    Args:
        encoder: key in ``satmap.models.encoders.ENCODERS``.
        in_channels: bands of the input.
        planes: names of the output planes.
        decoder_widths: channels of the decoder at strides 16, 8, 4 and 2.

    Raises:
        SatmapError: no encoder of that name, or no input channel.
    """
    return UNet(build_encoder(encoder, in_channels), planes, decoder_widths)


def _pad_to_stride(x: Tensor) -> Tensor:
    """Extend (N, C, H, W) at the bottom and the right to multiples of ``STRIDE``."""
    height, width = x.shape[-2:]
    bottom, right = -height % STRIDE, -width % STRIDE
    if not bottom and not right:
        return x
    # A mirror needs something to show: images smaller than the padding repeat their border.
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)
