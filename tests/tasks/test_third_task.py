"""Task of another package, used with the same commands as roads and buildings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from repository import ROOT
from satmap.errors import SatmapError
from tree_task import TreesCsv

SIZE, TREES, TIMEOUT_S = 96, 12, 120

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


def command(wood: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "satmap", *map(str, arguments)]


def environment(wood: Path) -> dict[str, str]:
    paths = [str(wood / "site"), str(ROOT / "tests/helpers"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }


def run(wood: Path, *arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        command(wood, *arguments),
        env=environment(wood), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stdout + done.stderr


def train_arguments(wood: Path, weights: Path) -> list[object]:
    return [
        "train", wood / "train", "--recipe", wood / "trees.yaml", "--weights", weights,
        "--cache", wood / "cache", "--workers", 0, "--device", "cpu",
    ]  # fmt: skip


def weights_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}


def test_from_labels_to_a_score(wood: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(wood, *train_arguments(wood, whole))
    # A training stopped after its first state resumes to the same weights.
    process = subprocess.Popen(
        command(wood, *train_arguments(wood, stopped), "--save-minutes", "0.0001"),
        env=environment(wood), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while not list(stopped.glob("*.state.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    run(wood, *train_arguments(wood, stopped))
    assert weights_of(stopped) == weights_of(whole)

    predict = ["predict", wood / "test", "--weights", whole, "--device", "cpu"]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    run(wood, *predict, one, "--workers", 0)
    run(wood, *predict, two, "--processes", 2, "--workers", 1)
    assert one.read_bytes() == two.read_bytes()
    assert "ok" in run(wood, "check", one, wood / "test")
    score = json.loads(run(wood, "score", wood / "truth.csv", one, "--json"))
    assert score["metric"] == "trees_f1"
    assert score["total"]["f1"] > 0.9
    assert "verified" in run(wood, "verify", one, "--device", "cpu")
    # A file without one of the images is refused.
    short = tmp_path / "short.csv"
    lines = one.read_text().splitlines()
    short.write_text("\n".join(line for line in lines if not line.startswith("wood9,")) + "\n")
    assert "wood9 is missing" in run(wood, "check", short, wood / "test", status=1)


def test_unsupported_operations_are_refused(wood: Path, tmp_path: Path) -> None:
    # An earlier result of the task may be overwritten, so the missing weights are the first error.
    (tmp_path / "out.csv").write_text("image,x,y,score\n")
    arguments = ["predict", wood / "test", tmp_path / "out.csv", "--weights", tmp_path]
    assert "no weights" in run(wood, *arguments, status=1)
    run(
        wood,
        "vectorize",
        wood / "test",
        tmp_path / "out.csv",
        "--recipe",
        wood / "trees.yaml",
        status=1,
    )
    run(
        wood,
        "tune",
        wood / "test",
        wood / "truth.csv",
        tmp_path / "out.yaml",
        "--recipe",
        wood / "trees.yaml",
        status=1,
    )
    with pytest.raises(SatmapError, match="is a trees CSV, which cannot be drawn"):
        TreesCsv().draw(wood / "truth.csv", [wood / "test"], tmp_path)
