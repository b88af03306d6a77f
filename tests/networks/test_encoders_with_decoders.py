"""Every encoder with every decoder; each kind of decoder inherits one class of tests.

Encoders have their real depth and width and are built once. Images are tiny and decoders narrow.
Features of an image are computed once for all decoders. Weight files, golden outputs and single
layers are tested in ``test_models`` and ``test_weights``; ``benchmarks/networks.py`` runs all
networks at 512 x 512 with the reference's widths.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, cast, get_args

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from satmap.networks.encoders import (
    ENCODERS,
    Encoder,
    build_encoder,
    pretrained_config,
)
from satmap.networks.unet import DECODERS, UNet, build_network
from satmap.recipes.schema import DecoderSettings

MAPS = ("road", "junction")
WIDTHS = (32, 32, 16, 16)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, because tiny inputs gain nothing from threads and tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Every encoder in turn, with batch norms calibrated on noise.

    timm's initial statistics assume variance 1. Features would then vanish or explode with depth,
    and rounding errors would dominate the measurements.
    """
    torch.manual_seed(0)
    encoder = build_encoder(request.param, 3).train()
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        encoder(images(4, 64, 64))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return encoder.eval()


class Remembering(nn.Module):
    """Encoder that computes the features of each image shape once and returns copies.

    Images of one shape are equal here (see ``images``). ``known`` holds the original features,
    through which gradients reach the encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels, self.strides = encoder.channels, encoder.strides
        self.known: dict[tuple[torch.Size, bool], list[Tensor]] = {}

    def forward(self, x: Tensor) -> list[Tensor]:
        key = x.shape, self.training
        if key not in self.known:
            self.known[key] = self.encoder(x)
        features = [feature.detach() for feature in self.known[key]]
        return [f.requires_grad_() for f in features] if torch.is_grad_enabled() else features


@pytest.fixture(scope="module")
def remembering(encoder: Encoder) -> Iterator[Remembering]:
    """Encoder with cached features; its statistics are restored at the end."""
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    yield Remembering(encoder)
    encoder.eval().load_state_dict(statistics, strict=False)


@pytest.fixture(scope="class")
def network(request: pytest.FixtureRequest, remembering: Remembering) -> UNet:
    """Network of the encoder and the decoder of the test class."""
    torch.manual_seed(0)
    return UNet(cast(Encoder, remembering), MAPS, WIDTHS, request.cls.kind)


def images(count: int, *size: int, bands: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, bands, *size, generator=generator)


class TestEncoder:
    def test_features_have_the_sizes_and_widths_that_it_states(self, encoder: Encoder) -> None:
        assert encoder.strides == (4, 8, 16, 32) or encoder.strides == (2, 4, 8, 16, 32)
        with torch.inference_mode():
            features = encoder.eval()(images(1, 64, 96))
        assert [tuple(feature.shape) for feature in features] == [
            (1, width, 64 // stride, 96 // stride)
            for width, stride in zip(encoder.channels, encoder.strides, strict=True)
        ]
        assert all(feature.isfinite().all() and feature.std() > 0 for feature in features)

    def test_it_has_all_of_timms_tensors(self, encoder: Encoder) -> None:
        with torch.device("meta"):
            model = timm.create_model(ENCODERS[encoder.name].timm_name, pretrained=False)
        heads = {"efficientnet": ("conv_head.", "bn2."), "vgg": ("pre_logits.",)}
        head = next((h for kind, h in heads.items() if encoder.name.startswith(kind)), ())
        unused = (f"{pretrained_config(encoder.name).classifier}.", *head)
        ours = encoder.state_dict()
        names = encoder.timm_names()
        assert {theirs: ours[mine].shape for mine, theirs in names.items()} == {
            key: value.shape
            for key, value in model.state_dict().items()
            if not key.startswith(unused)
        }
        assert len(ours) == len(set(names.values()))

    def test_more_bands_change_the_first_convolution_alone(self, encoder: Encoder) -> None:
        with torch.device("meta"):
            twelve = build_encoder(encoder.name, 12)
        wider = twelve.state_dict()
        changed = {
            name: (value.shape[1], wider[name].shape[1])
            for name, value in encoder.state_dict().items()
            if value.shape != wider[name].shape
        }
        ours = {theirs: mine for mine, theirs in encoder.timm_names().items()}
        first = ours[f"{pretrained_config(encoder.name).first_conv}.weight"]
        assert changed == {first: (3, 12)}
        assert len(twelve.mean) == len(twelve.std) == 12
        assert twelve.mean[:3] == encoder.mean
        assert twelve.mean[3:] == (sum(encoder.mean) / 3,) * 9

    def test_no_norm_is_fused_with_its_activation(self, encoder: Encoder) -> None:
        # Synchronising batch norms over several GPUs would lose the activation.
        assert not any(isinstance(part, BatchNormAct2d) for part in encoder.modules())

    def test_frozen_stages_stay_as_they_are(self, encoder: Encoder) -> None:
        encoder.train()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        encoder.freeze(2)
        with torch.no_grad():
            encoder(images(2, 32, 32))
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

    def test_memory_formats_precisions_and_copies_agree(self, encoder: Encoder) -> None:
        x = images(1, 64, 64)
        encoder.eval()
        duplicate = copy.deepcopy(encoder).to("meta")
        duplicate.load_state_dict(encoder.state_dict(), assign=True)
        with torch.inference_mode():
            expected = encoder(x)
            # A buffer that is not in the state dict would still be on meta.
            same = duplicate(x)
            encoder.to(memory_format=torch.channels_last)
            # Untrained layers amplify rounding errors, so each stage starts from exact inputs.
            inputs = [y.contiguous(memory_format=torch.channels_last) for y in (x, *expected[:-1])]
            stages = list(zip(encoder.stages, inputs, strict=True))
            last = [stage(y) for stage, y in stages]
            with torch.autocast("cpu", torch.bfloat16):
                half = [stage(y) for stage, y in stages]
        encoder.to(memory_format=torch.contiguous_format)
        for wanted, *found in zip(expected, same, last, half, strict=True):
            # timm's DPN passes on a residual and a dense path as a pair.
            found = [torch.cat(y, dim=1) if isinstance(y, tuple) else y for y in found]
            assert torch.equal(found[0], wanted)
            assert (found[1] - wanted).norm() < 1e-3 * wanted.norm()
            # bfloat16 has two to three digits, and in a stage dozens of layers add up.
            assert (found[2].float() - wanted).norm() < 0.25 * wanted.norm()


class EveryNetwork:
    """Tests of a decoder with every encoder; one subclass per kind of decoder."""

    kind: ClassVar[str]

    def test_logits_have_the_images_size(self, network: UNet) -> None:
        network.eval()
        with torch.inference_mode():
            for size in [(64, 64), (96, 160), (65, 47)]:
                logits = network(images(1, *size))
                assert logits.shape == (1, len(MAPS), *size)
                assert logits.isfinite().all()

    def test_a_training_step_lowers_the_loss(self, network: UNet, remembering: Remembering) -> None:
        network.train()
        x = images(4, 32, 32)
        target = (x[:, :1] > 0).float().expand(-1, len(MAPS), -1, -1)

        def loss() -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(network(x), target)

        copies: list[Tensor] = []
        hook = remembering.register_forward_hook(lambda *given: copies.extend(given[2]))
        start = loss()
        hook.remove()
        decoder = [*network.decoder.parameters(), *network.head.parameters()]
        gradients = torch.autograd.grad(start, [*decoder, *copies])
        # Every parameter and every feature of any scale affects the loss.
        assert all(value.isfinite().all() and value.any() for value in gradients)
        assert lowers(decoder, gradients[: len(decoder)], loss, start)

        if self.kind != "plain":
            # Gradients within the encoder do not depend on the kind of decoder.
            return
        # So does the encoder alone, with an unchanged decoder.
        contracting = list(remembering.encoder.parameters())
        features = remembering.known.pop((x.shape, True))
        found = torch.autograd.grad(features, contracting, gradients[len(decoder) :])
        assert all(value.isfinite().all() for value in found)

        def loss_anew() -> Tensor:
            remembering.known.clear()
            return loss()

        assert lowers(contracting, found, loss_anew, start)
        remembering.known.clear()


def lowers(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    loss: Callable[[], Tensor],
    start: Tensor,
) -> bool:
    """Return whether a sufficiently small step against the gradients lowers the loss."""
    # Every tensor moves by the same fraction of its norm, because the gradients of untrained early
    # layers would dominate the others.
    steps = [
        float(value.detach().norm() / gradient.norm().clamp(min=1e-12))
        for value, gradient in zip(parameters, gradients, strict=True)
    ]
    with torch.no_grad():
        # The loss of EfficientNet-Lite, with batch norms over four values, curves most.
        for share in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
            for value, gradient, step in zip(parameters, gradients, steps, strict=True):
                value.sub_(gradient, alpha=share * step)
            lowered = loss().item() < start.item() * (1 - 1e-6)
            for value, gradient, step in zip(parameters, gradients, steps, strict=True):
                value.add_(gradient, alpha=share * step)
            if lowered:
                return True
    return False


class TestPlainDecoder(EveryNetwork):
    kind = "plain"


class TestScseDecoder(EveryNetwork):
    kind = "scse"


class TestLightDecoder(EveryNetwork):
    kind = "light"


@pytest.mark.parametrize("bands", [1, 4, 12])
def test_any_number_of_bands_goes_in(bands: int) -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", bands, MAPS, WIDTHS).eval()
    pixels = torch.randint(0, 256, (1, bands, 33, 64), dtype=torch.uint8)
    with torch.inference_mode():
        logits = network(network.encoder.normalize(pixels))
        other = network(network.encoder.normalize(pixels.index_fill(1, torch.tensor(bands - 1), 0)))
    assert logits.shape == (1, len(MAPS), 33, 64)
    # The last band also affects the output.
    assert not torch.equal(logits, other)


def test_every_decoder_is_tested_and_available() -> None:
    kinds = {subclass.kind for subclass in EveryNetwork.__subclasses__()}
    assert kinds == set(DECODERS) == set(get_args(DecoderSettings.model_fields["kind"].annotation))
