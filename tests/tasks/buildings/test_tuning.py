"""Fitting building settings: slow reference measures, then the command on synthetic blocks."""

import json
import tempfile
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from repository import SHARED
from satmap.cli import main
from satmap.evaluation.metrics.building_f1 import score_buildings
from satmap.evaluation.metrics.coco_ap import match_image, score_coco
from satmap.evaluation.metrics.figures import Counts
from satmap.prediction.vectorize import vectorize_directory
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import load_recipe
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv, write_buildings_csv
from satmap.submissions.coco_json import (
    Detection,
    read_coco_truth,
    results_of,
    write_coco_results,
)
from satmap.tasks.base import task_of
from satmap.tasks.buildings import tuning as building_tuning
from satmap.tasks.buildings.settings import BuildingSettings
from satmap.tasks.buildings.targets import draw_instances
from satmap.tasks.buildings.tuning import PooledF1, PooledPrecision
from satmap.tasks.buildings.vectorizer.polygons import exact_polygons
from satmap.tasks.dense import DenseTask
from satmap.tuning.chips import MAX_CHIPS, TuningChip, subsample
from synthetic_blocks import made_blocks, maps_of_labels

FEW = {"low": (0.15, 0.3), "least_px": (20, 60, 250), "split": (0.5, 0.8)}
SIZE = 160

SPACENET2 = SHARED / "data/buildings_sn2/AOI_2_Vegas_Train"


# --- measures -------------------------------------------------------------------------------------


def test_f1_is_the_mean_of_areas_of_summed_counts() -> None:
    measure = PooledF1(["a", "a", "b"], ["x", "y", "z"])
    records = [Counts(3, 1, 0), Counts(0, 0, 2), Counts(1, 0, 1)]
    # 6 / (6 + 3) and 2 / (2 + 1).
    assert measure.score(records, [0, 1, 2]) == pytest.approx((6 / 9 + 2 / 3) / 2)
    assert measure.score(records[:2], [0, 1]) == pytest.approx(6 / 9)
    # No building and no detection: 0, as in the official scorers.
    assert measure.score([Counts()], [2]) == 0


def test_the_error_of_a_gain_is_the_jackknife_estimate() -> None:
    # Ten buildings per chip and no false ones: F1 = 2 tp / (tp + 10), all chips in one area.
    measure = PooledF1(["a"] * 4, list("wxyz"))
    before = [Counts(5, 0, 5)] * 4
    after = [Counts(tp, 0, 10 - tp) for tp in (5, 7, 6, 9)]
    gain = measure.gain(before, after, range(4))
    assert gain.mean == pytest.approx(2 * 27 / 67 - 2 * 20 / 60)
    without = [2 * s / (s + 30) - 2 / 3 for s in (27 - 5, 27 - 7, 27 - 6, 27 - 9)]
    spread = sum((value - np.mean(without)) ** 2 for value in without)
    assert gain.error == pytest.approx(sqrt(3 / 4 * spread))
    # All images of a place count as one: two places, then one, which has no standard error.
    pairs = PooledF1(["a"] * 4, list("wwxx")).gain(before, after, range(4))
    two = [2 * s / (s + 20) - 2 / 3 for s in (15, 12)]
    assert pairs.error == pytest.approx(abs(two[0] - two[1]) / 2)
    assert not PooledF1(["a"] * 4, list("wwww")).gain(before, after, range(4)).counts


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_precision_is_that_of_the_official_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, images = {}, []
    annotations: list[dict[str, object]] = []
    found: dict[int, list[Detection]] = {}
    for number in range(4):
        images.append({"id": number, "width": 60, "height": 50})
        boxes[number] = rng.integers(0, 35, (int(rng.integers(0, 5)), 2)).tolist()
        for x, y in boxes[number]:
            corners = [x, y, x + 12, y, x + 12, y + 12, x, y + 12]
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": 100,
                 "segmentation": [corners], "iscrowd": int(rng.random() < 0.1)}
            )  # fmt: skip
        moved = [(x + int(rng.integers(0, 6)), y) for x, y in boxes[number]] + [(3, 30)]
        found[number] = [
            Detection(np.ones((12, 12), np.uint8), place, float(rng.integers(1, 5)))
            for place in moved
        ]
    with tempfile.TemporaryDirectory() as directory:
        truth, results = Path(directory, "annotation.json"), Path(directory, "results.json")
        truth.write_text(json.dumps({"images": images, "annotations": annotations}))
        write_coco_results(results, found, dict.fromkeys(found, (60, 50)))
        official = score_coco(truth, results).total["ap50"]
        buildings = read_coco_truth(truth).buildings
    matches = [
        match_image(buildings.get(number, ()), results_of(found[number], (60, 50)))
        for number in found
    ]
    precision = PooledPrecision(list("abcd")).score(matches, range(4))
    assert precision == pytest.approx(official or 0.0, abs=1e-9)


# --- the command ----------------------------------------------------------------------------------


def made(seed: int, strength: float = 1.0) -> tuple[ProbabilityMaps, NDArray[np.int32]]:
    """Return maps of houses, scaled by ``strength``, with their true labels."""
    labels = made_blocks(seed, SIZE, 17 * seed, (10, 30)).labels
    maps = maps_of_labels(labels, 1.2, 0.1, seed)
    faint = np.rint(maps.values * np.array([strength, 1, 1])[:, None, None]).astype(np.uint8)
    return ProbabilityMaps(maps.names, faint, maps.metres_per_pixel), labels


def write_masks(
    directory: Path, names: Sequence[str], strengths: Sequence[float] = ()
) -> tuple[Path, Path]:
    """Write masks of synthetic houses and their truth as CSV."""
    masks, rows = directory / "masks", {}
    masks.mkdir(parents=True)
    for number, name in enumerate(names):
        seed = int(name.removeprefix("made_")) if name.startswith("made_") else number
        maps, labels = made(seed, strengths[number] if strengths else 1.0)
        write_mask(masks / f"{name}.tif", maps)
        rows[name] = [BuildingRow(polygon) for polygon in exact_polygons(labels)]
    truth = directory / "truth.csv"
    write_buildings_csv(truth, rows)
    return masks, truth


def write_mask(path: Path, maps: ProbabilityMaps) -> None:
    height, width = maps.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8"
    ) as raster:
        raster.write(maps.values)
        raster.descriptions = maps.names


def write_recipe(path: Path, *, view_angles: int | None = None, **buildings: float) -> Path:
    recipe = yaml.safe_load(load_recipe("small-buildings").model_dump_json())
    recipe["task"] |= {"vectorizer": buildings, "view_angle_heads": view_angles}
    path.write_text(yaml.safe_dump(recipe))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    read = capsys.readouterr()
    return int(ended.value.code or 0), read.out + read.err


def f1_of(recipe: Path, masks: Path, truth: Path) -> float:
    """Return the F1 of vectorised masks, computed by `score`."""
    out = masks.with_suffix(".csv")
    task = task_of(load_recipe(str(recipe)))
    assert isinstance(task, DenseTask)
    vectorize_directory(masks, out, task)
    found = score_buildings(read_buildings_csv(truth), read_buildings_csv(out))
    return float(found.total["f1"] or 0)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building_tuning, "GRIDS", FEW)


def test_a_bad_threshold_is_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, truth = write_masks(tmp_path, [f"AOI_9_Made_img{seed}" for seed in range(6)])
    (masks / "AOI_9_Made_img5.tif").write_text("no mask")
    recipe = write_recipe(tmp_path / "bad.yaml", least_px=600, split=0.5)
    output = tmp_path / "fitted.yaml"
    tune = ("tune", masks, truth, output, "--recipe", recipe, "--workers", 0, "--minutes", 60)
    status, printed = run(capsys, *tune)
    assert status == 0
    assert "F1 at IoU .5 of 5 chips" in printed and "1 images were left out of the fit" in printed
    before, fitted = load_recipe(str(recipe)), load_recipe(str(output))
    assert fitted.task.vectorizer.least_px < 250
    # Only fitted settings differ, so the recipe still suits the weights.
    assert fitted.training_fingerprint == before.training_fingerprint
    assert fitted.model_copy(update={"task": before.task}) == before
    settings = {"vectorizer": before.task.vectorizer}
    assert fitted.task.model_copy(update=settings) == before.task
    # It also improves masks that were not fitted to.
    unseen = write_masks(tmp_path / "unseen", [f"made_{seed}" for seed in range(20, 23)])
    assert f1_of(output, *unseen) > f1_of(recipe, *unseen) + 0.2
    # The other commands give the same figure on the fitted chips.
    (masks / "AOI_9_Made_img5.tif").unlink()
    assert f"{f1_of(output, masks, truth):.4f} after on the chips fitted to" in printed
    # A second fit finds no gain and changes nothing.
    again = tmp_path / "again.yaml"
    status, printed = run(capsys, *tune[:3], again, "--recipe", output, *tune[6:])
    assert (status, load_recipe(str(again))) == (0, fitted)
    assert "the settings stay as they were" in printed
    # Without time left nothing changes.
    status, printed = run(capsys, *tune[:-1], 1e-6)
    assert (status, load_recipe(str(output))) == (0, before)
    assert "time ran out" in printed


@pytest.mark.skipif(not SPACENET2.exists(), reason="the shared data are not here")
def test_real_footprints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = SPACENET2 / "summaryData/AOI_2_Vegas_Train_Building_Solutions.csv"
    for number, (image_id, rows) in enumerate(read_buildings_csv(truth).items()):
        outlines = np.array([row.polygon for row in rows], np.object_)
        labels = draw_instances(shapely.make_valid(outlines), (650, 650))
        # Four chips for the fit and three that it never sees.
        masks = tmp_path / ("fitted" if number % 2 == 0 else "held_out")
        masks.mkdir(exist_ok=True)
        write_mask(masks / f"{image_id}.tif", maps_of_labels(labels, 1.5, 0.15, number))
    recipe, output = write_recipe(tmp_path / "bad.yaml", least_px=5000), tmp_path / "fitted.yaml"
    status, printed = run(
        capsys, "tune", tmp_path / "fitted", truth, output, "--recipe", recipe, "--workers", 0
    )  # fmt: skip
    assert status == 0 and "F1 at IoU .5 of 4 chips" in printed
    held_out = tmp_path / "held_out"
    assert f1_of(output, held_out, truth) > f1_of(recipe, held_out, truth) + 0.2
    assert f1_of(output, held_out, truth) > 0.9


def test_each_view_angle_category_has_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Ten tiles; oblique images are faint, and the two images of a tile stay together.
    names = [f"Atlanta_nadir8_catid_10300100023BC100_1_{n}" for n in range(4)]
    names += [f"Atlanta_nadir32_catid_103001000392F600_1_{n}" for n in range(4)]
    names += ["Atlanta_nadir53_catid_1030010003CD4300_1_0", "elsewhere"]
    masks, truth = write_masks(tmp_path, names, [1.0] * 4 + [0.26] * 4 + [1.0] * 2)
    recipe = write_recipe(tmp_path / "bad.yaml", view_angles=3, certain=0.16, seed=0.16, low=0.15)
    output = tmp_path / "fitted.yaml"
    grids = {"low": (0.15,), "least_px": (20, 100), "certain": (0.16, 0.5), "seed": (0.16, 0.7)}
    building_tuning.GRIDS = grids
    tune = ("tune", masks, truth, output, "--recipe", recipe, "--workers", 0, "--minutes", 60)
    status, printed = run(capsys, *tune)
    assert status == 0
    assert "very off-nadir: too few places for a fit (1)" in printed
    assert "elsewhere: elsewhere.tif: the file name does not give the off-nadir angle" in printed
    assert printed.count("on chips not fitted to") == 2
    fitted, before = (
        load_recipe(str(output)).task.vectorizer,
        load_recipe(str(recipe)).task.vectorizer,
    )
    assert fitted.categories.keys() <= {"nadir", "off-nadir"}
    assert fitted.of("nadir").seed == 0.7
    assert fitted.of("off-nadir").seed == 0.16
    for unfitted in (None, "very off-nadir"):
        assert fitted.of(unfitted) == before.of(None)
    # A mask without a view angle in its name gets the given one.
    status, printed = run(capsys, *tune, "--nadir", "12")
    assert status == 0 and "nadir: F1 at IoU .5 of 5 chips" in printed


def test_coco_annotations_are_scored_by_average_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    annotations: list[dict[str, object]] = []
    masks.mkdir()
    for number in range(4):
        maps, labels = made(number)
        write_mask(masks / f"{number:012d}.tif", maps)
        for polygon in exact_polygons(labels):
            ring = [c for xy in polygon.exterior.coords[:-1] for c in xy]
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": 100,
                 "segmentation": [ring]}
            )  # fmt: skip
    images = [{"id": n, "width": SIZE, "height": SIZE, "file_name": f"{n}.jpg"} for n in range(4)]
    truth = tmp_path / "annotation.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations}))
    recipe = write_recipe(tmp_path / "bad.yaml", least_px=600)
    output = tmp_path / "fitted.yaml"
    flags = ("--recipe", recipe, "--workers", 0, "--minutes", 60)
    status, printed = run(capsys, "tune", masks, truth, output, "--task", "buildings", *flags)
    assert status == 0 and "AP at IoU .5 of 4 chips" in printed
    assert load_recipe(str(output)).task.vectorizer.least_px < 250
    # The fit reports the same score as `vectorize` and `score`.
    results = tmp_path / "results.json"
    vectorize_ = ("vectorize", masks, results, "--task", "buildings", "--workers", 0)
    assert run(capsys, *vectorize_, "--recipe", output)[0] == 0
    score = score_coco(truth, results).total["ap50"]
    assert f"{score:.4f} after on the chips fitted to" in printed


def test_bad_input_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, truth = write_masks(tmp_path, [f"AOI_9_Made_img{seed}" for seed in range(4)])
    recipe = write_recipe(tmp_path / "r.yaml")
    flags = ("--workers", 0)

    def message(*arguments: object) -> str:
        status, printed = run(capsys, "tune", *arguments, *flags)
        assert status == 1 and not (tmp_path / "out.yaml").exists()
        return printed

    out = tmp_path / "out.yaml"
    printed = message(masks, truth, out, "--task", "buildings")
    assert "recipe sn5-roads is for roads, not for buildings" in printed
    lines = tmp_path / "roads.csv"
    lines.write_text("ImageId,WKT_Pix,length_m,travel_time_s\na,LINESTRING EMPTY,0,0\n")
    assert "is a roads CSV, but tuning of buildings needs" in message(
        masks, lines, out, "--recipe", recipe
    )
    empty = tmp_path / "empty.csv"
    write_buildings_csv(empty, {f"AOI_9_Made_img{seed}": [] for seed in range(4)})
    assert "no building in any of the 4" in message(masks, empty, out, "--recipe", recipe)
    of_view_angles = write_recipe(tmp_path / "looks.yaml", view_angles=3)
    printed = message(masks, truth, out, "--recipe", of_view_angles)
    assert "AOI_9_Made_img0.tif: the file name does not give the off-nadir angle" in printed
    assert "Give --nadir degrees off nadir" in printed
    # Three places are too few for a fit.
    names = [
        f"Atlanta_nadir{angle}_catid_10300100023BC100_1_{place}"
        for place in range(3)
        for angle in (8, 14)
    ]
    few = tmp_path / "few"
    printed = message(*write_masks(few, names), out, "--recipe", recipe)
    assert "too few places for a fit (3). A fit needs at least 4 places" in printed
    printed = message(few / "masks", few / "truth.csv", out, "--recipe", of_view_angles)
    assert "too few places for a fit (3)" in printed
    annotations = tmp_path / "annotations.json"
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 50} for n in range(4)]
    annotations.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    twice = tmp_path / "twice"
    write_masks(twice, ["3", "003"])
    printed = message(twice / "masks", annotations, out, "--recipe", recipe)
    assert "are probability maps of the same image" in printed


def a_chip(image_id: str, site: str) -> TuningChip:
    return TuningChip(image_id, Path(), {}, 1.0, (), site, area="AOI")


@pytest.mark.parametrize("places", [5, 20, 50, 212, 1064])
def test_many_view_angles_do_not_displace_places(places: int) -> None:
    chips = [
        a_chip(f"{place}, {view_angle}", str(place))
        for place in range(places)
        for view_angle in range(9)
    ]
    warnings: list[str] = []
    kept = subsample(chips, warnings)
    names = {chip.image_id for chip in kept}
    assert [chip for chip in chips if chip.image_id in names] == kept
    assert len({chip.site for chip in kept}) >= min(places, 24)
    assert len(kept) <= MAX_CHIPS
    assert bool(warnings) == (len(kept) < len(chips))


def test_a_subset_of_single_image_places_is_used() -> None:
    chips = [a_chip(str(place), str(place)) for place in range(1000)]
    assert 0.8 * MAX_CHIPS <= len(subsample(chips, [])) <= MAX_CHIPS


def test_vectorize_uses_the_settings_of_each_category(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nadir = "Atlanta_nadir8_catid_10300100023BC100_1_0"
    far = "Atlanta_nadir53_catid_1030010003CD4300_1_0"
    masks, _ = write_masks(tmp_path, [nadir, far, "elsewhere"])
    recipe = yaml.safe_load(write_recipe(tmp_path / "looks.yaml", view_angles=3).read_text())
    recipe["task"]["vectorizer"] = {"categories": {"nadir": {"least_px": 1e6}}}
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out.csv"
    command = ("vectorize", masks, out, "--task", "buildings", "--recipe", tuned, "--workers", 0)
    status, printed = run(capsys, *command)
    found = {name: len(rows) for name, rows in read_buildings_csv(out).items()}
    assert status == 0 and "elsewhere.tif: the file name does not give" in printed
    assert found[nadir] == found["elsewhere"] == 0 < found[far]
    run(capsys, *command, "--nadir", "53")
    assert len(read_buildings_csv(out)["elsewhere"]) > 0


def test_the_grids_hold_possible_values_and_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, values in building_tuning.GRIDS.items():
        assert getattr(BuildingSettings(), name) in values
        for value in values:
            others = {"low": 0.15, "seed": 0.95, "certain": 0.95}
            BuildingSettings.model_validate(others | {name: value})
