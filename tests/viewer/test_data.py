"""What can be shown, what is refused, and how the data get into the page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from satmap import cli
from satmap.errors import SatmapError
from satmap.viewer.data import read_results, shown_value
from satmap.viewer.page import make_page
from synthetic_images import write_image


def collection(path: Path, *geometries: dict[str, Any], **properties: Any) -> Path:
    features = [
        {"type": "Feature", "properties": properties, "geometry": each} for each in geometries
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def road(x: float = 2.0, y: float = 48.0) -> dict[str, Any]:
    return {"type": "LineString", "coordinates": [[x, y], [x + 0.001, y]]}


def test_an_empty_result_is_refused(tmp_path: Path) -> None:
    path = collection(tmp_path / "empty.geojson")
    with pytest.raises(SatmapError, match="no roads and no buildings, so there is nothing to show"):
        read_results([path])


def test_an_empty_result_beside_another_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = collection(tmp_path / "roads.geojson", road())
    empty = collection(tmp_path / "empty.geojson")
    with pytest.raises(SystemExit) as ended:
        cli.main(["view", str(path), str(empty), "--html", str(tmp_path / "map.html")])
    assert ended.value.code == 0
    assert "empty.geojson holds no roads and no buildings" in capsys.readouterr().err


def test_results_of_different_places_are_refused(tmp_path: Path) -> None:
    paris = collection(tmp_path / "paris.geojson", road())
    boston = collection(tmp_path / "boston.geojson", road(-71.0, 42.0))
    with pytest.raises(SatmapError, match=r"different places, [\d,]+ km apart"):
        read_results([paris, boston])


def test_results_in_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("ImageId,WKT_Pix,length_m,travel_time_s\nchip1,LINESTRING EMPTY,0,0\n")
    with pytest.raises(SatmapError, match="pixels"):
        read_results([path])
    pixels = collection(tmp_path / "pixels.geojson", road(500.0, 300.0))
    with pytest.raises(SatmapError, match="not a longitude and latitude"):
        read_results([pixels])
    polar = collection(tmp_path / "polar.geojson", road(2.0, 88.0))
    with pytest.raises(SatmapError, match="latitude"):
        read_results([polar])


def test_a_directory_of_geojson_is_one_map(tmp_path: Path) -> None:
    collection(tmp_path / "chip1.geojson", road())
    collection(tmp_path / "chip2.geojson", road(2.002))
    data = read_results([tmp_path])
    assert [each["image_id"] for each in data.roads.properties] == ["chip1", "chip2"]
    assert data.bounds == pytest.approx((2.0, 48.0, 2.003, 48.0))


def test_attributes_cannot_leave_the_data(tmp_path: Path) -> None:
    text = "</script><script>alert(1)</script>{{image}}"
    name = "a</title><script>alert(2)</script>.geojson".replace("/", "\u2215")
    path = collection(tmp_path / name, road(), **{text: text, "long": "x" * 10**6, "odd": "\ud800"})
    page = make_page(read_results([path]))
    assert "alert(1)" not in page
    assert "<script>alert(2)" not in page
    assert len(page) < 2_000_000
    assert page.count("<script") == 3 + 6


def test_values_are_shown_as_text_or_numbers() -> None:
    assert shown_value(None) is None
    assert shown_value(float("nan")) is None
    assert shown_value(np.int64(3)) == 3
    assert shown_value(True) == "yes"
    assert shown_value({"a": [1, "<b>"]}) == '{"a": [1, "<b>"]}'
    assert str(shown_value("x" * 10**6)).endswith("… (1,000,000 characters)")


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = collection(tmp_path / "roads.geojson", road())
    with pytest.raises(SystemExit) as ended:
        cli.main(["view", str(path), "--html", str(tmp_path / "map.html")])
    assert ended.value.code == 0
    assert "map.html: " in capsys.readouterr().out
    assert (tmp_path / "map.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["map.txt", "map", "map.gpkg"])
def test_a_page_must_be_html(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = collection(tmp_path / "roads.geojson", road())
    with pytest.raises(SystemExit):
        cli.main(["view", str(path), "--html", str(tmp_path / name)])
    assert "must end in .html" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_imagery_of_another_place_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = collection(tmp_path / "roads.geojson", road())
    far = Affine(1e-5, 0, 90, 0, -1e-5, 10)
    image = write_image(tmp_path / "far.tif", crs="EPSG:4326", transform=far)
    page = tmp_path / "map.html"
    with pytest.raises(SystemExit) as ended:
        cli.main(["view", str(path), "--images", str(image), "--html", str(page)])
    assert ended.value.code == 0
    assert "the imagery is of another place" in capsys.readouterr().err
    assert page.exists()


def test_more_attributes_than_columns_are_kept(tmp_path: Path) -> None:
    path = collection(tmp_path / "roads.geojson", road(), **{f"key{k}": k for k in range(60)})
    assert make_page(read_results([path]))
