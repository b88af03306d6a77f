"""Task of another package, used with the same commands as roads and buildings."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from commands import run
from forked_ranks import finish, start_command, start_ranks, wait_until
from repository import ROOT
from satmap.errors import SatmapError
from satmap.recipes.registry import installed_tasks
from tree_task import TreesCsv

SIZE, TREES = 96, 12

RECIPE = {
    "name": "trees", "description": "a small network that finds trees", "task": "trees", "folds": 2,
    "augmentation": {"rotation_probability": 0.5},
    "members": [
        {
            "fold": fold, "encoder": "resnet18", "pretrained": False, "bands": 3,
            "losses": {"tree": 1.0},
            "stages": [
                {"crop": 64, "batch": 8, "epochs": 3, "passes": 24,
                 "schedule": {"kind": "cosine", "peak": 0.02}}
            ],
        }
        for fold in range(2)
    ],
    "inference": {"tta": 4, "window": 64, "overlap": 8, "checkpoints": ["last"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def wood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a wood with labels, a recipe, and the task as an installed package."""
    directory = tmp_path_factory.mktemp("wood")
    random = np.random.default_rng(0)
    truth = ["image,x,y,score"]
    for name in [f"train/wood{i}" for i in range(8)] + [f"test/wood{i}" for i in range(8, 11)]:
        path = directory / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        # Trees keep a distance at which they can be distinguished.
        cells = random.choice(64, TREES, replace=False)
        trees = np.column_stack([cells % 8, cells // 8]) * 12 + random.uniform(3, 9, (TREES, 2))
        y, x = np.mgrid[:SIZE, :SIZE] + 0.5
        crowns = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 6) for a, b in trees)
        image = np.clip(60 + 150 * crowns + random.normal(0, 8, (3, SIZE, SIZE)), 1, 255)
        profile = {"driver": "GTiff", "width": SIZE, "height": SIZE, "count": 3, "dtype": "uint8"}
        with rasterio.open(path, "w", **profile) as target:
            target.write(image.astype(np.uint8))
        if name.startswith("train"):
            np.savetxt(path.with_suffix(".csv"), trees, delimiter=",", fmt="%.2f")
        else:
            truth += [f"{path.stem},{a:.2f},{b:.2f},1" for a, b in trees]
    (directory / "truth.csv").write_text("\n".join(truth) + "\n")
    (directory / "trees.yaml").write_text(yaml.safe_dump(RECIPE))
    package = directory / "site" / "trees-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: trees\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[satmap.tasks]\ntrees = tree_task:ENTRY\n")
    return directory


@pytest.fixture
def _installed(wood: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the task's package in this process and in those that it starts."""
    monkeypatch.syspath_prepend(wood / "site")
    paths = [wood / "site", ROOT / "tests/helpers", ROOT / "code"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    installed_tasks.cache_clear()
    yield
    installed_tasks.cache_clear()


def fails(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    return run(capfd, *arguments, status=1)


def train_arguments(wood: Path, weights: Path) -> list[str]:
    return [
        "train", str(wood / "train"), "--recipe", str(wood / "trees.yaml"),
        "--weights", str(weights), "--cache", str(wood / "cache"), "--workers", "0",
        "--device", "cpu",
    ]  # fmt: skip


def weights_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}


@pytest.mark.usefixtures("_installed")
def test_from_labels_to_a_score(
    wood: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(capfd, *train_arguments(wood, whole))
    # A training stopped after its first state resumes to the same weights.
    log = tmp_path / "log.txt"
    process = start_command([*train_arguments(wood, stopped), "--save-minutes", "0.0001"], log)
    has_state = wait_until(lambda: any(stopped.glob("*.state.pt")), process.is_alive)
    assert has_state, log.read_text()
    process.terminate()
    assert finish([process]) == [128 + signal.SIGTERM]
    run(capfd, *train_arguments(wood, stopped))
    assert weights_of(stopped) == weights_of(whole)

    predict = ["predict", str(wood / "test"), "--weights", str(whole), "--device", "cpu"]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    run(capfd, *predict, one, "--workers", 0)
    ranks = start_ranks([*predict, str(two), "--workers", "1"], tmp_path)
    assert finish(ranks) == [0, 0], (tmp_path / "rank0.txt").read_text()
    assert one.read_bytes() == two.read_bytes()
    score = json.loads(run(capfd, "score", wood / "truth.csv", one, "--json"))
    assert score["metric"] == "trees_f1"
    assert score["total"]["f1"] > 0.9
    assert "ok" in run(capfd, "check", one, wood / "test")
    # This starts a process, which finds the task by its package alone.
    assert "verified" in run(capfd, "verify", one, "--device", "cpu")
    # A file without one of the images is refused.
    short = tmp_path / "short.csv"
    lines = one.read_text().splitlines()
    short.write_text("\n".join(line for line in lines if not line.startswith("wood9,")) + "\n")
    assert "wood9 is missing" in fails(capfd, "check", short, wood / "test")


@pytest.mark.usefixtures("_installed")
def test_unsupported_operations_are_refused(
    wood: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # An earlier result of the task may be overwritten, so the missing weights are the first error.
    out, recipe = tmp_path / "out.csv", wood / "trees.yaml"
    out.write_text("image,x,y,score\n")
    assert "no weights" in fails(capfd, "predict", wood / "test", out, "--weights", tmp_path)
    fails(capfd, "vectorize", wood / "test", out, "--recipe", recipe)
    fails(
        capfd, "tune", wood / "test", wood / "truth.csv", tmp_path / "out.yaml", "--recipe", recipe
    )
    with pytest.raises(SatmapError, match="is a trees CSV, which cannot be drawn"):
        TreesCsv().draw(wood / "truth.csv", [wood / "test"], tmp_path)
