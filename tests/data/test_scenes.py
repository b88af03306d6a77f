"""Tiles cut from scenes: their grid, labels, pixels without data, the cache and bad scenes."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from building_recipes import BUILDING_RECIPE
from satmap.cli import main
from satmap.data.cache import prepare_chip
from satmap.data.chip import Chip
from satmap.data.chip_label import ChipLabel
from satmap.data.imagery import read_stretched
from satmap.data.inventory import Inventory
from satmap.data.layers import find_layers
from satmap.data.scenes import make_grid
from satmap.data.sources import read_source
from satmap.errors import SatmapError
from satmap.evaluation.verify import Sources, verify_submission
from satmap.io.geojson_reader import LON_LAT, project
from satmap.prediction.run import predict
from satmap.recipes.schema import Recipe, TileSettings, parse_recipe
from satmap.tasks.base import Task, task_of
from satmap.tasks.buildings.targets import BODY_BIT
from satmap.tasks.losses import IGNORED_BIT
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import find_weights
from tiny_trainings import tiny_commands

UTM = "EPSG:32630"
ORIGIN = 809000.0, 618000.0
PIXEL_M = 0.05
WIDTH, HEIGHT = 1200, 900
# Left, top, right and bottom in pixels.
HOUSES = [(x, y, x + 120, y + 80) for x in range(150, 1100, 190) for y in range(40, 800, 150)]
# The scene has no data to the left of this column.
EMPTY_PX = 100
BRIGHT = 220

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def recipe_with(tiles: str, **keys: str) -> Recipe:
    lines = [f"tiles: {tiles}", *(f"{key}: {value}" for key, value in keys.items())]
    return parse_recipe(BUILDING_RECIPE.replace("resnet18", "tiny") + "\n".join(lines), "test")


def picture(houses: Sequence[tuple[int, int, int, int]] = HOUSES) -> NDArray[np.uint8]:
    """Return red, green, blue and alpha of noise with bright houses."""
    image = np.random.default_rng(1).integers(60, 100, (4, HEIGHT, WIDTH)).astype(np.uint8)
    for left, top, right, bottom in houses:
        image[:3, top:bottom, left:right] = BRIGHT
    image[3] = 255
    image[:, :, :EMPTY_PX] = 0
    return image


def write_scene(
    area: Path,
    name: str,
    *,
    image: NDArray[np.uint8] | None = None,
    crs: str = UTM,
    shift_m: tuple[float, float] = (0, 0),
) -> None:
    """Write a scene of the Open Cities layout and its labels."""
    place = Affine.translation(*ORIGIN) @ Affine.scale(PIXEL_M, -PIXEL_M)
    if crs != UTM:
        # A north-up grid over about the same ground.
        corners = project(
            np.array([place @ (0, 0), place @ (WIDTH, HEIGHT)], float), UTM, crs
        ).tolist()
        (left, top), (right, bottom) = corners
        size = (right - left) / WIDTH, (bottom - top) / HEIGHT
        place = Affine.translation(left, top) @ Affine.scale(*size)
    path = area / name / f"{name}.tif"
    path.parent.mkdir(parents=True)
    with rasterio.open(
        path, "w", driver="GTiff", width=WIDTH, height=HEIGHT, count=4, dtype="uint8", crs=crs,
        transform=place, photometric="rgb", alpha="yes", tiled=True, compress="deflate",
    ) as file:  # fmt: skip
        file.write(picture() if image is None else image)
    features = []
    for house in HOUSES:
        ring = shapely.get_coordinates(shapely.box(*house))
        placed = np.array([place @ tuple(corner) for corner in ring.tolist()])
        placed += shift_m
        coordinates = project(placed, crs, LON_LAT).tolist()
        geometry = {"type": "Polygon", "coordinates": [coordinates]}
        features.append({"type": "Feature", "properties": {}, "geometry": geometry})
    label = area / f"{name}-labels" / f"{name}.geojson"
    label.parent.mkdir()
    label.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def cut(recipe: Recipe, tier: Path, cache: Path) -> Inventory:
    task: Task = task_of(recipe)
    return task.find_images([tier], cache=cache)


def read_tile(chip: Chip) -> tuple[NDArray[np.uint8], ChipLabel]:
    assert chip.label is not None
    return read_stretched(chip.image, 2, 98), ChipLabel.read(chip.label)


@pytest.mark.parametrize(
    ("tiles", "crs", "metres"),
    [
        ("{gsd: 0.1, size: 128}", UTM, 0.1),
        ("{gsd: 0.05, size: 256}", UTM, 0.05),
        ("{zoom: 19, size: 1024}", UTM, 0.0746 * math.cos(math.radians(5.58))),
        ("{zoom: 20, size: 256}", UTM, 0.1493 * math.cos(math.radians(5.58))),
        ("{gsd: 0.1, size: 128}", LON_LAT, 0.1),
        ("{gsd: 0.1, size: 128}", "EPSG:3857", 0.1),
    ],
)
def test_labels_lie_on_what_they_show(tiles: str, crs: str, metres: float, tmp_path: Path) -> None:
    write_scene(tmp_path / "train_tier_1/acc", "665946", crs=crs)
    recipe = recipe_with(tiles)
    task = task_of(recipe)
    chips = cut(recipe, tmp_path, tmp_path / "cache").chips
    assert recipe.tiles is not None
    size = recipe.tiles.size
    shared, either, houses_m2 = 0, 0, 0.0
    for chip in chips:
        assert (chip.image.width, chip.image.height) == (size, size)
        assert chip.image.gsd_m() == pytest.approx(metres, rel=0.01)
        assert (chip.aoi, chip.scene, chip.site) == ("acc", "665946", chip.image_id)
        pixels, label = read_tile(chip)
        assert (label.ignored == ~pixels.any(axis=2)).all()
        cached = prepare_chip(chip, tmp_path / "prepared", recipe.stretch, task)
        image, target = cached.read()
        assert (image == pixels).all()
        assert ((target[..., 0] == IGNORED_BIT) == label.ignored).all()
        body, bright = (target[..., 0] & BODY_BIT) > 0, image.min(axis=2) > 200
        shared += int((body & bright).sum())
        either += int((body | bright).sum())
        houses_m2 += float(bright.sum()) * metres**2
    assert shared / either > 0.93
    assert houses_m2 == pytest.approx(len(HOUSES) * 120 * 80 * PIXEL_M**2, rel=0.03)


def test_tiles_at_a_zoom_are_map_tiles(tmp_path: Path) -> None:
    write_scene(tmp_path / "train_tier_1/acc", "665946")
    chips = cut(recipe_with("{zoom: 20, size: 256}"), tmp_path, tmp_path / "cache").chips
    world = 2 * math.pi * 6378137
    for chip in chips:
        scene, zoom, column, row = chip.image_id.split("-")
        assert (scene, zoom) == ("665946", "20")
        with rasterio.open(chip.image.path) as file:
            assert file.crs == CRS.from_epsg(3857)
            left, bottom, right, top = file.bounds
        assert (left + world / 2) / world * 2**20 == pytest.approx(int(column), abs=1e-6)
        assert (world / 2 - top) / world * 2**20 == pytest.approx(int(row), abs=1e-6)
        assert right - left == pytest.approx(world / 2**20)
        assert top - bottom == pytest.approx(world / 2**20)
    # Every tile that touches the scene: 60 m x 45 m on tiles of 38 m.
    assert 4 <= len(chips) <= 9


def test_the_grid_covers_a_scene_of_any_size_once(tmp_path: Path) -> None:
    """37,000 pixels a side, of which none is read."""
    path = tmp_path / "large.tif"
    place = Affine.translation(*ORIGIN) @ Affine.scale(PIXEL_M, -PIXEL_M)
    with rasterio.open(
        path, "w", driver="GTiff", width=37113, height=34306, count=3, dtype="uint8", crs=UTM,
        transform=place, tiled=True, compress="deflate", sparse_ok=True,
    ):  # fmt: skip
        pass
    (layer,), _ = find_layers([read_source(str(path))], 3)
    for settings in (TileSettings(gsd=0.1), TileSettings(zoom=19)):
        grid = make_grid(layer, settings)
        boxes = [shapely.box(*box.bounds) for box in grid.tiles.values()]
        assert shapely.union_all(boxes).area == pytest.approx(len(boxes) * 1024**2)
        assert {(box.width, box.height) for box in grid.tiles.values()} == {(1024, 1024)}
        assert grid.mosaic.metres_per_pixel is not None
        extent_m = math.sqrt(len(boxes)) * 1024 * grid.mosaic.metres_per_pixel[0]
        assert extent_m == pytest.approx(1786, rel=0.07)
    with pytest.raises(SatmapError, match="larger pixels"):
        make_grid(layer, TileSettings(gsd=0.01, size=64))


def test_ground_without_data_may_be_trained_as_empty(tmp_path: Path) -> None:
    write_scene(tmp_path / "train_tier_1/acc", "665946")
    recipe = recipe_with("{gsd: 0.1, size: 128, nodata: black}")
    inventory = cut(recipe, tmp_path, tmp_path / "cache")
    first = next(chip for chip in inventory.chips if chip.image_id == "665946-0-0")
    pixels, label = read_tile(first)
    assert not label.ignored.any()
    assert not pixels[:, : EMPTY_PX // 2 - 1].any()
    cached = prepare_chip(first, tmp_path / "prepared", recipe.stretch, task_of(recipe))
    _, target = cached.read()
    assert not target[:, : EMPTY_PX // 2 - 1, 0].any()


def test_black_parts_that_count_as_data_are_ignored(tmp_path: Path) -> None:
    image = picture()
    image[:3, :200, 900:] = 0
    # A black roof in the middle is none.
    left, top, right, bottom = HOUSES[8]
    image[:3, top:bottom, left:right] = 0
    write_scene(tmp_path / "train_tier_1/acc", "665946", image=image)
    chips = cut(recipe_with("{gsd: 0.1, size: 1024}"), tmp_path, tmp_path / "cache").chips
    ((_, label),) = map(read_tile, chips)
    assert label.ignored[:100, 452:600].all()
    assert not label.ignored[top // 2 + 2 : bottom // 2 - 2, left // 2 : right // 2].any()
    ignored = label.ignored[: HEIGHT // 2, : WIDTH // 2].mean()
    assert ignored == pytest.approx(50 / 600 + 150 / 600 * 100 / 450, abs=0.01)


def test_bad_scenes_do_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    area = tmp_path / "train_tier_1/acc"
    write_scene(area, "665946")
    write_scene(area, "aaaaaa", image=np.zeros((4, HEIGHT, WIDTH), np.uint8))
    write_scene(area, "bbbbbb", shift_m=(5000, 0))
    write_scene(area, "cccccc")
    (area / "cccccc-labels/cccccc.geojson").write_text("{")
    write_scene(area, "dddddd")
    path = area / "dddddd/dddddd.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(BUILDING_RECIPE + "tiles: {gsd: 0.1, size: 128}\nfolds_by: tile\n")
    arguments = ["inventory", str(tmp_path), "--recipe", str(recipe)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--cache", str(tmp_path / "cache")])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert "aaaaaa.tif: no tile shows ground" in output
    assert f"none of its {len(HOUSES)} buildings lies on bbbbbb.tif" in output
    assert "cccccc.geojson: not a GeoJSON feature collection" in output
    assert "unusable: " + str(path) in output
    assert "acc 665946: 20 tiles" in output
    assert "fold 0: " in output


def test_no_usable_scene(tmp_path: Path) -> None:
    empty = np.zeros((4, HEIGHT, WIDTH), np.uint8)
    write_scene(tmp_path / "train_tier_1/acc", "aaaaaa", image=empty)
    with pytest.raises(SatmapError, match=r"no tile can be cut: .*aaaaaa.tif: no tile shows"):
        cut(recipe_with("{gsd: 0.1}"), tmp_path, tmp_path / "cache")


def test_only_changed_scenes_are_cut_again(tmp_path: Path) -> None:
    area = tmp_path / "train_tier_1/acc"
    for name in ("665946", "a42435"):
        write_scene(area, name)
    recipe, cache = recipe_with("{gsd: 0.1, size: 512}"), tmp_path / "cache"

    def written() -> dict[str, int]:
        chips = cut(recipe, tmp_path, cache).chips
        return {chip.image_id: chip.image.path.stat().st_mtime_ns for chip in chips}

    first = written()
    assert written() == first
    label = area / "a42435-labels/a42435.geojson"
    label.write_text(label.read_text() + " ")
    second = written()
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {name for name in first if name.startswith("a42435")}


@pytest.mark.parametrize("tiles", ["{}", "{gsd: 0.1, zoom: 19}", "{zoom: 3}", "{gsd: 0}"])
def test_settings_that_make_no_sense(tiles: str) -> None:
    with pytest.raises(SatmapError, match="tiles"):
        recipe_with(tiles)


def test_training_on_tiles_holds_out_whole_scenes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SATMAP_CACHE", str(tmp_path / "default cache"))
    for area, name in (("acc", "665946"), ("dar", "a42435"), ("dar", "ca041a")):
        write_scene(tmp_path / "train_tier_1" / area, name)
    recipe = recipe_with("{gsd: 0.1, size: 256}", folds_by="area", sampling="equal_scenes")
    context = RunContext(tmp_path / "weights", torch.device("cpu"))
    train([tmp_path / "train_tier_1"], recipe, context, TrainingOptions(tmp_path / "cache"))
    assert "6 chips, validated on 12" in capfd.readouterr().out
    (held_out,) = {file.held_out for file in find_weights(context.weights)}
    assert held_out is not None
    assert {name.partition("-")[0] for name in held_out} == {"a42435", "ca041a"}
    # The held-out tiles are predicted, not their scenes.
    scenes = [tmp_path / "train_tier_1"]
    device = torch.device("cpu")
    done = predict(
        scenes, tmp_path / "out.csv", context.weights, device, out_of_fold=True,
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert not done.faults
    assert set(done.images) == held_out
    # For the process that verifies.
    monkeypatch.setenv("PYTHONPATH", tiny_commands(tmp_path / "startup")["PYTHONPATH"])
    sources = Sources(device="cpu", workers=0)
    assert verify_submission(tmp_path / "out.csv", sources).identical
    # Another scene has other tiles.
    for name in ("ca041a", "ca041a-labels"):
        shutil.rmtree(tmp_path / "train_tier_1/dar" / name)
    write_scene(tmp_path / "train_tier_1/dar", "ca041a", image=picture(HOUSES[:3]))
    (fault,) = verify_submission(tmp_path / "out.csv", sources).faults
    assert fault.startswith("6 images altered: ca041a-")
    assert not (tmp_path / "default cache").exists()


def test_scenes_with_labels_are_no_unlabelled_images(tmp_path: Path) -> None:
    """A scene whose labelled tiles are trained on is left out of the unlabelled images."""
    for name in ("665946", "a42435"):
        write_scene(tmp_path / "train_tier_1/acc", name)
    (tmp_path / "more").mkdir()
    shutil.copy(tmp_path / "train_tier_1/acc/a42435/a42435.tif", tmp_path / "more/copy.tif")
    recipe = recipe_with("{gsd: 0.1, size: 256}", folds_by="scene", rounds="[{share: 0.5}]")
    places = tmp_path / "train_tier_1", tmp_path / "more"
    context = RunContext(tmp_path / "weights", torch.device("cpu"))
    options = TrainingOptions(tmp_path / "cache", unlabelled=places)
    with pytest.raises(SatmapError, match="all images there are among the labelled ones"):
        train(places[:1], recipe, context, options)
