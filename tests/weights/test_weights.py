"""Weight files: satmap's own, those of other projects, downloads, and hostile ones."""

import contextlib
import hashlib
import importlib
import json
import math
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from huggingface_hub import constants, file_download
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from default_tasks import load_ensemble
from golden_networks import tensor_by_name
from repository import ROOT, SHARED
from satmap.cli import main
from satmap.errors import CannotWriteError, SatmapError
from satmap.networks.encoders import ENCODERS, build_encoder
from satmap.networks.ensemble import predict_maps
from satmap.networks.unet import UNet, build_network
from satmap.recipes.schema import Inference, load_recipe
from satmap.runtime.device import autocast
from satmap.submissions.roads_csv import read_roads_csv
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights import fetch
from satmap.weights.fetch import Fetched, fetch_encoder
from satmap.weights.header import read_metadata, read_weights_metadata
from satmap.weights.members import choose, describe_networks, find_weights, recipe_of
from satmap.weights.network_files import (
    load_pretrained_encoder,
    load_weights,
    save_weights,
)
from satmap.weights.pickles import read_pickle
from satmap.weights.pretrained import (
    ENCODERS_VARIABLE,
    PretrainedEncoder,
    encoder_file,
    find_encoder_file,
    verify_encoder_file,
)
from satmap.weights.published import PublishedNetwork, import_weights, read_published
from satmap.weights.tensor_file import read_tensors, write_tensors
from synthetic_images import write_image

REFERENCE = SHARED / "fixtures/network"

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference's outputs are not on this machine"
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tidy(tmp_path: Path) -> Iterator[None]:
    """Delete large networks, because pytest keeps the folders of past runs."""
    yield
    shutil.rmtree(tmp_path)


def small_network() -> UNet:
    torch.manual_seed(0)
    return build_network("resnet18", 3, ["road", "junction"], (16, 16, 16, 16)).eval()


# satmap's own files


def test_the_same_network_makes_the_same_bytes(tmp_path: Path) -> None:
    network = small_network()
    metadata = {f"key {number}": f"value {number}" for number in range(12)}
    save_weights(tmp_path / "a.safetensors", network, metadata)
    network.to(memory_format=torch.channels_last)
    save_weights(tmp_path / "b.safetensors", network, dict(reversed(metadata.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_every_kind_of_tensor_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "kinds.safetensors"
    tensors = {
        "number": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3).bfloat16(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "columns": torch.randn(4, 6).t(),
        "names with ünïcode": torch.randn(2).double(),
    }
    write_tensors(path, tensors, {"text": "ünïcode \n too"})
    # Any safetensors reader can read the file.
    for found in (read_tensors(path), load_file(path)):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
        assert all(found[name].dtype == value.dtype for name, value in tensors.items())
    assert read_metadata(path)["text"] == "ünïcode \n too"


def test_a_shrunk_file_is_half_as_large_and_predicts_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = small_network().eval()
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.last.safetensors"
    save_weights(whole, network, {"member": "m", "scores": '{"apls": 0.5}'})
    with pytest.raises(SystemExit) as ended:
        main(["weights", "shrink", str(half), str(whole)])
    assert ended.value.code == 0 and " MB instead of " in capsys.readouterr().out
    assert half.stat().st_size < 0.52 * whole.stat().st_size
    assert read_weights_metadata(half) == read_weights_metadata(whole)
    read, _ = load_weights(half)
    assert all(value.dtype != torch.float16 for value in read.state_dict().values())
    image = torch.randn(1, read.encoder.in_channels, 64, 64)
    with torch.no_grad():
        difference = (read(image).sigmoid() - network(image).sigmoid()).abs().max()
    assert 0 < difference < 1 / 255
    with pytest.raises(SystemExit):
        main(["weights", "shrink", str(tmp_path / "half.pth"), str(whole)])
    assert "ends in .safetensors" in capsys.readouterr().err


def test_the_recipe_in_a_file_is_read_and_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["weights", *map(str, arguments)])
        return int(ended.value.code or 0), capsys.readouterr().err

    file, other = tmp_path / "a.last.safetensors", tmp_path / "b.last.safetensors"
    recipe = load_recipe("small-buildings")
    save_weights(file, small_network(), {"recipe": recipe.model_dump_json(), "held_out": '["x"]'})
    mine = tmp_path / "mine.yaml"
    assert run("get-recipe", mine, file) == (0, "")
    assert load_recipe(str(mine)) == recipe
    content = yaml.safe_load(mine.read_text())
    content["task"]["vectorizer"] = {"low": 0.3}
    content["inference"]["tta"] = 1
    mine.write_text(yaml.safe_dump(content))
    assert run("set-recipe", other, file, "--recipe", mine) == (0, "")
    (changed,) = (found for found in find_weights(tmp_path) if found.path == other)
    assert changed.recipe.task.vectorizer.low == 0.3
    assert changed.recipe.inference.tta == 1
    assert changed.held_out == frozenset("x")
    before, after = read_tensors(file), read_tensors(other)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    content["members"][0]["bands"] = 8
    mine.write_text(yaml.safe_dump(content))
    status, printed = run("set-recipe", other, file, "--recipe", mine)
    assert status == 1 and "trains other networks" in printed


def test_an_ensemble_is_described_with_its_mean_scores(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    for number, scores in enumerate(({"apls": 0.5, "dice": 0.25}, {"apls": 0.6}, {})):
        metadata = {"recipe": recipe.model_dump_json(), "epoch": str(number)}
        metadata["scores"] = json.dumps(scores)
        save_weights(tmp_path / f"{number}.last.safetensors", small_network(), metadata)
    text = describe_networks(find_weights(tmp_path), recipe)
    assert text == "3 networks of recipe demo, 4 views of each image; on held-out images: apls 0.55"
    assert describe_networks(find_weights(tmp_path)[2:], recipe).endswith("4 views of each image")


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_weights(path, small_network(), {"epoch": "12"})
    whole = path.read_bytes()
    for place in (whole.index(b'"epoch":"12"') + 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SatmapError, match=r"damaged.*SHA-256 \w{64}.*was recorded"):
            load_weights(path)
    path.write_bytes(whole)
    load_weights(path)


def test_loading_does_not_import_the_compiler(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_weights(path, build_network("efficientnet_lite0", 3, ["road"], (16, 16, 16, 16)), {})
    program = (
        "import pathlib, sys; from satmap.weights.network_files import load_weights; "
        f"load_weights(pathlib.Path({str(path)!r})); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_old_files_without_checksum_load(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    network = small_network()
    save_weights(path, network, {"epoch": "1"})
    metadata = read_weights_metadata(path)
    assert not {"sha256", "normalization"} & metadata.keys()
    save_file(load_file(path), path, metadata)
    loaded, found = load_weights(path)
    assert found == metadata
    assert (loaded.encoder.mean, loaded.encoder.std) == (network.encoder.mean, network.encoder.std)


def test_normalization_travels_with_the_network(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    network = small_network()
    network.encoder.mean, network.encoder.std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
    save_weights(path, network, {})
    loaded, _ = load_weights(path)
    pixels = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    expected = (pixels / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [1.0, 2.0, 3.0]
    ).view(3, 1, 1)
    torch.testing.assert_close(loaded.encoder.normalize(pixels), expected)
    for key in ("sha256", "normalization"):
        with pytest.raises(ValueError, match=key):
            save_weights(path, network, {key: ""})


@pytest.mark.parametrize(
    "text",
    [
        "half",
        "[]",
        '{"mean": [0, 0, 0]}',
        '{"mean": [0, 0], "std": [1, 1]}',
        '{"mean": [0, 0, 0], "std": [1, 1, 0]}',
        '{"mean": [0, 0, NaN], "std": [1, 1, 1]}',
        '{"mean": [0, 0, "x"], "std": [1, 1, 1]}',
        '{"mean": [0, 0, null], "std": [1, 1, 1]}',
        '{"mean": ["0", "0", "0"], "std": [1, 1, 1]}',
        '{"mean": [0, 0, 0], "std": [true, true, true]}',
        '{"mean": [0, 0, 0], "std": [1, 1, 1' + "0" * 400 + "]}",
        '{"mean": "000", "std": "111"}',
        "[" * 100_000,
    ],
)
def test_broken_normalization(text: str, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_weights(path, small_network(), {})
    save_file(load_file(path), path, {**read_weights_metadata(path), "normalization": text})
    with pytest.raises(SatmapError, match=r"broken metadata: normalization.*train it again"):
        load_weights(path)


# PyTorch's files, harmless and hostile


class Command:
    """Object whose unpickling would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


class Buried:
    """Object whose unpickling would create a file by functions that look harmless."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (self.marker, "touch")


def _zip(content: object, path: Path) -> None:
    torch.save(content, path)


def _plain(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _bare(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def _today(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def _tar(content: object, path: Path) -> None:
    """Write the outline of torch's format from before 0.2."""
    member = path.with_suffix(".member")
    member.write_bytes(pickle.dumps(content, protocol=2))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.add(member, name)
    member.unlink()


@pytest.mark.parametrize("writer", [_zip, _plain, _bare, _today, _tar])
@pytest.mark.parametrize("payload", [Command, Buried])
def test_hostile_pickles_are_refused_and_not_run(
    writer: Callable[[object, Path], None], payload: Callable[[Path], object], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "spacenet_dpn_unet_dpn92_3_last"
    content = {"epoch": 1, "state_dict": {"module.final.0.bias": payload(marker)}}
    writer(content, path)
    # torch's restricted reader knows only the pickle protocol that torch writes.
    reason = r"asks for \S+.*No code in it was run"
    if writer in (_tar, _today):
        reason = "tar archive" if writer is _tar else "cannot read .* as PyTorch weights"
    with pytest.raises(SatmapError, match=reason) as caught:
        read_published(path)
    assert str(path) in str(caught.value)
    renamed = path.rename(tmp_path / "resnet18.safetensors")
    with pytest.raises(SatmapError, match=r"not a (whole )?safetensors file|PyTorch pickle"):
        load_weights(renamed)
    with pytest.raises(SatmapError):
        load_pretrained_encoder(small_network().encoder, renamed.rename(tmp_path / "resnet18.pth"))
    assert not marker.exists()
    # The marker would exist if the pickle had run.
    Command(marker).__reduce__()[0](f"touch '{marker}'")
    assert marker.exists()


@pytest.mark.parametrize("writer", [_zip, _plain])
def test_numpy_numbers_become_python_numbers(
    writer: Callable[[object, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "scores"
    numbers: dict[str, Any] = {
        "double": np.float64(0.7),
        "single": np.float32(0.5),
        "mean": np.mean([0.25, 0.75]),
        "whole": np.int64(-3),
        "byte": np.uint8(200),
        "truth": np.bool_(True),
        "plain": 12,
    }
    writer(numbers, path)
    found = read_pickle(path)
    assert found == numbers
    assert {type(value) for value in found.values()} == {int, float, bool}
    for other in (np.array([1.0]), np.str_("text"), np.void(b"12"), np.datetime64("2019-11-01")):
        writer({"dice_best": other}, path)
        with pytest.raises(SatmapError, match="cannot read"):
            read_pickle(path)


def test_old_numpy_module_names_load(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    _plain({"dice_best": np.float64(0.7)}, path)
    content = path.read_bytes()
    assert content.count(b"cnumpy._core.multiarray\nscalar\n") == 1
    path.write_bytes(content.replace(b"cnumpy._core.", b"cnumpy.core."))
    assert read_pickle(path) == {"dice_best": 0.7}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cannot read"),
        (lambda data: data[:-1], "cannot read"),
        (lambda data: b"", "not a whole|cannot read"),
        (lambda data: np.random.default_rng(0).bytes(5000), "not a whole|cannot read"),
        (lambda data: b"not weights but text\n" * 50, "cannot read"),
    ],
    ids=["half", "short", "empty", "random", "text"],
)
@pytest.mark.parametrize("writer", [_zip, _plain])
def test_damaged_pickles(
    writer: Callable[[object, Path], None],
    damage: Callable[[bytes], bytes],
    message: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights"
    writer({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SatmapError, match=message) as caught:
        read_published(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, but a dictionary"),
        (torch.zeros(3), "holds a Tensor"),
        ({"conv1.weight": torch.zeros(2, dtype=torch.int8)}, "conv1.weight is of type torch.int8"),
        ({"a": torch.zeros(2, dtype=torch.bool)}, "type torch.bool"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "type torch.complex64"),
        ({"a": torch.zeros(2, dtype=torch.float8_e5m2)}, "type torch.float8_e5m2"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "a is of type torch.int64"),
        ({"a": torch.tensor([0, math.nan])}, "a has values that are not finite"),
        ({"a": torch.tensor([1e300], dtype=torch.float64)}, "not finite"),
        ({"bn.running_var": torch.tensor([1.0, -1.0])}, "bn.running_var is a variance but has neg"),
        ({"a": torch.zeros(2, device="meta")}, "a is torch.strided on meta"),
        ({"module.a": torch.zeros(1), "a": torch.zeros(1)}, "two tensors for a, with and without"),
        ({"a\x1b[31m\nb": torch.zeros(1)}, r"such as a\\x1b\[31m\\nb, which"),
        ({"epoch": 3}, "more than a state dict"),
        ({"state_dict": {"conv1.weight": [1.0]}}, "more than a state dict"),
        ({"state_dict": {1: torch.zeros(1)}}, "more than a state dict"),
        ({"state_dict": {"a": torch.eye(2).to_sparse()}}, "a is torch.sparse_coo"),
        ({}, "0 tensors such as none.*Known are .*dpn92"),
        ({"vgg.weight": torch.zeros(1)}, "1 tensors such as vgg.weight, which are neither"),
    ],
)
def test_pickles_of_other_content(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(SatmapError, match=message):
        read_published(path)
    with pytest.raises(SatmapError, match=r"no weight file .*absent.*published"):
        read_published(tmp_path / "absent")


# Beginning of a file of torch before version 1.6.
PREFIX = b"".join(
    [pickle.dumps(torch.serialization.MAGIC_NUMBER, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2)]
)


@pytest.mark.parametrize("prefix", [b"", PREFIX], ids=["bare", "torch"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02(S'echo'\nios\nsystem\n.", "code or objects other than tensors"),
        (b"\x80\x02(cos\nsystem\nS'echo'\no.", "objects other than tensors .it asks for os.system"),
        (b"\x80\x02\x82\x01.", "code or objects other than tensors"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "is incomplete or damaged"),
        (pickle.dumps(os.system, protocol=4), "code or objects other than tensors"),
    ],
)  # fmt: skip
def test_messages_for_hostile_pickles(
    prefix: bytes, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(prefix + content)
    with pytest.raises(SatmapError, match=message) as caught:
        read_published(path)
    error = str(caught.value)
    assert "Expected is" in error
    assert "No code in it was run" in error
    # torch's own message advises to switch the restriction off.
    assert "weights_only" not in error
    assert "likely succeed" not in error
    assert "again" not in error or "is incomplete" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(5000), "begins with zeros"),
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(100), "not a whole archive"),
        (bytes(8) + b"{}", "not a whole safetensors file"),
    ],
)
def test_files_that_are_not_weights(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(SatmapError, match=message):
        read_published(path)


def test_programs_and_pipes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("script/constants.pkl", pickle.dumps((), protocol=2))
    with pytest.raises(SatmapError, match=r"TorchScript archive.*not run"):
        read_published(path)
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for read in (read_published, load_weights, read_tensors, lambda _: find_weights(tmp_path)):
        with pytest.raises(SatmapError, match="it is a pipe or a device"):
            read(pipe)


def test_flipped_bits_of_archives_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7)}, path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(SatmapError, match=r"damaged: the CRC-32 of its part weights/data/0 is wro"):
        read_pickle(path)


# The published networks


@dataclass(frozen=True)
class Published:
    """Synthetic file in the form of the published ones.

    Attributes:
        path: the file.
        encoder: satmap's name of the encoder.
        reference: the fixture of the network.
        bands: number of input channels.
    """

    path: Path
    encoder: str
    reference: str
    bands: int


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Published]]:
    """Return files with the author's names and the golden networks' weights."""
    directory = tmp_path_factory.mktemp("published")
    made: dict[str, Published] = {}

    def make(name: str) -> Published:
        if name not in made:
            irv = "irv_unet" in name
            reference = "irv_unet" if irv else "dpn_unet"
            shapes = json.loads((REFERENCE / f"{reference}.keys.json").read_text())
            first = "encoder_stages.0.0.conv.weight" if irv else "encoder_stages.0.0.weight"
            bands = 8 if "_mc" in name else 3
            shapes[first][1] = bands
            content = {
                "epoch": 14,
                "state_dict": {f"module.{k}": tensor_by_name(k, v) for k, v in shapes.items()},
                "dice_best": np.float64(0.75),
                "apls_best": 0.5,
            }
            # As torch 1.1 wrote them.
            _plain(content, directory / name)
            encoder = "inception_resnet_v2" if irv else "dpn92"
            made[name] = Published(directory / name, encoder, reference, bands)
        return made[name]

    yield make
    shutil.rmtree(directory)


@needs_reference
@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("spacenet_dpn_unet_dpn92_3_best_apls", "fold3-dpn92-3band"),
        ("spacenet_irv_unet_inceptionresnetv2_0_last", "fold0-inception_resnet_v2-3band"),
    ],
)
def test_golden_output_through_the_import(
    name: str, member: str, published: Callable[[str], Published], tmp_path: Path
) -> None:
    file = published(name)
    path = import_weights(file.path, tmp_path, load_recipe("sn5-roads"))
    checkpoint = "last" if name.endswith("last") else "best_apls"
    assert path == tmp_path / f"{member}.{checkpoint}.safetensors"
    network, metadata = load_weights(path)
    assert metadata["architecture"] == file.encoder
    assert metadata["member"] == member
    assert metadata["source"] == name
    assert metadata["source_sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert metadata["epoch"] == "14"
    assert json.loads(metadata["scores"]) == {"dice_best": 0.75, "apls_best": 0.5}
    assert json.loads(metadata["bands"]) == [5, 3, 2]
    assert json.loads(metadata["stretch"]) == {"low": 2, "high": 98}
    assert json.loads(metadata["maps"]) == list(ROAD_MAPS)
    noise = np.random.Generator(np.random.PCG64(7))
    x = torch.from_numpy(noise.standard_normal((1, 3, 128, 160), dtype=np.float32))
    with np.load(REFERENCE / f"{file.reference}.golden.npz") as golden, torch.inference_mode():
        torch.testing.assert_close(
            network(x), torch.from_numpy(golden["output"]), atol=1e-3, rtol=0
        )
        # Odd sizes give the same as padding with numpy's mirroring and cropping.
        odd = x[..., :53, :79]
        padded = np.pad(odd.numpy(), ((0, 0), (0, 0), (0, 11), (0, 17)), mode="reflect")
        expected = network(torch.from_numpy(padded))[..., :53, :79]
        torch.testing.assert_close(network(odd), expected, atol=1e-5, rtol=0)


@needs_reference
@pytest.mark.parametrize(
    "name", ["spacenet_dpn_unet_mc_dpn92_mc_2_best_dice", "spacenet_irv_unet_mc_x_1_last"]
)
def test_networks_on_eight_bands(name: str, published: Callable[[str], Published]) -> None:
    file = published(name)
    imported = read_published(file.path)
    assert isinstance(imported, PublishedNetwork)
    encoder = imported.network.encoder
    assert (encoder.name, encoder.in_channels) == (file.encoder, 8)
    assert encoder.mean == encoder.std == (0.5,) * 8
    assert json.loads(imported.metadata["bands"]) == [5, 3, 2, 1, 4, 6, 7, 8]
    fold = name.split("_")[-2 if name.endswith("last") else -3]
    assert imported.member == f"fold{fold}-{file.encoder}-8band"
    names = encoder.timm_names()
    first = next(ours for ours in names if ours.endswith("conv.weight"))
    assert encoder.get_parameter(first).shape[1] == 8
    assert not imported.network.training


@needs_reference
def test_names_that_the_import_writes_and_accepts(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    file = published("spacenet_dpn_unet_dpn92_3_best_apls")
    recipe = load_recipe("sn5-roads")
    weights = tmp_path / "weights"

    def renamed(name: str) -> Path:
        link = tmp_path / name
        link.symlink_to(file.path)
        return link

    plain = renamed("weights.pth")
    with pytest.raises(SatmapError, match=r"no fold and checkpoint.*/dpn92-3band\.last\.safet"):
        import_weights(plain, weights, recipe)
    stretch = recipe.stretch.model_copy(update={"high": 99.0})
    with pytest.raises(SatmapError, match=r"percentiles 2.0 and 98.0, but .* 2.0 and 99.0"):
        import_weights(plain, weights, recipe.model_copy(update={"stretch": stretch}))
    assert not list(tmp_path.glob("**/*.safetensors"))
    path = weights / "mine.last.safetensors"
    assert import_weights(plain, path, recipe) == path
    assert read_weights_metadata(path)["member"] == "mine"
    # Any name will do; the checkpoint is then the source's.
    other = weights / "other.safetensors"
    best = renamed("spacenet_dpn_unet_dpn92_2_best_dice.pth")
    assert import_weights(best, other, recipe) == other
    found = {file.path: file for file in find_weights(weights)}
    assert [found[place].checkpoint for place in (path, other)] == ["last", "best_dice"]
    assert found[other].metadata["member"] == "fold2-dpn92-3band"
    # A fold that the recipe does not train is no obstacle.
    expected = weights / "fold2-dpn92-3band.best_dice.safetensors"
    assert import_weights(best, weights, recipe) == expected
    # Existing weights are never replaced.
    with pytest.raises(SatmapError, match="already exists"):
        import_weights(plain, path, recipe)
    path.unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(SatmapError, match="cannot write"):
        import_weights(plain, tmp_path / "file/mine.last.safetensors", recipe)


@needs_reference
def test_a_published_network_that_no_shipped_recipe_has_predicts(
    published: Callable[[str], Published], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = published("spacenet_irv_unet_mc_inceptionresnetv2_mc_0_last")
    content = load_recipe("sn5-roads").model_dump(mode="json")
    (member,) = [m for m in content["members"] if (m["fold"], m["bands"]) == (0, 3)]
    content |= {"name": "mine", "members": [{**member, "bands": 8}]}
    content["inference"] |= {"tta": 1}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps(content))
    images, weights = tmp_path / "images", tmp_path / "weights"
    stem = "SN5_roads_test_public_AOI_7_Moscow_PS-MS_chip"
    write_image(images / f"{stem}1.tif", bands=8, dtype="uint16", size=(40, 33))
    for name, place in (("sn5-roads", weights / "any"), (str(recipe), weights / "mine")):
        path = place / "fold0-inception_resnet_v2-8band.last.safetensors"
        command = ("weights", "import", file.path, place, "--recipe", name)
        assert run(capsys, *command) == f"{path}\n"
        (chosen,) = choose(find_weights(place), load_recipe(name))
        assert chosen.network.in_channels == 8
    out = tmp_path / "out.csv"
    run(capsys, "predict", images, out, "--weights", weights / "mine", "--recipe", recipe)
    assert set(read_roads_csv(out)) == {"AOI_7_Moscow_chip1"}


@needs_reference
def test_networks_that_only_look_published(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    content = read_pickle(published("spacenet_dpn_unet_dpn92_3_best_apls").path)
    tensors = content["state_dict"]
    path = tmp_path / "spacenet_dpn_unet_dpn92_3_last"

    def refusal(changed: dict[str, Tensor]) -> str:
        torch.save({"state_dict": changed}, path)
        with pytest.raises(SatmapError, match="third place") as caught:
            read_published(path)
        path.unlink()
        return str(caught.value)

    # Only shapes matter here, and files with one number per tensor are quick to write.
    blank = {k: torch.zeros(()).expand(v.shape) for k, v in tensors.items()}
    final = "module.final.0.weight"
    assert f"dpn92 on 3 bands, but it lacks {final[7:]}" in refusal(
        {k: v for k, v in blank.items() if k != final}
    )
    wrong = {**blank, final: torch.zeros(7, 64, 1, 1)}
    message = refusal(wrong)
    assert "dpn92 on 3 bands, but final.0.weight has the shape [7, 64, 1, 1] instead of" in message
    assert "inception_resnet_v2 on 8 bands" in message
    first = "module.encoder_stages.0.0.weight"
    assert "shape [64, 4, 7, 7]" in refusal({**blank, first: torch.zeros(64, 4, 7, 7)})
    assert "unknown spare" in refusal({**blank, "module.spare": torch.zeros(1)})
    # Files from before torch 0.4.1 have no counters.
    counted = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": counted}, path)
    imported = read_published(path)
    path.unlink()
    assert isinstance(imported, PublishedNetwork)
    assert not {"epoch", "scores"} & imported.metadata.keys()
    assert torch.equal(imported.network.head.weight, tensors[final])


@needs_reference
def test_a_published_network_predicts(
    published: Callable[[str], Published],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("somebody wanted the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    weights = tmp_path / "weights"
    names = ("spacenet_dpn_unet_dpn92_3_best_apls", "spacenet_dpn_unet_mc_dpn92_mc_2_best_dice")
    for name in names:
        run(capsys, "weights", "import", published(name).path, weights)
    shown = run(capsys, "weights", "show", weights / "fold3-dpn92-3band.best_apls.safetensors")
    assert "architecture: dpn92\n" in shown
    assert f"source: {names[0]}\n" in shown

    files = choose(find_weights(weights), load_recipe("sn5-roads"))
    assert [file.votes for file in files] == [1, 1]
    assert recipe_of(files) == load_recipe("sn5-roads")
    # The maps are those of the reference's own input: the same bytes and its normalisation.
    image = np.random.default_rng(0).integers(1, 255, (32, 32, 8)).astype(np.uint8)
    maps = predict_maps(load_ensemble(files, CPU), image, Inference(tta=1), CPU)
    # An odd margin on all sides makes the size a multiple of 32.
    margin = np.pad(image, ((16, 16), (16, 16), (0, 0)), mode="reflect")
    x = torch.from_numpy(margin.transpose(2, 0, 1)[None].copy()) / 255
    rgb_mean, rgb_std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    shape = (1, 3, 1, 1)
    inputs = [
        (x[:, :3] - torch.tensor(rgb_mean).view(shape)) / torch.tensor(rgb_std).view(shape),
        (x - 0.5) / 0.5,
    ]
    total = torch.zeros(1, len(ROAD_MAPS), 64, 64)
    with torch.inference_mode(), autocast(CPU):
        for name, pixels in zip(names, inputs, strict=True):
            imported = read_published(published(name).path)
            assert isinstance(imported, PublishedNetwork)
            total += imported.network(pixels).float().sigmoid()
    expected = (total[0, :, 16:48, 16:48] / 2 * 255).numpy()
    assert np.abs(maps - expected).max() < 4
    assert expected.std() > 10

    images = tmp_path / "images"
    stem = "SN5_roads_test_public_AOI_7_Moscow_PS-MS_chip"
    write_image(images / f"{stem}1.tif", bands=8, dtype="uint16", size=(40, 33))
    out = tmp_path / "out.csv"
    run(capsys, "predict", images, out, "--weights", weights, "--recipe", "sn5-roads")
    assert set(read_roads_csv(out)) == {"AOI_7_Moscow_chip1"}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must succeed and return its output."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must exit with status 1 and return its only message."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 1
    return capsys.readouterr().err


# ImageNet encoders of other projects


@pytest.fixture(scope="module")
def pretrainedmodels() -> Any:
    # Python warns about this code of 2018 when it compiles it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pretrainedmodels")


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Return random values for every tensor of a model, which may be on the meta device."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(5)
        elif value.ndim > 1:
            scale = (2 / value[0].numel()) ** 0.5
            state[name] = torch.empty(value.shape).normal_(0, scale, generator=generator)
        else:
            low, high = (0.5, 1.5) if name.endswith(("weight", "var")) else (-0.1, 0.1)
            state[name] = torch.empty(value.shape).uniform_(low, high, generator=generator)
    return state


def features_before(
    model: nn.Module, paths: Sequence[str], last: Callable[[], Any]
) -> list[Tensor]:
    """Run ``last``; return the inputs of the modules at ``paths`` and the output of ``last``."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        (x,) = inputs
        # Networks of that time modify tensors in place.
        seen.append(torch.cat(x, dim=1) if isinstance(x, tuple) else x.clone())

    hooks = [model.get_submodule(path).register_forward_pre_hook(keep) for path in paths]
    with torch.inference_mode():
        seen.append(last())
    for hook in hooks:
        hook.remove()
    return seen


# pretrainedmodels' name -> ours, timm's, and the modules that begin the stages after the first.
STAGES = {
    "dpn92": (
        "dpn92",
        "dpn92",
        ("features.conv1_1.pool", "features.conv3_1", "features.conv4_1", "features.conv5_1"),
    ),
    "inceptionresnetv2": (
        "inception_resnet_v2",
        "inception_resnet_v2",
        ("maxpool_3a", "maxpool_5a", "mixed_6a", "mixed_7a"),
    ),
    "se_resnext50_32x4d": (
        "se_resnext50_32x4d",
        "legacy_seresnext50_32x4d",
        ("layer0.pool", "layer2", "layer3", "layer4"),
    ),
    "senet154": (
        "senet154",
        "legacy_senet154",
        ("layer0.pool", "layer2", "layer3", "layer4"),
    ),
}


def made_checkpoint(pretrainedmodels: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Return a network of pretrainedmodels with random weights, and the weights."""
    with torch.device("meta"):
        model = getattr(pretrainedmodels, name)(pretrained=None, num_classes=1000)
    state = random_state(model)
    model.load_state_dict(state, assign=True)
    return model.eval(), state


@pytest.mark.parametrize("name", [name for name, (ours, *_) in STAGES.items() if ours in ENCODERS])
def test_features_equal_those_of_pretrainedmodels(
    name: str, pretrainedmodels: Any, tmp_path: Path
) -> None:
    ours, _, stages = STAGES[name]
    model, state = made_checkpoint(pretrainedmodels, name)
    source = tmp_path / f"{name}-00000000.pth"
    # Like files of 2017: no archive, no batch counters.
    _plain({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, source)
    path = import_weights(source, tmp_path, load_recipe("sn5-roads"))
    assert path == encoder_file(tmp_path, ours)
    assert not any(key.startswith("last_linear") for key in load_file(path))
    network = UNet(build_encoder(ours, 3), ["road"], (1, 1, 1, 1)).eval()
    load_pretrained_encoder(network.encoder, path)
    if name == "inceptionresnetv2":
        # The reference pads it so that sizes halve; pretrainedmodels shrinks at the borders.
        for module in model.modules():
            if isinstance(module, nn.MaxPool2d) or (
                isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
            ):
                module.padding = (1, 1)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    expected = features_before(model, stages, lambda: model.features(x))
    with torch.inference_mode():
        found = network.encoder(x)
    assert [feature.shape for feature in found] == [feature.shape for feature in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["dpn92", "inceptionresnetv2", "se_resnext50_32x4d", "senet154"])
def test_timm_networks_equal_those_of_pretrainedmodels(name: str, pretrainedmodels: Any) -> None:
    """Except for the classifier, names, shapes and features are equal, as the import assumes."""
    _, timms, stages = STAGES[name]
    model, state = made_checkpoint(pretrainedmodels, name)
    with torch.device("meta"):
        port: Any = timm.create_model(timms, pretrained=False)
    classifier = port.pretrained_cfg["classifier"]
    renamed = {k.replace("last_linear.", f"{classifier}."): v for k, v in state.items()}
    assert {k: v.shape for k, v in renamed.items()} == {
        k: v.shape for k, v in port.state_dict().items()
    }
    port.load_state_dict(renamed, assign=True)
    port.eval()
    # Both shrink by the same amount at the borders, which an odd size shows.
    x = torch.randn(1, 3, 97, 101, generator=torch.Generator().manual_seed(4))
    expected = features_before(model, stages, lambda: model.features(x))
    if name.startswith("dpn"):
        # timm has the pool of the first block as a separate module.
        stages = ("features.conv1_pool", *stages[1:])
    if name.startswith("se"):
        stages = ("pool0", *stages[1:])
    found = features_before(port, stages, lambda: port.forward_features(x))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("wrapped", [0, 1, 2])
def test_torchvisions_resnet(wrapped: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    source = tmp_path / "resnet18-00000000.pth"
    # Trainings on many GPUs leave the wrapped form.
    content: dict[str, Any] = {f"{'module.' * wrapped}{k}": v for k, v in state.items()}
    for envelope in ("state_dict", "model")[:wrapped]:
        content = {envelope: content, "epoch": 3}
    torch.save(content, source)
    path = import_weights(source, tmp_path / "weights", load_recipe("sn5-roads"))
    metadata = read_metadata(path)
    assert metadata["architecture"] == "resnet18"
    assert metadata["source"] == "resnet18-00000000.pth"
    assert metadata["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert verify_encoder_file(path, "resnet18", "") == metadata["sha256"]
    network = small_network()
    load_pretrained_encoder(network.encoder, path)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = features_before(
            model,
            ("maxpool", "layer2", "layer3", "layer4"),
            lambda: model.layer4(
                model.layer3(
                    model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x))))))
                )
            ),
        )
        found = network.encoder(x)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    # It cannot replace another encoder.
    wrong = encoder_file(tmp_path, "resnet34")
    with pytest.raises(SatmapError, match=r"is the place of weights of resnet34, but .* resnet18"):
        import_weights(source, wrong, load_recipe("sn5-roads"))
    with pytest.raises(SatmapError, match="already exists"):
        import_weights(source, tmp_path / "weights", load_recipe("sn5-roads"))
    # Among networks it would disturb every prediction.
    for name in ("x.safetensors", "imagenet/x.safetensors"):
        with pytest.raises(SatmapError, match=r"look for in \S+/w/imagenet/resnet18\.safetensors"):
            import_weights(source, tmp_path / "w" / name, load_recipe("sn5-roads"))
    shutil.copy(path, tmp_path / "copy.safetensors")
    with pytest.raises(SatmapError, match=r"holds ImageNet weights of an enc.*Move it to im"):
        find_weights(tmp_path)
    with pytest.raises(SatmapError, match="already is a file of satmap"):
        import_weights(path, tmp_path / "weights", load_recipe("sn5-roads"))
    with pytest.raises(SatmapError, match=r"does not hold ImageNet weights of resnet34: it lacks"):
        verify_encoder_file(path, "resnet34", "")
    # A changed byte is noticed before a training starts from it.
    changed = path.read_bytes()
    path.write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    with pytest.raises(SatmapError, match="damaged"):
        load_pretrained_encoder(network.encoder, path)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_identified_by_its_tensors(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = timm.create_model(ENCODERS[name].timm_name, pretrained=False)
    path = tmp_path / "pytorch_model.bin"
    torch.save({k: torch.zeros(()).expand(v.shape) for k, v in model.state_dict().items()}, path)
    found = read_published(path)
    assert isinstance(found, PretrainedEncoder)
    assert found.name == name
    with torch.device("meta"):
        encoder = build_encoder(name, 3)
    assert found.tensors.keys() == set(encoder.timm_names().values())


@pytest.mark.parametrize("name", ["densenet121", "densenet161"])
def test_densenets_from_before_torch_0_4(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None)
    state = random_state(model)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v
        for k, v in state.items()
        if not k.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.running_var" in old
    source = tmp_path / f"{name}-00000000.pth"
    _plain(old, source)
    path = import_weights(source, tmp_path, load_recipe("sn5-roads"))
    assert path == encoder_file(tmp_path, name)
    found = load_file(path)
    assert all(k.startswith("classifier.") or torch.equal(found[k], state[k]) for k in state
               if not k.endswith("num_batches_tracked"))  # fmt: skip


def test_tensors_that_share_their_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = dict(torchvision.models.resnet18(weights=None).state_dict())
    state["bn1.bias"] = state["bn1.weight"]
    source = tmp_path / "resnet18-00000000.pth"
    torch.save(state, source)
    found = load_file(import_weights(source, tmp_path, load_recipe("sn5-roads")))
    assert torch.equal(found["bn1.bias"], state["bn1.weight"])


def test_encoders_that_are_nearly_known(tmp_path: Path) -> None:
    with torch.device("meta"):
        names = timm.create_model("resnet34", pretrained=False).state_dict()
    state = {k: torch.zeros(()).expand(v.shape) for k, v in names.items()}
    path = tmp_path / "weights.pth"
    torch.save({k: v for k, v in state.items() if k != "bn1.bias"}, path)
    with pytest.raises(SatmapError, match=r"closest to resnet34, but it lacks bn1\.bias\. Known"):
        read_published(path)
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(SatmapError, match=r"resnet34, but conv1.weight has the shape \[64, 3, 3"):
        read_published(path)


# Downloads


@dataclass
class Answer:
    """Answer of the server at one address."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    missing: int = 0  # announced bytes that are not sent
    failures: float = math.inf  # number of such incomplete answers
    silence: float = 0  # seconds before the body


class Server(ThreadingHTTPServer):
    """Local stand-in for the hub."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.stop = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        """Address of the store, on another host than the hub, so it is not asked for checksums."""
        return f"http://localhost:{self.server_port}{STORE}"

    def publish(self, content: bytes) -> None:
        """Publish a file of ResNet18, with a redirect to the store as on the real hub."""
        self.answers[RESOLVE] = self.redirect(self.store, content)
        self.answers[STORE] = Answer(content)

    def redirect(self, location: str, content: bytes) -> Answer:
        """Return the hub's answer for a large file."""
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return Answer(status=302, headers={"Location": location, "X-Linked-Etag": etag})


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        answer, body = self.answer()
        self.server.stop.wait(answer.silence)
        answer.failures -= 1
        self.wfile.write(body[: len(body) - (answer.missing if answer.failures >= 0 else 0)])

    def answer(self) -> tuple[Answer, bytes]:
        """Send status and headers; return the answer and its remaining body."""
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path, Answer(status=404))
        wanted = self.headers.get("Range", "") if answer.status == 200 else ""
        start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        body = answer.body[start:]
        self.send_response(206 if start else answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if start:
            size = len(answer.body)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return answer, body

    def handle(self) -> None:
        # Clients may close the connection early.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


RESOLVE = "/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
STORE = "/store/abc?signature=1"


@pytest.fixture(scope="module")
def resnet18() -> bytes:
    """ResNet18 file as published by timm, with classifier."""
    torch.manual_seed(2)
    model: nn.Module = timm.create_model("resnet18", pretrained=False)
    return save(dict(model.state_dict()), {"format": "pt"})


@pytest.fixture
def server(resnet18: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Hub with ResNet18."""
    server = Server()
    server.publish(resnet18)
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    # Between attempts.
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join(60)
    assert not thread.is_alive(), "a request does not end"
    server.server_close()


def test_fetching(server: Server, resnet18: bytes, tmp_path: Path) -> None:
    path = tmp_path / "imagenet" / "resnet18.safetensors"
    remedies = r"weights fetch`.*resnet18.a1_in1k and `satmap weights import` it.*--from-scratch"
    with pytest.raises(SatmapError, match=remedies):
        load_pretrained_encoder(small_network().encoder, path)
    # Files of killed processes are removed; files of running ones are not.
    path.parent.mkdir()
    old, new = (path.parent / f".resnet18-{name}.part" for name in ("abcdefgh", "ijklmnop"))
    for file in (old, new):
        file.write_bytes(b"half")
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    assert fetch_encoder(tmp_path, "resnet18") is Fetched.NOW
    assert not old.exists()
    assert new.exists()
    # This also happens if there is nothing to download.
    os.utime(new, (hours_ago, hours_ago))
    assert fetch_encoder(tmp_path, "resnet18") is Fetched.INTACT
    assert list(path.parent.iterdir()) == [path]
    metadata = read_metadata(path)
    assert metadata["source"] == f"{server.url}{RESOLVE}"
    assert metadata["source_sha256"] == hashlib.sha256(resnet18).hexdigest()
    network = small_network()
    load_pretrained_encoder(network.encoder, path)
    published = load(resnet18)
    assert torch.equal(
        network.encoder.get_parameter("stages.0.conv1.weight"), published["conv1.weight"]
    )
    # A second fetch sends no request and verifies the existing file.
    server.asked.clear()
    assert fetch_encoder(tmp_path, "resnet18") is Fetched.INTACT
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for broken in (path.read_bytes(), content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(
            SatmapError, match=r"(damaged|not a whole).*Remove it and fetch"
        ) as failure:
            fetch_encoder(tmp_path, "resnet18")
        assert "Copy it again" not in str(failure.value)
    assert server.asked == []
    # A file placed by the user is accepted without a recorded checksum.
    path.write_bytes(resnet18)
    assert "no checksum" in fetch_encoder(tmp_path, "resnet18")
    path.unlink()
    assert fetch_encoder(tmp_path, "resnet18") is Fetched.NOW
    assert path.read_bytes() == content


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://[::bad/x"])
def test_redirects_to_nowhere(
    location: str, server: Server, resnet18: bytes, tmp_path: Path
) -> None:
    server.answers[RESOLVE] = server.redirect(location, resnet18)
    with pytest.raises(SatmapError, match=r"cannot download http.*another machine"):
        fetch_encoder(tmp_path, "resnet18")
    assert list(tmp_path.glob("**/*.*")) == []


def test_a_checksum_of_another_file(server: Server, tmp_path: Path) -> None:
    server.answers[RESOLVE] = server.redirect(server.store, b"other")
    with pytest.raises(SatmapError, match=r"has the SHA-256 \w{64}, but its publisher says"):
        fetch_encoder(tmp_path, "resnet18")
    assert list(tmp_path.glob("**/*.*")) == []


def test_a_download_that_breaks_off_is_resumed(
    server: Server, resnet18: bytes, tmp_path: Path
) -> None:
    server.answers[STORE] = Answer(resnet18, missing=len(resnet18) // 2, failures=2)
    assert fetch_encoder(tmp_path, "resnet18") is Fetched.NOW
    assert server.asked == [RESOLVE, *3 * [RESOLVE, STORE]]


@pytest.mark.parametrize(
    ("address", "answer", "message"),
    [
        (RESOLVE, Answer(status=404), r"resolve/main/\S+ answers 404"),
        (RESOLVE, Answer(b"<html>hello</html>"), "does not give the weights' SHA-256"),
        (RESOLVE, Answer(status=503), r"resolve/main/\S+ answers 503"),
        (STORE, Answer(status=403), "answers 403"),
        (STORE, Answer(), r"has the SHA-256 e3b0c44298\w+, but"),
        (STORE, Answer(bytes(3000), missing=1000), r"cannot download http.*closed"),
    ],
)  # fmt: skip
def test_failed_downloads_leave_nothing(
    address: str, answer: Answer, message: str, server: Server, tmp_path: Path
) -> None:
    server.answers[address] = answer
    with pytest.raises(SatmapError, match=message) as caught:
        fetch_encoder(tmp_path, "resnet18")
    # The message names the alternatives: by hand, or from scratch.
    assert f"{server.url}{RESOLVE} on another machine and `satmap weights import`" in str(
        caught.value
    )
    assert "--from-scratch" in str(caught.value)
    assert list(tmp_path.glob("**/*.*")) == []


def test_a_download_of_something_else(server: Server, tmp_path: Path) -> None:
    other = save({"conv1.weight": torch.zeros(1)}, {})
    server.publish(other)
    with pytest.raises(SatmapError, match=r"cannot be used: .*it lacks"):
        fetch_encoder(tmp_path, "resnet18")
    with torch.device("meta"):
        names = timm.create_model("resnet34", pretrained=False).state_dict()
    other = save({k: torch.zeros(v.shape, dtype=v.dtype) for k, v in names.items()}, {})
    server.publish(other)
    with pytest.raises(SatmapError, match="does not hold ImageNet weights of resnet18"):
        fetch_encoder(tmp_path, "resnet18")
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Command(marker), protocol=2)
    server.publish(hostile)
    with pytest.raises(SatmapError, match="No code in it was run"):
        fetch_encoder(tmp_path, "resnet18")
    assert list(tmp_path.glob("**/*.*")) == []
    assert not marker.exists()


def test_addresses_that_hold_the_checksum(
    server: Server, resnet18: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(load(resnet18), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    config = SimpleNamespace(hf_hub_id=None, url=f"{server.url}/resnet18-{digits}.pth")
    monkeypatch.setattr(fetch, "pretrained_config", lambda _: config)
    server.answers[f"/resnet18-{digits}.pth"] = Answer(content)
    assert fetch_encoder(tmp_path, "resnet18") is Fetched.NOW
    metadata = read_metadata(encoder_file(tmp_path, "resnet18"))
    assert metadata["source"] == config.url
    assert metadata["source_sha256"] == hashlib.sha256(content).hexdigest()
    encoder_file(tmp_path, "resnet18").unlink()
    config.url = f"{server.url}/resnet18-00000000.pth"
    server.answers["/resnet18-00000000.pth"] = Answer(content)
    with pytest.raises(SatmapError, match="publisher says 00000000"):
        fetch_encoder(tmp_path, "resnet18")
    assert list((tmp_path / "imagenet").iterdir()) == []


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_has_a_source_with_a_checksum(name: str, server: Server) -> None:
    class Every(dict[str, Answer]):
        def get(self, path: str, *_: object) -> Answer:
            return server.redirect(server.store, path.encode())

    server.answers = Every()
    url, digits = fetch.find_source(name)
    assert len(digits) >= 8
    assert url.startswith((server.url, "https://"))


def test_file_and_server_text_is_escaped_for_the_terminal(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.safetensors"
    evil = "\x1b]0;title\x07\nroot\u202e\x9b31m"
    save_file({"a": torch.zeros(1)}, path, {f"key{evil}": f"value{evil}"})
    shown = run(capsys, "weights", "show", path)
    assert len(shown.splitlines()) == 2
    refusal = refused(capsys, "weights", "import", path.rename(tmp_path / f"file{evil}"), tmp_path)
    server.answers[RESOLVE] = server.redirect("http://[::\x1b[31m/x", b"")
    with pytest.raises(SatmapError) as caught:
        fetch_encoder(tmp_path, "resnet18")
    for text in (shown, refusal, str(caught.value)):
        assert not {char for char in text if not char.isprintable()} - {"\n"}


def test_encoders_in_a_container_image(
    resnet18: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted weights directory must not hide encoders fetched when the image was built."""
    text = (ROOT / "Dockerfile").read_text()
    (place,) = re.findall(rf"^ENV {ENCODERS_VARIABLE}=(\S+)", text, re.MULTILINE)
    assert not place.startswith("/satmap")
    (loop,) = re.findall(r"^RUN (for recipe in (?:.|\\\n)*?done)$", text, re.MULTILINE)
    assert 'ARG FETCH_WEIGHTS=""\n' in text
    # Run the line with a fake satmap that only prints its arguments.
    stub = tmp_path / "satmap"
    stub.write_text('#!/bin/sh\necho "$@"\n[ "$4" != broken ]\n')
    stub.chmod(0o755)
    asked = "weights fetch --recipe {} --weights /opt/place\n"
    for recipes, expected, status in (
        ("", "", 0),
        ("a b", asked.format("a") + asked.format("b"), 0),
        ("broken b", asked.format("broken"), 1),
    ):
        done = subprocess.run(
            ["/bin/sh", "-c", loop],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "FETCH_WEIGHTS": recipes,
                ENCODERS_VARIABLE: "/opt/place",
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout, done.returncode) == (expected, status), done.stderr

    weights, inside = tmp_path / "weights", tmp_path / "image"
    monkeypatch.setenv(ENCODERS_VARIABLE, str(inside))
    own = encoder_file(weights, "resnet18")
    assert find_encoder_file(weights, "resnet18") == own
    baked = encoder_file(inside, "resnet18")
    baked.parent.mkdir(parents=True)
    baked.write_bytes(resnet18)
    assert find_encoder_file(weights, "resnet18") == baked
    own.parent.mkdir(parents=True)
    own.write_bytes(resnet18)
    assert find_encoder_file(weights, "resnet18") == own


def test_unreachable_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(SatmapError, match=r"cannot download http.*refused.*another machine"):
            fetch_encoder(tmp_path, "resnet18")
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(SatmapError, match=r"not a web address. Check \$HF_ENDPOINT"):
        fetch_encoder(tmp_path, "resnet18")
    assert list(tmp_path.glob("**/*.*")) == []


def test_huggingface_hub_sends_no_telemetry() -> None:
    assert constants.HF_HUB_DISABLE_TELEMETRY


def test_a_server_that_falls_silent(
    server: Server, resnet18: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_TIMEOUT_S", 0.2)
    server.answers[STORE] = Answer(resnet18, silence=60)
    with pytest.raises(SatmapError, match=r"cannot download http.*timed out.*another machine"):
        fetch_encoder(tmp_path, "resnet18")
    assert list(tmp_path.glob("**/*.*")) == []


def test_unwritable_download_directories(server: Server, tmp_path: Path) -> None:
    (tmp_path / "imagenet").write_text("")
    with pytest.raises(CannotWriteError, match="cannot write"):
        fetch_encoder(tmp_path, "resnet18")
    assert server.asked == []
    with (
        Path("/dev/full").open("wb") as full,
        pytest.raises(CannotWriteError, match="cannot write /dev/full: No space"),
    ):
        fetch._download(*fetch.find_source("resnet18"), full)
    with pytest.raises(SatmapError, match="unknown encoder"):
        fetch_encoder(tmp_path, "vgg")


def test_fetching_what_a_recipe_needs(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    member = (
        "{fold: %d, encoder: resnet18, pretrained: %s, losses: {road: {dice: 1}, speed: {}, "
        "junction: {}}, stages: [{crop: 64, batch: 1, epochs: 1, schedule: {kind: cosine, "
        "peak: 1.0e-3}}]}"
    )
    lines = ["name: mine", "description: two", "task: roads", "folds: 2", "members:"]
    members = [f"  - {member % (fold, 'true')}" for fold in (0, 1)]
    recipe.write_text("\n".join([*lines, *members]))
    command = ("weights", "fetch", "--recipe", recipe, "--weights", tmp_path / "w")
    path = encoder_file(tmp_path / "w", "resnet18")
    fetched = f"downloading {server.url}{RESOLVE}\n{path}: fetched\n"
    assert run(capsys, *command) == fetched
    assert server.asked == [RESOLVE, RESOLVE, STORE]
    assert run(capsys, *command) == f"{path}: there already, intact\n"
    shown = run(capsys, "weights", "show", path)
    assert "architecture: resnet18\n" in shown
    assert shown.endswith("120 tensors of 11186132 numbers\n")
    server.answers.clear()
    path.unlink()
    assert "answers 404" in refused(capsys, *command)
    recipe.write_text("\n".join([*lines, f"  - {member % (0, 'false')}"]))
    assert "trains from scratch" in run(capsys, *command)
    assert "no weight file" in refused(capsys, "weights", "show", path)
    (tmp_path / "text").write_text("text")
    assert "not a whole safetensors" in refused(capsys, "weights", "show", tmp_path / "text")
    assert "cannot read" in refused(capsys, "weights", "import", tmp_path / "text", tmp_path / "w")
