"""Judged labels: shifts, moved labels, ignored ground, dropped tiles, and what trainings see."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import shapely.geometry
import torch
from affine import Affine
from numpy.typing import NDArray
from shapely import affinity

from satmap.cli import main
from satmap.data.chip import Chip
from satmap.data.chip_label import ChipLabel
from satmap.data.inventory import Inventory
from satmap.data.judgement import Judgement, Reason, Thresholds, judged_inventory
from satmap.data.label_files import read_label_file
from satmap.data.labelled import find_labelled
from satmap.data.own_data import OwnData
from satmap.data.scenes import cut_scenes
from satmap.errors import SatmapError
from satmap.io.geojson_reader import LON_LAT, project
from satmap.judging.judge import judge_labels, label_sets_of_challenge, label_sets_of_own
from satmap.provenance.manifest import WeightsManifest, read_manifest
from satmap.recipes.schema import StretchSettings, parse_recipe
from satmap.tasks.base import Task, task_of
from satmap.tasks.buildings.labels import ignored_pixels, read_building_labels
from satmap.tasks.losses import IGNORED_BIT
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import find_weights

UTM = "EPSG:32630"
PIXEL_M, SIDE = 0.5, 512
PLACE = Affine.translation(809000, 618000) @ Affine.scale(PIXEL_M, -PIXEL_M)
# Houses of 10 x 8 m and more on 16 tiles of 64 m.
HOUSES = [
    shapely.box(x, y, x + 20 + (x + y) % 7, y + 16 + (x * y) % 5)
    for x in range(12, 480, 43)
    for y in range(9, 480, 37)
]
# Without a label, and labels without a house, in pixels. The tile in the middle has wrong labels.
MISSING = HOUSES[5::20]
INVENTED = [shapely.box(x, y, x + 9, y + 9) for x, y in ((40, 48), (470, 27), (126, 470))]
WRONG = shapely.box(256, 256, 384, 384)
SHIFT_M = np.array([2.0, 1.5])  # to the right and down

WITHOUT_TILES = """
name: test
description: crops of 64 pixels
task: {name: raster}
folds: 2
members:
  - fold: 0
    encoder: tiny
    pretrained: false
    bands: 3
    decoder: [8, 8, 8, 8]
    losses: {building: {dice: 1}}
    stages: [{crop: 64, batch: 2, epochs: 1, chips: 2, schedule: {kind: steps, rates: {0: 1.0e-3}}}]
inference: {tta: 1, checkpoints: [last]}
"""
RECIPE = WITHOUT_TILES + "tiles: {gsd: 0.5, size: 128}\n"


def on_map(shape: shapely.Geometry, crs: str = LON_LAT) -> shapely.Geometry:
    return shapely.transform(
        shape, lambda xy: project(np.array([PLACE @ tuple(p) for p in xy.tolist()]), UTM, crs)
    )


def write_image(path: Path) -> None:
    image = np.random.default_rng(1).integers(60, 100, (3, SIDE, SIDE)).astype(np.uint8)
    for house in HOUSES:
        left, top, right, bottom = (int(value) for value in house.bounds)
        image[:, top:bottom, left:right] = 220
    path.parent.mkdir(parents=True)
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE, height=SIDE, count=3, dtype="uint8", crs=UTM,
        transform=PLACE, compress="deflate",
    ) as file:  # fmt: skip
        file.write(image)


def noisy_labels(shift: Callable[[float], NDArray[np.float64]]) -> list[shapely.Geometry]:
    """Return labels in pixels; the shift in metres depends on the column."""
    right = [house for house in HOUSES if house not in MISSING and not WRONG.intersects(house)]
    wrong = [shapely.box(x, y, x + 9, y + 9) for x in (262, 325) for y in range(262, 380, 30)]
    shapes = [*right, *INVENTED, *wrong]
    moves = [shift(shape.bounds[0]) / PIXEL_M for shape in shapes]
    return [affinity.translate(shape, *move) for shape, move in zip(shapes, moves, strict=True)]


def write_labels(path: Path, shapes: list[shapely.Geometry], crs: str = LON_LAT) -> None:
    content = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": crs}},
        "features": [
            {
                "type": "Feature",
                "properties": {"number": number},
                "geometry": shapely.geometry.mapping(on_map(shape, crs)),
            }
            for number, shape in enumerate(shapes)
        ],
    }
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def read_in_pixels(path: Path) -> tuple[NDArray[np.object_], list[str]]:
    """Return the polygons of a GeoJSON file, and why they are ignored."""
    found = read_label_file(path, "polygons")
    utm = project(shapely.get_coordinates(found.shapes), found.crs, UTM)
    pixels = np.array([~PLACE @ tuple(point) for point in utm.tolist()])
    reasons = [str(row.get("ignored")) for row in found.properties]
    return shapely.set_coordinates(found.shapes.copy(), pixels), reasons


def predict(chip: Chip) -> tuple[NDArray[np.uint8], Reason]:
    """Find the bright houses of a tile."""
    with rasterio.open(chip.image.path) as file:
        image = file.read(1)
    return np.where(image > 150, 240, 5).astype(np.uint8), "held out"


def scene(tmp_path: Path, shift: Callable[[float], NDArray[np.float64]]) -> Path:
    tier = tmp_path / "train_tier_2"
    write_image(tier / "acc/665946/665946.tif")
    write_labels(tier / "acc/665946-labels/665946.geojson", noisy_labels(shift), "EPSG:32630")
    return tier


def judge(tier: Path, task: Task, tmp_path: Path) -> tuple[Judgement, str, Inventory]:
    found = task.find_images([tier])
    cut = cut_scenes(found, task, 3, tmp_path / "cache")
    judgement, table = judge_labels(
        label_sets_of_challenge(found, cut), predict, Thresholds(), StretchSettings(), (),
        tmp_path / "judged", [tier],
    )  # fmt: skip
    return judgement, table, found


def task_with_tiles() -> Task:
    return task_of(parse_recipe(RECIPE, "test"))


pytestmark = pytest.mark.usefixtures("tiny_encoders")


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satmap.judging.report._DRAWN", 1)


def test_labels_are_moved_and_judged(tmp_path: Path) -> None:
    task = task_with_tiles()
    tier = scene(tmp_path, lambda _: SHIFT_M)
    judgement, table, _ = judge(tier, task, tmp_path)
    assert not judgement.skipped
    assert len(judgement.tiles) == 16
    for tile in judgement.tiles.values():
        assert (tile.right_m, tile.down_m) == pytest.approx(SHIFT_M, abs=0.25)
    # The moved labels keep name, order and reference system, and lie on the houses.
    out = tmp_path / "judged"
    moved = read_label_file(out / "labels/acc/665946-labels/665946.geojson", "polygons")
    assert moved.crs == UTM
    assert [row["number"] for row in moved.properties] == [*range(len(moved.shapes))]
    shapes, _ = read_in_pixels(out / "labels/acc/665946-labels/665946.geojson")
    on_houses = shapely.area(shapely.intersection(shapes, shapely.union_all(HOUSES)))
    right = len(HOUSES) - len(MISSING) - sum(WRONG.intersects(house) for house in HOUSES)
    assert (on_houses[:right] / shapely.area(shapes[:right])).mean() > 0.95
    # Houses without a label and labels without a house are ignored, and no others.
    ignored, reasons = read_in_pixels(out / "ignored/665946.geojson")
    of_kind = {
        kind: ignored[[reason == kind for reason in reasons]] for kind in dict.fromkeys(reasons)
    }
    missing = [house for house in MISSING if not WRONG.intersects(house)]
    without = of_kind["building without label"]
    assert shapely.union_all(without).buffer(1).contains(shapely.union_all(missing))
    # Houses of the dropped tile continue in others.
    around = [house for house in HOUSES if WRONG.intersects(house)]
    assert shapely.intersects(without, shapely.union_all([*missing, *around])).all()
    assert {
        number
        for number, house in enumerate(INVENTED)
        if shapely.intersects(of_kind["building"], house).any()
    } == {0, 1, 2}
    assert len(of_kind["building"]) <= len(INVENTED) + 2
    (dropped,) = [name for name, tile in judgement.tiles.items() if tile.verdict == "drop"]
    assert dropped == "665946-2-2"
    assert of_kind["dropped tile"][0].buffer(1).contains(WRONG)
    assert "665946" in table
    assert f"pictures/{dropped}.jpg" in (out / "report.md").read_text()
    assert (out / f"pictures/{dropped}.jpg").is_file()
    # A training sees the moved labels without the dropped tile.
    chips = find_labelled([tier], None, task, tmp_path / "cache", out).chips
    assert {chip.image_id for chip in chips} == judgement.tiles.keys() - {dropped}
    labels = {chip.image_id: ChipLabel.read(chip.label) for chip in chips if chip.label}
    first = labels["665946-0-0"]
    # The invented house at (40, 48).
    assert first.ignored[50:55, 42:47].all()
    assert not shapely.intersects(first.shapes, shapely.box(42, 50, 47, 55)).any()
    assert first.ignored.mean() < 0.2
    # Another grid of tiles sees the same.
    other = task_of(parse_recipe(RECIPE.replace("128", "320"), "test"))
    (upper, *_) = find_labelled([tier], None, other, tmp_path / "cache", out).chips
    assert upper.label is not None
    assert ChipLabel.read(upper.label).ignored[256:, 256:].all()


def test_shifts_may_vary_within_a_scene(tmp_path: Path) -> None:
    def shift(column: float) -> NDArray[np.float64]:
        return np.array([1.0 + 2.5 * column / SIDE, -1.0])

    judgement, _, _ = judge(scene(tmp_path, shift), task_with_tiles(), tmp_path)
    by_column: dict[str, list[float]] = {}
    for name, tile in judgement.tiles.items():
        by_column.setdefault(name.split("-")[1], []).append(tile.right_m)
        assert tile.down_m == pytest.approx(-1.0, abs=0.3)
    means = [float(np.mean(by_column[column])) for column in sorted(by_column)]
    assert means == sorted(means)
    assert means[0] < 1.9
    assert means[-1] > 2.3


def test_judgements_of_other_labels_are_refused(tmp_path: Path) -> None:
    task = task_with_tiles()
    tier = scene(tmp_path, lambda _: SHIFT_M)
    judgement, _, found = judge(tier, task, tmp_path)
    out = tmp_path / "judged"
    (label,) = tier.rglob("*.geojson")
    text = label.read_text()
    label.write_text(text + "\n")
    with pytest.raises(SatmapError, match="has changed since"):
        judged_inventory(found, out)
    label.write_text(text)
    moved = out / judgement.images["665946"].label
    moved.rename(moved.with_suffix(".gone"))
    with pytest.raises(SatmapError, match="is missing"):
        judged_inventory(found, out)
    facts = json.loads((out / "judgement.json").read_text())
    facts["images"] = {"other": facts["images"]["665946"]}
    (out / "judgement.json").write_text(json.dumps(facts))
    with pytest.raises(SatmapError, match="It judges others, such as oth"):
        judged_inventory(found, out)
    facts["images"]["other"]["label"] = "../labels.geojson"
    (out / "judgement.json").write_text(json.dumps(facts))
    with pytest.raises(SatmapError, match="does not lie in the directory"):
        judged_inventory(found, out)
    with pytest.raises(SatmapError, match="labels judge"):
        judged_inventory(found, tmp_path)


def test_own_labels(tmp_path: Path) -> None:
    task = task_of(parse_recipe(WITHOUT_TILES, "test"))
    write_image(tmp_path / "images/town.tif")
    shapes = noisy_labels(lambda _: SHIFT_M)
    # A file ends in the middle of buildings.
    west = shapely.box(-50, -50, 280, 600)
    halves = [
        [part for shape in shapes if not (part := cut(shape, west)).is_empty]
        for cut in (shapely.intersection, shapely.difference)
    ]
    for name, half in zip(("west", "east"), halves, strict=True):
        write_labels(tmp_path / f"labels/{name}/{name}.geojson", half)
    own = OwnData((str(tmp_path / "images"),), tmp_path / "labels")
    cut = find_labelled([], own, task, tmp_path / "cache")
    out = tmp_path / "judged"
    judgement, _ = judge_labels(
        label_sets_of_own(own, cut), predict, Thresholds(), StretchSettings(), (), out, []
    )
    assert judgement.own is not None
    assert not judgement.images
    assert sorted(path.name for path in (out / "labels").rglob("*.geojson")) == [
        "east.geojson", "west.geojson",
    ]  # fmt: skip
    for tile in judgement.tiles.values():
        assert (tile.right_m, tile.down_m) == pytest.approx(SHIFT_M, abs=0.3)
    judged = find_labelled([], own, task, tmp_path / "cache", out)
    before, after = (
        [ChipLabel.read(chip.label) for chip in inventory.chips if chip.label]
        for inventory in (cut, judged)
    )
    assert sum(part.ignored.sum() for part in after) > sum(part.ignored.sum() for part in before)
    with pytest.raises(SatmapError, match="--shift and --judgement"):
        find_labelled(
            [],
            OwnData(own.sources, own.labels, shift=(1, 1)),
            task,
            tmp_path / "cache",
            out,
        )


def test_networks_judge_what_they_have_not_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SATMAP_CACHE", str(tmp_path / "cache"))
    tier = scene(tmp_path, lambda _: SHIFT_M)
    task = task_with_tiles()
    judge(tier, task, tmp_path)
    context = RunContext(tmp_path / "weights", torch.device("cpu"))
    options = TrainingOptions(tmp_path / "cache", judgement=tmp_path / "judged")
    train([tier], task.recipe, context, options)
    file, *_ = find_weights(context.weights)
    manifest = read_manifest(file.path)
    assert isinstance(manifest, WeightsManifest)
    assert manifest.judgement is not None
    assert manifest.judgement.name == "judgement.json"
    out = tmp_path / "again"
    arguments = ["--weights", str(context.weights), "--output", str(out), "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(["labels", "judge", str(tier), *arguments])
    assert ended.value.code == 0
    judgement = Judgement.model_validate_json((out / "judgement.json").read_bytes())
    networks = {name: tile.networks for name, tile in judgement.tiles.items()}
    # The training has never seen the dropped tile, and has learned from those not listed.
    assert file.held_out
    assert networks == dict.fromkeys(file.held_out, "held out") | {"665946-2-2": "unseen"}
    assert len(judgement.skipped) == 16 - len(networks)
    assert "all networks have learned from it" in capsys.readouterr().err


def test_ignored_ground_of_a_chip_with_its_own_label(tmp_path: Path) -> None:
    task = task_of(parse_recipe(WITHOUT_TILES, "test"))
    write_image(tmp_path / "AOI_2_Vegas_Train/RGB-PanSharpen/RGB-PanSharpen_AOI_2_Vegas_img1.tif")
    written: list[dict[str, bytes]] = []
    folder = tmp_path / "AOI_2_Vegas_Train/geojson/buildings"
    write_labels(folder / "buildings_AOI_2_Vegas_img1.geojson", HOUSES)
    found = task.find_images([tmp_path / "AOI_2_Vegas_Train"])
    for _ in range(2):
        judge_labels(
            label_sets_of_challenge(found, found),
            lambda chip: (np.full((SIDE, SIDE), 3, np.uint8), "unseen"),
            Thresholds(drop=0), StretchSettings(), (), tmp_path / "judged", found.directories,
        )  # fmt: skip
        files = [path for path in (tmp_path / "judged").rglob("*") if path.is_file()]
        written.append({path.name: path.read_bytes() for path in files})
    # The same input gives the same output.
    assert written[0] == written[1]
    (chip,) = judged_inventory(found, tmp_path / "judged").chips
    # Nothing was predicted, so all labels are ignored, where they were.
    image = np.full((SIDE, SIDE, 3), 9, np.uint8)
    target = task.encode(chip, image).arrays["target"]
    assert not len(read_building_labels(chip).outlines)
    middle = HOUSES[20].centroid
    assert target[int(middle.y), int(middle.x)] == IGNORED_BIT
    assert target[0, 0] == 0
    # The fit of confidences leaves out the same ground.
    assert (ignored_pixels(chip, (SIDE, SIDE)) == (target == IGNORED_BIT)).all()
