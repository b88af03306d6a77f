"""The task ``instances`` with the commands, on made chips with bright buildings."""

import json
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
import yaml
from affine import Affine

from commands import run
from forked_ranks import finish, start_command, start_ranks, wait_until
from satmap.cli import main
from satmap.evaluation.metrics.building_f1 import group_of
from satmap.prediction.map import MapRequest, map_sources
from satmap.submissions.buildings_csv import (
    BuildingRow,
    read_buildings_csv,
    write_buildings_csv,
)
from synthetic_chips import Ring, square, write_tile

#: Chips of 96 px with 0 to 3 buildings.
TRAIN, TEST = range(8), (10, 11)
RECIPE = {
    "name": "bright", "description": "a small cascade that finds bright squares", "folds": 2,
    "task": {
        "name": "instances",
        "network": {
            "pyramid": 16, "anchors": [[16], [24], [32], [64]], "ratios": [1],
            "proposals": {
                "train": [64, 32], "test": [64, 32], "positive_iou": 0.5, "least_px": 2,
                "inside_only": False, "batch": 64,
            },
            "sampling": {"boxes": 16}, "warp_px": 7, "feature_px": 7, "samples": 1,
            "mask": "convolutional", "mask_px": 14, "mask_width": 16, "mask_layers": 1,
            "box_width": 32, "refine": True, "quality": True,
            "maps": ["building", "border"],
        },
        "vectorizer": {"least_score": 0.5, "overlap": 0.5},
    },
    "augmentation": {"rotation_probability": 0, "resize": 0.1},
    "optimizer": {"name": "adamw", "ema_decay": 0.9},
    "members": [
        {
            "fold": fold, "encoder": "tiny", "pretrained": False, "bands": 3,
            "decoder": {"kind": "light", "widths": [16, 16, 16, 16]},
            "losses": {"maps": {"building": {"bce": 1, "dice": 1}, "border": {"bce": 1}}},
            "stages": [
                {"crop": 96, "batch": 4, "epochs": 2, "passes": 48, "validate_every": 2,
                 "schedule": {"kind": "cosine", "peak": 0.004}}
            ],
        }
        for fold in range(2)
    ],
    "inference": {"tta": 1, "window": 96, "overlap": 16, "checkpoints": ["last"]},
}  # fmt: skip


def houses(seed: int) -> list[list[Ring]]:
    """Return the squares of a chip: 24 to 30 px, at least 8 px apart; some chips have none."""
    random = np.random.default_rng(seed)
    cells = random.permutation(4)[: seed % 4]
    found = []
    for cell in cells.tolist():
        x, y = (np.array(divmod(cell, 2)) * 44 + random.integers(6, 12, 2)).tolist()
        found.append(square(x, y, float(random.integers(24, 31))))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_encoders: None) -> Path:
    """Made chips, a recipe, and trained weights."""
    directory = tmp_path_factory.mktemp("bright")
    for number in (*TRAIN, *TEST):
        write_tile(directory / ("train" if number in TRAIN else "test"), number, houses(number))
    (directory / "bright.yaml").write_text(yaml.safe_dump(RECIPE))
    arguments = [
        "train", str(directory / "train"), "--recipe", str(directory / "bright.yaml"),
        "--weights", str(directory / "weights"), "--cache", str(directory / "cache"),
        "--workers", "0", "--device", "cpu",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return directory


def write_truth(path: Path, numbers: Iterable[int]) -> None:
    rows = {
        f"AOI_9_Made_img{number}": [BuildingRow(shapely.Polygon(r[0])) for r in houses(number)]
        for number in numbers
    }
    write_buildings_csv(path, rows)


def f1(truth: Path, found: Path, capfd: pytest.CaptureFixture[str]) -> float:
    return float(json.loads(run(capfd, "score", truth, found, "--json"))["total"]["f1"])


def test_from_labels_to_a_score(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = ["--weights", str(place / "weights"), "--device", "cpu"]
    one, two, truth = tmp_path / "one.csv", tmp_path / "two.csv", tmp_path / "truth.csv"
    write_truth(truth, TEST)
    predict = ["predict", str(place / "test")]
    run(capfd, *predict, one, *weights, "--workers", 0, "--export", tmp_path / "one.geojson")
    assert f1(truth, one, capfd) > 0.8
    # Two processes write the same file.
    ranks = start_ranks([*predict, str(two), *weights, "--workers", "1"], tmp_path)
    assert finish(ranks) == [0, 0], (tmp_path / "rank0.txt").read_text()
    assert one.read_bytes() == two.read_bytes()
    assert "ok" in run(capfd, "check", one, place / "test")
    features = json.loads((tmp_path / "one.geojson").read_text())["features"]
    assert features
    assert all(0.5 <= each["properties"]["expected_iou"] <= 1 for each in features)
    # Test-time augmentation finds the same buildings.
    views = yaml.safe_load((place / "bright.yaml").read_text())
    views["inference"]["tta"] = 8
    (tmp_path / "views.yaml").write_text(yaml.safe_dump(views))
    run(capfd, *predict, tmp_path / "v.csv", *weights, "--recipe", tmp_path / "views.yaml")
    assert f1(truth, tmp_path / "v.csv", capfd) > 0.8
    # Other operations need probability maps, and say so.
    assert "has no probability maps" in run(
        capfd, "vectorize", place / "test", tmp_path / "o.csv", "--task", "instances", status=1
    )


def test_a_killed_training_resumes_to_the_same_weights(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((place / "bright.yaml").read_text())
    stage = recipe["members"][0]["stages"][0] | {"passes": 5, "validate_every": 1}
    recipe["members"] = [{**recipe["members"][0], "stages": [stage, stage | {"epochs": 1}]}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def train(weights: Path) -> list[str]:
        return [
            "train", str(place / "train"), "--recipe", str(tmp_path / "recipe.yaml"),
            "--weights", str(weights), "--cache", str(place / "cache"), "--workers", "0",
            "--device", "cpu", "--save-minutes", "0.0001",
        ]  # fmt: skip

    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log.txt"
    run(capfd, *train(whole))
    process = start_command(train(killed), log)
    has_state = wait_until(lambda: any(killed.glob("*.state.pt")), process.is_alive)
    assert has_state, log.read_text()
    process.kill()
    assert finish([process]) == [-signal.SIGKILL]
    (state,) = killed.glob("*.state.pt")
    progress = torch.load(state, weights_only=True)["progress"]
    assert progress["step"] > 0, "killed between two epochs"
    assert "resuming after" in run(capfd, *train(killed))
    found, expected = (
        {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}
        for directory in (killed, whole)
    )
    assert found == expected


def test_a_map_has_no_seams(place: Path, tmp_path: Path) -> None:
    scene, random = tmp_path / "scene.tif", np.random.default_rng(0)
    pixels = random.integers(20, 50, (3, 288, 288)).astype(np.uint8)
    starts = [10, 80, 120, 176, 230]
    for x in starts:
        for y in starts:
            pixels[:, y : y + 28, x : x + 28] = 230
    profile = {"driver": "GTiff", "width": 288, "height": 288, "count": 3, "dtype": "uint8"}
    transform = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
    with rasterio.open(scene, "w", **profile, crs="EPSG:32633", transform=transform) as file:
        file.write(pixels)
    out = tmp_path / "map.geojson"
    request = MapRequest(
        (), out, place / "weights", "cpu", crs="EPSG:32633", sources=(str(scene),), gsd=0.5,
        stretch=(0, 255), block_px=128,
    )  # fmt: skip
    map_sources(request)
    features = json.loads(out.read_text())["features"]
    areas = np.array([each["properties"]["area_m2"] for each in features])
    # Windows of 96 px and blocks of 128 px cut many of the squares of 14 m; none is lost or double.
    assert 23 <= len(features) <= 27
    assert np.median(np.abs(areas / 196 - 1)) < 0.15


def test_thresholds_are_fitted_per_area(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = ["--weights", str(place / "weights"), "--device", "cpu"]
    loose = yaml.safe_load((place / "bright.yaml").read_text())
    loose["task"]["vectorizer"] = {"least_score": 0.05, "least_px": 0}
    (tmp_path / "loose.yaml").write_text(yaml.safe_dump(loose))
    out, truth, tuned = (tmp_path / name for name in ("out.csv", "truth.csv", "tuned.yaml"))
    train = place / "train"
    write_truth(truth, TRAIN)
    run(capfd, "predict", train, out, *weights, "--recipe", tmp_path / "loose.yaml")
    assert {group_of(name) for name in read_buildings_csv(out)} == {"AOI_9_Made"}
    printed = run(
        capfd, "tune", out, truth, tuned, "--recipe", tmp_path / "loose.yaml", "--minutes", "0.2"
    )
    assert "AOI_9_Made: F1 at IoU .5" in printed
    settings = yaml.safe_load(tuned.read_text())["task"]["vectorizer"]
    assert settings["areas"] == {} or settings["areas"]["AOI_9_Made"]["least_score"] > 0.05
    run(capfd, "predict", train, out, *weights, "--recipe", tuned)
    assert "is a directory" in run(
        capfd, "tune", place, truth, tuned, "--recipe", tmp_path / "loose.yaml", status=1
    )


def test_networks_of_areas_are_used_for_their_images(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((place / "bright.yaml").read_text())
    member = recipe["members"][0]
    member["stages"][0] |= {"epochs": 1, "passes": 1, "validate_every": 1}
    recipe["members"] = [{**member, "area": "AOI_9_Made"}, {**member, "area": "AOI_2_Vegas"}]
    (tmp_path / "areas.yaml").write_text(yaml.safe_dump(recipe))
    train = [
        "train", place / "train", "--recipe", tmp_path / "areas.yaml", "--weights", tmp_path / "w",
        "--cache", place / "cache", "--workers", "0", "--device", "cpu",
    ]  # fmt: skip
    assert "no chips of AOI_2_Vegas: their networks are left out" in run(capfd, *train)
    weights = ["--weights", tmp_path / "w", "--device", "cpu"]
    run(capfd, "predict", place / "test", tmp_path / "o.csv", *weights)
    # A second network for another area is not used for these images.
    recipe["members"] = [{**member, "area": "AOI_2_Vegas"}]
    (tmp_path / "areas.yaml").write_text(yaml.safe_dump(recipe))
    assert "are of AOI_9_Made" in run(capfd, *train, "--restart", status=1)


def test_candidates_of_maps_and_cascade_are_pooled(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((place / "bright.yaml").read_text())
    recipe["task"]["vectorizer"] = {"least_score": 0.1, "least_px": 10, "overlap": 0.5}
    (tmp_path / "loose.yaml").write_text(yaml.safe_dump(recipe))
    # The other tests use the weights without the model.
    weights = Path(shutil.copytree(place / "weights", tmp_path / "w"))
    common = ["--weights", weights, "--device", "cpu", "--workers", 0]
    fold, maps = tmp_path / "fold.csv", tmp_path / "maps"
    run(
        capfd, "predict", place / "train", fold, *common, "--out-of-fold",
        "--probabilities", maps, "--recipe", tmp_path / "loose.yaml",
    )  # fmt: skip
    assert len(list(maps.glob("*.tif"))) == len(TRAIN)
    # Without a selection model, the cascade's own buildings are calibrated, which needs no maps.
    calibrated = run(capfd, "confidence", fold, "--weights", weights, "--no-selection")
    assert "confidence.json: " in calibrated and "buildings of 8 images" in calibrated
    assert json.loads((weights / "confidence.json").read_text())["task"] == "instances"
    missing = run(capfd, "confidence", fold, "--weights", weights, status=1)
    assert "give MAPS" in missing
    assert "candidates from 8 images" in run(capfd, "confidence", fold, maps, "--weights", weights)
    refused = run(capfd, "confidence", fold, "--weights", weights, "--no-selection", status=1)
    assert "chooses among the candidates of buildings" in refused
    # A model of these candidates knows the scores of the cascade.
    assert "score" in (weights / "building-selection.txt").read_text().split("feature_names=")[1]
    truth, out = tmp_path / "truth.csv", tmp_path / "out.csv"
    write_truth(truth, TEST)
    export = tmp_path / "out.geojson"
    printed = run(capfd, "predict", place / "test", out, *common, "--export", export)
    assert "chosen and rated by building-selection.txt" in printed
    assert "confidence: calibrated by confidence.json" in printed
    exported = [each["properties"] for each in json.loads(export.read_text())["features"]]
    assert all(0 < each["confidence"] < 1 and each["expected_iou"] > 0 for each in exported)
    assert f1(truth, out, capfd) > 0.8
    # A map uses the same model, also for buildings that its blocks cut.
    whole = tmp_path / "map.csv"
    (image,) = (place / "test").rglob(f"*img{TEST[1]}.tif")
    map_sources(MapRequest((), whole, weights, "cpu", sources=(str(image),), gsd=0.27, block_px=64))
    found = [row for rows in read_buildings_csv(whole).values() for row in rows]
    assert sum(row.score > 0.6 for row in found) == len(houses(TEST[1]))
