"""Entry points as called by the organisers: real processes, exit statuses, messages."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from repository import ROOT
from satmap.cli import main
from satmap.evaluation.metrics.apls import score_roads
from satmap.submissions.roads_csv import read_roads_csv
from synthetic_images import write_image
from tiny_trainings import road_member, road_recipe

RECIPE = road_recipe(road_member(), road_member(fold=1, bands=8))

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must exit with status 1; return its only message."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("satmap: ")
    assert "Traceback" not in message
    return message


def succeeds(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out


def test_the_scripts_work_from_anywhere_with_spaces_in_paths(
    city: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "a place with spaces"
    place.mkdir()
    recipe = place / "my recipe.yaml"
    networks = (
        road_member(encoder="resnet18", fold=fold, bands=bands) for fold, bands in ((0, 3), (1, 8))
    )
    recipe.write_text(road_recipe(*networks))
    data = place / "the data"
    shutil.copytree(city, data)
    environment = {"WEIGHTS_DIR": str(place / "the weights"), "SATMAP_CACHE": str(place / "cache")}
    trained = run(
        [str(ROOT / "train.sh"), "--recipe", str(recipe), str(data / "train")], place, **environment
    )
    assert trained.returncode == 0, trained.stderr
    assert "fold1-resnet18-8band" in trained.stdout
    predicted = run(
        [
            str(ROOT / "test.sh"),
            str(data / "test"),
            "out put.csv",
            "--recipe",
            str(recipe),
            "--workers",
            "0",
        ],
        place,
        **environment,
    )
    assert predicted.returncode == 0, predicted.stderr
    assert "2 images" in predicted.stdout
    monkeypatch.chdir(place)
    assert succeeds(capsys, "check", "out put.csv", data / "test") == "out put.csv: ok\n"
    scored = succeeds(capsys, "score", data / "test_truth.csv", "out put.csv", "--json")
    assert json.loads(scored)["metric"] == "apls"


def test_the_scripts_end_with_a_status(tmp_path: Path) -> None:
    for script, arguments, status, message in (
        ("train.sh", [], 2, "required"),
        ("test.sh", ["only-one"], 2, "required"),
        ("train.sh", [str(tmp_path), "--recipe", "nonsense"], 1, "no recipe is called"),
        ("test.sh", [str(tmp_path), "out.csv"], 1, "no weights"),
    ):
        done = run([str(ROOT / script), *arguments], tmp_path, WEIGHTS_DIR=str(tmp_path / "w"))
        assert done.returncode == status, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_validation_maps_from_training_to_a_fitted_recipe(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    weights, maps, output = tmp_path / "weights", tmp_path / "maps", tmp_path / "out.csv"
    common = ["--weights", weights, "--device", "cpu"]
    cache = tmp_path / "cache"
    succeeds(capsys, "train", city / "train", "--recipe", recipe, "--cache", cache, *common)
    graph = tmp_path / "roads.graphml"
    printed = succeeds(
        capsys, "predict", city / "train", output, *common,
        "--out-of-fold", "--probabilities", maps,
        "--export", graph, "--export", tmp_path / "r.geojson",
    )  # fmt: skip
    assert f"{output}: 6 images" in printed
    assert len(list(maps.iterdir())) == 6
    assert graph.exists()
    again = tmp_path / "again.csv"
    assert f"{again}: 6 images" in succeeds(capsys, "vectorize", maps, again, "--task", "roads")
    assert read_roads_csv(again).keys() == read_roads_csv(output).keys()
    # Any truth will do, because the networks are untrained.
    truth, fitted = tmp_path / "truth.csv", tmp_path / "fitted.yaml"
    header, *rows = (city / "test_truth.csv").read_text().splitlines()
    rows = [row.replace("chip7", f"chip{n}") for n in range(6) for row in rows if "chip7" in row]
    truth.write_text("\n".join([header, *rows]))
    printed = succeeds(
        capsys, "tune", maps, truth, fitted, "--recipe", recipe, "--minutes", 0.05, "--workers", 0
    )
    assert "APLS time of 6 chips" in printed
    succeeds(capsys, "predict", city / "test", output, *common, "--recipe", fitted)


def street_mask(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    mask = np.zeros((200, 200), np.uint8)
    mask[90:110] = 255
    assert cv2.imwrite(str(path), mask)


def test_masks_of_any_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, recipe = tmp_path / "masks", tmp_path / "tiny.yaml"
    street_mask(masks / "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip4.png")
    recipe.write_text(
        road_recipe(
            task={
                "name": "roads",
                "vectorizer": {"default_speed_mph": 50},
                "default_metres_per_pixel": 0.5,
            }
        )
    )
    lengths = []
    for options in ([], ["--recipe", recipe], ["--recipe", recipe, "--metres-per-pixel", "2"]):
        output = tmp_path / "out.csv"
        succeeds(capsys, "vectorize", masks, output, "--workers", 0, *options)
        ((image_id, (row,)),) = read_roads_csv(output).items()
        assert image_id == "AOI_7_Moscow_chip4"
        lengths.append((round(row.length_m), round(row.length_m / row.travel_time_s / 0.44704)))
    assert lengths == [(60, 25), (100, 50), (400, 50)]
    for suffix in ("geojson", "gpkg", "graphml"):
        # Without a georeference there are no coordinates for maps.
        outcome = fails if suffix != "graphml" else succeeds
        outcome(capsys, "vectorize", masks, tmp_path / f"out.{suffix}", "--workers", 0)
        assert (tmp_path / f"out.{suffix}").exists()
    # One bad mask affects only itself, with status 0. Only bad masks are a failure.
    (masks / "b.png").write_text("no mask")
    with pytest.raises(SystemExit) as ended:
        main(["vectorize", str(masks), str(tmp_path / "out.csv"), "--workers", "2"])
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert "1 images were left empty" in printed.err
    assert "2 images, 1 roads" in printed.out
    (masks / "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip4.png").unlink()
    assert "b.png" in fails(capsys, "vectorize", masks, tmp_path / "out.csv")


def test_messages_of_bad_masks(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, output = tmp_path / "masks", tmp_path / "out.yaml"
    assert "does not exist" in fails(capsys, "vectorize", masks, tmp_path / "out.csv")
    street_mask(masks / "AOI_99_Made_chip6.png")
    assert "none of .csv" in fails(capsys, "vectorize", masks, tmp_path / "out.shp")
    truth = city / "test_truth.csv"
    assert "1 probability rasters with truth" in fails(capsys, "tune", masks, truth, output)
    assert "must end in .yaml" in fails(capsys, "tune", masks, truth, tmp_path / "out.csv")
    assert "no recipe is called" in fails(capsys, "tune", masks, truth, output, "--recipe", "x")
    for minutes in ("0", "-1", "inf", "nan", "x"):
        with pytest.raises(SystemExit) as ended:
            main(["tune", str(masks), str(truth), str(output), f"--minutes={minutes}"])
        assert ended.value.code == 2


def test_score_of_a_file_against_itself(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = city / "test_truth.csv"
    result = json.loads(succeeds(capsys, "score", truth, truth, "--crossings", "--json"))
    assert result["total"]["apls_length"] == pytest.approx(1)
    assert result["total"]["crossings_missed"] == result["total"]["crossings_false"] == 0
    assert result["total"]["false_turn_rate"] == result["total"]["lost_routes"] == 0
    assert result["total"]["apls_time"] == pytest.approx(1)
    assert set(result["images"]) == set(read_roads_csv(truth))
    table = succeeds(capsys, "score", truth, truth)
    assert re.search(r"AOI_99_Made\s+2\s+1\.000\s+1\.000", table)


def test_score_reports_when_the_two_averages_differ(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = city / "test_truth.csv"
    images = list(read_roads_csv(truth))
    partial = tmp_path / "partial.csv"
    lines = truth.read_text().splitlines()
    partial.write_text(
        "\n".join([lines[0], *(li for li in lines[1:] if li.startswith(f"{images[0]},"))]) + "\n"
    )
    assert score_roads(read_roads_csv(truth), read_roads_csv(partial)).truth_only == (images[1],)
    table = succeeds(capsys, "score", truth, partial)
    assert "1 image is only in the truth" in table


def test_check_takes_ids_with_the_prefix(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.csv"
    text = (city / "test_truth.csv").read_text()
    path.write_text(text.replace("\nAOI_", "\nSN5_roads_test_public_AOI_"))
    assert ": ok" in succeeds(capsys, "check", path, city / "test")
    assert ": ok" in succeeds(capsys, "check", city / "test_truth.csv", city / "test")


def test_check_lists_faults_and_exits_with_status_1(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.csv"
    path.write_text(
        "ImageId,WKT_Pix,length_m,travel_time_s\n"
        'AOI_99_Made_chip6,"LINESTRING (1 1, 1 1)",1,1\n'
        "AOI_1_Else_chip1,LINESTRING EMPTY,0,0\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["check", str(path), str(city / "test")])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert f"{path}:2: " in printed
    assert "AOI_99_Made_chip7" in printed
    assert "AOI_1_Else_chip1" in printed


def test_overlays_show_image_and_truth(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = city / "test_truth.csv"
    pictures = tmp_path / "pictures"
    succeeds(capsys, "overlay", truth, pictures, city / "test", "--truth", truth)
    written = sorted(pictures.iterdir())
    assert [path.name for path in written] == ["AOI_99_Made_chip6.png", "AOI_99_Made_chip7.png"]
    picture = cv2.imread(str(written[0]))
    assert picture is not None
    # With the same roads on both sides, the panels are equal below their captions.
    top, width = 12 + 3 * 28, 900
    left, right = (picture[top : top + width, x : x + width] for x in (12, 24 + width))
    assert (left == right).all()
    empty = tmp_path / "empty.csv"
    header = truth.read_text().splitlines()[0]
    empty.write_text(f"{header}\nAOI_99_Made_chip6,LINESTRING EMPTY,0,0\n")
    succeeds(capsys, "overlay", empty, pictures, city / "test")
    bare = cv2.imread(str(written[0]))
    assert bare is not None
    empty.write_text(f"{header}\nAOI_1_Else_chip1,LINESTRING EMPTY,0,0\n")
    assert "has none of the images" in fails(
        capsys, "overlay", empty, tmp_path / "more", city / "test"
    )
    share = (bare[top - 28 : top - 28 + width, 12 : 12 + width] != left).any(axis=2).mean()
    assert 0.01 < share < 0.5


def test_messages_of_bad_input(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, cache = tmp_path / "weights", tmp_path / "cache"
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    train = ["--recipe", recipe, "--weights", weights, "--cache", cache]

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no SpaceNet road images found" in fails(capsys, "train", empty, *train)
    assert "have no label" in fails(capsys, "train", city / "test", *train)
    message = fails(capsys, "train", city / "test", "--skip-unlabelled", *train)
    assert "have no label" in message
    assert "no member of fold 7" in fails(capsys, "train", empty, *train, "--fold", 7)
    assert "no recipe is called" in fails(capsys, "train", empty, "--recipe", "nonsense")
    assert "device 'tpu'" in fails(capsys, "train", empty, *train, "--device", "tpu")
    assert "no weights" in fails(capsys, "predict", city / "test", tmp_path / "o.csv",
                                 "--weights", empty)  # fmt: skip

    # Labels without a single road.
    barren = tmp_path / "barren"
    write_image(barren / "SN5_roads_train_AOI_7_Moscow_PS-MS_chip1.tif", bands=8)
    (barren / "AOI_7_Moscow_chip1.geojson").write_text('{"features": []}')
    assert "has a road in its label" in fails(capsys, "train", barren, *train)

    # An unwritable path.
    (tmp_path / "folder.csv").mkdir()
    assert "is a directory" in fails(capsys, "predict", city / "test", tmp_path / "folder.csv")
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails(capsys, "predict", city / "test", tmp_path / "file/out.csv")
    assert "cannot write" in fails(
        capsys, "train", city / "train", "--recipe", recipe, "--weights", tmp_path / "file/w"
    )
    assert not list(tmp_path.glob("**/*.state.pt"))


def test_only_a_roads_csv_is_ever_replaced(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    image = next((city / "test").glob("**/*.tif"))
    before = image.read_bytes()
    assert "overwritten" in fails(capsys, "predict", city / "test", image, "--weights", weights)
    assert image.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    assert "a device or a pipe" in fails(
        capsys, "predict", city / "test", tmp_path / "pipe", "--weights", weights
    )


def test_files_without_common_images_cannot_be_scored(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = city / "test_truth.csv"
    other = tmp_path / "other.csv"
    other.write_text(truth.read_text().replace("\nAOI_", "\nSN5_roads_test_public_AOI_"))
    assert "no image in common" in fails(capsys, "score", truth, other)
    for size in ("0", "-1", "nan", "inf"):
        with pytest.raises(SystemExit) as ended:
            main(["score", str(truth), str(truth), f"--metres-per-pixel={size}"])
        assert ended.value.code == 2


def test_unexpected_errors_have_a_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("satmap.data.layouts.spacenet_roads.scan_roads", broken)
    assert "RuntimeError: out of order" in fails(capsys, "inventory", tmp_path)
    with pytest.raises(RuntimeError):
        main(["inventory", str(tmp_path), "--debug"])
