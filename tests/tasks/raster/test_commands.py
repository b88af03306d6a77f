"""Masks through the commands: training, prediction, archives, scores, verification, maps."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine

from forked_ranks import finish, start_command, start_ranks, wait_until
from full_disks import full_disk
from repository import SHARED
from satmap.cli import main
from satmap.submissions.mask_rasters import find_masks, read_mask
from tiny_trainings import tiny_commands

TRAIN, TEST = SHARED / "data/buildings_open_cities", SHARED / "data/open_cities"

pytestmark = [
    pytest.mark.usefixtures("tiny_encoders"),
    pytest.mark.skipif(not TEST.is_dir(), reason="no real data"),
]

#: Height and width of the chips, which are real ones at a quarter of their size.
SIZE = 256

RECIPE = {
    "name": "test", "description": "a tiny network", "task": "raster", "folds": 2,
    "augmentation": {"mixup": 0.4},
    "members": [
        {
            "fold": 0, "encoder": "tiny", "pretrained": False, "bands": 3,
            "decoder": {"kind": "scse", "widths": [16, 16, 16, 16, 8]},
            "losses": {"building": {"bce": 1}, "border": {"bce": 0.2}, "contact": {"bce": 0.2}},
            "stages": [
                {
                    "crop": 64, "batch": 4, "epochs": 3, "passes": 8, "validate_every": 3,
                    "schedule": {"kind": "cyclic", "high": 1e-2, "low": 1e-4, "half_period": 1},
                    "later_losses": {
                        2: {"building": {"lovasz_softmax": 1}, "border": {"bce": 0.2},
                            "contact": {"bce": 0.2}},
                    },
                }
            ],
        }
    ],
    "inference": {"tta": 1, "window": 128, "overlap": 16, "checkpoints": ["last"]},
}  # fmt: skip


def shrunk(source: Path, target: Path, size: int = SIZE) -> None:
    """Copy a raster with fewer pixels, and with its georeference if it has one."""
    with rasterio.open(source) as read:
        bands = min(read.count, 3)
        pixels = read.read(list(range(1, bands + 1)), out_shape=(bands, size, size))
        transform = read.transform @ Affine.scale(read.width / size)
        profile = {
            "driver": "GTiff",
            "count": bands,
            "height": size,
            "width": size,
            "dtype": "uint8",
        }
        if read.crs:
            profile |= {"crs": read.crs, "transform": transform}
    target.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(target, "w", **profile) as write:
        write.write(pixels)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real chips for training and test, the truth of the test chips, and a recipe."""
    place = tmp_path_factory.mktemp("open_cities")
    for number, image in enumerate(sorted(TRAIN.rglob("*.tif"))[:4]):
        name = f"AOI_2_Vegas_img{number}"
        label = image.parent.with_name(f"{image.stem}-labels") / f"{image.stem}.geojson"
        shrunk(image, place / f"train/RGB-PanSharpen_{name}.tif")
        (place / f"train/buildings_{name}.geojson").write_bytes(label.read_bytes())
    for number, image in enumerate(sorted((TEST / "test").rglob("*.tif"))[:4], 10):
        size = SIZE if number < 13 else 192
        name = f"AOI_2_Vegas_img{number}"
        shrunk(image, place / f"test/RGB-PanSharpen_{name}.tif", size)
        shrunk(TEST / f"test_truth/{image.stem}.TIF", place / f"truth/{name}.TIF", size)
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return place


def train_arguments(place: Path, weights: Path) -> list[str]:
    return [
        "train", str(place / "train"), "--recipe", str(place / "recipe.yaml"),
        "--weights", str(weights), "--cache", str(place / "cache"), "--workers", "0",
        "--device", "cpu",
    ]  # fmt: skip


def run(*arguments: object, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == status


@pytest.fixture(scope="module")
def weights(place: Path, tiny_encoders: None) -> Path:
    """Weights of a training that nothing interrupted."""
    run(*train_arguments(place, place / "weights"))
    return place / "weights"


@pytest.fixture(scope="module")
def low(place: Path, weights: Path) -> Path:
    """Recipe with the median building probability as threshold."""
    maps = place / "maps"
    predict = ["predict", place / "test", place / "first.zip", "--weights", weights]
    run(*predict, "--device", "cpu", "--workers", 0, "--probabilities", maps)
    values = []
    for path in sorted(maps.iterdir()):
        with rasterio.open(path) as source:
            assert source.descriptions == ("building", "border", "contact")
            values.append(source.read(1).ravel())
    threshold = float(np.median(np.concatenate(values))) / 255
    recipe = place / "low.yaml"
    task = {"name": "raster", "threshold": threshold, "simplify_px": 0}
    recipe.write_text(yaml.safe_dump(RECIPE | {"task": task}))
    return recipe


def test_a_stopped_training_resumes_to_the_same_weights(
    place: Path, weights: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    arguments = [*train_arguments(place, tmp_path), "--save-minutes", "0.0001"]
    process = start_command(arguments, log)
    has_state = wait_until(lambda: any(tmp_path.glob("*.state.pt")), process.is_alive)
    assert has_state, log.read_text()
    process.terminate()
    assert finish([process]) == [128 + signal.SIGTERM]
    run(*train_arguments(place, tmp_path))
    names = sorted(path.name for path in weights.glob("*.safetensors"))
    assert names == [
        f"fold0-tiny-3band-scse.{name}.safetensors" for name in ("best_jaccard", "last")
    ]
    for name in names:
        assert (tmp_path / name).read_bytes() == (weights / name).read_bytes()
    assert any((weights / "fold0-tiny-3band-scse.pictures").iterdir())


def test_masks_are_predicted_checked_scored_drawn_and_verified(
    place: Path,
    weights: Path,
    low: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # For the process that `verify` starts.
    monkeypatch.setenv("PYTHONPATH", tiny_commands(tmp_path / "startup")["PYTHONPATH"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    common = ["--recipe", str(low), "--weights", str(weights), "--device", "cpu"]
    predict = ["predict", str(place / "test"), *common]
    outputs = [tmp_path / name for name in ("one.zip", "one")]
    geojson = tmp_path / "one.geojson"
    run(*predict, outputs[0], "--workers", 0, "--export", geojson)
    printed = capfd.readouterr()
    assert "not 1024 x 1024 px like the challenge's test chips: AOI_2_Vegas_img10" in printed.out
    run(*predict, outputs[1], "--workers", 0)
    # Two processes write the same bytes.
    ranks = start_ranks([*predict, str(tmp_path / "two.zip"), "--workers", "1"], tmp_path)
    assert finish(ranks) == [0, 0], (tmp_path / "rank0.txt").read_text()
    assert (tmp_path / "two.zip").read_bytes() == outputs[0].read_bytes()

    masks = {chip: read_mask(mask) for chip, mask in find_masks(outputs[0]).items()}
    assert list(masks) == [f"AOI_2_Vegas_img{number}" for number in range(10, 14)]
    assert masks["AOI_2_Vegas_img13"].shape == (192, 192)
    share = np.concatenate([mask.ravel() for mask in masks.values()]).mean()
    # Many pixels have the same probability, so the median does not halve them.
    assert 0.1 < share < 0.9
    truth = {chip: read_mask(mask) for chip, mask in find_masks(place / "truth").items()}
    both = sum(int((truth[chip] & masks[chip]).sum()) for chip in truth)
    either = sum(int((truth[chip] | masks[chip]).sum()) for chip in truth)
    capfd.readouterr()
    for output in outputs:
        run("check", output)
        run("score", place / "truth", output, "--json")
        checked, _, scored = capfd.readouterr().out.partition("\n")
        assert checked == f"{output}: ok"
        report = json.loads(scored)
        assert report["metric"] == "jaccard"
        assert report["total"]["jaccard"] == pytest.approx(both / either)
        assert report["images"].keys() == truth.keys()
    run("verify", outputs[1], "--device", "cpu", "--workers", 0)
    assert "identical, byte for byte" in capfd.readouterr().out
    # Another mask is not that of the manifest.
    altered = outputs[1] / "AOI_2_Vegas_img10.TIF"
    altered.write_bytes((outputs[1] / "AOI_2_Vegas_img11.TIF").read_bytes())
    run("verify", outputs[1], "--device", "cpu", "--workers", 0, status=1)
    assert "altered" in capfd.readouterr().out

    for name, more in (("plain", []), ("compared", ["--truth", place / "truth"])):
        run("overlay", outputs[0], tmp_path / name, place / "test", *more)
        assert len(list((tmp_path / name).glob("*.png"))) == 4
    # The test chips have no place on the ground.
    assert json.loads(geojson.read_text())["features"] == []
    # Probability maps give the same masks.
    again = tmp_path / "again.tgz"
    run("vectorize", place / "maps", again, "--recipe", low, "--workers", 0)
    for chip, mask in find_masks(again).items():
        assert np.array_equal(read_mask(mask), masks[chip])


def test_damaged_chips_get_empty_masks_and_full_disks_lose_nothing(
    place: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for image in (place / "test").iterdir():
        os.link(image, tmp_path / image.name)
    damaged = tmp_path / "RGB-PanSharpen_AOI_2_Vegas_img9.tif"
    damaged.write_bytes(b"II*\0" + bytes(40))
    out = tmp_path / "out/out.zip"
    predict = ["predict", tmp_path, out, "--weights", weights, "--device", "cpu", "--workers", 0]
    # The journal fits, but the archive with a large empty mask may not be written.
    out.mkdir(parents=True)
    run(*predict, status=1)
    assert "is a directory; give the name of a file to write" in capfd.readouterr().err
    out.rmdir()
    with full_disk(3000):
        run(*predict, status=1)
    assert "cannot write" in capfd.readouterr().err
    run(*predict)
    assert "AOI_2_Vegas_img9" in capfd.readouterr().err
    masks = find_masks(out)
    assert len(masks) == 5
    assert read_mask(masks["AOI_2_Vegas_img9"]).shape == (SIZE, SIZE)
    assert not read_mask(masks["AOI_2_Vegas_img9"]).any()
    assert {path.name for path in out.parent.iterdir()} == {"out.zip", "out.zip.manifest.json"}


def test_a_map_is_a_mask_or_the_outlines_of_its_parts(
    place: Path, weights: Path, low: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = sorted((place / "train").glob("*.tif"))[0]
    out, geojson = tmp_path / "map.zip", tmp_path / "map.geojson"
    run(
        "map", source, out, "--export", geojson, "--recipe", low, "--weights", weights,
        "--device", "cpu", "--workers", 0,
    )  # fmt: skip
    (mask,) = find_masks(out).values()
    assert mask.chip == "map"
    pixels = read_mask(mask)
    with rasterio.MemoryFile(mask.content) as memory, memory.open() as raster:
        assert raster.crs.to_epsg() == 3857
    features = json.loads(geojson.read_text())["features"]
    assert len(features) > 0
    assert all(feature["properties"]["expected_iou"] is None for feature in features)
    area = sum(feature["properties"]["area_m2"] for feature in features)
    # Pixels have about 0.3 m, true size at the equator.
    assert area / pixels.sum() == pytest.approx(0.2986**2, rel=0.01)
    run("map", source, tmp_path / "map.csv", "--weights", weights, status=1)
    assert "'.csv' is none of none (a directory), .zip, .tgz, .geojson" in capfd.readouterr().err
