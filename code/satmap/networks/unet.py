"""U-Net with a pretrained encoder, one of several decoders and one named logit map per output.

Source: https://arxiv.org/abs/1505.04597. With the plain decoder, layers and widths are those of
selim_sef's third place in SpaceNet 5, so that its published weights can be loaded
(``satmap.weights.published``).
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from satmap.errors import SatmapError
from satmap.networks.encoders import Encoder, build_encoder

#: Strides of the decoder blocks' outputs, in order. The encoder's deepest feature has stride 32.
#: The last block is optional.
DECODER_STRIDES = (16, 8, 4, 2, 1)

#: The reference's decoder widths at the first four strides.
DECODER_WIDTHS = (256, 256, 128, 64)

#: Bias of the logits in an untrained network; it corresponds to a probability of 0.05.
PRIOR_LOGIT = -2.944

#: Stride of the encoder's deepest feature; image sizes are padded to a multiple of it.
STRIDE = 32


class UNet(nn.Module):
    """U-Net that computes named logit maps at the input's size.

    With categories, such as view-angle categories, the last layer (head) exists once per category,
    and each image of a batch uses the head of its category. All other layers are shared.

    Attributes:
        map_names: one name per output map.
        decoder_kind: key in ``DECODERS``.
        decoder_widths: channels at strides 16, 8, 4 and 2, and optionally 1. If the encoder has no
            feature of such a stride (1, ConvNeXt at 2), the block has no skip connection.
        categories: names of the heads; empty for a network with one head.
    """

    def __init__(
        self,
        encoder: Encoder,
        maps: Sequence[str],
        decoder_widths: Sequence[int] = DECODER_WIDTHS,
        decoder_kind: str = "plain",
        categories: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not maps or len(set(maps)) != len(maps):
            raise ValueError(f"map names must be one or more different names, not {list(maps)}")
        if len(categories) == 1 or len(set(categories)) != len(categories):
            raise ValueError(
                f"categories must be none, or two or more different names, not {list(categories)}"
            )
        self.map_names = tuple(maps)
        self.decoder_kind = decoder_kind
        self.decoder_widths = tuple(decoder_widths)
        self.categories = tuple(categories)
        self.encoder = encoder
        skips = dict(zip(encoder.strides, encoder.channels, strict=True))
        width_in = encoder.channels[-1]
        blocks = []
        for width, stride in zip(decoder_widths, DECODER_STRIDES, strict=False):
            blocks.append(DECODERS[decoder_kind](width_in, skips.get(stride, 0), width))
            width_in = width
        self.decoder = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width_in, len(maps) * max(len(categories), 1), 1)
        for name, parameter in self.decoder.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        # Most pixels are background. Start with a low probability; otherwise the first steps are
        # spent on unlearning 0.5 everywhere (https://arxiv.org/abs/1708.02002, section 4.1).
        nn.init.constant_(cast(Tensor, self.head.bias), PRIOR_LOGIT)

    @property
    def in_channels(self) -> int:
        """Number of image channels that the network needs."""
        return self.encoder.in_channels

    def forward(self, x: Tensor, category: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            x: images from ``encoder.normalize``, float (N, C, H, W) of any size from 1 x 1.
            category: int64 (N,), index of each image into ``categories``; None for a network
                without categories.

        Returns:
            (N, maps, H, W), in the precision of the convolutions.
        """
        height, width = x.shape[-2:]
        if height % STRIDE or width % STRIDE:
            x = pad_to_stride(x)
        return self.forward_padded(x, category)[..., :height, :width]

    def forward_padded(self, x: Tensor, category: Tensor | None = None) -> Tensor:
        """Compute the logits of images whose sides are multiples of ``STRIDE``.

        Raises:
            ValueError: ``category`` is given for a network without categories or missing for one
                with categories, or is not one valid index per image. An exported graph does not
                check the indices.
        """
        if (category is None) == bool(self.categories):
            names = ", ".join(self.categories) if self.categories else "none"
            raise ValueError(
                f"the categories of this network are {names}; pass one index per image, or None "
                "if there are none"
            )
        # A negative index would select from the end.
        if category is not None and not torch.compiler.is_compiling():
            known = (category >= 0) & (category < len(self.categories))
            if category.shape != x.shape[:1] or not bool(known.all()):
                raise ValueError(
                    f"categories must be indices from 0 to {len(self.categories) - 1}, one for "
                    f"each of {x.shape[0]} images, not {category.tolist()}"
                )
        height, width = x.shape[-2:]
        features = dict(zip(self.encoder.strides, self.encoder(x), strict=True))
        logits: Tensor = self.decode(features, (height, width), category)
        return logits

    def decode(
        self, features: Mapping[int, Tensor], size: tuple[int, int], category: Tensor | None = None
    ) -> Tensor:
        """Compute the logits from the encoder's features by stride, for images of a size."""
        features = dict(features)
        x: Tensor = features.pop(STRIDE)
        for block, stride in zip(self.decoder, DECODER_STRIDES, strict=False):
            x = block(x, features.pop(stride, None))
        x = self.head(x)
        if category is not None:
            heads = x.view(-1, len(self.categories), len(self.map_names), *x.shape[2:])
            x = heads[torch.arange(heads.shape[0], device=x.device), category]
        # The reference upsamples before the head. Bilinear weights sum to one, so a 1 x 1
        # convolution before upsampling gives the same result, at a quarter of the cost, and a dozen
        # maps are upsampled instead of 64. The published weights were trained with aligned corners.
        if len(self.decoder) == len(DECODER_STRIDES):
            return x
        return resize_bilinear(x, size)

    def order_maps(self, names: Sequence[str]) -> None:
        """Change the order of the output maps to ``names``.

        Raises:
            ValueError: the names differ from ``map_names``.
        """
        if sorted(names) != sorted(self.map_names):
            raise ValueError(f"this network has {', '.join(self.map_names)}, not {list(names)}")
        count = len(names)
        order = [self.map_names.index(name) for name in names]
        channels = [head * count + i for head in range(max(len(self.categories), 1)) for i in order]
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.copy_(parameter[channels])
        self.map_names = tuple(names)

    def category_indices(self, names: Sequence[str]) -> Tensor | None:
        """Convert the category of each image to the indices that ``forward`` takes.

        Returns:
            int64 (N,) on the network's device; None for a network without categories.

        Raises:
            SatmapError: the network has categories, and a name is not one of them.
        """
        if not self.categories:
            return None
        unknown = [name for name in names if name not in self.categories]
        if unknown:
            raise SatmapError(
                f"this network has heads for {', '.join(self.categories)}, but none for an image "
                f"of category {unknown[0]!r}."
            )
        indices = [self.categories.index(name) for name in names]
        return torch.tensor(indices, device=self.head.weight.device)


def build_network(
    encoder: str,
    in_channels: int,
    maps: Sequence[str],
    decoder_widths: Sequence[int] = DECODER_WIDTHS,
    decoder_kind: str = "plain",
    categories: Sequence[str] = (),
) -> UNet:
    """Build an untrained network; nothing is downloaded.

    The encoder is a key in ``satmap.networks.encoders.ENCODERS``. For the other arguments see
    :class:`UNet`.

    Raises:
        SatmapError: the encoder or decoder is unknown, or there are no input channels.
    """
    if decoder_kind not in DECODERS:
        raise SatmapError(f"unknown decoder {decoder_kind!r}; known are {', '.join(DECODERS)}.")
    contracting = build_encoder(encoder, in_channels)
    return UNet(contracting, maps, decoder_widths, decoder_kind, categories)


def pad_to_stride(x: Tensor) -> Tensor:
    """Pad (N, C, H, W) at the bottom and right to multiples of ``STRIDE`` by reflection.

    If the image is smaller than the padding, the last reflected row or column is repeated. The
    operations do not depend on the size, so an exported graph works for all sizes.
    """
    for dim in (2, 3):
        last = x.shape[dim] - 1
        padded = (last + STRIDE) // STRIDE * STRIDE
        place = torch.arange(padded, device=x.device)
        x = x.index_select(dim, (last - (place - last).abs()).clamp(min=0))
    return x


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, H, W) bilinearly to ``size``, with aligned corners; the dtype stays the same.

    On a GPU, torch's own implementation sums gradients in an arbitrary order. If deterministic
    algorithms are requested, two matrix products are used instead.
    """
    if torch.are_deterministic_algorithms_enabled():
        return resize_by_products(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def resize_by_products(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute ``F.interpolate(x, size, mode="bilinear", align_corners=True)`` by matrix products.

    The interpolation is separable into one linear map per axis; every output is a weighted mean of
    two neighbours. It is computed in float32 even under autocast, because in bfloat16 the weights
    would have errors of 0.4 %.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = _weights(x.shape[2], size[0], x.device)
        columns = _weights(x.shape[3], size[1], x.device)
        return (rows @ x.float() @ columns.T).to(x.dtype)


def _weights(length: int, out: int, device: torch.device) -> Tensor:
    """Return the interpolation matrix from ``length`` to ``out`` pixels, float32 (out, length)."""
    scale = (length - 1) / (out - 1) if out > 1 else 0.0
    # The last output pixel falls exactly on the last input pixel, despite rounding errors.
    place = (torch.arange(out, device=device, dtype=torch.float32) * scale).clamp(max=length - 1)
    distance = place[:, None] - torch.arange(length, device=device, dtype=torch.float32)
    # Triangle function around every input pixel: 1 on it and 0 on its neighbours.
    return (1 - distance.abs()).clamp(min=0)


# Decoder blocks. Each doubles the resolution and merges the encoder's feature of that
# resolution. They have no normalisation: the reference has none, and batch statistics of small
# batches would be noisy.


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

    If ``like`` is given, the result has its size. Exports for any image size need it, because the
    exporter cannot prove that twice the size of ``x`` equals the size of the skip connection.
    """
    if like is None:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")
