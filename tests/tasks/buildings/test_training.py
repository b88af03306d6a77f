"""Losses, schedules and scores of building recipes, and one training."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
import yaml

from building_recipes import BUILDING_RECIPE, with_task
from satmap.cli import main
from satmap.data.cache import prepare_chip
from satmap.data.layouts.building_challenges import find_building_images
from satmap.data.view_angles import CATEGORIES
from satmap.errors import SatmapError
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schedules import PlateauSchedule
from satmap.recipes.schema import Recipe, StretchSettings, load_recipe, parse_recipe
from satmap.recipes.task_settings import HeadLoss
from satmap.submissions.buildings_csv import read_buildings_csv
from satmap.tasks.buildings.losses import building_loss
from satmap.tasks.buildings.settings import (
    BUILDING_MAPS,
    BuildingHeadLoss,
    BuildingLosses,
    BuildingSettingsByCategory,
)
from satmap.tasks.buildings.targets import BODY_BIT, BORDER_BIT, CONTACT_BIT, encode_weights
from satmap.tasks.buildings.task import BuildingTask
from satmap.tasks.losses import IGNORED_BIT
from satmap.training.epoch import learning_rate
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import find_weights
from satmap.weights.network_files import load_weights, save_weights
from synthetic_chips import square, write_buildings, write_coco, write_tile
from synthetic_images import write_image

CPU = torch.device("cpu")


def small(**settings: object) -> Recipe:
    return parse_recipe(yaml.safe_dump(with_task(**settings)), "test")


def own(part: torch.Tensor) -> torch.Tensor:
    return part


def test_the_loss_of_every_map_by_hand() -> None:
    target = torch.zeros(1, 16, 16, 2, dtype=torch.uint8)
    target[0, :8, :, 0] = BODY_BIT
    target[0, 7, :, 0] |= BORDER_BIT
    target[0, 8, :, 0] = CONTACT_BIT
    weights = torch.ones(1, 16, 16)
    weights[0, 8] = 4
    target[..., 1] = torch.from_numpy(encode_weights(weights.numpy()))
    losses = BuildingLosses(
        building=BuildingHeadLoss(weighted=2, dice=0.5),
        border=HeadLoss(bce=3),
        contact=HeadLoss(focal=10),
    )
    logits = torch.zeros(1, 3, 16, 16)
    loss, parts = building_loss(logits, BUILDING_MAPS, target, losses, own)
    # A logit of 0 costs ln 2; the weight of the row of contact is 4, of 15 others 1.
    weighted = math.log(2) * (15 + 4) / 16
    dice = 1 - 2 * 64 / (128 + 128)
    assert parts["building"].item() == pytest.approx(2 * weighted + 0.5 * dice, rel=1e-3)
    assert parts["border"].item() == pytest.approx(3 * math.log(2), rel=1e-5)
    assert parts["contact"].item() == pytest.approx(10 * 0.25 * math.log(2), rel=1e-5)
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-6)
    # A perfect prediction costs nothing; the order of the maps does not matter.
    bits = torch.tensor([BODY_BIT, BORDER_BIT, CONTACT_BIT]).view(1, 3, 1, 1)
    right = (((target[..., 0].unsqueeze(1) & bits) > 0).float() - 0.5) * 80
    assert building_loss(right, BUILDING_MAPS, target, losses, own)[0].item() < 1e-3
    turned = building_loss(
        right[:, [2, 0, 1]], ("contact", "building", "border"), target, losses, own
    )
    assert turned[0].item() < 1e-3


def test_ignored_pixels_do_not_count() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 32, 32, requires_grad=True)
    target = torch.randint(0, 8, (2, 32, 32, 2), dtype=torch.uint8)
    target[..., 1] += 60
    every = HeadLoss(dice=0.5, focal=2, bce=1)
    losses = BuildingLosses(
        building=BuildingHeadLoss(weighted=2, dice=0.5), border=every, contact=every
    )
    left = slice(16)
    expected, _ = building_loss(logits[..., left], BUILDING_MAPS, target[:, :, left], losses, own)
    target[:, :, 16:, 0] = IGNORED_BIT
    loss, _ = building_loss(logits, BUILDING_MAPS, target, losses, own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[..., 16:].any()


def test_the_rate_falls_on_a_plateau() -> None:
    schedule = PlateauSchedule(rate=1.0, factor=0.1, patience=2, least=0.005)
    rates = [
        learning_rate(schedule, 0, 1, 1, scores)
        for scores in (
            [], [0.1], [0.1, 0.1], [0.1, 0.1, 0.05], [0.1, 0.1, 0.05, 0.2], [0.3, 0.1, 0.1, 0.1],
            [0.3] + [0.1] * 4, [0.3] + [0.1] * 40,
        )
    ]  # fmt: skip
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.005])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "roads"}, "members.0.losses.road: this key is missing"),
        ({"view_angle_heads": 4}, "task.view_angle_heads: Input should be 3 or 5"),
        ({"vectorizer": {"seeds": 1}}, "task.vectorizer.seeds: unknown key"),
        ({"targets": {"border_px": 0}}, "task.targets.border_px"),
        ({"input_px": 8}, "task.input_px"),
    ],
)
def test_faults_of_recipes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(SatmapError, match=message):
        small(**change)


def test_faults_of_losses_are_named() -> None:
    content = yaml.safe_load(BUILDING_RECIPE)
    member = content["members"][0]
    for losses, message in (
        ({"building": {"dice": 0}}, "members.0.losses: all weights of a probability map are 0"),
        ({"building": {"dise": 1}}, "members.0.losses.building.dise: unknown key"),
        ({"border": {"dice": 1}}, "members.0.losses.building: this key is missing"),
        ({"building": {"dice": 1}}, "the losses of stage 2 have other probability maps"),
    ):
        content["members"] = [member | {"losses": losses}]
        with pytest.raises(SatmapError, match=message):
            parse_recipe(yaml.safe_dump(content), "x")
    roads = yaml.safe_load(load_recipe("demo").model_dump_json())
    roads["task"]["view_angle_heads"] = 3
    with pytest.raises(SatmapError, match=r"task\.view_angle_heads: unknown key"):
        parse_recipe(yaml.safe_dump(roads), "x")


def test_shipped_recipes() -> None:
    mapping = load_recipe("mapping-challenge")
    stages = mapping.members[0].stages
    assert [mapping.members[0].losses_of(i).building.dice for i in range(4)] == [0.5, 0.5, 0.5, 5]
    assert [stage.chips for stage in stages] == [50_000, None, None, None]
    assert (mapping.task.input_px, mapping.inference.mean) == (256, "geometric")
    assert (mapping.task.vectorizer.dilate_px, mapping.inference.padding) == (2, "replicate")
    oblique = load_recipe("sn4-buildings")
    assert oblique.task.categories == ("nadir", "off-nadir", "very off-nadir")
    assert {member.bands for member in oblique.members} == {4}
    # Augmentation keeps the lean directions of the view angles, in training and prediction.
    assert (oblique.augmentation.flips, oblique.inference.tta) == (False, 1)
    assert load_recipe("sn2-buildings").map_names == BUILDING_MAPS


def test_validation_scores_by_vectoriser_and_metric(tmp_path: Path) -> None:
    write_coco(tmp_path, {1: [square(10, 10, 30), square(60, 60, 20)], 2: []})
    vectorizer = BuildingSettingsByCategory(least_px=0, seed_px=0)
    task = BuildingTask(small(input_px=64, vectorizer=vectorizer.model_dump()))
    chips = [
        prepare_chip(chip, tmp_path / "cache", StretchSettings(), task)
        for chip in find_building_images([tmp_path]).chips
    ]
    scores = []
    for chip in chips:
        _, target = chip.read()
        body = ((target[..., 0] & BODY_BIT) * 255).astype(np.uint8)
        if chip.image_id == "1":
            # The small building is missed, and there is one false detection.
            body[40:, 40:] = 0
            body[:16, 40:56] = 255
        scores.append(
            task.score_maps(ProbabilityMaps(("building",), body[None], (1, 1)), chip, target)
        )
    # Buildings are in pixels of the file, not of the resized maps.
    assert scores[0].rows[0].polygon.area + scores[0].rows[1].polygon.area == pytest.approx(
        900 + 24 * 24, rel=0.1
    )
    summary = task.summarize(chips, scores)
    assert (summary["precision"], summary["recall"], summary["f1"]) == (0.5, 0.5, 0.5)
    assert summary["dice"] == pytest.approx(2 * 400 / (400 + 256 + 400 + 169), abs=0.02)
    assert task.draw(chips[0], scores[0]).shape[2] == 3


def chips_of(root: Path, count: int) -> None:
    for number in range(count):
        write_tile(root, number, [square(10 + 5 * number, 12, 28), square(56, 55, 24)])


def test_a_training_of_all_stages(tmp_path: Path) -> None:
    chips_of(tmp_path / "data", 6)
    recipe = small()
    context = RunContext(tmp_path / "weights", CPU)
    options = TrainingOptions(cache=tmp_path / "cache")
    assert train([tmp_path / "data"], recipe, context, options) == {}
    files = {file.checkpoint: file for file in find_weights(context.weights)}
    assert {"best_f1", "last"} <= files.keys()
    assert files["last"].recipe == recipe
    network, metadata = load_weights(files["last"].path)
    assert network.map_names == ("building", "border")
    assert {"f1", "dice"} <= json.loads(metadata["scores"]).keys()
    log = (context.weights / "fold0-resnet18-3band.log.csv").read_text().splitlines()
    header = log[0].split(",")
    assert header[6:] == ["loss", "building", "border", "f1", "precision", "recall", "dice", "iou"]
    # The first stage has two chips per epoch, one step; the second has three.
    assert [row.split(",")[0] for row in log[1:]] == ["1", "1", "2"]
    # An untrained network finds nothing, so the second validation lowers the learning rate.
    assert float(log[2].split(",")[2]) <= float(log[1].split(",")[2])
    assert list((context.weights / "fold0-resnet18-3band.pictures").glob("*.png"))
    # Two view angles of one place are in one fold.
    assert train([tmp_path / "data"], recipe, replace(context, restart=False), options) == {}


def test_missing_labels_and_nothing_to_learn(tmp_path: Path) -> None:
    chips_of(tmp_path / "data", 2)
    context = RunContext(tmp_path / "weights", CPU)
    options = TrainingOptions(cache=tmp_path / "cache")
    label = next((tmp_path / "data").rglob("*img0.geojson"))
    label.unlink()
    with pytest.raises(SatmapError, match="1 of 2 images have no label"):
        train([tmp_path / "data"], small(), context, options)
    for number in (0, 1):
        write_tile(tmp_path / "data", number, [])
    with pytest.raises(SatmapError, match="has a building in its label"):
        train([tmp_path / "data"], small(), context, options)


def test_heads_by_view_angle_in_training_and_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    collects = ("Atlanta_nadir7_catid_1030010003D22F00", "Atlanta_nadir53_catid_1030010003CD4300")
    for tile in ("1_1", "1_2", "2_2"):
        for collect in collects:
            name = f"Pan-Sharpen_{collect}_{tile}.tif"
            path = root / collect / "Pan-Sharpen" / name
            write_image(path, bands=4, size=(64, 64), dtype="uint16")
        label = root / f"geojson/spacenet-buildings/spacenet-buildings_{tile}.geojson"
        write_buildings(label, [square(8, 8, 30)])
    content = yaml.safe_load(BUILDING_RECIPE)
    content["members"][0] |= {"bands": 4, "stages": content["members"][0]["stages"][1:]}
    recipe = tmp_path / "heads.yaml"
    content["task"]["view_angle_heads"] = 5
    recipe.write_text(yaml.safe_dump(content))
    weights = tmp_path / "weights"
    flags = ["--weights", str(weights), "--device", "cpu", "--workers", "0"]

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *flags])
        return int(ended.value.code or 0)

    train_it = ["train", str(root), "--recipe", str(recipe), "--cache", str(tmp_path / "cache")]
    assert run(*train_it) == 0
    network, metadata = load_weights(weights / "fold0-resnet18-4band.last.safetensors")
    assert network.categories == CATEGORIES[5]
    held_out = json.loads(metadata["held_out"])
    tiles = {image_id[-3:] for image_id in held_out}
    assert len(held_out) == 2 * len(tiles)
    assert 0 < len(tiles) < 3
    # One head predicts buildings everywhere, the other nowhere; the name's view angle selects one.
    with torch.no_grad():
        network.head.weight.zero_()
        bias = network.head.bias
        assert bias is not None
        bias.fill_(-9)
        bias[2 * network.categories.index("very off-nadir")] = 9
    shutil.rmtree(weights)
    kept = {key: metadata[key] for key in ("recipe", "member", "stage", "epoch")}
    save_weights(weights / "a.last.safetensors", network, kept)
    out = tmp_path / "out.csv"
    assert run("predict", str(root), str(out)) == 0
    for image_id, rows in read_buildings_csv(out).items():
        expected = [64 * 64] if "nadir53" in image_id else []
        assert [shapely.area(row.polygon) for row in rows] == pytest.approx(expected, rel=0.01)
    assert "6 images, 3 buildings" in capsys.readouterr().out


def test_an_unknown_view_angle_is_requested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chips_of(tmp_path / "data", 2)
    recipe = tmp_path / "heads.yaml"
    recipe.write_text(yaml.safe_dump(with_task(view_angle_heads=3)))
    arguments = [
        "train", str(tmp_path / "data"), "--recipe", str(recipe), "--device", "cpu",
        "--weights", str(tmp_path / "weights"), "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert "Give --nadir degrees off nadir" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--nadir", "sideways"])
    assert ended.value.code == 2
