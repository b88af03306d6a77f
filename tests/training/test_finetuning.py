"""Trainings that start from a trained network, and what weights say about their training images."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from satmap.cli import main
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import SatmapError
from satmap.networks.unet import UNet, build_network
from satmap.provenance.manifest import WeightsManifest, read_manifest
from satmap.recipes.schema import Recipe, parse_recipe
from satmap.tasks.base import task_of
from satmap.training.job import Job, make_optimizer
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.average import average_weights
from satmap.weights.header import read_metadata
from satmap.weights.members import find_weights
from satmap.weights.network_files import load_trained_network, load_weights, save_weights
from satmap.weights.tensor_file import read_tensors
from tiny_trainings import road_member, road_recipe, stage

pytestmark = pytest.mark.usefixtures("tiny_encoders")

MAPS = ("road", "junction")


def recipe_of(*stages: dict[str, object], **changes: object) -> Recipe:
    return parse_recipe(road_recipe(road_member(stages=[*stages] or [stage()], **changes)), "test")


def run(city: Path, weights: Path, recipe: Recipe, init: Path | None = None) -> Path:
    """Train and return the last weights."""
    options = TrainingOptions(city.parent / "test-cache", init=init)
    assert not train([city / "train"], recipe, RunContext(weights, torch.device("cpu")), options)
    (path,) = weights.glob("*.last.safetensors")
    return path


@pytest.fixture(scope="module")
def trained(city: Path, tmp_path_factory: pytest.TempPathFactory, tiny_encoders: None) -> Path:
    """Last weights of a training."""
    return run(city, tmp_path_factory.mktemp("trained"), recipe_of())


def test_a_training_starts_from_a_trained_network(
    city: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = recipe_of(stage(peak=1e-9))
    before = read_tensors(trained)
    path = run(city, tmp_path / "file", slow, trained)
    for name, value in read_tensors(path).items():
        # Batch-norm statistics follow the images whatever the learning rate is.
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)
    manifest = read_manifest(path)
    assert isinstance(manifest, WeightsManifest)
    (start,) = manifest.starts_from
    assert (start.name, start.sha256) == (trained.name, read_manifest(trained).file.sha256)
    # The same chips: validation chips of the first training are still held out.
    assert read_metadata(path)["held_out"] == read_metadata(trained)["held_out"] != "[]"
    capsys.readouterr()
    # In a directory the best checkpoint of the member of the same name counts.
    path = run(city, tmp_path / "directory", slow, trained.parent)
    assert ".best_apls.safetensors" in capsys.readouterr().out
    # The state belongs to a training that started from another network.
    with pytest.raises(SatmapError, match="another recipe or other chips"):
        run(city, tmp_path / "directory", slow)


def test_chips_that_the_first_training_learned_are_not_held_out(
    city: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Another seed deals other chips to the fold.
    content = road_recipe(road_member(stages=[stage()]), seed=4)
    path = run(city, tmp_path, parse_recipe(content, "test"), trained)
    first, second = (json.loads(read_metadata(file)["held_out"]) for file in (trained, path))
    assert set(second) < set(first)
    assert "validation chips were training chips of that network" in capsys.readouterr().out
    # Without its manifest nothing is known about the first training.
    alone = tmp_path / "alone" / trained.name
    alone.parent.mkdir()
    shutil.copy(trained, alone)
    path = run(city, tmp_path / "unknown", parse_recipe(content, "test"), alone)
    assert len(json.loads(read_metadata(path)["held_out"])) == 3


def test_heads_are_kept_where_name_and_category_are_the_same(tmp_path: Path) -> None:
    widths = (16, 16, 16, 16)
    torch.manual_seed(0)
    source = build_network("tiny", 3, MAPS, widths)
    source.encoder.mean = (0.1, 0.2, 0.3)
    path = tmp_path / "a.last.safetensors"
    save_weights(path, source, {})
    other = build_network("tiny", 3, ("junction", "speed", "road"), widths)
    new = other.head.weight[1].clone()
    assert load_trained_network(other, path) == ["speed"]
    assert other.encoder.mean == (0.1, 0.2, 0.3)
    assert torch.equal(other.head.weight[0], source.head.weight[1])
    assert torch.equal(other.head.get_parameter("bias")[2], source.head.get_parameter("bias")[0])
    assert torch.equal(other.head.weight[1], new)
    assert all(map(torch.equal, other.decoder.parameters(), source.decoder.parameters()))
    heads = build_network("tiny", 3, MAPS, widths, categories=("near", "far"))
    assert load_trained_network(heads, path) == [
        "road near", "junction near", "road far", "junction far",
    ]  # fmt: skip
    for encoder, bands, decoder, message in (
        ("tiny_convnext", 3, widths, "its encoder differs"),
        ("tiny", 4, widths, "its encoder differs"),
        ("tiny", 3, (16, 16, 16, 32), "its decoder differs"),
    ):
        with pytest.raises(SatmapError, match=message):
            load_trained_network(build_network(encoder, bands, MAPS, decoder), path)


def test_the_encoder_has_its_own_learning_rate(city: Path, trained: Path, tmp_path: Path) -> None:
    slow = recipe_of(stage(encoder_rate=1e-6), stage(encoder_rate=1e-6), fold=None)
    learned = read_tensors(run(city, tmp_path, slow, trained))
    before = read_tensors(trained)
    moved = {
        part: sum(
            float((value - before[name]).abs().sum())
            for name, value in learned.items()
            if name.startswith(part) and "running" not in name and "num_batches" not in name
        )
        for part in ("encoder", "decoder")
    }
    assert 0 < moved["encoder"] < 1e-3 * moved["decoder"]


def test_an_optimizer_with_two_rates_resumes(tmp_path: Path) -> None:
    recipe = recipe_of(stage(encoder_rate=0.5), stage(encoder_rate=1), stage())
    task = task_of(recipe)
    job = Job(task, recipe.members[0], [], [], RunContext(tmp_path, torch.device("cpu")))
    network = task.build_network(recipe.members[0])
    # Trainings without the setting have the same optimizer as ever.
    assert [len(make_optimizer(network, job, index).param_groups) for index in (1, 2)] == [1, 1]
    first, again = (make_optimizer(network, job, 0) for _ in range(2))
    assert [group.get("rate") for group in first.param_groups] == [None, 0.5]
    sizes = [len(group["params"]) for group in first.param_groups]
    assert sum(sizes) == len(list(network.parameters()))
    assert isinstance(network, UNet)
    assert sizes[1] == len(list(network.encoder.parameters()))
    again.load_state_dict(first.state_dict())
    assert [group.get("rate") for group in again.param_groups] == [None, 0.5]


def test_weights_describe_their_training_images(
    city: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file, *_) = find_weights(trained.parent)
    sizes = [chip.image.gsd_m() for chip in scan_roads([city / "train"]).chips]
    gsd = file.gsd_m
    assert gsd == pytest.approx(sum(filter(None, sizes)) / len(sizes), rel=0.01)
    assert gsd is not None
    assert file.band_statistics is not None
    means, spreads = file.band_statistics
    assert len(means) == len(spreads) == 3
    assert all(60 < mean < 190 for mean in means)
    assert all(20 < spread < 100 for spread in spreads)
    with pytest.raises(SystemExit):
        main(["weights", "show", str(trained)])
    shown = capsys.readouterr().out
    assert f"gsd_m: {gsd}\n" in shown
    assert "band_mean: [" in shown
    # An average has the mean of what all networks state.
    other = tmp_path / "other.last.safetensors"
    network, metadata = load_weights(trained)
    described = {key: value for key, value in metadata.items() if key not in _NETWORK}
    changed = {"gsd_m": "0.5", "band_mean": "[9, 9, 9]", "band_std": "[1, 1, 1]"}
    save_weights(other, network, {**described, **changed})
    average = tmp_path / "average.last.safetensors"
    average_weights(average, [trained, other])
    merged = read_metadata(average)
    assert json.loads(merged["gsd_m"]) == pytest.approx((gsd + 0.5) / 2, abs=1e-4)
    assert json.loads(merged["band_mean"])[0] == pytest.approx((means[0] + 9) / 2, abs=0.01)
    for key in changed:
        del described[key]
    save_weights(other, network, described)
    average_weights(average, [trained, other])
    assert "band_mean" not in read_metadata(average)


_NETWORK = {"architecture", "in_channels", "decoder", "maps", "categories"}


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("gsd_m", "0", "gsd_m must be a number above 0, not 0"),
        ("gsd_m", '"small"', "gsd_m must be a number above 0"),
        ("band_mean", "3", "band_mean must be a list of numbers from 0 to 255"),
        ("band_std", "[-1]", "band_std must be a list of numbers"),
    ],
)
def test_broken_descriptions(key: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.last.safetensors"
    save_weights(path, build_network("tiny", 3, MAPS, (16, 16, 16, 16)), {})
    statistics = {"gsd_m": "1", "band_mean": "[1]", "band_std": "[1]"}
    save_file(load_file(path), path, {**read_metadata(path), **statistics, key: text})
    (file,) = find_weights(tmp_path)
    with pytest.raises(SatmapError, match=f"broken metadata: {message}"):
        _ = file.gsd_m, file.band_statistics
