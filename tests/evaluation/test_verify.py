"""Manifests of submissions, and their verification by real recomputation."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from forked_ranks import finish, start_ranks
from satmap.cli import main
from satmap.evaluation.verify import Sources, compare, verify_submission
from satmap.networks.unet import build_network
from satmap.prediction.run import predict
from satmap.provenance.manifest import SubmissionManifest, manifest_path, read_manifest
from satmap.recipes.schema import Inference, Recipe, build_recipe, load_recipe
from satmap.submissions.roads_csv import read_roads_csv
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights.network_files import save_weights
from synthetic_images import write_image

CPU = torch.device("cpu")
PREFIX = "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_"


@dataclass(frozen=True)
class Made:
    """Submission with all its sources."""

    directory: Path

    @property
    def images(self) -> Path:
        return self.directory / "images"

    @property
    def weights(self) -> Path:
        return self.directory / "weights"

    @property
    def output(self) -> Path:
        return self.directory / "out.csv"

    @property
    def manifest(self) -> SubmissionManifest:
        found = read_manifest(self.output)
        assert isinstance(found, SubmissionManifest)
        return found

    @property
    def sources(self) -> Sources:
        return Sources((self.images,), self.weights, workers=0)

    def copy(self, directory: Path) -> "Made":
        shutil.copytree(self.directory, directory)
        return Made(directory)

    def change_manifest(self, **changes: Any) -> None:
        path = manifest_path(self.output)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def recipe() -> Recipe:
    return load_recipe("demo").model_copy(update={"inference": Inference(tta=1)})


def save_network(directory: Path, member: str, checkpoint: str, seed: int, epoch: int = 1) -> Path:
    torch.manual_seed(seed)
    network = build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16))
    with torch.no_grad():
        # An untrained network would be undecided everywhere.
        network.head.weight *= 50
    path = directory / f"{member}.{checkpoint}.safetensors"
    text = recipe().model_dump_json()
    metadata = {"recipe": text, "member": member, "stage": "1", "epoch": str(epoch)}
    save_weights(path, network, metadata)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Three images, one of them truncated, and three weight files of two networks."""
    made = Made(tmp_path_factory.mktemp("verify") / "made")
    generator = np.random.default_rng(0)
    for number in range(3):
        coarse = generator.integers(1, 255, (9, 9, 3)).astype(np.uint8)
        pixels = np.maximum(cv2.resize(coarse, (96, 96)), 1).transpose(2, 0, 1)
        write_image(made.images / f"{PREFIX}chip{number}.tif", pixels=pixels)
    short = made.images / f"{PREFIX}chip1.tif"
    short.write_bytes(short.read_bytes()[:-9000])
    made.weights.mkdir()
    save_network(made.weights, "a", "best_dice", seed=1)
    save_network(made.weights, "a", "last", seed=1)
    save_network(made.weights, "b", "last", seed=2, epoch=2)
    done = predict(
        [made.images], made.output, made.weights, CPU, command=["predict", "images", "out.csv"]
    )
    assert list(done.faults) == ["AOI_7_Moscow_chip1"]
    assert sum(done.images.values()) > 5
    return made


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_records_all_sources(made: Made) -> None:
    manifest = made.manifest
    assert (manifest.file.name, manifest.file.sha256) == ("out.csv", sha256(made.output))
    # Both files of the first network took part.
    assert {record.name: record.sha256 for record in manifest.weights} == {
        path.name: sha256(path) for path in made.weights.iterdir()
    }
    assert {name: files["PS-RGB"].sha256 for name, files in manifest.images.items()} == {
        f"AOI_7_Moscow_chip{n}": sha256(made.images / f"{PREFIX}chip{n}.tif") for n in range(3)
    }
    assert list(manifest.skipped) == ["AOI_7_Moscow_chip1"]
    assert manifest.recipe.content is not None
    assert build_recipe(manifest.recipe.content) == recipe()
    assert manifest.run.command == ("predict", "images", "out.csv")
    assert manifest.run.software.packages["torch"] == torch.__version__
    assert manifest.run.hardware.threads == torch.get_num_threads()


def test_resumed_and_parallel_runs_leave_the_same_manifest(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from satmap.prediction import run as prediction

    output = tmp_path / "out.csv"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # All images are predicted, but nothing is written.
        patch.setattr(prediction, "_finish", stopped)
        predict([made.images], output, made.weights, CPU)
    arguments = [
        "predict", str(made.images), str(output), "--weights", str(made.weights),
        "--device", "cpu", "--workers", "0",
    ]  # fmt: skip
    assert finish(start_ranks(arguments, tmp_path)) == [0, 0]
    found, expected = read_manifest(output), made.manifest
    assert isinstance(found, SubmissionManifest)
    own = {"written", "run", "directories"}
    assert found.model_dump(exclude=own) == expected.model_dump(exclude=own)
    assert (found.run.processes, expected.run.processes) == (2, 1)
    assert output.read_bytes() == made.output.read_bytes()


def test_a_submission_is_reproduced_from_moved_sources(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    moved = made.copy(tmp_path / "moved")
    (moved.images / "deeper").mkdir()
    (moved.images / f"{PREFIX}chip2.tif").rename(moved.images / "deeper" / f"{PREFIX}chip2.tif")
    # Weights added to the directory later do not take part.
    save_network(moved.weights, "c", "last", seed=3, epoch=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = verify_submission(moved.output, moved.sources)
    assert found.passed and found.identical
    # It computes with the recorded number of threads, not the current one.
    assert found.differences == {}
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_every_alteration_is_reported_separately(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = made.copy(tmp_path / "bad")
    with bad.output.open("a") as file:
        file.write("\n")
    save_network(bad.weights, "b", "last", seed=4, epoch=2)
    (bad.weights / "a.best_dice.safetensors").unlink()
    chips = [bad.images / f"{PREFIX}chip{number}.tif" for number in range(4)]
    shutil.copy(chips[0], chips[3])
    content = bytearray(chips[0].read_bytes())
    content[-1] ^= 1
    chips[0].write_bytes(content)
    chips[2].unlink()
    found = verify_submission(bad.output, bad.sources)
    assert not found.passed and found.identical is None
    expected = [
        "altered since it was written: SHA-256",
        "1 weight files missing",
        "1 weight files altered: b.last.safetensors",
        "1 images missing or unreadable: AOI_7_Moscow_chip2",
        "1 images altered: AOI_7_Moscow_chip0",
        "1 images not in the manifest: AOI_7_Moscow_chip3",
    ]
    assert len(found.faults) == len(expected)
    for fault, start in zip(found.faults, expected, strict=True):
        assert fault.startswith(start)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(bad.output), "--images", str(bad.images), "--weights",
              str(bad.weights), "--json"])  # fmt: skip
    assert ended.value.code == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["verified"], printed["identical"]) == (False, None)
    assert printed["faults"] == list(found.faults)


def forge(made: Made, change: float) -> None:
    """Move the first road by some pixels and update the manifest."""
    lines = made.output.read_text().splitlines(keepends=True)
    row = next(n for n, line in enumerate(lines) if "LINESTRING (" in line)
    start, _, rest = lines[row].partition("(")
    x, _, rest = rest.partition(" ")
    lines[row] = f"{start}({float(x) + change} {rest}"
    made.output.write_text("".join(lines))
    record = {"name": "out.csv", "bytes": made.output.stat().st_size, "sha256": sha256(made.output)}
    made.change_manifest(file=record)


def test_other_bytes_pass_only_on_another_machine_and_with_the_same_score(
    made: Made, tmp_path: Path
) -> None:
    """Use the original submission as the recomputation and verify forged ones."""
    near = made.copy(tmp_path / "near")
    forge(near, 0.01)
    same = compare(near.output, near.manifest, made.output, None)
    assert not same.identical and same.differences == {}
    assert same.gap < 1e-3 and not same.passed
    run = near.manifest.run.model_dump(mode="json")
    run["hardware"]["cpu"] = "Zilog Z80"
    near.change_manifest(run=run)
    other = compare(near.output, near.manifest, made.output, None)
    assert list(other.differences) == ["cpu"]
    assert other.differences["cpu"][0] == "Zilog Z80"
    assert other.passed
    # With a truth, the scores of both are compared.
    truth = compare(near.output, near.manifest, made.output, made.output)
    assert truth.scores["apls_length"][1] == 1
    assert truth.passed
    # Without the roads of an image the map differs.
    rows = read_roads_csv(near.output)
    busiest = max(rows, key=lambda name: len(rows[name]))
    kept = [line for line in near.output.read_text().splitlines() if not line.startswith(busiest)]
    near.output.write_text("\n".join([*kept, f"{busiest},LINESTRING EMPTY,0,0", ""]))
    far = compare(near.output, near.manifest, made.output, None)
    assert far.gap > 0.1 and far.differences and not far.passed


def test_missing_files_are_reported(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = made.copy(tmp_path / "moved")
    moved.change_manifest(weights_directory="gone", directories=["gone"])
    for arguments, message in (
        ([], "--weights"),
        (["--weights", str(moved.weights)], "--images"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(moved.output), *arguments])
        assert ended.value.code == 1
        assert message in capsys.readouterr().err
    for content in ("", "{", "[]", '{"manifest": 2, "kind": "submission"}', '{"kind": "cake"}'):
        manifest_path(moved.output).write_text(content)
        with pytest.raises(SystemExit):
            main(["verify", str(moved.output)])
        assert "is not a manifest of this version" in capsys.readouterr().err
    manifest_path(moved.output).unlink()
    with pytest.raises(SystemExit):
        main(["verify", str(moved.output)])
    assert "has no manifest" in capsys.readouterr().err
