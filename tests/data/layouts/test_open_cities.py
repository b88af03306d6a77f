"""The layout of Open Cities: names of both releases, STAC catalogs, test chips."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from repository import SHARED
from satmap.data.imagery import RGB
from satmap.data.inventory import Inventory
from satmap.data.label_files import read_label_file
from satmap.data.layouts.building_challenges import find_building_images
from satmap.errors import SatmapError
from synthetic_images import lon_lat, write_image

DATA = SHARED / "data/open_cities"
shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")

LATER = "open_cities_ai_challenge_train_tier_1"


def write_label(path: Path, **members: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ring = [lon_lat(*xy) for xy in ((10, 10), (40, 10), (40, 30), (10, 30), (10, 10))]
    feature = {
        "type": "Feature",
        "properties": {"building": "yes"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    content = {"type": "FeatureCollection", "features": [feature], **members}
    path.write_text(json.dumps(content))
    return path


def write_scene(tier: Path, area: str, name: str, *, later: bool = False) -> None:
    if later:
        write_image(tier / f"{LATER}_source_{area}_{name}/image.tif")
        write_label(tier / f"{LATER}_labels_{area}_{name}/labels.geojson")
    else:
        write_image(tier / area / name / f"{name}.tif")
        write_label(tier / area / f"{name}-labels" / f"{name}.geojson")


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def write_catalog(tier: Path, area: str, names: Sequence[str]) -> None:
    """Write the items of an area, its collection and the catalog."""
    links = []
    for name in names:
        for item, kind, file in (
            (name, "image", f"{name}.tif"),
            (f"{name}-labels", "labels", f"{name}.geojson"),
        ):
            links.append({"rel": "item", "href": f"./{item}/{item}.json"})
            folder = tier / area / item
            folder.mkdir(parents=True, exist_ok=True)
            assets = {kind: {"href": f"./{file}"}}
            write_json(folder / f"{item}.json", {"id": item, "collection": area, "assets": assets})
    write_json(tier / area / "collection.json", {"id": area, "links": links})
    child = {"rel": "child", "href": f"./{area}/collection.json"}
    write_json(tier / "catalog.json", {"id": tier.name, "links": [child]})


def found_in(*directories: Path) -> tuple[Inventory, dict[str, tuple[str, str | None]]]:
    """Return the inventory, and area and label of each chip by its id."""
    inventory = find_building_images(directories)
    return inventory, {
        chip.image_id: (chip.aoi, chip.label.name if chip.label else None)
        for chip in inventory.chips
    }


@shared
def test_real_scenes_and_test_chips() -> None:
    inventory, found = found_in(DATA)
    scenes = {name: value for name, value in found.items() if value[0] != "test"}
    assert scenes == {
        "d41d81a": ("acc", "d41d81a.geojson"),
        "d41d81b": ("acc", "d41d81b.geojson"),
        "d41d81c": ("dar", "d41d81c.geojson"),
    }
    chips = [chip for chip in inventory.chips if chip.aoi == "test"]
    assert len(chips) == 40
    assert {(chip.image.width, chip.image.height, chip.scene) for chip in chips} == {
        (1024, 1024, "")
    }
    assert not inventory.faults
    # A training with the whole directory needs no labels of test images.
    inventory.require_labels()
    # The truth has the names of the chips.
    assert {path.suffix for path in inventory.ignored} == {".TIF"}
    assert "STAC catalogs: 2" in inventory.summary()


@shared
def test_without_catalogs_the_same_is_found(tmp_path: Path) -> None:
    for source in DATA.glob("train_tier_*/**/*"):
        if source.suffix in (".tif", ".geojson"):
            link = tmp_path / source.relative_to(DATA)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    inventory, found = found_in(tmp_path)
    assert found == found_in(DATA / "train_tier_1", DATA / "train_tier_2")[1]
    assert "no STAC catalog" in inventory.summary()


def test_names_of_both_releases(tmp_path: Path) -> None:
    write_scene(tmp_path / "train_tier_1", "acc", "665946")
    write_scene(tmp_path / "train_tier_2", "acc", "a42435", later=True)
    write_image(tmp_path / "test/1a2b3c/1a2b3c.tif", georeferenced=False)
    write_image(tmp_path / "flat/4d5e6f.tif", georeferenced=False)
    inventory, found = found_in(tmp_path)
    assert found == {
        "1a2b3c": ("test", None),
        "4d5e6f": ("flat", None),
        "665946": ("acc", "665946.geojson"),
        "a42435": ("acc", "labels.geojson"),
    }
    assert [chip.scene for chip in inventory.chips] == ["", "", "665946", "a42435"]
    assert all(set(chip.images) == {RGB} for chip in inventory.chips)


def test_any_folder_may_be_given(tmp_path: Path) -> None:
    write_scene(tmp_path / "train_tier_1", "acc", "665946")
    area = tmp_path / "train_tier_1/acc"
    assert found_in(area)[1] == {"665946": ("acc", "665946.geojson")}
    assert found_in(area / "665946")[1] == {"665946": ("acc", None)}


def test_the_catalog_decides_what_belongs_together(tmp_path: Path) -> None:
    tier = tmp_path / "train_tier_1"
    write_scene(tier, "acc", "665946")
    write_catalog(tier, "acc", ["665946"])
    # Files with names of their own.
    item = tier / "acc/665946/665946.json"
    shutil.move(tier / "acc/665946/665946.tif", tier / "acc/665946/drone.tif")
    write_json(item, {"id": "665946", "assets": {"image": {"href": "drone.tif"}}})
    inventory, found = found_in(tmp_path)
    assert found == {"665946": ("acc", "665946.geojson")}
    assert inventory.chips[0].image.path.name == "drone.tif"


def test_missing_items_are_reported(tmp_path: Path) -> None:
    tier = tmp_path / "train_tier_1"
    names = ["665946", "a42435", "ca041a", "d41d81"]
    for name in names[:3]:
        write_scene(tier, "acc", name)
    write_catalog(tier, "acc", names)
    (tier / "acc/a42435-labels/a42435.geojson").unlink()
    (tier / "acc/ca041a/ca041a.json").unlink()
    inventory, found = found_in(tier)
    # An image without its item is found by its name; one without its labels is left out.
    assert set(found) == {"665946", "ca041a"}
    assert set(inventory.faults) == {"a42435", "d41d81"}
    assert "a42435.geojson, which is missing" in inventory.faults["a42435"]
    assert inventory.faults["d41d81"].count("which is missing") == 2
    (warning,) = inventory.warnings
    assert "ca041a.json, which is missing. The file was found by its name" in warning
    # A training goes on without them.
    inventory.require_labels()


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"links": 3}', '{"links": [3, {"rel": "item"}, {"rel": "item", "href": 3}]}',
     '{"links": [{"rel": "item", "href": "https://example.org/a.json"}]}', "[" * 100_000],
)  # fmt: skip
def test_malformed_catalogs(content: str, tmp_path: Path) -> None:
    tier = tmp_path / "train_tier_1"
    write_scene(tier, "acc", "665946")
    write_catalog(tier, "acc", ["665946"])
    (tier / "acc/collection.json").write_text(content)
    assert found_in(tier)[1] == {"665946": ("acc", "665946.geojson")}


def test_items_outside_the_directories_are_not_read(tmp_path: Path) -> None:
    tier = tmp_path / "train_tier_1"
    write_scene(tier, "acc", "665946")
    write_catalog(tier, "acc", ["665946"])
    write_image(tmp_path / "elsewhere/secret.tif")
    item = tier / "acc/665946/665946.json"
    asset = {"image": {"href": "../../../elsewhere/secret.tif"}}
    write_json(item, {"id": "665946", "collection": "acc", "assets": asset})
    inventory, found = found_in(tier)
    assert found == {"665946": ("acc", "665946.geojson")}
    assert inventory.chips[0].image.path.name == "665946.tif"


def test_labels_without_image(tmp_path: Path) -> None:
    tier = tmp_path / "train_tier_1"
    for name in ("665946", "a42435"):
        write_scene(tier, "acc", name)
    (tier / "acc/a42435/a42435.tif").unlink()
    inventory, found = found_in(tier)
    assert set(found) == {"665946"}
    assert [path.name for path in inventory.labels_without_image] == ["a42435.geojson"]
    assert "labels without an image: a42435.geojson" in inventory.summary()


def test_a_scene_in_an_unusual_reference_system_is_a_fault(tmp_path: Path) -> None:
    tier = tmp_path / "train_tier_1"
    for name in ("665946", "a42435"):
        write_scene(tier, "acc", name)
    local = 'LOCAL_CS["mine",UNIT["metre",1]]'
    write_image(tier / "acc/a42435/a42435.tif", crs=local)
    inventory, found = found_in(tier)
    assert set(found) == {"665946"}
    assert "unusable reference system" in inventory.faults["a42435"]


def test_two_scenes_with_one_id(tmp_path: Path) -> None:
    for tier in ("train_tier_1", "train_tier_2"):
        write_scene(tmp_path / tier, "acc", "665946")
    with pytest.raises(SatmapError, match="have the id 665946"):
        find_building_images([tmp_path])


@pytest.mark.parametrize(
    "crs",
    [None, "EPSG:4326", 4326, [], {}, {"type": "name"}, {"properties": None},
     {"type": "name", "properties": {"name": None}},
     {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
     {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::4326"}},
     {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::nothing"}},
     {"type": "link", "properties": {"href": "https://example.org"}}, {"init": "epsg:4326"}],
)  # fmt: skip
def test_malformed_reference_systems_of_labels(crs: object, tmp_path: Path) -> None:
    labels = read_label_file(write_label(tmp_path / "a.geojson", crs=crs), "polygons")
    assert tuple(labels.shapes[0].exterior.coords[0]) == pytest.approx(lon_lat(10, 10))
