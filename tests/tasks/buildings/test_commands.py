"""Buildings through the commands: several processes, manifests, verification."""

import json
import os
from pathlib import Path

import pytest
import rasterio
import torch
import yaml

from building_recipes import undecided_weights, with_task
from forked_ranks import finish, start_ranks
from satmap.cli import main
from satmap.evaluation.verify import compare
from satmap.prediction.run import predict
from satmap.provenance.manifest import (
    SUFFIX,
    SubmissionManifest,
    WeightsManifest,
    manifest_path,
    read_manifest,
)
from satmap.submissions.buildings_csv import read_buildings_csv
from satmap.tasks.buildings.selection import SELECTION_FILE
from satmap.tasks.buildings.vectorizer.polygons import exact_polygons
from satmap.tasks.calibration import CALIBRATION_FILE
from synthetic_blocks import made_blocks, maps_of_labels
from synthetic_chips import ring_of, square, write_coco, write_tile
from tiny_trainings import tiny_commands

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def verify(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["verify", *arguments])
    return int(ended.value.code or 0), capfd.readouterr().out


@pytest.mark.usefixtures("tiny_encoders")
def test_two_processes_train_predict_and_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # For the process that `verify` starts.
    monkeypatch.setenv("PYTHONPATH", tiny_commands(tmp_path / "startup")["PYTHONPATH"])
    data, weights = tmp_path / "data", tmp_path / "weights"
    for number in range(6):
        write_tile(data, number, [square(10 + 5 * number, 12, 28), square(56, 55, 24)])
    vectorizer = {"seed": 0.02, "low": 0.01, "certain": 0.02, "least_px": 4}
    content = with_task(vectorizer=vectorizer)
    member = content["members"][0]
    # Both processes train one network together and share its validation.
    member["stages"] = [{**member["stages"][1], "sync_batch_norm": True}]
    member["encoder"] = "tiny"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    common = ["--weights", str(weights), "--device", "cpu", "--workers", "0"]
    training = ["train", str(data), "--recipe", str(recipe), *common]
    ranks = start_ranks([*training, "--cache", str(tmp_path / "cache")], tmp_path)
    assert finish(ranks) == [0, 0], (tmp_path / "rank0.txt").read_text()
    trained = read_manifest(weights / "fold0-tiny-3band.last.safetensors")
    assert isinstance(trained, WeightsManifest)
    assert [run.processes for run in trained.runs] == [2]
    assert {"f1", "dice"} <= trained.scores.keys()
    # The manifest covers labels as well as images.
    assert trained.data is not None and trained.data.list is not None
    listed = json.loads((weights / trained.data.list).read_text())
    assert [len(files) for files in listed.values()] == [2] * 6
    status, printed = verify(capfd, str(weights))
    assert status == 0
    assert printed.count(": verified") == len(list(weights.glob("*.safetensors"))) >= 2

    alone, together = tmp_path / "alone", tmp_path / "together"
    predict([data], alone / "out.csv", weights, CPU, maps=alone / "maps")
    together.mkdir()
    out = together / "out.csv"
    ranks = start_ranks(
        ["predict", str(data), str(out), "--probabilities", str(together / "maps"), *common],
        tmp_path,
    )
    assert finish(ranks) == [0, 0], (tmp_path / "rank0.txt").read_text()
    left = {path.relative_to(together) for path in together.rglob("*") if path.is_file()}
    assert len(left) == 2 + 6
    for path in left:
        if not path.name.endswith(SUFFIX):
            assert (together / path).read_bytes() == (alone / path).read_bytes(), path
    assert "POLYGON ((" in out.read_text()
    manifest = read_manifest(out)
    assert isinstance(manifest, SubmissionManifest)
    assert (manifest.run.processes, manifest.recipe.name, len(manifest.images)) == (2, "test", 6)
    status, printed = verify(capfd, str(out), "--workers", "0", "--processes", "1")
    assert (status, "identical, byte for byte" in printed) == (0, True)


def test_coco_results_are_reproduced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    truth = write_coco(tmp_path / "data", {12: [square(10, 10, 30)], 7: []}, size=80)
    undecided_weights(tmp_path / "weights", input_px=64)
    out = tmp_path / "out.json"
    done = predict([tmp_path / "data"], out, tmp_path / "weights", CPU)
    assert sum(done.images.values()) > 0
    capfd.readouterr()
    status, printed = verify(capfd, str(out), "--workers", "0", "--json")
    assert (status, json.loads(printed)["identical"]) == (0, True)
    # Other bytes are compared only with a truth.
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(out.read_text())[1:]))
    os.link(manifest_path(out), manifest_path(other))
    changed = json.loads(manifest_path(out).read_text())
    changed["file"]["sha256"] = "0" * 64
    changed["run"]["hardware"]["cpu"] = "Zilog Z80"
    manifest = SubmissionManifest.model_validate_json(json.dumps(changed))
    blind = compare(other, manifest, out, None)
    assert not blind.passed and blind.scores == {}
    seen = compare(other, manifest, out, truth)
    assert set(seen.scores) == {"ap50"} and seen.gap < 1


def test_a_confidence_model_is_fitted_out_of_fold_and_bound_to_its_networks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, weights, maps = (tmp_path / name for name in ("data", "weights", "maps"))
    labels = {}
    for number in range(6):
        blocks = made_blocks(number, 96, 17 * number, (10, 30))
        labels[number] = blocks.labels
        rings = [[ring_of(polygon)] for polygon in exact_polygons(blocks.labels)]
        write_tile(data, number, rings)
    held_out = json.dumps([f"AOI_9_Made_img{number}" for number in range(5)])
    undecided_weights(weights, held_out=held_out)
    out, flags = tmp_path / "out.csv", ["--weights", str(weights), "--device", "cpu"]

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        read = capfd.readouterr()
        return int(ended.value.code or 0), read.out + read.err

    fold = ["predict", str(data), str(out), *flags, "--workers", "0"]
    fit = ["confidence", str(out), str(maps), "--weights", str(weights)]
    assert run(*fold)[0] == 0
    maps.mkdir()
    status, printed = run(*fit)
    assert status == 1 and "was not predicted out of fold" in printed
    plain = out.read_bytes()
    assert run(*fold, "--out-of-fold", "--probabilities", str(maps))[0] == 0
    # Maps as of a trained network.
    for number in range(5):
        path = maps / f"AOI_9_Made_img{number}.tif"
        drawn = maps_of_labels(labels[number], 1.5, 0.2, number).values[:2]
        with rasterio.open(path, "r+") as raster:
            raster.write(drawn)
    (maps / "AOI_9_Made_img4.tif").write_bytes(b"II*\0")
    status, printed = run(*fit)
    assert status == 0 and "1 images were left out of the fit" in printed
    assert "candidates from 4 images" in printed
    model = weights / SELECTION_FILE
    calibration = read_manifest(weights / CALIBRATION_FILE)
    assert isinstance(calibration, WeightsManifest)
    assert [r.name for r in calibration.starts_from] == ["a.last.safetensors", SELECTION_FILE]
    assert calibration.scores["calibration_error"] < 0.25
    manifest = read_manifest(model)
    assert isinstance(manifest, WeightsManifest)
    assert manifest.scores["error"] < manifest.scores["spread"]
    assert [record.name for record in manifest.starts_from] == ["a.last.safetensors"]

    status, printed = run(*fold)
    assert status == 0 and f"chosen and rated by {SELECTION_FILE}" in printed
    assert f"confidence: calibrated by {CALIBRATION_FILE}" in printed
    rated = read_buildings_csv(out)
    assert out.read_bytes() != plain
    assert all(0 <= row.score <= 1 for rows in rated.values() for row in rows)
    written = read_manifest(out)
    assert isinstance(written, SubmissionManifest)
    assert [record.name for record in written.weights] == [
        "a.last.safetensors", SELECTION_FILE, SELECTION_FILE + SUFFIX,
        CALIBRATION_FILE, CALIBRATION_FILE + SUFFIX,
    ]  # fmt: skip
    status, printed = verify(capfd, str(out), "--workers", "0")
    assert (status, "identical, byte for byte" in printed) == (0, True)
    # Out of fold, the model would know the truth.
    assert "rated by" not in run(*fold, "--out-of-fold")[1]
    undecided_weights(weights, seed=2)
    status, printed = run(*fold)
    assert status == 1 and "was fitted to the probability maps of other networks" in printed
    model.write_text("tree")
    status, printed = run(*fold)
    assert status == 1 and "Fit the selection model again" in printed
    # Without it, the calibration is for other buildings.
    model.unlink()
    status, printed = run(*fold)
    assert status == 1 and "is for the task buildings with the features" in printed
