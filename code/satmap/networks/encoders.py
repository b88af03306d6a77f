"""Convolutional encoders from timm, split into the stages that a U-Net needs.

Encoders are defined by data: an ``EncoderSpec`` lists the timm modules of each stage, and a new
encoder is a new entry of ``ENCODERS``. timm's own ``features_only`` wrapper is not used, because it
drops DPN's last norm and its names change between timm versions.

Sources: DPN, https://arxiv.org/abs/1707.01629; Inception-v4 and Inception-ResNet,
https://arxiv.org/abs/1602.07261; ResNet, https://arxiv.org/abs/1512.03385; ResNeXt,
https://arxiv.org/abs/1611.05431; SENet, https://arxiv.org/abs/1709.01507; DenseNet,
https://arxiv.org/abs/1608.06993; EfficientNet, https://arxiv.org/abs/1905.11946, its Lite variants
without squeeze-and-excitation and with ReLU6, and its second version,
https://arxiv.org/abs/2104.00298; VGG, https://arxiv.org/abs/1409.1556; ConvNeXt,
https://arxiv.org/abs/2201.03545.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from satmap.errors import SatmapError
from satmap.networks.layers import NormAct, force_padding, replace_convolutions, split_norm_act
from satmap.networks.timm_import import PretrainedCfg, create_model, get_pretrained_cfg
from satmap.recipes.encoder_names import unknown_encoder


@dataclass(frozen=True)
class EncoderSpec:
    """Modules of a timm model that form an encoder.

    Attributes:
        timm_name: timm's name with the tag of the pretrained weights, whose input normalisation is
            used.
        channels: number of channels of each stage's feature.
        stages: modules of each stage in the order of the forward pass, as paths in timm's model.
        strides: stride of each stage's feature relative to the image.
        force_padding: give every 3 x 3 convolution and max-pool a padding of 1.
    """

    timm_name: str
    channels: tuple[int, ...]
    stages: tuple[tuple[str, ...], ...]
    strides: tuple[int, ...] = (2, 4, 8, 16, 32)
    force_padding: bool = False


def _dpn(timm_name: str, channels: tuple[int, ...], depths: tuple[int, ...]) -> EncoderSpec:
    blocks = [
        [f"features.conv{stage}_{block}" for block in range(1, depth + 1)]
        for stage, depth in enumerate(depths, start=2)
    ]
    blocks[0].insert(0, "features.conv1_pool")
    # The last stage ends with its norm and activation, the others with the two raw paths.
    blocks[-1].append("features.conv5_bn_ac")
    stem = ("features.conv1_1.conv", "features.conv1_1.bn")
    return EncoderSpec(timm_name, channels, (stem, *(tuple(stage) for stage in blocks)))


def _resnet(timm_name: str, expansion: int) -> EncoderSpec:
    """ResNet or ResNeXt; the expansion is 1 for basic blocks and 4 for bottlenecks."""
    stages = (
        ("conv1", "bn1", "act1"),
        ("maxpool", "layer1"),
        ("layer2",),
        ("layer3",),
        ("layer4",),
    )
    deep = tuple(expansion * width for width in (64, 128, 256, 512))
    return EncoderSpec(timm_name, (64, *deep), stages)


def _senet(timm_name: str, stem: int) -> EncoderSpec:
    stages = (("layer0",), ("pool0", "layer1"), ("layer2",), ("layer3",), ("layer4",))
    return EncoderSpec(timm_name, (stem, 256, 512, 1024, 2048), stages)


def _densenet(timm_name: str, channels: tuple[int, ...]) -> EncoderSpec:
    # A dense block ends with raw concatenated features, which the next transition normalises. Each
    # stage includes this norm, so that the decoder gets normalised features.
    middle = tuple(
        (
            f"features.transition{block - 1}.conv",
            f"features.transition{block - 1}.pool",
            f"features.denseblock{block}",
            f"features.transition{block}.norm",
        )
        for block in (2, 3)
    )
    return EncoderSpec(
        timm_name,
        channels,
        (
            ("features.conv0", "features.norm0"),
            ("features.pool0", "features.denseblock1", "features.transition1.norm"),
            *middle,
            (
                "features.transition3.conv",
                "features.transition3.pool",
                "features.denseblock4",
                "features.norm5",
            ),
        ),
    )


def _efficientnet(
    timm_name: str, channels: tuple[int, ...], blocks: tuple[tuple[int, ...], ...]
) -> EncoderSpec:
    first, *others = [tuple(f"blocks.{block}" for block in stage) for stage in blocks]
    # Leave out the head's 1 x 1 convolution: it widens the last feature at least fourfold for the
    # classifier, which makes a decoder slower and does not help it.
    return EncoderSpec(timm_name, channels, (("conv_stem", "bn1", *first), *others))


def _convnext(timm_name: str) -> EncoderSpec:
    return EncoderSpec(
        timm_name,
        (96, 192, 384, 768),
        (("stem", "stages.0"), ("stages.1",), ("stages.2",), ("stages.3", "head.norm")),
        strides=(4, 8, 16, 32),
    )


_EFFICIENTNET_STAGES = ((0,), (1,), (2,), (3, 4), (5, 6))

ENCODERS: Mapping[str, EncoderSpec] = {
    "dpn68b": _dpn("dpn68b.mx_in1k", (10, 144, 320, 704, 832), (3, 4, 12, 3)),
    "dpn92": _dpn("dpn92.mx_in1k", (64, 336, 704, 1552, 2688), (3, 4, 20, 3)),
    "dpn131": _dpn("dpn131.mx_in1k", (128, 352, 832, 1984, 2688), (4, 8, 28, 3)),
    "inception_resnet_v2": EncoderSpec(
        "inception_resnet_v2.tf_in1k",
        (64, 192, 320, 1088, 1536),
        (
            ("conv2d_1a", "conv2d_2a", "conv2d_2b"),
            ("maxpool_3a", "conv2d_3b", "conv2d_4a"),
            ("maxpool_5a", "mixed_5b", "repeat"),
            ("mixed_6a", "repeat_1"),
            ("mixed_7a", "repeat_2", "block8", "conv2d_7b"),
        ),
        force_padding=True,
    ),
    "inception_v4": EncoderSpec(
        "inception_v4.tf_in1k",
        (64, 192, 384, 1024, 1536),
        tuple(
            tuple(f"features.{index}" for index in range(start, end))
            for start, end in ((0, 3), (3, 5), (5, 10), (10, 18), (18, 22))
        ),
        force_padding=True,
    ),
    "resnet18": _resnet("resnet18.a1_in1k", 1),
    "resnet34": _resnet("resnet34.a1_in1k", 1),
    "resnet50": _resnet("resnet50.a1_in1k", 4),
    "resnet101": _resnet("resnet101.a1_in1k", 4),
    "resnet152": _resnet("resnet152.a1_in1k", 4),
    "resnext50_32x4d": _resnet("resnext50_32x4d.a1_in1k", 4),
    "resnext101_32x8d": _resnet("resnext101_32x8d.tv2_in1k", 4),
    # timm's legacy models have the tensors of the files that solutions of 2018 and 2019 used.
    "se_resnext50_32x4d": _senet("legacy_seresnext50_32x4d.in1k", 64),
    "senet154": _senet("legacy_senet154.in1k", 128),
    "densenet121": _densenet("densenet121.ra_in1k", (64, 256, 512, 1024, 1024)),
    "densenet161": _densenet("densenet161.tv_in1k", (96, 384, 768, 2112, 2208)),
    "efficientnet_b3": _efficientnet(
        "efficientnet_b3.ra2_in1k", (24, 32, 48, 136, 384), _EFFICIENTNET_STAGES
    ),
    "efficientnet_b4": _efficientnet(
        "efficientnet_b4.ra2_in1k", (24, 32, 56, 160, 448), _EFFICIENTNET_STAGES
    ),
    "efficientnet_lite0": _efficientnet(
        "tf_efficientnet_lite0.in1k", (16, 24, 40, 112, 320), _EFFICIENTNET_STAGES
    ),
    "efficientnet_lite1": _efficientnet(
        "tf_efficientnet_lite1.in1k", (16, 24, 40, 112, 320), _EFFICIENTNET_STAGES
    ),
    "efficientnet_lite2": _efficientnet(
        "tf_efficientnet_lite2.in1k", (16, 24, 48, 120, 352), _EFFICIENTNET_STAGES
    ),
    "efficientnetv2_s": _efficientnet(
        "tf_efficientnetv2_s.in21k_ft_in1k",
        (24, 48, 64, 160, 256),
        ((0,), (1,), (2,), (3, 4), (5,)),
    ),
    "efficientnetv2_m": _efficientnet(
        "tf_efficientnetv2_m.in21k_ft_in1k", (24, 48, 80, 176, 512), _EFFICIENTNET_STAGES
    ),
    # The last stage is the pooling layer alone. So the feature at stride 16 is conv5_3, which the
    # reference of the task `instances` uses.
    "vgg16": EncoderSpec(
        "vgg16.tv_in1k",
        (64, 128, 256, 512, 512),
        tuple(
            tuple(f"features.{layer}" for layer in range(start, end))
            for start, end in ((0, 5), (5, 10), (10, 17), (17, 30), (30, 31))
        ),
    ),
    "convnext_tiny": _convnext("convnext_tiny.fb_in22k_ft_in1k"),
    "convnext_small": _convnext("convnext_small.fb_in22k_ft_in1k"),
}


class Encoder(nn.Module):
    """Encoder that computes features at several scales, each half the size of the one before.

    Attributes:
        name: key in ``ENCODERS``.
        channels: number of channels of each feature, from the finest scale to the coarsest.
        strides: strides of the features, up to 32. Most encoders begin at 2, ConvNeXt at 4.
        mean: mean of each channel, to subtract from an input in 0..1. Channels beyond the third
            have the average of the first three.
        std: standard deviation of each channel, to divide by after that.
        stages: one ``nn.Sequential`` per feature; its children have the last part of timm's names.
        frozen_stages: number of stages, counted from the image, that are not trained.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        spec = ENCODERS[name]
        model = create_model(spec.timm_name, pretrained=False, in_chans=in_channels, num_classes=0)
        config = pretrained_config(name)
        self.name = name
        self.in_channels = in_channels
        self.channels = spec.channels
        self.strides = spec.strides
        self.mean = _per_channel(config.mean, in_channels)
        self.std = _per_channel(config.std, in_channels)
        if in_channels != 3:
            nn.init.kaiming_normal_(
                model.get_parameter(f"{config.first_conv}.weight"), nonlinearity="relu"
            )
        split_norm_act(model)
        replace_convolutions(model)
        if spec.force_padding:
            force_padding(model)
        self.stages = nn.ModuleList(_stage(model, paths) for paths in spec.stages)
        self.frozen_stages = 0
        # For every frozen stage, the names of the parameters that were trainable before.
        self._stopped: list[list[str]] = []

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 (N, in_channels, H, W) to float32 as for the pretrained weights."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=pixels.device).view(shape)
        std = torch.tensor(self.std, device=pixels.device).view(shape)
        return (pixels.float() / 255 - mean) / std

    def forward(self, x: Tensor, stages: int | None = None) -> list[Tensor]:
        """Compute the features.

        Args:
            x: normalised images, float (N, in_channels, H, W), H and W multiples of 32.
            stages: number of stages to compute; None for all.

        Returns:
            One feature per stage, (N, C, H / stride, W / stride), with C and stride as in
            ``channels`` and ``strides``.
        """
        features = []
        for stage in self.stages[:stages]:
            y = stage(x)
            # timm passes DPN's residual and dense paths on as a pair.
            x = torch.cat(y, dim=1) if isinstance(y, tuple) else y
            features.append(x)
        return features

    def freeze(self, stages: int) -> None:
        """Freeze the first stages, including their batch-norm statistics, and unfreeze the others.

        Parameters that were not trainable before the encoder froze them stay so after unfreezing.
        ``DistributedDataParallel`` reads ``requires_grad`` only when it is constructed: wrap the
        network again after a change.
        """
        if not 0 <= stages <= len(self.stages):
            raise ValueError(
                f"cannot freeze {stages} of the {len(self.stages)} stages of {self.name}"
            )
        for stage in self.stages[self.frozen_stages : stages]:
            unfrozen = [name for name, value in stage.named_parameters() if value.requires_grad]
            self._stopped.append(unfrozen)
            stage.requires_grad_(False)
        for stage, unfrozen in zip(self.stages[stages:], self._stopped[stages:], strict=False):
            for name in unfrozen:
                stage.get_parameter(name).requires_grad_(True)
        del self._stopped[stages:]
        self.frozen_stages = stages
        self.train(self.training)

    def train(self, mode: bool = True) -> "Encoder":
        """Switch to training or evaluation mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages[: self.frozen_stages]:
            stage.eval()
        return self

    def timm_names(self) -> dict[str, str]:
        """Map the names in this encoder's state dict to timm's names of the same tensors."""
        paths = [{child_name(path): path for path in stage} for stage in ENCODERS[self.name].stages]
        fused = {f"{name}.norm" for name, part in self.named_modules() if isinstance(part, NormAct)}
        names = {}
        for ours in self.state_dict():
            module, _, leaf = ours.rpartition(".")
            if module in fused:
                module = module.removesuffix(".norm")
            _, stage, child, *rest = module.split(".")
            names[ours] = ".".join([paths[int(stage)][child], *rest, leaf])
        return names


def build_encoder(name: str, in_channels: int) -> Encoder:
    """Build an untrained encoder; nothing is downloaded.

    If the number of input channels is not three, the first convolution has He initialisation.

    Raises:
        SatmapError: the encoder is unknown, or there are no input channels.
    """
    require_encoder(name)
    if in_channels < 1:
        raise SatmapError(f"an encoder needs at least one input channel, not {in_channels}.")
    return Encoder(name, in_channels)


def require_encoder(name: str) -> None:
    """Raise a SatmapError unless there is an encoder of that name."""
    if name not in ENCODERS:
        raise SatmapError(f"{unknown_encoder(name)}.")


def pretrained_config(name: str) -> PretrainedCfg:
    """Return timm's record of an encoder's weights: normalisation, origin, first and last layer."""
    config = get_pretrained_cfg(ENCODERS[name].timm_name)
    if config is None:
        raise ValueError(f"timm has no pretrained weights {ENCODERS[name].timm_name}")
    return config


def child_name(path: str) -> str:
    """Return the name within a stage of the timm module at ``path``: its last part."""
    return path.rpartition(".")[2]


def adapt_first_conv(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt the first convolution of a 3-channel network to another number of channels.

    ``weight`` is float (out, 3, kh, kw), pretrained on RGB, and the result (out, in_channels, kh,
    kw). With three or more channels, the first three keep their filters and the others get He
    initialisation, https://arxiv.org/abs/1502.01852. With fewer than three, no channel is known to
    be red, green or blue, so each gets the scaled mean of the filters.
    """
    known = weight.shape[1]
    if in_channels < known:
        mean = weight.mean(dim=1, keepdim=True) * (known / in_channels)
        return mean.repeat(1, in_channels, 1, 1)
    adapted = weight.new_empty(weight.shape[0], in_channels, *weight.shape[2:])
    nn.init.kaiming_normal_(adapted, nonlinearity="relu")
    adapted[:, :known] = weight
    return adapted


def _per_channel(rgb: tuple[float, ...], in_channels: int) -> tuple[float, ...]:
    mean = sum(rgb) / len(rgb)
    if in_channels < len(rgb):
        return (mean,) * in_channels
    return (*rgb, *(mean,) * (in_channels - len(rgb)))


def _stage(model: nn.Module, paths: tuple[str, ...]) -> nn.Sequential:
    stage = nn.Sequential()
    for path in paths:
        if hasattr(stage, child_name(path)):
            raise ValueError(f"two modules of one stage are called {child_name(path)}")
        stage.add_module(child_name(path), model.get_submodule(path))
    return stage
