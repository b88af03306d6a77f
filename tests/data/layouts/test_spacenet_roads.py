import shutil
from pathlib import Path

import pytest

from satmap.data.layouts.spacenet_roads import road_label_names, scan_roads
from satmap.errors import SatmapError
from synthetic_images import write_image, write_labels


def test_names_of_spacenet_5(tmp_path: Path) -> None:
    area = tmp_path / "AOI_7_Moscow_Train"
    stem = "SN5_roads_train_AOI_7_Moscow"
    write_image(area / f"PS-MS/{stem}_PS-MS_chip23.tif", bands=8, dtype="uint16")
    write_image(area / f"PS-RGB/{stem}_PS-RGB_chip23.tif")
    write_image(area / f"PS-RGB/{stem}_PS-RGB_chip3.tif")
    write_image(area / f"PAN/{stem}_PAN_chip23.tif", bands=1)
    slow = write_labels(area / f"geojson_roads/{stem}_geojson_roads_chip23.geojson", [])
    fast = write_labels(area / f"speed/{stem}_geojson_roads_speed_chip23.geojson", [])
    inventory = scan_roads([tmp_path])
    ids = [chip.image_id for chip in inventory.chips]
    assert ids == ["AOI_7_Moscow_chip3", "AOI_7_Moscow_chip23"]
    small, both = inventory.chips
    assert small.label is None
    assert small.image.product == "PS-RGB"
    assert both.aoi == "AOI_7_Moscow"
    assert both.long_id == "SN5_roads_train_AOI_7_Moscow_chip23"
    assert both.image.product == "PS-MS"
    assert both.label == fast != slow
    assert [path.name for path in inventory.ignored] == [f"{stem}_PAN_chip23.tif"]
    summary = inventory.summary()
    assert "AOI_7_Moscow" in summary
    assert "128x96" in summary
    assert "ignored: 1" in summary


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("SN3_roads_train_AOI_2_Vegas_PS-RGB_img1.tif",
         "SN3_roads_train_AOI_2_Vegas_geojson_roads_img1_speed.geojson"),
        ("SN3_roads_train_AOI_2_Vegas_PS-RGB_img1.tif",
         "SN3_roads_train_AOI_2_Vegas_geojson_roads_img1.geojson"),
        ("RGB-PanSharpen_AOI_2_Vegas_img1.tif", "AOI_2_Vegas_img1.geojson"),
        ("RGB-PanSharpen_AOI_2_Vegas_img1.TIF", "labels/spacenetroads_AOI_2_Vegas_img1.geojson"),
        ("SN5_roads_test_public_AOI_2_Vegas_PS-RGB_img1.tif", "AOI_2_Vegas_img1.geojson"),
    ],
)  # fmt: skip
def test_older_names(tmp_path: Path, image: str, label: str) -> None:
    write_image(tmp_path / image)
    path = write_labels(tmp_path / label, [])
    (chip,) = scan_roads([tmp_path]).chips
    assert chip.image_id == "AOI_2_Vegas_img1"
    assert chip.label == path
    assert path.name in road_label_names(chip)


def test_names_of_cities_may_hold_underscores(tmp_path: Path) -> None:
    for product in ("PS-MS", "PS-RGB"):
        bands = 8 if product == "PS-MS" else 3
        name = f"SN5_roads_test_public_AOI_9_San_Juan_{product}_chip1.tif"
        write_image(tmp_path / product / name, bands=bands)
    label = write_labels(
        tmp_path / "SN5_roads_train_AOI_9_San_Juan_geojson_roads_speed_chip1.geojson", []
    )
    (chip,) = scan_roads([tmp_path]).chips
    assert chip.image_id == "AOI_9_San_Juan_chip1"
    assert chip.aoi == "AOI_9_San_Juan"
    assert chip.long_id == "SN5_roads_test_public_AOI_9_San_Juan_chip1"
    assert set(chip.images) == {"PS-MS", "PS-RGB"}
    assert chip.label == label


def test_orphans_and_images_without_labels_are_listed(tmp_path: Path) -> None:
    for number in (1, 2):
        write_image(tmp_path / f"SN5_roads_train_AOI_7_Moscow_PS-RGB_chip{number}.tif")
    for number in (2, 3):
        write_labels(tmp_path / f"AOI_7_Moscow_chip{number}.geojson", [])
    summary = scan_roads([tmp_path]).summary()
    assert "without label: AOI_7_Moscow_chip1" in summary
    assert "labels without an image: AOI_7_Moscow_chip3.geojson" in summary


def test_a_broken_product_is_replaced_by_the_other(tmp_path: Path) -> None:
    write_image(tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif")
    (tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-MS_chip1.tif").write_bytes(b"no image")
    inventory = scan_roads([tmp_path])
    assert inventory.chips[0].image.product == "PS-RGB"
    assert not inventory.faults
    assert "PS-MS_chip1.tif" in inventory.warnings[0]


def test_openstreetmap_extracts_are_not_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "RGB-PanSharpen_AOI_2_Vegas_img1.tif")
    write_labels(tmp_path / "osm/AOI_2_Vegas_img1.geojson", [])
    assert scan_roads([tmp_path]).chips[0].label is None


def test_a_missing_label_names_the_image_and_the_names_tried(tmp_path: Path) -> None:
    write_image(tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif")
    write_image(tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip2.tif")
    write_labels(tmp_path / "AOI_7_Moscow_chip2.geojson", [])
    with pytest.raises(SatmapError) as caught:
        scan_roads([tmp_path]).require_labels()
    message = str(caught.value)
    assert "1 of 2 images" in message
    assert "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif" in message
    assert "SN5_roads_train_AOI_7_Moscow_geojson_roads_speed_chip1.geojson" in message
    assert "--skip-unlabelled" in message


def test_images_in_a_test_folder_need_no_label_if_others_have_one(tmp_path: Path) -> None:
    places = tmp_path / "place"
    write_image(places / "test/SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif")
    with pytest.raises(SatmapError, match="1 of 1 images have no label"):
        scan_roads([places]).require_labels()
    write_image(places / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip2.tif")
    write_labels(places / "AOI_7_Moscow_chip2.geojson", [])
    scan_roads([places]).require_labels()
    # A word that only contains it is another one.
    write_image(places / "latest/SN5_roads_train_AOI_7_Moscow_PS-RGB_chip3.tif")
    with pytest.raises(SatmapError, match=r"1 of 3 images have no label: .*chip3"):
        scan_roads([places]).require_labels()


def test_hidden_directories_are_ignored(tmp_path: Path) -> None:
    name = "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif"
    write_image(tmp_path / name)
    write_image(tmp_path / ".ipynb_checkpoints" / name)
    assert len(scan_roads([tmp_path]).chips) == 1


def test_ids_unusable_in_a_csv_are_ignored(tmp_path: Path) -> None:
    write_image(tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif")
    odd = write_image(tmp_path / "SN5_roads_train_AOI_7_A,B_PS-RGB_chip1.tif")
    assert scan_roads([tmp_path]).ignored == (odd,)


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(SatmapError, match="no SpaceNet road images found"):
        scan_roads([tmp_path])
    with pytest.raises(SatmapError, match="does not exist"):
        scan_roads([tmp_path / "absent"])
    label = write_labels(tmp_path / "AOI_7_Moscow_chip2.geojson", [])
    with pytest.raises(SatmapError, match="1 label files"):
        scan_roads([tmp_path])
    with pytest.raises(SatmapError, match="is a file"):
        scan_roads([label])


def test_an_image_given_twice(tmp_path: Path) -> None:
    first = write_image(tmp_path / "a/SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif")
    (tmp_path / "b").mkdir()
    shutil.copy(first, tmp_path / "b")
    with pytest.raises(SatmapError, match="two PS-RGB images have the id AOI_7_Moscow_chip1"):
        scan_roads([tmp_path])
    # A directory given twice counts once.
    assert len(scan_roads([tmp_path / "a", tmp_path / "a"]).chips) == 1


def test_a_broken_image_does_not_affect_others(tmp_path: Path) -> None:
    write_image(tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif")
    broken = tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip2.tif"
    broken.write_bytes(b"II*\0 and no more")
    inventory = scan_roads([tmp_path])
    assert [chip.image_id for chip in inventory.chips] == ["AOI_7_Moscow_chip1"]
    assert list(inventory.faults) == ["AOI_7_Moscow_chip2"]
    assert "AOI_7_Moscow_chip2" in inventory.long_ids
    assert broken.name in inventory.summary()
