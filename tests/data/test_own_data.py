"""Training data from a user's own images and labels."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from building_recipes import BUILDING_RECIPE
from http_servers import http_server
from repository import SHARED
from satmap.cli import main
from satmap.data import layers
from satmap.data.cache import prepare_chip
from satmap.data.chip_label import ChipLabel
from satmap.data.folds import assign_folds
from satmap.data.hold_out import held_out_sites
from satmap.data.inventory import Inventory
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.data.own_labels import read_own_shapes, width_m
from satmap.data.sources import Source
from satmap.errors import SatmapError
from satmap.evaluation.check import check_files
from satmap.io.geojson_reader import LON_LAT, project
from satmap.networks.ensemble import EnsembleMember
from satmap.networks.unet import build_network
from satmap.prediction.images import prepare_image
from satmap.prediction.run import predict
from satmap.recipes.schema import default_recipe, load_recipe, parse_recipe
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv, write_buildings_csv
from satmap.tasks.base import Task, task_of
from satmap.tasks.confidence_fit import fit_to_prediction
from satmap.tasks.losses import IGNORED_BIT
from satmap.tasks.roads.targets import CENTRE_BIT, CLASS_BITS
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.vectors.levels import road_level
from satmap.weights.members import find_weights
from synthetic_blocks import maps_of_labels
from tiny_trainings import TWO_STAGE_MEMBER, road_recipe

UTM = "EPSG:32630"
ORIGIN = 810000.0, 618000.0
PIXEL_M = 0.5
SIDE = 512

read_pixels = layers._read

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def task(name: str) -> Task:
    recipe = road_recipe(TWO_STAGE_MEMBER) if name == "roads" else BUILDING_RECIPE
    return task_of(parse_recipe(recipe, "test"))


def pixels_to_utm(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array(ORIGIN) + xy * (PIXEL_M, -PIXEL_M)


def picture(
    houses: Sequence[tuple[int, int, int, int]] = (), side: int = SIDE
) -> NDArray[np.uint8]:
    """Noise with brighter houses, given as left, top, right and bottom."""
    image = np.random.default_rng(1).integers(60, 100, (3, side, side)).astype(np.uint8)
    for left, top, right, bottom in houses:
        image[:, top:bottom, left:right] = 220
    return image


PLACE = Affine(PIXEL_M, 0, ORIGIN[0], 0, -PIXEL_M, ORIGIN[1])


def write_image(
    path: Path, image: NDArray[np.uint8], *, crs: str | None = UTM, transform: Affine = PLACE
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile: dict[str, Any] = {"driver": "PNG" if path.suffix == ".png" else "GTiff"}
    if crs and path.suffix != ".png":
        profile |= {"crs": crs, "transform": transform}
    count, height, width = image.shape
    profile |= {"count": count, "height": height, "width": width, "dtype": image.dtype}
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)


def write_shapes(path: Path, shapes: Sequence[shapely.Geometry], **properties: object) -> Path:
    """Write shapes, in pixels of the image, as GeoJSON in longitude and latitude."""

    def placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return project(pixels_to_utm(xy), UTM, LON_LAT)

    return write_lon_lat(path, [shapely.transform(shape, placed) for shape in shapes], **properties)


def write_lon_lat(path: Path, shapes: Sequence[shapely.Geometry], **properties: object) -> Path:
    features = [
        {
            "type": "Feature", "properties": properties,
            "geometry": json.loads(shapely.to_geojson(shape)),
        }
        for shape in shapes
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def grid_of_houses(count: int = 6) -> list[tuple[int, int, int, int]]:
    step, random = SIDE // count, np.random.default_rng(5)
    return [
        (x * step + dx, y * step + dy, x * step + dx + 30, y * step + dy + 22)
        for x in range(count)
        for y in range(count)
        for dx, dy in [random.integers(5, step - 35, 2).tolist()]
    ]


def find(data: OwnData, name: str, cache: Path) -> Inventory:
    return find_own_chips(data, task(name), 3, cache)


def label_of(inventory: Inventory, index: int = 0) -> ChipLabel:
    path = inventory.chips[index].label
    assert path is not None
    return ChipLabel.read(path)


def test_vector_labels_on_a_large_image(tmp_path: Path) -> None:
    image = picture(side=1536)
    image[:, :, :100] = 0
    write_image(tmp_path / "my town 2023.tif", image)
    road = shapely.LineString([(50, 300), (1500, 300), (1500, 1200)])
    labels = write_shapes(
        tmp_path / "osm.geojson", [road], highway="primary", width="9 m", bridge="yes"
    )
    area = write_shapes(tmp_path / "area.geojson", [shapely.box(-50, -50, 1600, 800)])
    data = OwnData((str(tmp_path / "my town 2023.tif"),), labels, area)
    inventory = find(data, "roads", tmp_path / "cache")
    # The bottom row lies outside the area.
    assert [chip.image_id for chip in inventory.chips] == [f"my_town_2023_{n}" for n in range(6)]
    assert {(chip.image.width, chip.image.height) for chip in inventory.chips} == {(512, 512)}
    first = label_of(inventory)
    assert first.speeds_mph == (45.0,)
    assert first.widths_m == (9.0,)
    assert first.levels == (1.0,)
    assert first.ignored[:, :100].all()
    assert not first.ignored[:, 100:].any()
    # The line ends where the image begins, and continues beyond the chip.
    ends = shapely.bounds(first.shapes[0])
    assert ends == pytest.approx([100, 300, 576, 300], abs=0.1)
    assert label_of(inventory, 4).ignored[800 - 512 + 1 :].all()
    assert "no data" in inventory.summary()
    assert "outside --area" in inventory.summary()
    # The same call finds the chips again.
    assert inventory.chips[0].label is not None
    written = inventory.chips[0].label.stat().st_mtime_ns
    again = find(data, "roads", tmp_path / "cache")
    assert again.chips == inventory.chips
    assert again.chips[0].label is not None
    assert again.chips[0].label.stat().st_mtime_ns == written
    # Ignored pixels reach the target, and the chip is not stretched again.
    roads = task("roads")
    cached = prepare_chip(inventory.chips[0], tmp_path / "prepared", roads.recipe.stretch, roads)
    pixels, target = cached.read()
    with rasterio.open(inventory.chips[0].image.path) as file:
        assert np.array_equal(pixels, file.read().transpose(1, 2, 0))
    assert (target[:, :100] == IGNORED_BIT).all()
    assert not (target[:, 100:] & IGNORED_BIT).any()
    # The road is 9 m or 18 pixels wide.
    assert 17 <= ((target[:, 300] & CLASS_BITS) > 0).sum() <= 19


def test_road_masks_keep_their_width_and_voids_are_ignored(tmp_path: Path) -> None:
    image = picture(side=600)
    image[:, :, 400:] = 255
    # A white roof in the middle is no void.
    image[:, 100:180, 100:180] = 255
    write_image(tmp_path / "images/a.png", image)
    mask = np.zeros((1, 600, 600), np.uint8)
    mask[:, 300:314] = 1
    write_image(tmp_path / "masks/a.png", mask)
    data = OwnData((str(tmp_path),), tmp_path / "masks", metres_per_pixel=0.5)
    inventory = find(data, "roads", tmp_path / "cache")
    (chip,) = inventory.chips
    assert (chip.image.width, chip.image.height) == (600, 600)
    label = label_of(inventory)
    assert label.ignored[:, 405:].all()
    assert not label.ignored[:, :395].any()
    roads = task("roads")
    cached = prepare_chip(chip, tmp_path / "prepared", roads.recipe.stretch, roads)
    assert cached.metres_per_pixel == (0.5, 0.5)
    _, target = cached.read()
    assert np.flatnonzero(target[:, 200] & CLASS_BITS).tolist() == list(range(300, 314))
    assert 305 <= np.flatnonzero(target[:, 200] & CENTRE_BIT).mean() <= 308
    (road,) = cached.payload
    assert road.line[:, 1] == pytest.approx(307, abs=1)
    assert road.line[:, 0].max() == pytest.approx(400, abs=5)


@pytest.mark.parametrize(
    "name", ["small-roads", "small-buildings", "small-cascade", "small-open-cities"]
)
def test_stated_pixel_size_reaches_training_and_prediction(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png", picture())
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    mask[:, 200:214] = 255
    write_image(tmp_path / "masks/a.png", mask)
    data = OwnData((str(tmp_path / "images"),), tmp_path / "masks", metres_per_pixel=0.9)
    of = task_of(load_recipe(name))
    inventory = find_own_chips(data, of, 3, tmp_path / "cache")
    assert "images without georeference: 1, taken as 0.9 m per pixel" in inventory.notes
    (chip,) = inventory.chips
    cached = prepare_chip(chip, tmp_path / "prepared", of.recipe.stretch, of)
    assert cached.metres_per_pixel == (0.9, 0.9)
    # From this the weights get the pixel size of the training.
    assert cached.gsd_m == pytest.approx(0.9)
    network = build_network("resnet18", 3, ("a",), (8,) * 4)
    image = prepare_image(chip, [EnsembleMember(network)], of)
    assert image.metres_per_pixel == (0.9, 0.9)
    assert not image.notes


@pytest.mark.parametrize("from_mask", [True, False])
def test_white_roofs_are_no_voids(from_mask: bool, tmp_path: Path) -> None:
    # One roof is 2 % of the image and has no label, the other is 8 % and has one.
    roofs = [(0, 0, 80, 70), (300, 362, 440, SIDE)]
    image = picture()
    for left, top, right, bottom in roofs:
        image[:, top:bottom, left:right] = 255
    left, top, right, bottom = roofs[1]
    write_image(tmp_path / "images/a.tif", image)
    if from_mask:
        mask = np.zeros((1, SIDE, SIDE), np.uint8)
        mask[:, top + 5 : bottom, left + 5 : right - 5] = 1
        write_image(tmp_path / "labels/a.tif", mask)
    else:
        shape = shapely.box(left + 5, top + 5, right - 5, bottom)
        write_shapes(tmp_path / "labels/a.geojson", [shape])
    data = OwnData((str(tmp_path / "images"),), tmp_path / "labels")
    label = label_of(find(data, "buildings", tmp_path / "cache"))
    assert not label.ignored.any()
    assert shapely.area(label.shapes) == pytest.approx(130 * 145, rel=0.01)


def test_building_masks(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png", picture())
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    mask[0, 50:90, 60:100] = mask[0, 200:240, 60:160] = 255
    write_image(tmp_path / "masks/a.png", mask)
    write_image(tmp_path / "images/b.png", picture())
    data = OwnData((str(tmp_path / "images"),), tmp_path / "masks")
    inventory = find(data, "buildings", tmp_path / "cache")
    assert sorted(shapely.area(label_of(inventory).shapes).tolist()) == [1600.0, 4000.0]
    # An image without mask counts as one without label.
    with pytest.raises(SatmapError, match=r"1 of 2 images have no label: b\.png"):
        inventory.require_labels()
    # The folder of the chips is a directory of images: of a submission that is checked ...
    rows: dict[str, list[BuildingRow]] = {chip.image_id: [] for chip in inventory.chips}
    write_buildings_csv(tmp_path / "out.csv", rows)
    folder = folder_of(inventory)
    assert check_files(tmp_path / "out.csv", [folder]) == []
    rows.popitem()
    write_buildings_csv(tmp_path / "out.csv", rows)
    assert "missing" in str(check_files(tmp_path / "out.csv", [folder]))
    # ... and of the raster task.
    masks = task_of(default_recipe("raster"))
    chips = find_own_chips(data, masks, 3, tmp_path / "cache")
    assert masks.find_images([folder_of(chips)]).chips == chips.chips


def test_offset_between_labels_and_image(tmp_path: Path) -> None:
    houses = grid_of_houses()
    write_image(tmp_path / "a.tif", np.tile(picture(houses), (1, 2, 4)))
    shapes = [
        shapely.box(left + 512 * x, top + 512 * y, right + 512 * x, bottom + 512 * y)
        for left, top, right, bottom in houses
        for x in range(4)
        for y in range(2)
    ]
    moved = [shapely.transform(shape, lambda xy: xy + np.array([4, 2])) for shape in shapes]
    labels = write_shapes(tmp_path / "labels.geojson", moved)
    data = OwnData((str(tmp_path / "a.tif"),), labels)
    text = find(data, "buildings", tmp_path / "cache").summary()
    assert "2.0 m east and 1.0 m south" in text
    assert "--shift=-2.0,1.0" in text
    data = replace(data, shift=(-2.0, 1.0))
    inventory = find(data, "buildings", tmp_path / "cache")
    assert "the labels fit the images" in inventory.summary()
    first = shapely.union_all(label_of(inventory).shapes)
    truth = shapely.union_all([s for s in shapes if s.within(shapely.box(0, 0, 512, 512))])
    assert first.symmetric_difference(truth).area < 0.02 * truth.area


def folder_of(inventory: Inventory) -> Path:
    return inventory.chips[0].image.path.parent


def test_changed_files_are_cut_again(tmp_path: Path) -> None:
    write_image(tmp_path / "in/a.png", picture())
    world = tmp_path / "in/a.pgw"
    world.write_text(f"0.5\n0\n0\n-0.5\n{ORIGIN[0] + 0.25}\n{ORIGIN[1] - 0.25}\n")
    write_image(tmp_path / "in/part.tif", picture())
    profile = tmp_path / "in/b.vrt"
    profile.write_text(
        f"<VRTDataset rasterXSize='{SIDE}' rasterYSize='{SIDE}'>"
        f"<SRS>{UTM}</SRS><GeoTransform>{ORIGIN[0]},0.5,0,{ORIGIN[1]},0,-0.5</GeoTransform>"
        + "".join(
            f"<VRTRasterBand dataType='Byte' band='{band}'><SimpleSource>"
            "<SourceFilename relativeToVRT='1'>part.tif</SourceFilename>"
            f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    labels = write_shapes(tmp_path / "b.geojson", [shapely.box(100, 100, 140, 130)])
    images = tuple(str(tmp_path / "in" / name) for name in ("a.png", "b.vrt"))
    data = OwnData(images, labels, source_crs=UTM)
    folders = [folder_of(find(data, "buildings", tmp_path / "cache"))]
    # The size and time of the images stay.
    world.write_text(world.read_text().replace("0.5\n0\n", "0.6\n0\n", 1))
    folders.append(folder_of(find(data, "buildings", tmp_path / "cache")))
    write_image(tmp_path / "in/part.tif", picture([(0, 0, 30, 30)]))
    folders.append(folder_of(find(data, "buildings", tmp_path / "cache")))
    labels.with_suffix(".prj").write_text("anything")
    folders.append(folder_of(find(data, "buildings", tmp_path / "cache")))
    folders.append(folder_of(find(data, "buildings", tmp_path / "cache")))
    assert len(set(folders)) == 4
    assert folders[3] == folders[4]


def test_a_reference_system_without_transform_is_no_position(tmp_path: Path) -> None:
    data = own_house(tmp_path)
    write_image(tmp_path / "b.tif", picture(), transform=Affine.identity())
    data = replace(data, sources=(*data.sources, str(tmp_path / "b.tif")))
    inventory = find(data, "buildings", tmp_path / "cache")
    assert len(inventory.chips) == 1
    assert list(inventory.faults) == [str(tmp_path / "b.tif")]
    assert "no georeference" in inventory.faults[str(tmp_path / "b.tif")]
    # An unusable image is no chip that was left out.
    assert "left out" not in inventory.summary()
    # Masks need no position.
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    data = masked(tmp_path / "masked", mask, transform=Affine.identity())
    assert len(find(data, "buildings", tmp_path / "cache").chips) == 1
    write_image(tmp_path / "masked/images/a.tif", picture(), transform=Affine.identity())
    assert len(find(data, "buildings", tmp_path / "cache").chips) == 1


def test_place_whose_scale_varies(tmp_path: Path) -> None:
    crs = "EPSG:3857"
    # Pixels of about 80 m north of the 66th parallel; the second raster has a grid of its own.
    corner = project(np.array([[10.0, 66.0]]), LON_LAT, crs)[0]
    houses = []
    for number, name in enumerate("ab"):
        place = Affine(
            200, 0, corner[0] + 100 * number, 0, -200, corner[1] + 300_000 * (number + 1)
        )
        write_image(tmp_path / f"{name}.tif", picture(side=1500)[:, :, :64], crs=crs,
                    transform=place)  # fmt: skip
        x, y = place @ (20, 700)
        ring = project(np.array(shapely.box(x, y, x + 6000, y + 6000).exterior.coords), crs,
                       LON_LAT)  # fmt: skip
        houses.append(shapely.Polygon(ring))
    labels = write_lon_lat(tmp_path / "labels.geojson", houses)
    data = OwnData((str(tmp_path / "a.tif"), str(tmp_path / "b.tif")), labels)
    inventory = find(data, "buildings", tmp_path / "cache")
    sizes = {chip.image.georeference.metres_per_pixel for chip in inventory.chips}  # type: ignore[union-attr]
    assert max(sizes) > (1.02 * min(sizes)[0], 0)
    assert {chip.aoi for chip in inventory.chips} == {"place1"}
    objects = [len(label_of(inventory, index).shapes) for index in range(len(inventory.chips))]
    assert sum(objects) >= 2
    assert "hold no buildings" not in inventory.summary()


def test_a_network_failure_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = own_house(tmp_path)
    # The other image lies beside it and differs.
    place = PLACE @ Affine.translation(SIDE, 0)
    image = np.random.default_rng(2).integers(1, 255, (3, SIDE, SIDE)).astype(np.uint8)
    write_image(tmp_path / "b.tif", image, transform=place)
    content = (tmp_path / "b.tif").read_bytes()
    with http_server() as server:
        server.files["/b.tif"] = content
        address = f"{server.url}/b.tif"
        data = replace(data, sources=(*data.sources, address))
        with monkeypatch.context() as patched:
            # The header can be read, but not the pixels.
            patched.setattr(layers, "_read", unreadable_on_servers)
            partial = find(data, "buildings", tmp_path / "cache")
        assert len(partial.chips) == 1
        assert list(partial.faults) == [address]
        complete = find(data, "buildings", tmp_path / "cache")
        assert len(complete.chips) == 2
        assert not complete.faults
        assert folder_of(partial) == folder_of(complete)
        with monkeypatch.context() as patched:
            patched.setattr(layers, "_read", unreadable_on_servers)
            assert find(data, "buildings", tmp_path / "cache").chips == complete.chips


def unreadable_on_servers(source: Source, *rest: Any) -> Any:
    if source.is_remote:
        raise SatmapError(f"{source.name}: does not answer.")
    return read_pixels(source, *rest)


def test_parts_of_buildings_in_several_files_become_one(tmp_path: Path) -> None:
    left, right = shapely.box(100, 100, 140, 130), shapely.box(140, 100, 160, 130)
    neighbour = shapely.box(100, 130, 140, 160)
    files = [
        write_shapes(tmp_path / "fine-left.geojson", [left]),
        write_shapes(tmp_path / "fine-right.geojson", [right]),
        write_shapes(tmp_path / "left.geojson", [left, neighbour]),
        write_shapes(tmp_path / "right.geojson", [right]),
        write_shapes(tmp_path / "empty.geojson", []),
    ]
    found = read_own_shapes(files, "polygons")
    assert len(found.shapes) == 2
    assert found.repeated == 3


@pytest.mark.parametrize(
    ("text", "metres"), [("7.5", 7.5), ("12 m", 12), ("20'", 6.096), ("wide", None), (None, None)]
)
def test_widths(text: str | None, metres: float | None) -> None:
    assert width_m(text) == pytest.approx(np.nan if metres is None else metres, nan_ok=True)


@pytest.mark.parametrize(
    ("properties", "level"),
    [
        ({"layer": "2", "bridge": "yes"}, 2), ({"layer": -1.0}, -1), ({"bridge": "viaduct"}, 1),
        ({"bridge": "no", "tunnel": "culvert"}, -1), ({"tunnel": "building_passage"}, 0),
        ({"layer": "ground", "bridge": None}, 0),
    ],
)  # fmt: skip
def test_levels_of_bridges_and_tunnels(properties: dict[str, object], level: int) -> None:
    assert road_level(properties) == level


def test_one_large_image_without_position_is_held_out_in_blocks(tmp_path: Path) -> None:
    image = np.random.default_rng(3).integers(1, 255, (3, 1500, 1500)).astype(np.uint8)
    write_image(tmp_path / "images/a.png", image)
    mask = np.zeros((1, 1500, 1500), np.uint8)
    mask[:, 300:314] = 1
    write_image(tmp_path / "masks/a.png", mask)
    inventory = find(OwnData((str(tmp_path / "images"),), tmp_path / "masks"), "roads", tmp_path)
    assert len(inventory.chips) == len({chip.site for chip in inventory.chips}) == 9
    folds = assign_folds({chip.site: chip.aoi for chip in inventory.chips}.items(), 4, 0)
    assert set(folds.values()) == set(range(4))
    text = inventory.summary()
    assert "validation holds out blocks of 500 pixels: 9 blocks" in text
    assert "images without georeference: 1, taken as" in text
    assert "9 chips, 6 of them without roads; the others show 3 roads" in text


def test_blocks_are_straight_across_half_degrees(tmp_path: Path) -> None:
    # Rows on both sides of 51.5 degrees north, at the central meridian of the projection.
    crs = "EPSG:32630"
    x, y = project(np.array([[-3.0, 51.5]]), LON_LAT, crs)[0]
    records = [
        {
            "id": f"{row} {column}", "place": "a", "scene": "a", "width": 512, "height": 512,
            "georeference": [crs, (0.5, 0, x + 256 * column, 0, -0.5, y - 256 * row), (0.5, 0.5)],
        }
        for row in range(-32, 32)
        for column in range(8)
    ]  # fmt: skip
    sites, notes = held_out_sites(records, 4)
    assert notes == ["validation holds out blocks of 1024 m: 32 blocks"]
    assert len(set(sites.values())) == 32


def own_house(directory: Path, shift: float = 0.0) -> OwnData:
    """Write an image and the label of a house, ``shift`` pixels beside it."""
    write_image(directory / "a.tif", picture([(100, 100, 140, 130)]))
    shape = shapely.box(100 + shift, 100, 140 + shift, 130)
    return OwnData((str(directory / "a.tif"),), write_shapes(directory / "b.geojson", [shape]))


def masked(directory: Path, mask: NDArray[np.uint8], name: str = "a.tif", **place: Any) -> OwnData:
    write_image(directory / "images/a.tif", picture())
    write_image(directory / "masks" / name, mask, **place)
    return OwnData((str(directory / "images"),), directory / "masks")


def no_overlap(directory: Path) -> OwnData:
    return own_house(directory, 1e5)


def no_georeference(directory: Path) -> OwnData:
    data = own_house(directory)
    write_image(directory / "a.png", picture())
    return replace(data, sources=(str(directory / "a.png"),))


def no_labels(directory: Path) -> OwnData:
    return replace(own_house(directory), labels=write_shapes(directory / "none.geojson", []))


def no_label_files(directory: Path) -> OwnData:
    (directory / "empty").mkdir()
    return replace(own_house(directory), labels=directory / "empty")


def area_elsewhere(directory: Path) -> OwnData:
    area = write_shapes(directory / "area.geojson", [shapely.box(1e5, 0, 2e5, 100)])
    return replace(own_house(directory), area=area)


def other_size(directory: Path) -> OwnData:
    return masked(directory, np.zeros((1, 500, SIDE), np.uint8))


def other_system(directory: Path) -> OwnData:
    return masked(directory, np.zeros((1, SIDE, SIDE), np.uint8), crs="EPSG:32631")


def other_name(directory: Path) -> OwnData:
    return masked(directory, np.zeros((1, SIDE, SIDE), np.uint8), "b.tif")


def classes(directory: Path) -> OwnData:
    return masked(directory, np.full((1, SIDE, SIDE), 7, np.uint8))


def only_masks(directory: Path) -> OwnData:
    return replace(masked(directory, np.zeros((1, SIDE, SIDE), np.uint8)), labels=directory)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_overlap, "none of the 1 labelled buildings lies on an image. The images lie between"),
        (no_georeference, "the labels have a georeference, but none of the 1 images has one"),
        (no_labels, "holds no buildings"),
        (no_label_files, "holds no labels"),
        (area_elsewhere, "none of its polygons lies on an image"),
        (other_size, "a mask of 512 x 500 pixels, but the image a.tif has 512 x 512"),
        (other_system, "another reference system than its image"),
        (other_name, "none of the 1 masks has the name of an image"),
        (classes, "holds 0 and 1, or 0 and 255, but this one holds 7"),
        (only_masks, "all images lie in"),
    ],
)
def test_input_that_does_not_fit(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SatmapError) as raised:
        find(make(tmp_path), "buildings", tmp_path / "cache")
    assert message in str(raised.value)


def test_options_for_own_images_need_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["inventory", str(tmp_path), "--gsd", "0.5"])
    assert "--gsd is for your own images: give --labels, too" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["buildings", "raster", "instances"])
def test_inventory_without_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "images/a.tif", picture())
    write_shapes(tmp_path / "houses.geojson", [shapely.box(50, 60, 90, 100)])
    with pytest.raises(SystemExit) as ended:
        main(["inventory", str(tmp_path / "images"), "--labels", str(tmp_path / "houses.geojson"),
              "--task", name, "--cache", str(tmp_path / "cache")])  # fmt: skip
    assert not ended.value.code
    assert "labels: 1 building in 1 file" in capsys.readouterr().out


def test_training_with_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    houses = grid_of_houses()
    for number in range(4):
        # Two images are copies of each other.
        image = picture(houses)
        image[:, :, (number // 2 + 1) * 60 :] //= 1 + number // 2
        write_image(tmp_path / f"images/{number}.png", image)
        mask = np.zeros((1, SIDE, SIDE), np.uint8)
        for left, top, right, bottom in houses:
            mask[0, top:bottom, left:right] = 255
        write_image(tmp_path / f"masks/{number}.png", mask)
    recipe = parse_recipe(BUILDING_RECIPE.replace("resnet18", "tiny"), "test")
    own = OwnData((str(tmp_path / "images"),), tmp_path / "masks")
    context = RunContext(tmp_path / "weights", torch.device("cpu"))
    options = TrainingOptions(cache=tmp_path / "cache", own=own)
    assert train([], recipe, context, options) == {}
    printed = capsys.readouterr().out
    assert "2 chips, validated on 2" in printed
    assert "2 groups of near-duplicates" in printed
    held_out = {file.held_out for file in find_weights(context.weights)}
    assert held_out <= {frozenset("01"), frozenset("23")}
    train([], recipe, context, options)
    assert "already trained" in capsys.readouterr().out
    # The folder of the chips is a directory of training images.
    chips = find_own_chips(own, task_of(recipe), 3, tmp_path / "cache")
    folder = folder_of(chips)
    out, maps = tmp_path / "fold.csv", tmp_path / "maps"
    done = predict([folder], out, context.weights, "cpu", out_of_fold=True, maps=maps)
    assert {frozenset(done.images)} == held_out
    # Models of confidence for these chips, with maps as of a network that has learned for longer.
    for name in done.images:
        labels = np.zeros((SIDE, SIDE), np.int32)
        for index, (left, top, right, bottom) in enumerate(houses, 1):
            labels[top:bottom, left:right] = index
        drawn = maps_of_labels(labels, blur=1.5, noise=0.2, seed=int(name)).values[:2]
        with rasterio.open(maps / f"{name}.tif", "r+") as raster:
            raster.write(drawn)
    fitted = fit_to_prediction(out, maps, context.weights)
    assert not fitted.faults
    assert any("candidates from 2 images" in line for line in fitted.lines)
    predict([folder], tmp_path / "out.csv", context.weights, "cpu")
    rated = read_buildings_csv(tmp_path / "out.csv")
    assert all(0 <= row.score <= 1 for rows in rated.values() for row in rows)
    assert recipe.task.find_images([folder]).chips == chips.chips
    with pytest.raises(SatmapError, match="holds chips of buildings"):
        task("roads").find_images([folder])


def test_chips_of_several_places_are_joined(tmp_path: Path) -> None:
    """The places have images, and so chips, of the same name; two chips of one are copies."""
    folders = []
    for place, count in (("town", 2), ("village", 4)):
        for number in range(count):
            houses = grid_of_houses(6 if place == "town" else 4)
            write_image(tmp_path / place / "images" / f"{number}.png", picture(houses))
            mask = np.zeros((1, SIDE, SIDE), np.uint8)
            for left, top, right, bottom in houses[number:]:
                mask[0, top:bottom, left:right] = 255
            write_image(tmp_path / place / "masks" / f"{number}.png", mask)
        own = OwnData((str(tmp_path / place / "images"),), tmp_path / place / "masks")
        folders.append(folder_of(find(own, "buildings", tmp_path / "cache")))
    buildings = task("buildings")
    inventory = buildings.find_images(folders)
    parts = [buildings.find_images([folder]) for folder in folders]
    assert [chip.image_id for chip in inventory.chips] == [
        f"set{number}-{chip.image_id}"
        for number, part in enumerate(parts, 1)
        for chip in part.chips
    ]
    assert [chip.label for chip in inventory.chips] == [c.label for p in parts for c in p.chips]
    assert {chip.aoi for chip in inventory.chips} == {"set1-images", "set2-images"}
    sites = {chip.site for chip in inventory.chips}
    assert inventory.duplicates and all(sites >= set(group) for group in inventory.duplicates)
    assert "set2: 4 chips" in inventory.summary()
    with pytest.raises(SatmapError, match="given twice"):
        buildings.find_images([folders[0], folders[0]])
    with pytest.raises(SatmapError, match=r"images does not\. Give only such folders"):
        buildings.find_images([folders[0], tmp_path / "town/images"])


real = pytest.mark.skipif(not SHARED.is_dir(), reason="no real data")


@real
def test_white_voids_of_massachusetts(tmp_path: Path) -> None:
    source = SHARED / "data/roads_massachusetts"
    for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
        (tmp_path / folder).mkdir()
        shutil.copy(source / folder / f"void-16978870_15{suffix}", tmp_path / folder)
    data = OwnData((str(tmp_path / "images"),), tmp_path / "masks", metres_per_pixel=1.0)
    inventory = find(data, "roads", tmp_path / "cache")
    for index, chip in enumerate(inventory.chips):
        with rasterio.open(chip.image.path) as file:
            image = file.read()
        # Hardly any void remains, and hardly any road lies in it.
        seen = ~label_of(inventory, index).ignored
        assert ((image == 255).all(axis=0) & seen).sum() < 0.02 * seen.sum()
        assert seen.sum() > 0.05 * seen.size


@real
def test_map_tiles_with_nested_zooms(tmp_path: Path) -> None:
    source = SHARED / "data/buildings_openaerialmap/place3"
    tile = min(source.glob("tiles/*-19.jpg"))
    x, y = (int(part) for part in tile.stem.split("-")[1:3])
    names = [
        f"OAM-{column}-{row}-{19 + level}"
        for level in range(3)
        for column in range(x << level, (x + 1) << level)
        for row in range(y << level, (y + 1) << level)
    ]
    for name in names:
        for folder, suffix in (("tiles", ".jpg"), ("labels", ".geojson")):
            if (source / folder / f"{name}{suffix}").exists():
                (tmp_path / folder).mkdir(exist_ok=True)
                shutil.copy(source / folder / f"{name}{suffix}", tmp_path / folder)
    data = OwnData((str(tmp_path / "tiles"),), tmp_path / "labels")
    inventory = find(data, "buildings", tmp_path / "cache")
    whole = read_own_shapes([source / "labels" / f"{names[0]}.geojson"], "polygons")
    joined = read_own_shapes(sorted(tmp_path.glob("labels/*")), "polygons")
    assert len(joined.shapes) == len(whole.shapes)
    assert CRS.from_wkt(inventory.chips[0].image.georeference.crs).to_epsg() == 3857  # type: ignore[union-attr]
