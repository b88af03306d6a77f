"""Convolutional encoders from timm, cut into the five stages that a U-Net needs.

A network is data here: an ``EncoderSpec`` says which of timm's modules make up the stages, and a
new encoder is a new entry of ``ENCODERS``. timm's own ``features_only`` wrapper is not used: it
drops DPN's last norm, and its names change between timm's versions.

Sources: DPN, https://arxiv.org/abs/1707.01629; Inception-ResNet,
https://arxiv.org/abs/1602.07261; ResNet, https://arxiv.org/abs/1512.03385.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models import PretrainedCfg
from torch import Tensor, nn

from satmap.errors import SatmapError


@dataclass(frozen=True)
class EncoderSpec:
    """Which parts of a timm model make an encoder.

    Attributes:
        timm_name: timm's name with the tag of the pretrained weights, whose input
            normalisation is ours as well.
        channels: widths of the features at strides 2, 4, 8, 16 and 32.
        stages: a stage's modules in the order of the forward pass, as paths in timm's model.
        force_padding: give every 3 x 3 convolution and max-pool a padding of 1.
    """

    timm_name: str
    channels: tuple[int, ...]
    stages: tuple[tuple[str, ...], ...]
    force_padding: bool = False


def _dpn(timm_name: str, channels: tuple[int, ...], depths: tuple[int, ...]) -> EncoderSpec:
    blocks = [
        [f"features.conv{stage}_{block}" for block in range(1, depth + 1)]
        for stage, depth in enumerate(depths, start=2)
    ]
    blocks[0].insert(0, "features.conv1_pool")
    # The last stage ends with its norm and activation, the others with the raw two paths.
    blocks[-1].append("features.conv5_bn_ac")
    stem = ("features.conv1_1.conv", "features.conv1_1.bn")
    return EncoderSpec(timm_name, channels, (stem, *(tuple(stage) for stage in blocks)))


def _resnet(timm_name: str) -> EncoderSpec:
    stages = (
        ("conv1", "bn1", "act1"),
        ("maxpool", "layer1"),
        ("layer2",),
        ("layer3",),
        ("layer4",),
    )
    return EncoderSpec(timm_name, (64, 64, 128, 256, 512), stages)


ENCODERS: Mapping[str, EncoderSpec] = {
    "dpn92": _dpn("dpn92.mx_in1k", (64, 336, 704, 1552, 2688), (3, 4, 20, 3)),
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
    "resnet18": _resnet("resnet18.a1_in1k"),
    "resnet34": _resnet("resnet34.a1_in1k"),
}


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


class Encoder(nn.Module):
    """Image to features at five scales.

    Attributes:
        name: key in ``ENCODERS``.
        in_channels: bands of the input.
        channels: widths of the five features, strides 2, 4, 8, 16 and 32.
        mean: what to subtract from an input in 0..1, one value a channel. Channels beyond
            three have the mean of the three.
        std: what to divide by after that.
        stages: five ``nn.Sequential``, whose children bear the last part of timm's names.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        spec = ENCODERS[name]
        model = timm.create_model(
            spec.timm_name, pretrained=False, in_chans=in_channels, num_classes=0
        )
        config = pretrained_config(name)
        self.name = name
        self.in_channels = in_channels
        self.channels = spec.channels
        self.mean = _per_channel(config.mean, in_channels)
        self.std = _per_channel(config.std, in_channels)
        if in_channels != 3:
            nn.init.kaiming_normal_(
                model.get_parameter(f"{config.first_conv}.weight"), nonlinearity="relu"
            )
        _split_norm_act(model)
        if spec.force_padding:
            _force_padding(model)
        self.stages = nn.ModuleList(_stage(model, paths) for paths in spec.stages)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Bytes to what the network wants to see.

        Args:
            pixels: uint8 (N, in_channels, H, W).

        Returns:
            float32 of the same shape.
        """
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=pixels.device).view(shape)
        std = torch.tensor(self.std, device=pixels.device).view(shape)
        return (pixels.float() / 255 - mean) / std

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the five features.

        Args:
            x: normalised images, float (N, in_channels, H, W), H and W multiples of 32.

        Returns:
            Features of widths ``channels``, (N, C, H / 2, W / 2) to (N, C, H / 32, W / 32).
        """
        features = []
        for stage in self.stages:
            y = stage(x)
            # Older timm hands on DPN's residual and dense path as a pair.
            x = torch.cat(y, dim=1) if isinstance(y, tuple) else y
            features.append(x)
        return features

    def timm_names(self) -> dict[str, str]:
        """Names of this encoder's state dict, each with timm's name of the same tensor."""
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
    """An untrained encoder; nothing is downloaded.

    Args:
        name: key in ``ENCODERS``.
        in_channels: bands of the input. With other than three, the first convolution has He
            initialisation.

    Raises:
        SatmapError: no encoder of that name, or no input channel.
    """
    require_encoder(name)
    if in_channels < 1:
        raise SatmapError(f"an encoder needs at least one input channel, not {in_channels}.")
    return Encoder(name, in_channels)


def require_encoder(name: str) -> None:
    """Fail unless there is an encoder of that name.

    Raises:
        SatmapError: there is none.
    """
    if name not in ENCODERS:
        raise SatmapError(f"unknown encoder {name!r}; known are {', '.join(sorted(ENCODERS))}.")


def pretrained_config(name: str) -> PretrainedCfg:
    """What timm knows of an encoder's weights: normalisation, origin, first and last layer."""
    config = timm.get_pretrained_cfg(ENCODERS[name].timm_name)
    if config is None:
        raise ValueError(f"timm knows no pretrained weights {ENCODERS[name].timm_name}")
    return config


def child_name(path: str) -> str:
    """Name within a stage of the timm module at ``path``: its last part."""
    return path.rpartition(".")[2]


def adapt_first_conv(weight: Tensor, in_channels: int) -> Tensor:
    """Fit the first convolution of a 3-channel network to another number of channels.

    Args:
        weight: float (out, 3, kh, kw), pretrained on RGB.
        in_channels: channels wanted.

    Returns:
        (out, in_channels, kh, kw). From three channels on the first three filters are kept and
        the others are drawn after He et al., https://arxiv.org/abs/1502.01852. Below three, where
        no channel is known to be red, green or blue, each has the filters' scaled mean.
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


def _split_norm_act(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            setattr(module, name, NormAct(child))
        else:
            _split_norm_act(child)


def _force_padding(model: nn.Module) -> None:
    """Let sizes halve cleanly where the original network shrinks them at the borders."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding = (1, 1)
        elif isinstance(module, nn.MaxPool2d) and module.kernel_size == 3:
            module.padding = 1
