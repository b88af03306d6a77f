"""SpaceNet 1, 2 and 4 and the Mapping Challenge: images, labels, looks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import shapely

from repository import SHARED
from satmap.cli import main
from satmap.data.cache import prepare_chip
from satmap.data.imagery import MULTISPECTRAL, RGB, RGB_NIR, read_info, read_stretched
from satmap.data.layouts.building_challenges import find_building_images
from satmap.data.layouts.spacenet_buildings import building_image_ids, parse_building_name
from satmap.data.view_angles import CATEGORIES, ViewAngle, parse_view_angle, view_angle_of_name
from satmap.errors import SatmapError
from satmap.recipes.schema import StretchSettings
from satmap.tasks.base import Task, default_task
from satmap.tasks.buildings.labels import read_building_labels
from synthetic_chips import square, write_buildings, write_coco, write_tile
from synthetic_images import write_image

DATA = SHARED / "data"
shared = pytest.mark.skipif(not DATA.exists(), reason="the shared data are not here")
COLLECT = "Atlanta_nadir32_catid_103001000392F600"


@pytest.mark.parametrize(
    ("name", "image_id", "product", "aoi", "place"),
    [
        ("3band_AOI_1_RIO_img1", "AOI_1_RIO_img1", RGB, "AOI_1_RIO", ""),
        ("8band_013022223130_Public_img7", "013022223130_Public_img7", MULTISPECTRAL,
         "013022223130_Public", ""),
        ("MUL-PanSharpen_AOI_2_Vegas_img1", "AOI_2_Vegas_img1", MULTISPECTRAL, "AOI_2_Vegas", ""),
        ("PAN_AOI_2_Vegas_img1", "AOI_2_Vegas_img1", None, "AOI_2_Vegas", ""),
        ("SN2_buildings_train_AOI_4_Shanghai_PS-RGB_img12", "AOI_4_Shanghai_img12", RGB,
         "AOI_4_Shanghai", ""),
        (f"Pan-Sharpen_{COLLECT}_732701_3730539", f"{COLLECT}_732701_3730539", RGB_NIR, "Atlanta",
         "732701_3730539"),
        (f"SN4_buildings_train_AOI_6_{COLLECT}_PS-RGBNIR_732701_3730539",
         f"{COLLECT}_732701_3730539", RGB_NIR, "Atlanta", "732701_3730539"),
    ],
)  # fmt: skip
def test_names(name: str, image_id: str, product: str | None, aoi: str, place: str) -> None:
    found = parse_building_name(name)
    assert found is not None
    assert (found.image_id, found.product, found.aoi, found.place) == (
        image_id, product, aoi, place,
    )  # fmt: skip
    assert (found.view_angle is not None) == (aoi == "Atlanta")


@pytest.mark.parametrize(
    ("name", "angle", "side"),
    [
        ("Atlanta_nadir7_catid_1030010003D22F00_1_2", 7, "south"),
        ("Atlanta_nadir8_catid_10300100023BC100_1_2", 8, "north"),
        ("Atlanta_nadir10_catid_1030010003993E00_1_2", 10, "south"),
        ("Atlanta_nadir10_catid_1030010003CAF100_1_2", 10, "north"),
        ("Atlanta_nadir25_catid_103001000307D800_1_2", 25, "south"),
        ("Atlanta_nadir53_catid_1030010003CD4300_1_2", 53, "north"),
        ("Elsewhere_nadir40_catid_99_1_2", 40, None),
    ],
)
def test_view_angles_in_names(name: str, angle: int, side: str | None) -> None:
    assert view_angle_of_name(name) == ViewAngle(angle, side)  # type: ignore[arg-type]


def test_categories_by_angle_and_side() -> None:
    assert [ViewAngle(a).category(3) for a in (0, 25, 26, 40, 41)] == [
        "nadir", "nadir", "off-nadir", "off-nadir", "very off-nadir",
    ]  # fmt: skip
    assert ViewAngle(25, "south").category(5) == "nadir south"
    assert ViewAngle(26, "north").category(5) == "off-nadir north"
    assert ViewAngle(41).category(5) == "very off-nadir"
    assert ViewAngle(26).category(5) is None
    assert all(len(names) == heads for heads, names in CATEGORIES.items())
    assert parse_view_angle(" 32.5south") == ViewAngle(32, "south")
    assert parse_view_angle("7") == ViewAngle(7)
    assert all(
        parse_view_angle(str(view_angle)) == view_angle
        for view_angle in (ViewAngle(32, "south"), ViewAngle(7))
    )
    with pytest.raises(ValueError, match="not an off-nadir angle"):
        parse_view_angle("up")


def look_at(root: Path, collect: str, tile: str, dtype: str = "uint16") -> None:
    path = root / collect / f"Pan-Sharpen/Pan-Sharpen_{collect}_{tile}.tif"
    write_image(path, bands=4, size=(64, 64), dtype=dtype)


def test_one_label_for_many_view_angles(tmp_path: Path) -> None:
    other = "Atlanta_nadir7_catid_1030010003D22F00"
    for collect in (COLLECT, other):
        look_at(tmp_path, collect, "1_2")
        # Raw bands with large pixels and panchromatic images in the same place are ignored.
        write_image(tmp_path / collect / f"MS/MS_{collect}_1_2.tif", bands=8, size=(16, 16))
    label = write_buildings(
        tmp_path / "geojson/spacenet-buildings/spacenet-buildings_1_2.geojson", [square(8, 8, 20)]
    )
    inventory = find_building_images([tmp_path], 4)
    assert [chip.label for chip in inventory.chips] == [label, label]
    assert {chip.site for chip in inventory.chips} == {"1_2"}
    assert [chip.channels for chip in inventory.chips] == [4, 4]
    assert not inventory.ignored
    assert not inventory.labels_without_image
    assert "PS-RGBNIR" in inventory.summary()


def test_a_missing_label_names_the_image_and_what_was_tried(tmp_path: Path) -> None:
    write_tile(tmp_path, 1, [square(10, 10, 30)])
    next(tmp_path.rglob("*.geojson")).unlink()
    with pytest.raises(SatmapError) as caught:
        find_building_images([tmp_path]).require_labels()
    text = str(caught.value)
    assert "RGB-PanSharpen_AOI_9_Made_img1.tif" in text
    assert "buildings_AOI_9_Made_img1.geojson" in text
    assert "SN2_buildings_train_AOI_9_Made_geojson_buildings_img1.geojson" in text
    assert "Geo_AOI_9_Made_img1.geojson" in text


def test_only_products_with_the_wanted_bands_are_used(tmp_path: Path) -> None:
    write_image(tmp_path / "3band/3band_AOI_1_RIO_img1.tif", size=(80, 90))
    write_image(tmp_path / "8band/8band_AOI_1_RIO_img1.tif", bands=8, size=(20, 22), dtype="uint16")
    for channels, shape in ((3, (80, 90)), (8, (20, 22))):
        (chip,) = find_building_images([tmp_path], channels).chips
        assert [(i.height, i.width) for i in chip.images.values()] == [shape]


def test_infrared_is_not_taken_for_alpha(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.tif", bands=4, photometric="rgb", alpha="yes")
    assert read_info(path, RGB).bands == 3
    info = read_info(path, RGB_NIR)
    assert info.bands == 4
    assert read_stretched(info, 2, 98).shape == (96, 128, 4)


def by_view_angle(heads: int | None) -> Task:
    return default_task("buildings", view_angle_heads=heads)


def test_an_unknown_view_angle_asks_for_the_nadir_option(tmp_path: Path) -> None:
    write_tile(tmp_path, 1, [square(10, 10, 30)])
    (chip,) = find_building_images([tmp_path]).chips
    assert by_view_angle(None).category(chip) is None
    with pytest.raises(SatmapError, match="--nadir degrees off nadir, such as 32south"):
        by_view_angle(5).category(chip)
    (chip,) = find_building_images([tmp_path], view_angle=parse_view_angle("32")).chips
    assert by_view_angle(3).category(chip) == "off-nadir"
    with pytest.raises(SatmapError, match="--nadir"):
        prepare_chip(chip, tmp_path / "cache", StretchSettings(), by_view_angle(5))


def test_invalid_polygons_are_repaired_and_counted(tmp_path: Path) -> None:
    bow = [[(10.0, 10.0), (40.0, 40.0), (40.0, 10.0), (10.0, 40.0)]]
    touched = [
        [(50.0, 10.0), (90.0, 10.0), (90.0, 50.0), (50.0, 50.0)],
        [(60.0, 20.0), (80.0, 20.0), (80.0, 40.0), (60.0, 40.0)],
    ]
    write_tile(tmp_path, 1, [bow, touched, square(90, 60, 30)])
    (chip,) = find_building_images([tmp_path]).chips
    labels = read_building_labels(chip)
    assert labels.repaired == 1
    # Both loops of the bow-tie, a square minus its hole, and the part of the last in the image.
    areas = np.sort(shapely.area(labels.outlines))
    assert areas == pytest.approx([6 * 30, 450, 40 * 40 - 20 * 20], abs=1e-3)
    assert shapely.is_valid(labels.outlines).all()


def test_labels_of_another_place_are_a_fault(tmp_path: Path) -> None:
    write_tile(tmp_path, 1, [square(5000, 5000, 30)])
    with pytest.raises(SatmapError, match="none of its 1 buildings lies on"):
        read_building_labels(find_building_images([tmp_path]).chips[0])
    write_tile(tmp_path, 1, [])
    assert not len(read_building_labels(find_building_images([tmp_path]).chips[0]).outlines)


def test_coco_ids_come_from_the_file(tmp_path: Path) -> None:
    path = write_coco(tmp_path, {12: [square(10, 10, 30)], 7: []})
    content = json.loads(path.read_text())
    # An id that differs from the number in the name, a crowd, a building of two parts.
    content["images"][1] |= {"id": 99}
    content["images"].append({"id": 5, "file_name": "gone.jpg", "width": 9, "height": 9})
    both = [[c for xy in square(x, 60, 10)[0] for c in xy] for x in (10, 40)]
    content["annotations"] += [
        {"image_id": 99, "category_id": 100, "segmentation": both},
        {"image_id": 99, "category_id": 100, "iscrowd": 1,
         "segmentation": {"counts": [0, 5], "size": [96, 96]}},
    ]  # fmt: skip
    path.write_text(json.dumps(content))
    inventory = find_building_images([tmp_path])
    assert [chip.image_id for chip in inventory.chips] == ["12", "99"]
    assert list(inventory.faults) == ["5"]
    assert "gone.jpg" in inventory.faults["5"]
    assert list(inventory.long_ids) == ["5", "12", "99"]
    one, two = (read_building_labels(chip).outlines for chip in inventory.chips)
    assert shapely.area(one).tolist() == [900]
    assert [shape.geom_type for shape in two] == ["MultiPolygon"]
    assert shapely.area(two).tolist() == [200]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": "a", "file_name": "1.jpg"}]}, r"images\[0\] needs an integer id"),
        ({"images": [{"id": 1, "file_name": 1}]}, r"images\[0\] needs a file_name"),
        ({"images": 3}, "not COCO annotations"),
        ({"annotations": [{"image_id": 1, "category_id": 100, "segmentation": [[1, 2, 3, 4]]}]},
         r"annotations\[0\] must have a segmentation of polygons"),
        ({"annotations": [{"image_id": 4, "category_id": 100, "segmentation": [[1] * 6]}]},
         "image 4, which is not listed"),
        ({"annotations": [{"image_id": 1, "category_id": 3, "segmentation": [[1] * 6]}]},
         "category_id 3"),
        ({"annotations": [{"id": 1}]}, r"annotations\[0\] refers to the image null"),
    ],
)  # fmt: skip
def test_invalid_annotations_are_named(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write_coco(tmp_path, {1: []})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SatmapError, match=message):
        find_building_images([tmp_path])


def test_mixed_challenges_and_duplicate_ids_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "train", {1: []})
    write_coco(tmp_path / "val", {1: []})
    with pytest.raises(SatmapError, match="two images have the id 1"):
        find_building_images([tmp_path])
    write_tile(tmp_path / "sn2", 1, [])
    with pytest.raises(SatmapError, match="images of two challenges"):
        find_building_images([tmp_path / "train", tmp_path / "sn2"])
    (tmp_path / "none").mkdir()
    with pytest.raises(SatmapError, match="no images of a building challenge"):
        find_building_images([tmp_path / "none"])


@shared
@pytest.mark.parametrize(
    ("directory", "channels", "chips", "buildings"),
    [
        ("buildings_sn1", 8, 10, 120),
        ("buildings_sn2", 3, 7, 159),
        ("buildings_mapping_challenge", 3, 28, 170),
    ],
)
def test_real_labels(directory: str, channels: int, chips: int, buildings: int) -> None:
    inventory = find_building_images([DATA / directory], channels)
    labels = [read_building_labels(chip) for chip in inventory.chips if chip.label]
    assert (len(labels), sum(len(each.outlines) for each in labels)) == (chips, buildings)


def test_the_inventory_of_buildings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tile(tmp_path, 1, [square(10, 10, 30)])
    with pytest.raises(SystemExit) as ended:
        main(["inventory", str(tmp_path), "--task", "buildings"])
    assert ended.value.code == 0
    assert "AOI_9_Made" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["directory", "pipe"])
def test_images_that_are_not_files_are_reported(tmp_path: Path, harm: str) -> None:
    tiles, coco = tmp_path / "tiles", tmp_path / "coco"
    for number in (1, 2):
        write_tile(tiles, number, [])
    write_coco(coco, {7: [], 12: [square(10, 10, 30)]})
    names = {"AOI_9_Made_img2": "RGB-PanSharpen_AOI_9_Made_img2.tif", "12": "000000000012.jpg"}
    for root, image_id in ((tiles, "AOI_9_Made_img2"), (coco, "12")):
        victim = next(root.rglob(names[image_id]))
        content = victim.read_bytes()
        victim.unlink()
        if harm == "pipe":
            os.mkfifo(victim)
        else:
            victim.mkdir()
        found = find_building_images([root])
        assert len(found.chips) == 1 and list(found.faults) == [image_id]
        assert f"{victim} is a {harm}" in found.faults[image_id]
        # It has the empty row that a check expects.
        assert image_id in found.long_ids
        if root == tiles:
            assert building_image_ids([root]) == set(found.long_ids)
        if harm == "directory":
            # Some programs unpack archives this way: the file in the directory is the image.
            image = victim / victim.name
            image.write_bytes(content)
            found = find_building_images([root])
            assert not found.faults
            assert found.chips[1].image.path == image and found.chips[1].label is not None
