"""Trainings that end with the same bytes, and networks without nondeterministic operations."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from satmap.cli import main
from satmap.evaluation.verify import verify_weights
from satmap.networks.unet import build_network, resize_bilinear, resize_by_products
from satmap.provenance.manifest import WeightsManifest, read_manifest
from satmap.recipes.schema import load_recipe, parse_recipe
from satmap.runtime.device import be_deterministic
from satmap.tasks.roads.losses import road_loss
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.tasks.roads.settings import RoadLosses as Losses
from satmap.tasks.roads.targets import JUNCTION_BIT
from satmap.training import train as training
from satmap.training.run_context import RunContext, RunInfo
from satmap.training.train_ensemble import TrainingOptions, train
from tiny_trainings import road_member, road_recipe, stage

CPU = torch.device("cpu")
RUNS = itertools.count()

# Autograd nodes of operations that raise on a GPU by torch's documentation of
# use_deterministic_algorithms and could occur in a network.
RAISING = (
    "UpsampleLinear", "UpsampleBilinear", "UpsampleBicubic", "UpsampleTrilinear", "AvgPool3D",
    "AdaptiveAvgPool", "AdaptiveMaxPool", "FractionalMaxPool", "MaxUnpool", "ReflectionPad",
    "GridSampler", "NllLoss", "CtcLoss", "EmbeddingBag", "ScatterReduce", "Put", "Median",
    "KthValue",
)  # fmt: skip

MEMBER = road_member(bands=8, stages=[stage(batch=2, epochs=2, passes=2, peak=2e-3)])


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.deterministic
    be_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = before


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 2**32 - 1),
)
def test_matrix_products_resize_like_torch(
    size: tuple[int, int], out: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours = torch.rand(2, 3, *size, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    expected = F.interpolate(theirs, size=out, mode="bilinear", align_corners=True)
    found = resize_by_products(ours, out)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = torch.rand(found.shape, generator=generator)
    (found * weights).sum().backward()  # type: ignore[no-untyped-call]
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None and theirs.grad is not None
    # Sums of up to thousands of values in different orders.
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_products_are_exact_enough_for_large_images_and_for_bfloat16() -> None:
    x = torch.rand(1, 2, 650, 97, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, size=(1300, 194), mode="bilinear", align_corners=True)
    torch.testing.assert_close(resize_by_products(x, (1300, 194)), expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        halved = resize_by_products(x.bfloat16(), (1300, 194))
    assert halved.dtype == torch.bfloat16
    exact = F.interpolate(x.bfloat16().float(), (1300, 194), mode="bilinear", align_corners=True)
    # Rounded once, at the end, like torch's own: by half a unit in the last place of bfloat16.
    assert (halved.float() - exact).abs().max() <= 2**-9 + 1e-6


def nodes(output: Tensor) -> set[str]:
    """Return the names of all autograd nodes behind a tensor."""
    found, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in found}


def raising(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(RAISING)}


# One encoder of each family; the others repeat the same layers.
FAMILIES = (
    "dpn68b", "inception_resnet_v2", "resnet18", "se_resnext50_32x4d", "densenet121",
    "efficientnet_b3", "convnext_tiny",
)  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [*((encoder, "plain") for encoder in FAMILIES), ("resnet18", "scse"), ("resnet18", "light")],
)
@pytest.mark.usefixtures("deterministic")
def test_no_training_step_uses_nondeterministic_operations(encoder: str, decoder: str) -> None:
    """The graph is the same on every device."""
    losses = load_recipe("sn5-roads").members[0].losses
    assert isinstance(losses, Losses)
    network = build_network(encoder, 3, ROAD_MAPS, (16,) * 4, decoder).train()
    target = torch.full((2, 64, 64), JUNCTION_BIT + 1, dtype=torch.uint8)
    loss, _ = road_loss(network(torch.rand(2, 3, 64, 64)), ROAD_MAPS, target, losses)
    found = nodes(loss)
    assert any("Convolution" in name for name in found)
    assert not raising(found)


def test_nondeterministic_operations_occur_without_the_flag() -> None:
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    assert raising(nodes(resize_bilinear(x, (8, 8)))) == {"UpsampleBilinear2DBackward0"}
    assert raising(nodes(F.adaptive_avg_pool2d(x, 2))) == {"AdaptiveAvgPool2DBackward0"}


def trained(city: Path, directory: Path, workers: int = 0, seed: int = 0) -> dict[str, bytes]:
    """Train or resume; return the weights' bytes by name."""
    # Runs are identified by their start to the second, and such a training takes less.
    known = RunInfo(command=("train", f"number {next(RUNS)}"))
    context = RunContext(directory, CPU, workers=workers, info=known)
    options = TrainingOptions(cache=city.parent / "determinism-cache")
    train([city / "train"], parse_recipe(road_recipe(MEMBER, seed=seed), "tiny"), context, options)
    return {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}


@pytest.mark.usefixtures("deterministic", "tiny_encoders")
def test_two_trainings_give_the_same_bytes(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(city, tmp_path / "first")
    assert len(first) == 3
    assert trained(city, tmp_path / "workers", workers=2) == first
    original = training._train_epoch

    def stopped(*arguments):  # type: ignore[no-untyped-def]
        if arguments[0].progress.epoch == 1:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_train_epoch", stopped)
        trained(city, tmp_path / "resumed")
    assert trained(city, tmp_path / "resumed") == first
    manifest = read_manifest(tmp_path / "resumed" / "fold0-tiny-8band.last.safetensors")
    assert isinstance(manifest, WeightsManifest)
    # The first run did one epoch; the second began after it.
    began = [(run.from_stage, run.from_epoch, run.from_step) for run in manifest.runs]  # type: ignore[union-attr]
    assert began == [(1, 0, 0), (1, 1, 0)]
    assert all(run.deterministic for run in manifest.runs)  # type: ignore[union-attr]
    # A single list of the data lies beside the weights, and everything agrees with it.
    assert not any(verify_weights(tmp_path / "resumed").values())
    (listed,) = (tmp_path / "resumed").glob("data-*.json")
    assert len(json.loads(listed.read_text())) == 6
    listed.write_text(listed.read_text().replace("chip0.tif", "chip9.tif"))
    faults = verify_weights(tmp_path / "resumed")
    assert len(faults) == 3
    assert all("was altered" in fault for [fault] in faults.values())
    # Another seed is another training.
    shutil.rmtree(tmp_path / "workers")
    assert trained(city, tmp_path / "workers", seed=1) != first


def test_a_deterministic_training_refuses_a_time_limit(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([
            "train", str(city / "train"), "--weights", str(tmp_path), "--deterministic",
            "--time-limit", "1m",
        ])  # fmt: skip
    assert ended.value.code == 1
    assert "--time-limit" in capsys.readouterr().err
    assert not torch.are_deterministic_algorithms_enabled()
