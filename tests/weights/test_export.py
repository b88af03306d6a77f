"""Exported graphs give the network's probability maps without the network."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from satmap.cli import main
from satmap.errors import SatmapError
from satmap.networks.unet import UNet, build_network
from satmap.weights import export
from satmap.weights.export import LEAST_FREE_SIDE, export_network
from satmap.weights.export_file import METADATA_FILE, require_exportable
from satmap.weights.network_files import load_weights, save_weights

WIDTHS = (16, 16, 8, 8)
MAPS = ("road", "junction")
pytestmark = pytest.mark.usefixtures("tiny_encoders")

METADATA = {"maps": json.dumps(MAPS), "epoch": "3"}

# Each decoder once, and features that are hard to export: selection of heads, pooling that rounds
# up, attention, strides from 4 on.
NETWORKS = {
    "resnet-heads": ("tiny", "plain", ("nadir", "off-nadir", "very-off-nadir")),
    "senet-scse": ("tiny_senet", "scse", ()),
    "convnext-light": ("tiny_convnext", "light", ()),
}


def make(encoder: str, kind: str, categories: tuple[str, ...], channels: int = 3) -> UNet:
    torch.manual_seed(0)
    return build_network(encoder, channels, MAPS, WIDTHS, kind, categories).eval()


def picture(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def inputs_of(network: UNet, *shape: int) -> tuple[Tensor, ...]:
    heads = (torch.arange(shape[0]) % 3,) if network.categories else ()
    return (picture(*shape), *heads)


def expected_maps(network: UNet, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    with torch.inference_mode():
        maps = network(network.encoder.normalize(inputs[0]), *inputs[1:]).sigmoid()
    found: NDArray[np.float32] = maps.numpy()
    return found


def run_onnx(path: Path, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    assert names == ["image", "category"][: len(inputs)]
    feed = dict(zip(names, (given.numpy() for given in inputs), strict=True))
    (maps,) = session.run(["probabilities"], feed)
    return np.asarray(maps)


def run_pt2(path: Path, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    maps: Tensor = torch.export.load(path).module()(*inputs)
    return maps.detach().numpy()


RUNTIMES = {".onnx": run_onnx, ".pt2": run_pt2}


# torch loads graphs of variable size slowly, so there is only one.
@pytest.mark.parametrize(
    ("name", "suffix"), [*((name, ".onnx") for name in NETWORKS), ("resnet-heads", ".pt2")]
)
def test_any_image_size(name: str, suffix: str, tmp_path: Path) -> None:
    network = make(*NETWORKS[name])
    path = tmp_path / f"network{suffix}"
    export_network(network, path, METADATA)
    for shape in [(1, 3, 96, 160), (2, 3, 65, 47), (3, 3, LEAST_FREE_SIDE, 100)]:
        inputs = inputs_of(network, *shape)
        found = RUNTIMES[suffix](path, inputs)
        assert found.shape == (shape[0], len(MAPS), *shape[2:])
        expected = expected_maps(network, inputs)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert expected.std() > 1e-3
    if suffix == ".onnx":
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        given, maps = model.graph.input[0], model.graph.output[0]
        assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert sizes_of(given) == ["batch", 3, "height", "width"]
        assert sizes_of(maps) == ["batch", 2, "height", "width"]
    path.unlink()


def sizes_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("suffix", RUNTIMES)
@pytest.mark.parametrize("size", [(64, 96), (65, 47)])
def test_one_image_size(size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    network = make("tiny", "plain", (), channels=8)
    path = tmp_path / f"network{suffix}"
    export_network(network, path, METADATA, size)
    inputs = inputs_of(network, 1, 8, *size)
    expected = expected_maps(network, inputs)
    np.testing.assert_allclose(RUNTIMES[suffix](path, inputs), expected, atol=1e-4)
    with pytest.raises(Exception, match=r"(?i)dimension|size|shape"):
        RUNTIMES[suffix](path, (picture(1, 8, 96, 96),))


def test_a_file_describes_its_content_and_not_this_machine(tmp_path: Path) -> None:
    network = make("tiny", "light", ())
    for suffix in RUNTIMES:
        paths = [tmp_path / f"{place}{suffix}" for place in "ab"]
        for path in paths:
            export_network(network, path, METADATA, (64, 64))
        content = paths[0].read_bytes()
        assert content == paths[1].read_bytes()
        assert str(Path(export.__file__).parent).encode() not in content
        assert sorted(path.name for path in tmp_path.glob(f"*{suffix}")) == [
            f"a{suffix}", f"b{suffix}",
        ]  # fmt: skip
    model = onnx.load(tmp_path / "a.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
    assert sizes_of(model.graph.input[0]) == [1, 3, 64, 64]
    extra = {METADATA_FILE: ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    assert json.loads(extra[METADATA_FILE]) == METADATA


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make("tiny", "plain", ())
    with pytest.raises(SatmapError, match=r"must end in \.pt2 or \.onnx"):
        export_network(network, tmp_path / "network.pb", {})
    with pytest.raises(SatmapError, match="0 x 64 pixels"):
        export_network(network, tmp_path / "network.onnx", {}, (0, 64))
    with pytest.raises(SatmapError, match="cannot write"):
        (tmp_path / "file").write_text("")
        export_network(network, tmp_path / "file" / "network.pt2", {}, (32, 32))
    with pytest.raises(ValueError, match="evaluation mode"):
        export_network(network.train(), tmp_path / "network.onnx", {})
    for suffix in RUNTIMES:
        # A forgotten argument must not overwrite the weights, only an exported graph.
        weights = tmp_path / f"weights{suffix}"
        save_weights(weights, network.eval(), {})
        with pytest.raises(SatmapError, match="was not exported by satmap"):
            export_network(network, weights, {}, (32, 32))
        (tmp_path / f"made{suffix}").mkdir()
        with pytest.raises(SatmapError, match="is a directory"):
            export_network(network, tmp_path / f"made{suffix}", {})
        graph = tmp_path / f"graph{suffix.upper()}"
        export_network(network, graph, {}, (32, 32))
        require_exportable(graph)
        graph.unlink()
        weights.unlink()
        (tmp_path / f"made{suffix}").rmdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SatmapError, match=r"packages onnx and onnxscript.*or write a \.pt2"):
        export_network(network.eval(), tmp_path / "network.onnx", {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, output = tmp_path / "fold0.last.safetensors", tmp_path / "network.pt2"
    save_weights(weights, make("tiny", "scse", ()), {"epoch": "3"})
    command = ["export", str(weights), str(output), "--size", "40", "64"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert "3 bands to road, junction" in capsys.readouterr().out
    extra = {METADATA_FILE: ""}
    torch.export.load(output, extra_files=extra)
    network, metadata = load_weights(weights)
    assert json.loads(extra[METADATA_FILE]) == metadata
    inputs = inputs_of(network, 1, 3, 40, 64)
    np.testing.assert_allclose(run_pt2(output, inputs), expected_maps(network, inputs), atol=1e-4)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(weights), str(tmp_path / "network.txt")])
    assert ended.value.code == 1
    assert "must end in" in capsys.readouterr().err
    # An unwritable output is reported before the weights are read.
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "absent"), str(weights / "network.onnx")])
    assert "cannot write" in capsys.readouterr().err


def test_a_folder_is_refused_with_the_names_of_its_weight_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()

    def refusal() -> str:
        with pytest.raises(SystemExit) as ended:
            main(["export", str(folder), str(tmp_path / "network.pt2")])
        assert ended.value.code == 1
        return capsys.readouterr().err

    assert f"{folder} is a folder without weight files (*.safetensors)" in refusal()
    for name in ("fold1.last", "fold0.best", ".fold0-abcd1234"):
        (folder / f"{name}.safetensors").touch()
    (folder / "fold0.log.csv").touch()
    message = refusal()
    assert f"{folder} is a folder" in message
    assert (
        "Give one of the weight files in it: fold0.best.safetensors, fold1.last.safetensors."
        in (message)
    )
    for number in range(30):
        (folder / f"g{number}.safetensors").touch()
    assert "g24.safetensors and 12 others." in refusal()


def test_categories_that_do_not_exist_are_refused_before_an_export() -> None:
    network = make("tiny", "plain", ("a", "b", "c"))
    x = torch.zeros(2, 3, 32, 32)
    for category in ([0, -1], [3, 0], [0], [[0], [1]]):
        with pytest.raises(ValueError, match="indices from 0 to 2, one for each of 2 images"):
            network(x, torch.tensor(category))
