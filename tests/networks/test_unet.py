"""Networks and weight files: the reference's golden outputs, parts, pretrained encoders, faults."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from golden_networks import tensor_by_name
from repository import SHARED
from satmap.errors import SatmapError
from satmap.networks.encoders import ENCODERS, adapt_first_conv, build_encoder
from satmap.networks.layers import DepthwiseConv, NormAct, StridedConv, replace_convolutions
from satmap.networks.unet import (
    DECODER_STRIDES,
    DECODER_WIDTHS,
    DECODERS,
    DecoderBlock,
    LightBlock,
    ScseBlock,
    UNet,
    build_network,
)
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights.header import DecoderKind, read_metadata, read_weights_metadata
from satmap.weights.network_files import (
    load_pretrained_encoder,
    load_weights,
    save_weights,
)
from satmap.weights.published import reference_names

REFERENCE = SHARED / "fixtures" / "network"
PUBLISHED = [("dpn_unet", "dpn92"), ("irv_unet", "inception_resnet_v2")]

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference's outputs are not on this machine"
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, because tiny inputs gain nothing from threads and tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(network: UNet, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, network.encoder.in_channels, *size, generator=generator)


# The published networks


@needs_reference
@pytest.mark.parametrize(("published", "name"), PUBLISHED)
def test_networks_match_the_published_ones(published: str, name: str) -> None:
    shapes = json.loads((REFERENCE / f"{published}.keys.json").read_text())
    network = build_network(name, 3, ROAD_MAPS).eval()
    ours = {theirs: mine for mine, theirs in reference_names(network).items()}
    assert {ours[key]: tuple(shape) for key, shape in shapes.items()} == {
        key: tuple(value.shape) for key, value in network.state_dict().items()
    }
    assert len(ours) == len(shapes)

    network.load_state_dict(
        {ours[key]: tensor_by_name(key, shape) for key, shape in shapes.items()}
    )
    noise = np.random.Generator(np.random.PCG64(7))
    x = torch.from_numpy(noise.standard_normal((1, 3, 128, 160), dtype=np.float32))
    with np.load(REFERENCE / f"{published}.golden.npz") as golden:
        expected = torch.from_numpy(golden["output"])
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=0)
        # The conversion would drop the activations of timm's fused layers.
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        torch.testing.assert_close(converted(x), expected, atol=1e-5, rtol=0)


# The whole network


@pytest.mark.parametrize("kind", DECODERS)
def test_weights_round_trip(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    categories = ("nadir", "off-nadir", "very-off-nadir") if kind == "scse" else ()
    network = build_network("resnet18", 8, ROAD_MAPS, (32, 24, 16, 8), kind, categories)
    path = tmp_path / "new" / "fold0.safetensors"
    network.eval().to(memory_format=torch.channels_last)
    save_weights(path, network, {"recipe": "sn5-roads", "epoch": "3"})
    loaded, metadata = load_weights(path)
    assert metadata == {
        "recipe": "sn5-roads",
        "epoch": "3",
        "architecture": "resnet18",
        "in_channels": "8",
        "decoder": f'{{"kind":"{kind}","widths":[32,24,16,8]}}',
        "maps": json.dumps(ROAD_MAPS, separators=(",", ":")),
    } | ({"categories": '["nadir","off-nadir","very-off-nadir"]'} if categories else {})
    assert loaded.map_names == ROAD_MAPS
    assert (loaded.decoder_kind, loaded.categories) == (kind, categories)
    assert not loaded.training
    x = images(network, 64, 64)
    category = torch.tensor([0, 2]) if categories else None
    network.to(memory_format=torch.contiguous_format)
    with torch.inference_mode():
        assert torch.equal(loaded(x, category), network(x, category))


def test_frozen_encoder_stays_as_it_is() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ["road"])
    network.encoder.freeze(len(network.encoder.stages))
    network.train()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    network(images(network, 64, 64)).mean().backward()
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert all(parameter.grad is not None for parameter in network.decoder.parameters())
    assert network.decoder.training
    network.encoder.freeze(2)
    assert network.encoder.frozen_stages == 2
    network.encoder.freeze(0)
    assert network.encoder.frozen_stages == 0
    assert all(module.training for module in network.modules())
    # Parameters frozen by others stay frozen when the encoder thaws.
    own = network.encoder.get_parameter("stages.0.conv1.weight").requires_grad_(False)
    for stages in (0, 1, 3, 1, 0):
        network.encoder.freeze(stages)
        assert [s for s, part in enumerate(network.encoder.stages)
                if not any(value.requires_grad for value in part.parameters())
                ] == list(range(stages))  # fmt: skip
        assert not own.requires_grad
    stopped = [n for n, value in network.named_parameters() if not value.requires_grad]
    assert stopped == ["encoder.stages.0.conv1.weight"]


def test_each_image_gets_the_head_of_its_category() -> None:
    torch.manual_seed(0)
    names = ["nadir", "off-nadir", "very-off-nadir"]
    network = build_network("resnet18", 3, ["building", "border"], categories=names).eval()
    single = build_network("resnet18", 3, ["building", "border"]).eval()
    x = images(network, 64, 47)
    category = network.category_indices(["very-off-nadir", "nadir"])
    assert category is not None
    assert category.tolist() == [2, 0]
    with torch.inference_mode():
        found = network(x, category)
        for image, index in enumerate(category.tolist()):
            state = dict(network.state_dict())
            for part in ("head.weight", "head.bias"):
                state[part] = state[part][2 * index : 2 * index + 2]
            single.load_state_dict(state)
            torch.testing.assert_close(found[image], single(x)[image])
    assert single.category_indices(["nadir"]) is None
    with pytest.raises(SatmapError, match=r"heads for nadir, off-nadir.*'zenith'"):
        network.category_indices(["zenith"])
    with pytest.raises(ValueError, match="are nadir, off-nadir"):
        network(x)
    with pytest.raises(ValueError, match="are none"):
        single(x, category)
    with pytest.raises(ValueError, match="categories must be none, or two or more"):
        build_network("resnet18", 3, ["building"], categories=["nadir"])


@pytest.mark.parametrize("categories", [(), ("nadir", "off-nadir")])
def test_maps_in_another_order(categories: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ["a", "b", "c"], (8,) * 4, categories=categories).eval()
    x = images(network, 64, 64)
    category = torch.tensor([0, 1]) if categories else None
    with torch.inference_mode():
        before = network(x, category)
        network.order_maps(["c", "a", "b"])
        assert network.map_names == ("c", "a", "b")
        assert torch.equal(network(x, category), before[:, [2, 0, 1]])
    with pytest.raises(ValueError, match="this network has c, a, b"):
        network.order_maps(["a", "b"])


def test_only_heads_of_the_batchs_categories_get_gradients() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ["building"], (16,) * 4, categories=list("abcde"))
    network(images(network, 64, 64), torch.tensor([1, 3])).square().mean().backward()
    gradient = network.head.get_parameter("weight").grad
    assert gradient is not None
    assert [bool(head.any()) for head in gradient] == [False, True, False, True, False]
    assert all(parameter.grad is not None for parameter in network.encoder.parameters())


def test_scse_weights_channels_and_positions() -> None:
    torch.manual_seed(0)
    block = ScseBlock(4, 3, 6)
    plain = DecoderBlock(4, 3, 6)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "_conv" in k})
    x, skip = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 10, 10)
    y = plain(x, skip)
    squeezed = (y.mean((2, 3)) @ block.squeeze.weight[:, :, 0, 0].T + block.squeeze.bias).relu()
    channel = (squeezed @ block.excite.weight[:, :, 0, 0].T + block.excite.bias).sigmoid()
    weight, bias = block.spatial.weight[0], block.spatial.get_parameter("bias")
    place = ((y * weight).sum(dim=1, keepdim=True) + bias).sigmoid()
    expected = y * channel[:, :, None, None] + y * place
    torch.testing.assert_close(block(x, skip), expected)


def test_the_light_block_narrows_what_is_concatenated() -> None:
    torch.manual_seed(0)
    block = LightBlock(4, 3, 6)
    x, skip = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 10, 10)
    whole = torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), skip], dim=1)
    weight = torch.cat([block.narrow.weight, block.lateral.weight], dim=1)
    y = nn.functional.conv2d(whole, weight, block.narrow.bias).relu()
    torch.testing.assert_close(block(x, skip), block.conv2(block.conv1(y).relu()).relu())


def test_savings_of_the_light_decoder() -> None:
    """Check the figures in the recipe's ``Decoder`` and in the README."""
    narrow = ("resnet18", "resnet34", "convnext", "efficientnet")
    for name, spec in ENCODERS.items():
        skips = dict(zip(spec.strides, spec.channels, strict=True))
        width_in, plain, light = spec.channels[-1], 0.0, 0.0
        for width, stride in zip(DECODER_WIDTHS, DECODER_STRIDES, strict=False):
            skip, pixels = skips.get(stride, 0), stride**-2
            plain += pixels * 9 * width * (width_in + width + skip)
            light += pixels * width * (width_in / 4 + skip + 18 * width)
            width_in = width
        low, high = (29, 37) if name.startswith(narrow) else (50, 62)
        if name in ("dpn68b", "vgg16"):
            low = high = 43
        if name.startswith("efficientnet_lite"):
            low, high = 27, 28
        assert low <= round(100 * (1 - light / plain)) <= high, name


@pytest.mark.parametrize("kind", DECODERS)
def test_a_fifth_block_decodes_at_full_resolution(kind: str) -> None:
    network = build_network("resnet18", 3, ["road"], (32, 16, 8, 8, 4), kind).eval()
    assert network.head.in_channels == 4
    with torch.inference_mode():
        found = network(images(network, 33, 70))
    assert found.shape == (2, 1, 33, 70)
    # Neighbouring pixels are not interpolated.
    second = found.diff(n=2, dim=2)
    assert (second.abs() > 1e-6).float().mean() > 0.9


# Single behaviours


@pytest.mark.parametrize("kind", DECODERS)
def test_half_precision_and_channels_last_agree(kind: str) -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ["road"], decoder_kind=kind).eval()
    x = images(network, 64, 64)
    with torch.inference_mode():
        expected = network(x)
        network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(network(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05 * float(expected.std()), rtol=0.1)


def test_padding_is_cropped_and_mirrors_the_image() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ["road"]).eval()
    x = images(network, 64, 40)
    mirrored = torch.cat([x, x[..., 15:39].flip(-1)], dim=-1)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), network(mirrored)[..., :40])
        # An image that is too small to mirror repeats its far border.
        x = images(network, 64, 3)
        mirrored = x[..., [0, 1, 2, 1, *[0] * 28]]
        torch.testing.assert_close(network(x), network(mirrored)[..., :3])
        for size in [(1, 1), (1, 40), (16, 16), (33, 31)]:
            assert network(images(network, *size)).shape[2:] == size


def test_tensorflows_padding_of_even_sizes() -> None:
    torch.manual_seed(0)
    for kernel in (2, 3, 5):
        network = nn.Sequential(Conv2dSame(4, 8, kernel, stride=2, groups=2))
        x = torch.randn(2, 4, 10, 16)
        expected = network(x)
        replace_convolutions(network)
        assert isinstance(network[0], StridedConv)
        torch.testing.assert_close(network(x), expected)


def test_depthwise_convolutions_have_float32_gradients_on_cpus() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Conv2d(8, 4, 1))
    ours = nn.Sequential(*plain)
    replace_convolutions(ours)
    assert isinstance(ours[0], DepthwiseConv) and ours[1] is plain[1]
    assert ours[0].weight is plain[0].weight
    x = torch.randn(2, 8, 16, 16)
    low = x.bfloat16().requires_grad_()
    exact = torch.autograd.grad(plain[0](low.float()).square().sum(), low)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert ours[0](low).dtype == torch.bfloat16
        rounded = torch.autograd.grad(ours[0](low).float().square().sum(), low)[0]
        with torch.inference_mode():
            # Predictions keep the precision of autocast.
            assert torch.equal(ours[0](x), plain[0](x))
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)


def test_first_convolution_keeps_three_filters() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 3, 7, 7)
    adapted = adapt_first_conv(weight, 8)
    assert torch.equal(adapted[:, :3], weight)
    he = (2 / (8 * 7 * 7)) ** 0.5
    assert float(adapted[:, 3:].std()) == pytest.approx(he, rel=0.05)
    untrained = build_encoder("resnet18", 8).get_parameter("stages.0.conv1.weight")
    assert float(untrained.detach().std()) == pytest.approx(he, rel=0.05)
    # A grey image gives the same output as in RGB.
    torch.testing.assert_close(adapt_first_conv(weight, 1)[:, 0], weight.sum(dim=1))
    assert adapt_first_conv(weight, 2).shape == (64, 2, 7, 7)


def test_split_norm_act_keeps_the_computation() -> None:
    fused = BatchNormAct2d(4).eval()
    nn.init.uniform_(fused.get_buffer("running_mean"))
    nn.init.uniform_(fused.get_parameter("bias"))
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(NormAct(fused).eval()(x), fused(x))
    with pytest.raises(ValueError, match="drop layer"):
        NormAct(BatchNormAct2d(4, drop_layer=nn.Dropout))


def test_invalid_networks_are_refused() -> None:
    with pytest.raises(SatmapError, match=r"unknown encoder 'unet'.*dpn92"):
        build_network("unet", 3, ["road"])
    with pytest.raises(SatmapError, match="at least one input channel"):
        build_network("resnet18", 0, ["road"])
    with pytest.raises(SatmapError, match="unknown decoder 'heavy'; known are plain, scse, light"):
        build_network("resnet18", 3, ["road"], decoder_kind="heavy")
    for maps in ([], ["road", "road"]):
        with pytest.raises(ValueError, match="map names must be one or more"):
            build_network("resnet18", 3, maps)


# Pretrained encoders


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """Synthetic ImageNet checkpoint of ResNet18 with classifier."""
    torch.manual_seed(2)
    model: nn.Module = timm.create_model("resnet18", pretrained=False)
    return dict(model.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("channels", [3, 8])
def test_pretrained_encoder(
    suffix: str, channels: int, imagenet: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        # Old checkpoints lack the counters.
        torch.save({k: v for k, v in imagenet.items() if "num_batches" not in k}, path)
    else:
        save_file(imagenet, path)
    network = build_network("resnet18", channels, ["road"])
    load_pretrained_encoder(network.encoder, path)
    first = network.encoder.get_parameter("stages.0.conv1.weight")
    assert first.shape[1] == channels
    assert torch.equal(first[:, :3], imagenet["conv1.weight"])
    deep = network.encoder.get_parameter("stages.4.layer4.1.conv2.weight")
    assert torch.equal(deep, imagenet["layer4.1.conv2.weight"])


@pytest.mark.parametrize("name", ["efficientnet_b3", "convnext_tiny"])
def test_pretrained_encoders_leave_timms_classifier_out(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model: nn.Module = timm.create_model(name, pretrained=False)
    save_file(dict(model.state_dict()), tmp_path / "weights.safetensors")
    network = build_network(name, 4, ["road"])
    load_pretrained_encoder(network.encoder, tmp_path / "weights.safetensors")
    names = network.encoder.timm_names()
    theirs = model.state_dict()
    for ours, value in network.encoder.state_dict().items():
        found = value[:, :3] if value.shape != theirs[names[ours]].shape else value
        assert torch.equal(found, theirs[names[ours]]), ours


class Evil:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit('a pickle ran code')",)


def test_pretrained_encoder_errors(imagenet: dict[str, Tensor], tmp_path: Path) -> None:
    network = build_network("resnet18", 3, ["road"])
    with pytest.raises(
        SatmapError, match=r"no weight file .*absent\.pth.*timm/resnet18.*--from-sc"
    ):
        load_pretrained_encoder(network.encoder, tmp_path / "absent.pth")
    with pytest.raises(SatmapError, match="is a directory"):
        load_pretrained_encoder(network.encoder, tmp_path)
    path = tmp_path / "weights.pth"
    for saved, message in [
        ({"state_dict": imagenet}, "more than a state dict"),
        ({**imagenet, "bn1.weight": imagenet["bn1.weight"] * torch.inf}, "bn1.weight has values"),
        ({k: v for k, v in imagenet.items() if k != "bn1.weight"}, "it lacks bn1.weight"),
        ({**imagenet, "conv1.weight": imagenet["conv1.weight"][:, :2]}, "shape .64, 2, 7, 7."),
        (Evil(), "cannot read"),
    ]:
        torch.save(saved, path)
        with pytest.raises(SatmapError, match=message):
            load_pretrained_encoder(network.encoder, path)
    path.write_bytes(b"")
    with pytest.raises(SatmapError, match="cannot read"):
        load_pretrained_encoder(network.encoder, path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(100))
    with pytest.raises(SatmapError, match="not a whole safetensors file"):
        load_pretrained_encoder(network.encoder, path)
    other = build_network("resnet34", 3, ["road"])
    save_file(imagenet, path)
    with pytest.raises(SatmapError, match=r"weights of resnet34: it lacks layer1.*more tensors"):
        load_pretrained_encoder(other.encoder, path)


# Broken weight files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "good.safetensors"
    save_weights(path, build_network("resnet18", 3, ["road", "junction"]), {"epoch": "1"})
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "not a whole safetensors file"),
        (lambda data: data[:100], "not a whole safetensors file"),
        (lambda data: data[:-1], "not a whole safetensors file"),
        (lambda data: data + b"x", "not a whole safetensors file"),
        (lambda data: b"", "not a whole safetensors file"),
        (lambda data: np.random.default_rng(0).bytes(5000), "not a whole safetensors file"),
        (lambda data: pickle.dumps({"weight": 1}), "is a PyTorch pickle"),
        (lambda data: b"PK\x03\x04" + bytes(500), "is a PyTorch pickle"),
    ],
    ids=["half", "header", "short", "long", "empty", "random", "pickle", "zip"],
)
def test_damaged_files(
    damage: Callable[[bytes], bytes], message: str, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(saved.read_bytes()))
    for read in (load_weights, read_weights_metadata):
        with pytest.raises(SatmapError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    for read in (load_weights, read_weights_metadata):
        with pytest.raises(SatmapError, match=r"no weight file .*absent\.safetensors"):
            read(tmp_path / "absent.safetensors")
        with pytest.raises(SatmapError, match="is a directory"):
            read(tmp_path)


def test_headers_know_every_decoder() -> None:
    assert get_args(DecoderKind) == tuple(DECODERS)


def test_headers_need_no_torch() -> None:
    code = "import sys, satmap.weights.header; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def decoder(widths: str) -> str:
    return f'{{"kind": "plain", "widths": {widths}}}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": None}, r"without satmap's metadata \(architecture\)"),
        ({"architecture": None, "in_channels": None, "maps": None, "epoch": None}, "without"),
        ({"architecture": "vgg"}, "architecture 'vgg'.*it has .*dpn92"),
        ({"architecture": "resnet34"}, "not the resnet34 network .*it lacks encoder.*more tensors"),
        ({"in_channels": "8"}, r"stages.0.conv1.weight has the shape .64, 3.* instead of .64, 8"),
        ({"in_channels": "three"}, "broken metadata.*three"),
        (
            {"in_channels": "0"},
            "in_channels: Input .* greater than or equal to 1; in_channels is 0",
        ),
        ({"in_channels": "9" * 40}, "broken metadata"),
        ({"in_channels": "3.0"}, "broken metadata"),
        ({"in_channels": "true"}, "broken metadata"),
        ({"in_channels": '"3"'}, "broken metadata"),
        ({"maps": '["road"]'}, r"head.weight has the shape .2, 64, 1, 1. instead of .1, 64"),
        ({"maps": "road"}, "broken metadata"),
        ({"maps": "[1, 2]"}, "maps.0: Input should be a valid string"),
        ({"maps": '["road", "road"]'}, "maps: a name repeats"),
        ({"maps": "[]"}, "maps: .* at least 1 item"),
        ({"maps": '["road", ""]'}, "maps.1: String should have at least 1 char"),
        ({"maps": "[" * 100_000}, "broken metadata: maps"),
        ({"decoder": "[" * 100_000}, "broken metadata: decoder"),
        ({"categories": "[" * 100_000}, "broken metadata: categories"),
        ({"decoder": "[256, 256, 128, 64]"}, "broken metadata: decoder: Input should be"),
        ({"decoder": decoder("[256, 256, 128]")}, "broken metadata: decoder.widths"),
        ({"decoder": decoder("[256, 256, 128, 0]")}, "decoder.widths.3: Input should be greater"),
        ({"decoder": decoder("[256, 256, 128, true]")}, "decoder.widths.3: .* valid integer"),
        ({"decoder": decoder("[256, 256, 128, 64.0]")}, "decoder.widths.3: .* valid integer"),
        ({"decoder": decoder('[256, 256, 128, "64"]')}, "decoder.widths.3: .* valid integer"),
        ({"decoder": "wide"}, "broken metadata"),
        ({"decoder": '{"kind": "wide", "widths": [1, 1, 1, 1]}'}, "the decoder 'wide'.*has plain"),
        ({"decoder": '{"kind": [], "widths": [1, 1, 1, 1]}'}, r"the decoder \[\]"),
        ({"decoder": '{"kind": "light"}'}, "decoder.widths: Field required"),
        ({"decoder": '{"kind": "light", "widths": [256, 256, 128, 64]}'}, "it lacks decoder.0"),
        ({"categories": '["a"]'}, "categories: .* at least 2 items"),
        ({"categories": '["a", "a"]'}, "categories: a name repeats"),
        ({"categories": '["a", "b"]'}, "head.* has the shape"),
        ({"decoder": decoder("[256, 256, 128, 32]")}, "has the shape"),
        ({"format": "2", "architecture": "new"}, "format number 2, .* reads weights of format 1"),
        ({"format": "1.5"}, "format number 1.5, .* Use the version of satmap that wrote the file"),
    ],
)
def test_wrong_metadata(
    change: dict[str, str | None], message: str, saved: Path, tmp_path: Path
) -> None:
    metadata = {**read_weights_metadata(saved), **change}
    path = tmp_path / "wrong.safetensors"
    kept = {key: value for key, value in metadata.items() if value is not None}
    save_file(load_file(saved), path, kept)
    with pytest.raises(SatmapError, match=message) as caught:
        load_weights(path)
    path.unlink()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.bias", torch.tensor([0, torch.nan]), "head.bias has values that are not finite"),
        ("head.bias", torch.zeros(2, dtype=torch.int8), "head.bias is of type torch.int8"),
        ("encoder.stages.0.bn1.running_var", torch.full((64,), -1.0), "is a variance"),
    ],
)
def test_invalid_tensor_values_are_refused(
    name: str, value: Tensor, message: str, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "values.safetensors"
    save_file({**load_file(saved), name: value}, path, read_weights_metadata(saved))
    with pytest.raises(SatmapError, match=message):
        load_weights(path)


def test_unknown_tensors_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    tensors = {**load_file(saved), "spare": torch.zeros(1)}
    save_file(tensors, path, read_weights_metadata(saved))
    with pytest.raises(SatmapError, match="it has the unknown spare"):
        load_weights(path)


def test_format_numbers(saved: Path, tmp_path: Path) -> None:
    assert read_metadata(saved)["format"] == "1"
    metadata = read_weights_metadata(saved)
    assert "format" not in metadata
    # Earlier files have no number, and other programs name a framework.
    path = tmp_path / "other.safetensors"
    for extra in ({}, {"format": "pt"}):
        save_file(load_file(saved), path, metadata | extra)
        assert load_weights(path)[1] == metadata


def test_callers_cannot_set_metadata_of_the_network(saved: Path) -> None:
    network, _ = load_weights(saved)
    before = saved.read_bytes()
    for key in ("maps", "categories", "normalization", "format"):
        with pytest.raises(ValueError, match=key):
            save_weights(saved, network, {key: "[]"})
    assert saved.read_bytes() == before


def test_saving_to_an_unwritable_path(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "file").write_text("")
    network, _ = load_weights(saved)
    with pytest.raises(SatmapError, match="cannot write"):
        save_weights(tmp_path / "file" / "weights.safetensors", network, {})
