"""Batches from worker processes, with enough and with almost no shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mounts import needs_mounts, private_mount
from satmap.data.cache import prepare_chip, prepare_chips
from satmap.data.crops import CachedChip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.recipes.schema import Augmentation, parse_recipe
from satmap.runtime import resources
from satmap.runtime.workers import start_pool
from satmap.tasks.base import task_of
from satmap.training import loading
from satmap.training.loading import CropDataset, batches, fit_shared_memory
from satmap.training.run_context import RunContext
from tiny_trainings import road_member, road_recipe, stage

CPU = torch.device("cpu")
STAGES = [stage(epochs=2, passes=2), stage(crop=96, batch=2)]
TWO_STAGES = parse_recipe(
    road_recipe(road_member(encoder="resnet18", bands=8, stages=STAGES)), "test"
)

# Two workers with two batches each and two in use, four crops of 64 x 64 with 8 bands and a target;
# the second stage has two of 96 x 96.
NEEDED = (2 * 2 + 2) * max(4 * 9 * 64 * 64, 2 * 9 * 96 * 96)


def test_pipes_deliver_the_same_batches_as_shared_memory(city: Path, tmp_path: Path) -> None:
    recipe, task = TWO_STAGES, task_of(TWO_STAGES)
    chips = prepare_chips(
        scan_roads([city / "train"]).chips, 8, tmp_path, recipe.stretch, task
    ).chips
    dataset = CropDataset(chips, 64, 8, 2, Augmentation(), seed=5, task=task)
    items = [[3, 1], [0, 7, 2], [11]]
    ways = [
        list(batches(dataset, items, RunContext(tmp_path, CPU, workers=workers, pipes=pipes)))
        for workers, pipes in ((0, False), (2, False), (2, True))
    ]
    assert [len(batch) for batch in ways[0]] == [2, 3, 1]
    assert [batch.chips for batch in ways[0]] == [
        [chips[number % len(chips)] for number in numbers] for numbers in items
    ]
    for other in ways[1:]:
        assert len(other) == len(ways[0])
        for ours, theirs in zip(ways[0], other, strict=True):
            assert ours.chips == theirs.chips
            assert ours.tensors.keys() == theirs.tensors.keys() == {"image", "target"}
            for name in ours.tensors:
                assert ours[name].dtype == theirs[name].dtype
                assert torch.equal(ours[name], theirs[name])


@pytest.fixture(scope="module")
def chip(city: Path, tmp_path_factory: pytest.TempPathFactory) -> CachedChip:
    chips, cache = scan_roads([city / "train"]).chips, tmp_path_factory.mktemp("cache")
    return prepare_chip(chips[0], cache, TWO_STAGES.stretch, task_of(TWO_STAGES))


def fit(context: RunContext, chip: CachedChip, processes: int) -> RunContext:
    return fit_shared_memory(context, task_of(TWO_STAGES), chip, TWO_STAGES.members, processes)


@pytest.mark.parametrize(
    ("free", "processes", "pipes"),
    [(NEEDED, 1, False), (NEEDED - 1, 1, True), (3 * NEEDED, 4, True), (4 * NEEDED, 4, False)],
)
def test_pipes_are_used_if_shared_memory_is_too_small(
    chip: CachedChip,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: int,
    processes: int,
    pipes: bool,
) -> None:
    monkeypatch.setattr(loading, "free_shared_memory", lambda: free)
    context = RunContext(Path(), CPU, workers=2)
    assert fit(context, chip, processes).pipes is pipes
    assert ("--shm-size" in capsys.readouterr().out) is pipes


def test_without_workers_nothing_is_shared(
    chip: CachedChip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 0)
    context = RunContext(Path(), CPU)
    assert fit(context, chip, 1) == context
    assert capsys.readouterr().out == ""


@needs_mounts
def test_a_training_with_workers_and_little_shared_memory(city: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(road_recipe(road_member(encoder="resnet18")))
    # Room for the locks but for no batch.
    done = subprocess.run(
        private_mount(
            "128k", Path("/dev/shm"), sys.executable, "-m", "satmap", "train", str(city / "train"),
            "--recipe", str(recipe), "--fold", "0", "--workers", "2",
            "--weights", str(tmp_path / "w"), "--cache", str(tmp_path / "c"), "--device", "cpu",
        ),
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("crops go through pipes") == 1
    assert "fold0-resnet18-3band  stage 1/1  epoch 1/1" in done.stdout


@needs_mounts
def test_without_a_place_for_locks_there_are_no_workers() -> None:
    # A file system without room for any file.
    script = (
        "import pathlib, torch\n"
        "from satmap.errors import SatmapError\n"
        "from satmap.training.loading import fit_shared_memory\n"
        "from satmap.training.run_context import RunContext\n"
        "from satmap.runtime.workers import start_pool\n"
        "context = RunContext(pathlib.Path(), torch.device('cpu'), workers=2)\n"
        "assert fit_shared_memory(context, None, None, [], 1).workers == 0\n"
        "try: start_pool(1)\n"
        "except SatmapError as error: print(error)\n"
    )
    done = subprocess.run(
        private_mount("1m,ro", Path("/dev/shm"), sys.executable, "-c", script),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "without workers" in done.stdout
    assert "--workers 0" in done.stdout


def test_with_a_place_for_locks_there_are_workers() -> None:
    with start_pool(1) as pool:
        assert pool.submit(abs, -3).result() == 3


def test_nccl_avoids_scarce_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NCCL_SHM_DISABLE", raising=False)
    monkeypatch.setattr(resources, "free_shared_memory", lambda: 2**30)
    resources.limit_nccl_shared_memory()
    assert "NCCL_SHM_DISABLE" not in os.environ
    monkeypatch.setattr(resources, "free_shared_memory", lambda: 2**26)
    resources.limit_nccl_shared_memory()
    assert os.environ.pop("NCCL_SHM_DISABLE") == "1"
    # A value set by the user is kept.
    monkeypatch.setenv("NCCL_SHM_DISABLE", "0")
    resources.limit_nccl_shared_memory()
    assert os.environ["NCCL_SHM_DISABLE"] == "0"
