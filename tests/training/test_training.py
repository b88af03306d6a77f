import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from forked_ranks import finish, start_command
from satmap.data.cache import prepare_chips
from satmap.data.folds import assign_folds
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import SatmapError
from satmap.networks.unet import UNet, build_network
from satmap.recipes.schema import Recipe, parse_recipe
from satmap.tasks.base import task_of
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.training.job import Job
from satmap.training.run_context import RunContext
from satmap.training.train import train_member
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import find_weights
from satmap.weights.network_files import load_weights
from tiny_trainings import TWO_STAGE_MEMBER, TWO_STAGE_RECIPE, road_recipe, stage

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def small(**changes: object) -> Recipe:
    return parse_recipe(road_recipe(TWO_STAGE_MEMBER | changes), "test")


def run(city: Path, directory: Path, recipe: Recipe, restart: bool = False) -> RunContext:
    context = RunContext(directory / "weights", CPU, restart=restart)
    options = TrainingOptions(cache=city.parent / "test-cache")
    assert train([city / "train"], recipe, context, options) == {}
    return context


def test_two_stages_leave_weights_and_scores(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small()
    context = run(city, tmp_path, recipe)
    printed = capsys.readouterr().out
    assert "3 chips, validated on 3" in printed
    assert printed.count("apls") >= 3
    files = {file.checkpoint: file for file in find_weights(context.weights)}
    assert set(files) == {"best_apls", "best_dice", "last"}
    assert files["last"].metadata["stage"] == "2"
    # Each weight file lists the images it has not seen: those of its fold.
    chips = [(chip.image_id, chip.aoi) for chip in scan_roads([city / "train"]).chips]
    folds = assign_folds(chips, recipe.folds, recipe.seed)
    own = frozenset(name for name, fold in folds.items() if fold == recipe.members[0].fold)
    assert [file.held_out for file in files.values()] == [own] * 3
    assert {"apls", "apls_time", "dice", "iou"} == json.loads(
        files["last"].metadata["scores"]
    ).keys()
    # A second start has nothing left to do.
    before = files["last"].path.stat().st_mtime_ns
    run(city, tmp_path, recipe)
    assert "already trained" in capsys.readouterr().out
    assert files["last"].path.stat().st_mtime_ns == before


def weights_of(context: RunContext, checkpoint: str) -> dict[str, torch.Tensor]:
    (path,) = context.weights.glob(f"*.{checkpoint}.safetensors")
    return load_weights(path)[0].state_dict()


def test_a_resumed_training_ends_with_the_same_weights(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from satmap.training import train as training

    recipe = small()
    whole = run(city, tmp_path / "whole", recipe)
    original = training._train_epoch
    for stop_before in (1, 2):
        calls = 0

        def interrupted(*arguments, stop=stop_before):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls > stop:
                raise KeyboardInterrupt
            return original(*arguments)

        directory = tmp_path / f"stopped{stop_before}"
        monkeypatch.setattr(training, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(city, directory, recipe)
        monkeypatch.setattr(training, "_train_epoch", original)
        resumed = run(city, directory, recipe)
        for checkpoint in ("last", "best_apls", "best_dice"):
            expected, found = (weights_of(context, checkpoint) for context in (whole, resumed))
            for name, value in expected.items():
                assert torch.equal(value, found[name]), (checkpoint, name)


def test_a_killed_training_resumes(city: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    long, last = TWO_STAGE_MEMBER["stages"]
    recipe.write_text(road_recipe({**TWO_STAGE_MEMBER, "stages": [{**long, "epochs": 12}, last]}))
    weights, log = tmp_path / "weights", tmp_path / "log.txt"
    command = [
        "train", str(city / "train"), "--recipe", str(recipe), "--weights", str(weights),
        "--cache", str(tmp_path / "cache"), "--workers", "0",
    ]  # fmt: skip
    process = start_command(command, tmp_path / "killed.txt")
    deadline = time.monotonic() + 60
    while not list(weights.glob("*.last.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert finish([process]) == [-signal.SIGKILL]
    assert find_weights(weights)
    assert finish([start_command(command, log)]) == [0]
    assert "resuming after" in log.read_text()
    assert "stage 2/2  epoch 1/1" in log.read_text()
    assert {file.metadata["stage"] for file in find_weights(weights)} >= {"2"}


def test_worker_processes_continue_after_a_validation(city: Path, tmp_path: Path) -> None:
    # Forked workers once waited forever for OpenCV threads of the parent.
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(road_recipe(TWO_STAGE_MEMBER))
    log = tmp_path / "log.txt"
    command = [
        "train", str(city / "train"), "--recipe", str(recipe),
        "--weights", str(tmp_path / "weights"), "--cache", str(tmp_path / "cache"),
        "--workers", "2",
    ]  # fmt: skip
    assert finish([start_command(command, log)]) == [0], log.read_text()
    assert "stage 2/2  epoch 1/1" in log.read_text()


def test_a_damaged_state_is_reported(city: Path, tmp_path: Path) -> None:
    context = run(city, tmp_path, small())
    file = context.state_file(small().members[0])
    whole = torch.load(file, weights_only=True)
    whole["progress"]["stage"] = 1
    for damage in ("network", "progress", "optimizer"):
        torch.save({key: value for key, value in whole.items() if key != damage}, file)
        with pytest.raises(SatmapError, match="--restart"):
            run(city, tmp_path, small())
    file.write_bytes(b"garbage")
    with pytest.raises(SatmapError, match=r"cannot be read.*--restart"):
        run(city, tmp_path, small())


def test_another_recipe_does_not_resume_in_the_same_directory(city: Path, tmp_path: Path) -> None:
    run(city, tmp_path, small())
    other = small(decoder=[16, 16, 16, 32])
    with pytest.raises(SatmapError, match=r"another recipe or other chips.*--restart"):
        run(city, tmp_path, other)
    run(city, tmp_path, other, restart=True)


FROZEN = stage(epochs=3, passes=4, freeze_encoder_epochs=3, peak=5e-3)


def learn(
    network: UNet, recipe: Recipe, city: Path, directory: Path, pretrained: bool
) -> list[dict[str, Any]]:
    """Train on all chips without validation; return the statistics of every epoch."""
    found = scan_roads([city / "train"]).chips
    cache = city.parent / "test-cache"
    task = task_of(recipe)
    chips = prepare_chips(found, 8, cache, recipe.stretch, task).chips
    job = Job(task, recipe.members[0], chips, [], RunContext(directory, CPU))
    return train_member(network, job, pretrained=pretrained).history


def encoder_of(network: UNet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.encoder.state_dict().items()}


def changed(network: UNet, before: dict[str, torch.Tensor]) -> set[str]:
    now = network.encoder.state_dict()
    return {name for name in before if not torch.equal(now[name], before[name])}


def test_the_loss_falls_while_a_frozen_encoder_stays(city: Path, tmp_path: Path) -> None:
    # A real encoder, because a decoder learns nothing from the few features of a tiny one.
    recipe = small(encoder="resnet18", stages=[FROZEN])
    torch.manual_seed(0)
    network = build_network("resnet18", 8, ROAD_MAPS, (16, 16, 16, 16))
    before = encoder_of(network)
    losses = [record["loss"] for record in learn(network, recipe, city, tmp_path, pretrained=True)]
    assert losses[-1] < 0.8 * losses[0]
    assert not changed(network, before)
    # Without validation chips only the last weights exist.
    assert [file.checkpoint for file in find_weights(tmp_path)] == ["last"]


def test_how_much_is_frozen_and_for_how_long(city: Path, tmp_path: Path) -> None:
    network = build_network("tiny", 8, ROAD_MAPS, (16, 16, 16, 16))
    before = encoder_of(network)
    # A partly frozen encoder keeps its first stages.
    recipe = small(stages=[{**FROZEN, "freeze_encoder_stages": 2}])
    learn(network, recipe, city, tmp_path / "part", pretrained=True)
    assert {name.split(".")[1] for name in changed(network, before)} == {"2", "3", "4"}
    # It thaws after the frozen epochs; an encoder from scratch never freezes.
    for directory, pretrained, epochs in (("thawed", True, 4), ("scratch", False, 1)):
        before = encoder_of(network)
        recipe = small(stages=[{**FROZEN, "epochs": epochs}])
        learn(network, recipe, city, tmp_path / directory, pretrained)
        assert changed(network, before), directory


def test_a_loss_that_is_not_finite_ends_the_training(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = run(city, tmp_path, small())
    good = weights_of(context, "last")

    def broken(self: UNet, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 12, *x.shape[2:]), torch.nan, requires_grad=True)

    monkeypatch.setattr(UNet, "forward", broken)
    with pytest.raises(SatmapError, match="loss is nan at epoch 1, step 1, on crops of AOI_99_"):
        run(city, tmp_path, small(), restart=True)
    assert all(
        torch.equal(value, good[name]) for name, value in weights_of(context, "last").items()
    )


@pytest.mark.parametrize(("encoder", "bands"), [("dpn92", 8), ("inception_resnet_v2", 3)])
def test_the_reference_networks_train_and_predict(
    city: Path, tmp_path: Path, encoder: str, bands: int
) -> None:
    from satmap.prediction.run import predict
    from satmap.submissions.roads_csv import check_roads_csv

    recipe_file = tmp_path / "recipe.yaml"
    member = {
        "encoder": encoder, "bands": bands, "decoder": [256, 256, 128, 64],
        "stages": [stage(batch=2, peak=1e-4)],
    }  # fmt: skip
    recipe_file.write_text(road_recipe(TWO_STAGE_MEMBER | member))
    recipe = parse_recipe(recipe_file.read_text(), "test")
    found, task = scan_roads([city / "train"]).chips, task_of(recipe)
    cached = prepare_chips(found, bands, tmp_path / "cache", recipe.stretch, task).chips
    network = build_network(encoder, bands, ROAD_MAPS)
    context = RunContext(tmp_path / "weights", CPU)
    progress = train_member(network, Job(task, recipe.members[0], cached[:2], [], context))
    assert 0 < progress.history[0]["loss"] < 10
    output = tmp_path / "out.csv"
    done = predict([city / "test"], output, context.weights, CPU, str(recipe_file))
    assert not done.faults
    assert check_roads_csv(output, list(done.images)) == []


def test_missing_imagenet_weights_are_reported(city: Path, tmp_path: Path) -> None:
    context = RunContext(tmp_path / "weights", CPU)
    options = TrainingOptions(cache=tmp_path / "cache")
    asking = small(encoder="resnet18", pretrained=True)
    with pytest.raises(SatmapError, match=r"imagenet/resnet18\.safetensors.*--from-scratch"):
        train([city / "train"], asking, context, options)
    # Reported before any work, also when an earlier training is discarded.
    assert not list((tmp_path / "cache").glob("*"))
    context.state_file(asking.members[0]).write_bytes(b"left over")
    again = RunContext(context.weights, CPU, restart=True)
    with pytest.raises(SatmapError, match="--from-scratch"):
        train([city / "train"], asking, again, options)


def test_unknown_encoders_are_refused_before_any_training(city: Path, tmp_path: Path) -> None:
    context = RunContext(tmp_path / "weights", CPU)
    with pytest.raises(SatmapError, match=r"unknown encoder 'resnet99'; did you mean resnet"):
        train([city / "train"], small(encoder="resnet99"), context, TrainingOptions(tmp_path / "c"))
    assert not list((tmp_path / "c").glob("*"))


def test_many_unreadable_images_stop_the_training(city: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(city / "train", images)
    for path in sorted(images.glob("**/*chip[12].tif")):
        path.write_bytes(b"no image")
    context = RunContext(tmp_path / "weights", CPU)
    with pytest.raises(SatmapError, match="2 of 6 chips cannot be used"):
        train([images], small(), context, TrainingOptions(tmp_path / "cache"))


def test_a_restart_leaves_nothing_of_the_earlier_training(city: Path, tmp_path: Path) -> None:
    run(city, tmp_path, small())
    found, recipe = scan_roads([city / "train"]).chips, small()
    task = task_of(recipe)
    chips = prepare_chips(found, 8, tmp_path / "cache", recipe.stretch, task).chips
    context = RunContext(tmp_path / "weights", CPU, restart=True)
    network = build_network("tiny", 8, ROAD_MAPS, (16, 16, 16, 16))
    # Without validation there are no best weights, and old ones must not be averaged in.
    train_member(network, Job(task, recipe.members[0], chips, [], context))
    assert [file.checkpoint for file in find_weights(context.weights)] == ["last"]
    context.weight_file(recipe.members[0], "last").unlink()
    context = RunContext(context.weights, CPU)
    with pytest.raises(SatmapError, match="its weights are gone"):
        train_member(network, Job(task, recipe.members[0], chips, [], context))


def test_without_a_compiler_a_compiled_training_does_not_begin(city: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TWO_STAGE_RECIPE)
    command = [
        sys.executable, "-m", "satmap", "train", str(city / "train"), "--recipe", str(recipe),
        "--weights", str(tmp_path / "weights"), "--cache", str(tmp_path / "cache"), "--compile",
    ]  # fmt: skip
    environment = os.environ | {
        "CXX": str(tmp_path / "no-such-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 1
    assert "--compile: torch cannot compile for cpu here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "cache").glob("*.safetensors"))
