"""Every encoder with every decoder, by one class of tests that each kind of decoder inherits.

Encoders have their real depth and width and are built once; images are tiny and decoders narrow.
``benchmarks/networks.py`` runs all of them at 512 x 512 with the reference's widths.
"""

import copy
from collections.abc import Iterator
from typing import ClassVar, cast, get_args

import pytest
import timm
import torch
from torch import Tensor, nn

from satmap.models.decoders import DECODERS
from satmap.models.encoders import (
    ENCODERS,
    Encoder,
    build_encoder,
    pretrained_config,
    unused_modules,
)
from satmap.models.unet import UNet, build_network
from satmap.recipe import Decoder

PLANES = ("road", "junction")
WIDTHS = (32, 32, 16, 16)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny inputs gain nothing from threads, and test runs share their cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Every encoder in turn, scaled so that every convolution of noise has unit variance.

    As timm leaves them, features fade to nothing or grow without bound with depth, and rounding
    errors with them: what is measured would be noise. Source: https://arxiv.org/abs/1511.06422.
    """
    torch.manual_seed(0)
    encoder = build_encoder(request.param, 3).eval()

    def scale(module: nn.Module, _: object, output: Tensor) -> Tensor:
        deviation = output.std()
        module.get_parameter("weight").div_(deviation)
        return output / deviation

    hooks = [
        part.register_forward_hook(scale)
        for part in encoder.modules()
        if isinstance(part, nn.Conv2d)
    ]
    with torch.no_grad():
        encoder(images(2, 64, 64))
    for hook in hooks:
        hook.remove()
    return encoder


@pytest.fixture(scope="class")
def network(request: pytest.FixtureRequest, encoder: Encoder) -> UNet:
    """The encoder with the decoder of the class that asks."""
    torch.manual_seed(0)
    return UNet(encoder, PLANES, WIDTHS, request.cls.kind)


def images(count: int, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *size, generator=generator)


class TestEncoder:
    def test_features_have_the_sizes_and_widths_that_it_states(self, encoder: Encoder) -> None:
        assert encoder.strides == (4, 8, 16, 32) or encoder.strides == (2, 4, 8, 16, 32)
        with torch.inference_mode():
            features = encoder.eval()(images(2, 64, 96))
        assert [tuple(feature.shape) for feature in features] == [
            (2, width, 64 // stride, 96 // stride)
            for width, stride in zip(encoder.channels, encoder.strides, strict=True)
        ]
        assert all(feature.isfinite().all() and feature.std() > 0 for feature in features)

    def test_it_has_all_of_timms_tensors(self, encoder: Encoder) -> None:
        with torch.device("meta"):
            model = timm.create_model(ENCODERS[encoder.name].timm_name, pretrained=False)
        unused = tuple(f"{module}." for module in unused_modules(encoder.name))
        ours = encoder.state_dict()
        names = encoder.timm_names()
        assert {theirs: ours[mine].shape for mine, theirs in names.items()} == {
            key: value.shape
            for key, value in model.state_dict().items()
            if not key.startswith(unused)
        }
        assert len(ours) == len(set(names.values()))

    def test_eight_bands_change_the_first_convolution_alone(self, encoder: Encoder) -> None:
        with torch.device("meta"):
            eight = build_encoder(encoder.name, 8)
        wider = eight.state_dict()
        changed = {
            name: (value.shape[1], wider[name].shape[1])
            for name, value in encoder.state_dict().items()
            if value.shape != wider[name].shape
        }
        ours = {theirs: mine for mine, theirs in encoder.timm_names().items()}
        first = ours[f"{pretrained_config(encoder.name).first_conv}.weight"]
        assert changed == {first: (3, 8)}
        assert len(eight.mean) == len(eight.std) == 8
        assert eight.mean[:3] == encoder.mean
        assert eight.mean[3:] == (sum(encoder.mean) / 3,) * 5

    def test_synchronised_batch_norm_computes_the_same(self, encoder: Encoder) -> None:
        # timm's fused layers would lose their activations here.
        converted: Encoder = nn.SyncBatchNorm.convert_sync_batchnorm(  # type: ignore[no-untyped-call]
            copy.deepcopy(encoder)
        ).eval()
        norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
        assert sum(isinstance(part, nn.SyncBatchNorm) for part in converted.modules()) == len(norms)
        x = images(2, 64, 64)
        with torch.inference_mode():
            for found, expected in zip(converted(x), encoder.eval()(x), strict=True):
                torch.testing.assert_close(found, expected)

    def test_frozen_stages_stay_as_they_are(self, encoder: Encoder) -> None:
        encoder.train()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        encoder.freeze(2)
        with torch.no_grad():
            encoder(images(2, 64, 64))
        for index, stage in enumerate(encoder.stages):
            assert all(part.training == (index >= 2) for part in stage.modules())
            assert all(value.requires_grad == (index >= 2) for value in stage.parameters())
        changed = {
            name for name, value in encoder.state_dict().items() if not value.equal(before[name])
        }
        assert all(int(name.split(".")[1]) >= 2 for name in changed)
        assert changed or not any(name.endswith("running_mean") for name in before)
        encoder.load_state_dict(before)

        encoder.freeze(0)
        assert all(part.training for part in encoder.modules())
        assert all(value.requires_grad for value in encoder.parameters())
        encoder.eval().freeze(len(encoder.stages))
        encoder.freeze(0)
        assert not any(part.training for part in encoder.modules())
        with pytest.raises(ValueError, match="cannot freeze"):
            encoder.freeze(len(encoder.stages) + 1)


class EveryNetwork:
    """What a decoder must do with every encoder; one subclass a kind."""

    kind: ClassVar[str]

    def test_logits_have_the_images_size(self, network: UNet) -> None:
        network.eval()
        with torch.inference_mode():
            for size in [(64, 64), (96, 160), (65, 47)]:
                logits = network(images(1, *size))
                assert logits.shape == (1, len(PLANES), *size)
                assert logits.isfinite().all()

    def test_a_training_step_lowers_the_loss(self, network: UNet) -> None:
        # What a stage of the encoder learns does not hang on the decoder's kind: it learns with
        # the plain one and is frozen with the others, which is three times as fast.
        network.freeze_encoder(self.kind != "plain")
        network.train()
        statistics = {name: value.clone() for name, value in network.named_buffers()}
        x = images(4, 32, 32)
        target = (x[:, :1] > 0).float().expand(-1, len(PLANES), -1, -1)

        def loss() -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(network(x), target)

        network.zero_grad()
        start = loss()
        start.backward()  # type: ignore[no-untyped-call]
        steps = {}
        learning = {n: value for n, value in network.named_parameters() if value.requires_grad}
        for name, parameter in learning.items():
            gradient = parameter.grad
            assert gradient is not None and gradient.isfinite().all(), name
            # Not asked of the encoder: timm starts some residual branches at zero.
            assert name.startswith("encoder.") or gradient.any(), name
            # Every tensor moves by the same share of its own size: the untrained early layers
            # have gradients that would leave nothing for the others.
            steps[name] = float(parameter.detach().norm() / gradient.norm().clamp(min=1e-12))
        share, lowered = 1e-2, False
        with torch.no_grad():
            while not lowered and share > 1e-6:
                share /= 10
                for name, parameter in learning.items():
                    parameter.sub_(cast(Tensor, parameter.grad), alpha=share * steps[name])
                lowered = loss().item() < start.item() * (1 - 1e-6)
                for name, parameter in learning.items():
                    parameter.add_(cast(Tensor, parameter.grad), alpha=share * steps[name])
        network.zero_grad()
        network.freeze_encoder(False)
        network.load_state_dict(statistics, strict=False)
        assert lowered

    def test_channels_last_and_bfloat16_agree(self, network: UNet) -> None:
        network.eval()
        # bfloat16 has two digits: what the network says must not hang on a large constant.
        nn.init.zeros_(network.head.get_parameter("bias"))
        x = images(1, 64, 64)
        with torch.inference_mode():
            expected = network(x)
        network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            assert (network(x) - expected).norm() < 1e-3 * expected.norm()
            with torch.autocast("cpu", torch.bfloat16):
                found = network(x)
        network.to(memory_format=torch.contiguous_format)
        assert found.dtype == torch.bfloat16
        assert found.isfinite().all()
        # Rounding errors of an untrained EfficientNet add up over its dozens of blocks.
        if not network.encoder.name.startswith("efficientnet"):
            assert (found.float() - expected).norm() < 0.1 * expected.norm()

    def test_a_state_dict_holds_the_whole_network(self, network: UNet) -> None:
        network.eval()
        with torch.device("meta"):
            other = build_network(network.encoder.name, 3, PLANES, WIDTHS, self.kind).eval()
        other.load_state_dict(network.state_dict(), assign=True)
        x = images(1, 64, 64)
        with torch.inference_mode():
            # A buffer that is not in the state dict would still be on meta.
            assert torch.equal(other(x), network(x))


class TestPlainDecoder(EveryNetwork):
    kind = "plain"


class TestScseDecoder(EveryNetwork):
    kind = "scse"


class TestLightDecoder(EveryNetwork):
    kind = "light"


def test_every_decoder_is_tested_and_can_be_asked_for() -> None:
    kinds = {subclass.kind for subclass in EveryNetwork.__subclasses__()}
    assert kinds == set(DECODERS) == set(get_args(Decoder.model_fields["kind"].annotation))
