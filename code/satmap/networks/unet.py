"""U-Net over a pretrained encoder, with one logit map per named plane.

Source: https://arxiv.org/abs/1505.04597; with the plain decoder, widths and layers are those of
selim_sef's third place in SpaceNet 5, so that the published weights fit
(``satmap.weights.published``).
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from satmap.errors import SatmapError
from satmap.networks.decoders import DECODERS
from satmap.networks.encoders import Encoder, build_encoder
from satmap.networks.layers import resize_bilinear

#: Strides of the decoder's blocks, in their order. An encoder's deepest feature has stride 32.
DECODER_STRIDES = (16, 8, 4, 2)

#: The reference's decoder widths, at these strides.
DECODER_WIDTHS = (256, 256, 128, 64)

#: Bias of the logits in an untrained network, a probability of 0.05.
PRIOR_LOGIT = -2.944

#: Sizes are padded to a multiple of this, the encoder's deepest stride.
STRIDE = 32


class UNet(nn.Module):
    """Logits of named planes, at the input's size.

    With categories, such as kinds of looks at the ground, the last layer exists once for each, and
    every image of a batch is told which one it gets. All else is shared.

    Attributes:
        encoder: the contracting path.
        map_names: one name per output channel.
        decoder_kind: key in ``satmap.networks.decoders.DECODERS``.
        decoder_widths: channels at strides 16, 8, 4 and 2. Where the encoder has no feature of
            such a stride (ConvNeXt at 2), the block does without.
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
            raise ValueError(f"planes need names, all different, not {list(maps)}")
        if len(categories) == 1 or len(set(categories)) != len(categories):
            raise ValueError(f"categories are none or several different, not {list(categories)}")
        self.map_names = tuple(maps)
        self.decoder_kind = decoder_kind
        self.decoder_widths = tuple(decoder_widths)
        self.categories = tuple(categories)
        self.encoder = encoder
        skips = dict(zip(encoder.strides, encoder.channels, strict=True))
        width_in = encoder.channels[-1]
        blocks = []
        for width, stride in zip(decoder_widths, DECODER_STRIDES, strict=True):
            blocks.append(DECODERS[decoder_kind](width_in, skips.get(stride, 0), width))
            width_in = width
        self.decoder = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width_in, len(maps) * max(len(categories), 1), 1)
        for name, parameter in self.decoder.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        # Most pixels are no road: begin there, or the first steps go into unlearning one half
        # everywhere (https://arxiv.org/abs/1708.02002, section 4.1).
        nn.init.constant_(cast(Tensor, self.head.bias), PRIOR_LOGIT)

    @property
    def in_channels(self) -> int:
        """Number of image channels that the network needs."""
        return self.encoder.in_channels

    def forward(self, x: Tensor, category: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            x: images as ``encoder.normalize`` makes them, float (N, C, H, W) of
                any size from 1 x 1.
            category: int64 (N,), for each image an index into ``categories``; None for a network
                without.

        Returns:
            (N, planes, H, W), of the precision in which the convolutions ran.
        """
        height, width = x.shape[-2:]
        if height % STRIDE or width % STRIDE:
            x = pad_to_stride(x)
        return self.forward_padded(x, category)[..., :height, :width]

    def forward_padded(self, x: Tensor, category: Tensor | None = None) -> Tensor:
        """Compute the logits of images whose sides are multiples of ``STRIDE``.

        Raises:
            ValueError: a category without ``categories``, the other way round, or not one index
                an image into them. A graph that was exported does not check the index.
        """
        if (category is None) == bool(self.categories):
            has = f"the categories {', '.join(self.categories)}" if self.categories else "none"
            raise ValueError(f"this network has {has}: pass an index of one an image, or None")
        # Below zero it would choose from the end.
        if category is not None and not torch.compiler.is_compiling():
            known = (category >= 0) & (category < len(self.categories))
            if category.shape != x.shape[:1] or not bool(known.all()):
                raise ValueError(
                    f"categories are indices from 0 to {len(self.categories) - 1}, one an image of "
                    f"{x.shape[0]}, not {category.tolist()}"
                )
        size = x.shape[-2:]
        features = dict(zip(self.encoder.strides, self.encoder(x), strict=True))
        x = features.pop(STRIDE)
        for block, stride in zip(self.decoder, DECODER_STRIDES, strict=True):
            x = block(x, features.pop(stride, None))
        x = self.head(x)
        if category is not None:
            heads = x.view(-1, len(self.categories), len(self.map_names), *x.shape[2:])
            x = heads[torch.arange(heads.shape[0], device=x.device), category]
        # The reference enlarges first. Bilinear weights sum to one, so a 1 x 1 convolution gives
        # the same before; it then enlarges a dozen planes rather than 64, at a quarter the work.
        # Aligned corners are what the published weights were trained with.
        return resize_bilinear(x, (size[0], size[1]))

    def order_maps(self, names: Sequence[str]) -> None:
        """Change the order of the outputs; each name keeps its plane.

        Args:
            names: those of ``map_names``.

        Raises:
            ValueError: other names.
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
        """What ``forward`` takes as the category of images.

        Args:
            names: category of each image; a network without categories ignores them.

        Returns:
            int64 (N,) on the network's device; None for a network without categories.

        Raises:
            SatmapError: the network has categories, and a name is none of them.
        """
        if not self.categories:
            return None
        unknown = [name for name in names if name not in self.categories]
        if unknown:
            raise SatmapError(
                f"this network has heads for {', '.join(self.categories)}; an image of category "
                f"{unknown[0]!r} has none."
            )
        indices = [self.categories.index(name) for name in names]
        return torch.tensor(indices, device=self.head.weight.device)

    def freeze_encoder(self, frozen: bool, stages: int | None = None) -> None:
        """Stop (or resume) the encoder's learning, its batch-norm statistics included.

        ``DistributedDataParallel`` looks at ``requires_grad`` only when it is made: wrap the
        network anew after a change.

        Args:
            frozen: whether to stop it; otherwise the whole encoder learns.
            stages: how many stages stop, counted from the image; None for all.
        """
        if not frozen:
            stages = 0
        elif stages is None:
            stages = len(self.encoder.stages)
        self.encoder.freeze(stages)


def build_network(
    encoder: str,
    in_channels: int,
    maps: Sequence[str],
    decoder_widths: Sequence[int] = DECODER_WIDTHS,
    decoder_kind: str = "plain",
    categories: Sequence[str] = (),
) -> UNet:
    """An untrained network; nothing is downloaded.

    Args:
        encoder: key in ``satmap.networks.encoders.ENCODERS``.
        in_channels: bands of the input.
        maps: names of the output planes.
        decoder_widths: channels of the decoder at strides 16, 8, 4 and 2.
        decoder_kind: key in ``satmap.networks.decoders.DECODERS``.
        categories: names of the heads, if each image chooses one.

    Raises:
        SatmapError: no encoder or decoder of that name, or no input channel.
    """
    if decoder_kind not in DECODERS:
        raise SatmapError(f"unknown decoder {decoder_kind!r}; known are {', '.join(DECODERS)}.")
    contracting = build_encoder(encoder, in_channels)
    return UNet(contracting, maps, decoder_widths, decoder_kind, categories)


def pad_to_stride(x: Tensor) -> Tensor:
    """Mirror (N, C, H, W) at the bottom and the right up to multiples of ``STRIDE``.

    Where the image is smaller than the padding, the mirror's far border goes on. The operations
    are the same for all sizes, so that a graph exported from them fits all.
    """
    for dim in (2, 3):
        last = x.shape[dim] - 1
        padded = (last + STRIDE) // STRIDE * STRIDE
        place = torch.arange(padded, device=x.device)
        x = x.index_select(dim, (last - (place - last).abs()).clamp(min=0))
    return x
