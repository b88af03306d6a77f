"""Scoring and checking of files in every format, with the metric chosen by content."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

from repository import SHARED
from satmap.data.label_files import read_label_file
from satmap.data.layouts.spacenet_buildings import building_image_id
from satmap.errors import SatmapError
from satmap.evaluation.check import check_files
from satmap.evaluation.metrics.apls import apls
from satmap.evaluation.score import Scoring, score_files
from satmap.report.overlay import write_misses
from satmap.report.table import score_table
from satmap.submissions.formats import Format, detect
from satmap.submissions.vector_maps import (
    find_maps,
    read_building_maps,
    read_map,
    read_road_maps,
)
from synthetic_images import lon_lat, write_image, write_labels

FIXTURES = SHARED / "fixtures"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")

ROADS = (
    "ImageId,WKT_Pix,length_m,travel_time_s\n"
    'AOI_1_A_chip0,"LINESTRING (0 0, 300 0)",93,9.3\n'
    'AOI_1_A_chip0,"LINESTRING (300 0, 300 300)",93,9.3\n'
    "AOI_1_A_chip1,LINESTRING EMPTY,0,0\n"
)
BUILDINGS = (
    "ImageId,BuildingId,PolygonWKT_Pix,Confidence\n"
    'AOI_1_A_img0,0,"POLYGON ((0 0, 20 0, 20 20, 0 20, 0 0))",1\n'
    "AOI_1_A_img1,-1,POLYGON EMPTY,1\n"
)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_mask(path: Path, mask: np.ndarray) -> Path:
    return write_image(path, pixels=mask[None].astype(np.uint8), georeferenced=False)


def pictures_of(scoring: Scoring, directory: Path) -> list[Path]:
    """Write and return the picture of the worst image."""
    return write_misses(directory / "pictures", scoring, 1)


# --- formats --------------------------------------------------------------------------------------


def test_formats_are_detected_by_content(tmp_path: Path) -> None:
    assert detect(written(tmp_path / "a", ROADS)) is Format.ROADS_CSV
    assert detect(written(tmp_path / "b", '"ImageId","wkt_pix"\r\n')) is Format.ROADS_CSV
    assert detect(written(tmp_path / "c", "\ufeff" + BUILDINGS)) is Format.BUILDINGS_CSV
    assert detect(written(tmp_path / "d", " []")) is Format.COCO_RESULTS
    assert detect(written(tmp_path / "e", '{"images": []}')) is Format.COCO_ANNOTATIONS
    empty = '{"type": "FeatureCollection", "features": []}'
    assert detect(written(tmp_path / "f", empty)) is Format.VECTORS
    written(tmp_path / "maps" / "deep" / "x.geojson", empty)
    assert detect(tmp_path / "maps") is Format.VECTORS
    write_mask(tmp_path / "masks" / "x.TIF", np.ones((4, 4)))
    assert detect(tmp_path / "masks") is Format.MASKS


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SatmapError, match="no known format"):
        detect(written(tmp_path / "a.csv", "a,b\n1,2\n"))
    with pytest.raises(SatmapError, match="is empty"):
        detect(written(tmp_path / "empty", ""))
    for start, message in ((b"\x1f\x8b\x08", "compressed"), ("a".encode("utf-16"), "UTF-16")):
        (tmp_path / "other").write_bytes(start)
        with pytest.raises(SatmapError, match=message):
            detect(tmp_path / "other")
    with pytest.raises(SatmapError, match="cannot read"):
        detect(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(SatmapError, match="neither GeoJSON"):
        detect(tmp_path / "bare")


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("3band_AOI_1_RIO_img12", "AOI_1_RIO_img12"),
        ("8band_AOI_0_TEST_img3", "AOI_0_TEST_img3"),
        ("3band_013022223130_Public_img1", "013022223130_Public_img1"),
        ("RGB-PanSharpen_AOI_2_Vegas_img1", "AOI_2_Vegas_img1"),
        ("MUL-PanSharpen_AOI_2_Vegas_img1", "AOI_2_Vegas_img1"),
        ("SN2_buildings_train_AOI_2_Vegas_PS-RGB_img1", "AOI_2_Vegas_img1"),
        ("Pan-Sharpen_Atlanta_nadir8_catid_103A_7_3", "Atlanta_nadir8_catid_103A_7_3"),
        (
            "SN4_buildings_train_AOI_6_Atlanta_nadir8_catid_103A_PS-RGBNIR_7_3",
            "Atlanta_nadir8_catid_103A_7_3",
        ),
        ("SN5_roads_train_AOI_7_Moscow_PS-MS_chip23", None),
        ("holiday", None),
    ],
)
def test_ids_of_building_images(name: str, image_id: str | None) -> None:
    assert building_image_id(name) == image_id


# --- scores ---------------------------------------------------------------------------------------


def test_roads_csv_is_scored_by_apls_and_topo(tmp_path: Path) -> None:
    truth = written(tmp_path / "truth.csv", ROADS)
    half = "\n".join(line for line in ROADS.splitlines() if "300 300" not in line) + "\n"
    proposal = written(tmp_path / "half.csv", half)
    scoring = score_files(truth, proposal, with_topo=True)
    report = scoring.report
    assert report.metric == "apls"
    assert report.images["AOI_1_A_chip1"]["apls_length"] == 1
    assert 0 < (report.images["AOI_1_A_chip0"]["apls_length"] or 0) < 1
    # The proposal is a part of the truth: nothing is wrong, but half of the truth is missing.
    assert report.total["topo_precision"] == 1
    assert 0.2 < (report.total["topo_recall"] or 0) < 0.8
    (picture,) = pictures_of(scoring, tmp_path)
    assert picture.name == "AOI_1_A_chip0.png"
    assert picture.stat().st_size > 1000


OVERPASS = [[(0, 300), (600, 300)], [(300, 0), (300, 600)]]
JUNCTION = [[(0, 300), (300, 300), (600, 300)], [(300, 0), (300, 300), (300, 600)]]


def test_crossings_are_scored_beside_apls(tmp_path: Path) -> None:
    def csv(name: str, *chips: list[list[tuple[int, int]]]) -> Path:
        rows = [
            f'AOI_1_A_chip{number},"LINESTRING ({", ".join(f"{x} {y}" for x, y in line)})",1,1\n'
            for number, lines in enumerate(chips)
            for line in lines
        ]
        return written(tmp_path / name, "ImageId,WKT_Pix,length_m,travel_time_s\n" + "".join(rows))

    truth = csv("truth.csv", OVERPASS, OVERPASS, JUNCTION)
    proposal = csv("proposal.csv", OVERPASS, JUNCTION, JUNCTION)
    scoring = score_files(truth, proposal, with_topo=True, with_crossings=True)
    total, images = scoring.report.total, scoring.report.images
    assert (total["crossings_found"], total["crossings_missed"], total["crossings_false"]) == (
        1,
        1,
        0,
    )
    assert total["crossings_f1"] == pytest.approx(2 / 3)
    assert total["crossings_order"] is None
    assert images["AOI_1_A_chip0"]["false_turn_rate"] == 0
    assert images["AOI_1_A_chip1"]["crossings_f1"] == images["AOI_1_A_chip1"]["lost_routes"] == 0
    assert (images["AOI_1_A_chip1"]["false_turns"] or 0) > 0.3
    assert images["AOI_1_A_chip2"]["crossings_f1"] is None
    # Routes of all chips count together.
    assert 0 < (total["false_turns"] or 0) < (images["AOI_1_A_chip1"]["false_turns"] or 0)
    assert scoring.report.aois["AOI_1_A"]["crossings_found"] == 1
    assert "topo_f1" in total
    table = score_table(scoring.report)
    assert "crossing F1" in table
    assert "false-turn rate" in table
    plain = score_files(truth, proposal).report
    assert "crossings_f1" not in plain.total
    buildings = written(tmp_path / "b.csv", BUILDINGS)
    for option in ("crossings", "topo"):
        with pytest.raises(
            SatmapError, match=rf"--{option} is for roads, but .*b.csv is a buildings CSV"
        ):
            score_files(buildings, buildings, **{f"with_{option}": True})


def test_vector_files_state_which_road_is_above(tmp_path: Path) -> None:
    def side(name: str, **tags: str) -> Path:
        directory = tmp_path / name
        for number, line in enumerate(OVERPASS):
            write_labels(directory / f"{number}.geojson", [line], tags if number else {})
        merged = [
            feature
            for number in range(2)
            for feature in json.loads((directory / f"{number}.geojson").read_text())["features"]
        ]
        text = json.dumps({"type": "FeatureCollection", "features": merged})
        return written(tmp_path / f"{name}.geojson", text)

    def order(truth: Path, proposal: Path) -> tuple[object, object]:
        total = score_files(truth, proposal, with_crossings=True).report.total
        assert total["crossings_f1"] == 1
        return total["crossings_ordered"], total["crossings_order"]

    bridge, upper, lower = side("t", bridge_type="1"), side("u", layer="2"), side("l", tunnel="yes")
    assert order(bridge, upper) == (1, 1)
    assert order(bridge, lower) == (1, 0)
    assert order(bridge, side("n")) == (0, None)


def test_buildings_csv_is_scored_by_f1(tmp_path: Path) -> None:
    truth = written(tmp_path / "truth.csv", BUILDINGS)
    scoring = score_files(truth, truth)
    assert scoring.report.metric == "building_f1"
    assert scoring.report.total["f1"] == 1
    assert scoring.report.total["tp"] == 1
    assert len(pictures_of(scoring, tmp_path)) == 1


def test_mask_rasters_are_scored_by_jaccard(tmp_path: Path) -> None:
    left = np.zeros((6, 8))
    left[:, :4] = 1
    write_mask(tmp_path / "truth" / "a.tif", np.ones((6, 8)))
    write_mask(tmp_path / "proposal" / "a.TIF", left)
    scoring = score_files(tmp_path / "truth", tmp_path / "proposal")
    assert scoring.report.metric == "jaccard"
    assert scoring.report.total["jaccard"] == 0.5
    assert len(pictures_of(scoring, tmp_path)) == 1


def test_unlike_files_cannot_be_compared(tmp_path: Path) -> None:
    roads, buildings = (
        written(tmp_path / "r.csv", ROADS), written(tmp_path / "b.csv", BUILDINGS),
    )  # fmt: skip
    with pytest.raises(SatmapError, match=r"a roads CSV and .* a buildings CSV"):
        score_files(roads, buildings)
    other = written(tmp_path / "o.csv", ROADS.replace("AOI_1", "AOI_2"))
    with pytest.raises(SatmapError, match="no image in common"):
        score_files(roads, other)


# --- GeoJSON --------------------------------------------------------------------------------------


def test_roads_in_geojson_equal_those_in_pixels(tmp_path: Path) -> None:
    # The synthetic images' pixels are 0.24 m wide and 0.3 m high.
    lines = [[(0.0, 0.0), (300.0, 0.0)], [(300.0, 0.0), (300.0, 250.0)]]
    write_labels(tmp_path / "truth" / "AOI_1_A_chip0.geojson", lines)
    name = "SN5_roads_train_AOI_1_A_geojson_roads_speed_chip0.geojson"
    write_labels(tmp_path / "proposal" / name, lines[:1])
    report = score_files(tmp_path / "truth", tmp_path / "proposal", metres_per_pixel=0.5).report
    truth, *_ = read_road_maps(tmp_path / "truth", tmp_path / "proposal", 0.5)
    (rows,) = truth.values()
    lengths = [row.length_m for row in rows]
    assert lengths == pytest.approx([300 * 0.2425, 250 * 0.2996], rel=0.01)
    # 25 mph
    assert rows[0].travel_time_s == pytest.approx(rows[0].length_m / (25 * 0.44704))
    # Both side roads have a midpoint; of 6 pairs of W, mid, corner, mid, S the proposal has W-mid..
    expected = apls(rows, rows[:1], metres_per_pixel=0.5)
    assert report.images["AOI_1_A_chip0"]["apls_length"] == pytest.approx(expected.length.score)
    assert 0 < expected.length.score < 1


def test_time_is_unknown_without_speeds(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "a.geojson", [[(0, 0), (300, 0)]], {"name": "Main Street"})
    rows, *_ = read_road_maps(path, path, 0.3)
    assert math.isnan(rows["a"][0].travel_time_s)
    stated = write_labels(tmp_path / "b.geojson", [[(0, 0), (300, 0)]], {"travel_time_s": 12.5})
    assert read_road_maps(stated, stated, 0.3)[0]["b"][0].travel_time_s == 12.5


def test_a_road_without_a_time_is_named(tmp_path: Path) -> None:
    truth, proposal = tmp_path / "truth.csv", tmp_path / "proposal.csv"
    header = "ImageId,WKT_Pix,length_m,travel_time_s\n"
    rows = [f'{name},"LINESTRING (0 0, 300 0)",90,{{}}\n' for name in ("a", "b", "c")]
    truth.write_text(header + "".join(row.format("9") for row in rows))
    proposal.write_text(header + "".join(map(str.format, rows, ("9", "", "9"))))
    scoring = score_files(truth, proposal)
    assert scoring.report.total["apls_time"] is None
    (warning,) = scoring.warnings
    assert "1 images of the proposal" in warning
    assert "for example b" in warning
    assert score_files(truth, truth).warnings == ()


def test_two_files_of_one_image(tmp_path: Path) -> None:
    for name in ("AOI_2_Vegas_img9", "SN3_roads_train_AOI_2_Vegas_geojson_roads_img9_speed"):
        write_labels(tmp_path / f"{name}.geojson", [[(0, 0), (9, 9)]])
    with pytest.raises(SatmapError, match="both of the image AOI_2_Vegas_img9"):
        find_maps(tmp_path)


def test_buildings_in_geojson(tmp_path: Path) -> None:
    def write(path: Path, boxes: list[tuple[float, float]], **properties: float) -> None:
        features = [
            {
                "type": "Feature",
                "properties": properties,
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[
                        lon_lat(x + dx, y + dy)
                        for dx, dy in ((0, 0), (40, 0), (40, 40), (0, 40), (0, 0))
                    ]],
                },
            }
            for x, y in boxes
        ]  # fmt: skip
        content = {"type": "FeatureCollection", "features": features}
        written(path, json.dumps(content))

    write(tmp_path / "truth" / "buildings_AOI_1_A_img1.geojson", [(0, 0), (100, 0)])
    write(tmp_path / "proposal" / "AOI_1_A_img1.geojson", [(3, 3), (200, 0)], Confidence=0.5)
    report = score_files(tmp_path / "truth", tmp_path / "proposal").report
    assert report.metric == "building_f1"
    figures = report.images["AOI_1_A_img1"]
    assert (figures["tp"], figures["fp"], figures["fn"]) == (1, 1, 1)


def write_collection(path: Path, *features: object, **members: object) -> Path:
    content = {"type": "FeatureCollection", "features": list(features), **members}
    return written(path, json.dumps(content))


def feature(kind: str, coordinates: object, properties: object = None) -> dict[str, object]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".txt"])
def test_scores_count_the_roads_that_trainings_read(tmp_path: Path, suffix: str) -> None:
    ways = ["primary", "footway", "construction"]
    lines = [[(10.0, 50 + 1e-3 * n), (10.001, 50 + 1e-3 * n)] for n in range(3)]
    if suffix == ".gpkg":
        path = tmp_path / "osm.gpkg"
        pyogrio.raw.write(
            path, shapely.to_wkb(shapely.linestrings(lines)), [np.array(ways, object)],
            ["highway"], geometry_type="LineString", crs="EPSG:4326",
        )  # fmt: skip
    else:
        path = write_collection(tmp_path / f"osm{suffix}", *(
            feature("LineString", line, {"highway": way})
            for line, way in zip(lines, ways, strict=True)
        ))  # fmt: skip
    assert [line.properties["highway"] for line in read_map(path).lines] == ["primary"]
    if suffix != ".txt":
        assert len(read_label_file(path, "lines").shapes) == 1
    assert len(read_road_maps(path, path, 0.5)[0]["osm"]) == 1


SQUARE = [[(10.0, 50.0), (10.001, 50.0), (10.001, 50.001), (10.0, 50.0)]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        # Pixel coordinates that happen to be possible degrees; a stray vertex.
        ([feature("LineString", [(0, 0), (120, 80)])], "km wide or high"),
        ([feature("LineString", [(10, 50), (10.001, 50), (12, 60)])], "km wide or high"),
        ([feature("Linestring", [(10, 50), (10.001, 50)])], "unknown GeoJSON geometry"),
        ([feature("LineString", [(10, 50), (10.001, 50)], [1, 2])], "properties are not an object"),
        ([feature("LineString", [(10, 50), (10**400, 50)])], "malformed"),
        (
            [feature("Polygon", SQUARE, {"Confidence": "high"})],
            "image a, polygon 0: the confidence is not a finite number",
        ),
    ],
)
def test_invalid_geojson(tmp_path: Path, features: list[object], message: str) -> None:
    path = write_collection(tmp_path / "a.geojson", *features)
    with pytest.raises(SatmapError, match=message):
        score_files(path, path)


def test_lines_and_polygons_cannot_be_compared(tmp_path: Path) -> None:
    lines = write_labels(tmp_path / "a.geojson", [[(0, 0), (9, 9)]])
    polygons = write_collection(tmp_path / "b.geojson", feature("Polygon", SQUARE))
    with pytest.raises(SatmapError, match=r"holds lines and .* polygons"):
        score_files(lines, polygons)
    with pytest.raises(SatmapError, match=r"holds polygons and .* lines"):
        score_files(polygons, lines)


def test_one_file_per_side_is_one_image_with_any_names(tmp_path: Path) -> None:
    for name in ("truth.txt", "out.geojson"):
        write_labels(tmp_path / name, [[(0, 0), (300, 0)]])
    report = score_files(tmp_path / "truth.txt", tmp_path / "out.geojson").report
    assert report.images["truth"]["apls_length"] == 1


def test_confidences_may_be_log_odds(tmp_path: Path) -> None:
    sure, unsure = (feature("Polygon", SQUARE, {"Confidence": c}) for c in (-0.1, -3))
    path = write_collection(tmp_path / "a.geojson", unsure, sure)
    rows, *_ = read_building_maps(path, path, 0.3)
    assert [row.score for row in rows["a"]] == [-3, -0.1]


def test_no_address_is_fetched_for_a_reference_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "satmap.io.geojson_reader.CRS", SimpleNamespace(from_user_input=asked.append)
    )
    name = {"type": "name", "properties": {"name": "http://127.0.0.1:9/x.wkt"}}
    path = write_collection(
        tmp_path / "a.geojson", feature("LineString", [(10, 50), (10.001, 50)]), crs=name
    )
    assert score_files(path, path).report.total["apls_length"] == 1
    assert asked == []


@needs_shared
def test_spacenet_1_scores_1_against_itself() -> None:
    directory = SHARED / "data" / "buildings_sn1" / "AOI_0_TEST" / "vectorData" / "geoJson"
    report = score_files(directory, directory).report
    assert report.total["f1"] == 1
    assert all(image_id.endswith(tuple("0123456789")) for image_id in report.images)


# The older Python package measures in metres after a projection and drops short subgraphs.
COSMIQ = {
    "img99": 0.78056, "img990": 0.61152, "img991": 0.76426, "img995": 0.72657,
    "img997": 0.57505, "img998": 0.65975, "img999": 0.42501,
}  # fmt: skip


@needs_shared
def test_vegas_is_near_the_older_package() -> None:
    directory = FIXTURES / "apls" / "AOI_2_Vegas_Train"
    report = score_files(directory / "spacenetroads", directory / "osm").report
    assert len(report.images) == 7
    for name, expected in COSMIQ.items():
        measured = report.images[f"AOI_2_Vegas_{name}"]["apls_length"]
        assert measured == pytest.approx(expected, abs=0.06)


@needs_shared
def test_sample_buildings_are_exact() -> None:
    directory = FIXTURES / "building_f1"
    truth, preds = directory / "SN2_sample_truth.csv", directory / "SN2_sample_preds.csv"
    aois = score_files(truth, preds).report.aois
    vegas, khartoum = aois["AOI_2_Vegas"], aois["AOI_5_Khartoum"]
    assert (vegas["tp"], vegas["fp"], vegas["fn"]) == (35, 2, 7)
    assert (khartoum["tp"], khartoum["fp"], khartoum["fn"]) == (52, 55, 75)
    assert vegas["f1"] == 0.8860759493670887
    assert khartoum["f1"] == 0.4444444444444444


# --- checks ---------------------------------------------------------------------------------------


def test_each_submission_is_checked_by_its_format(tmp_path: Path) -> None:
    assert check_files(written(tmp_path / "r.csv", ROADS)) == []
    assert check_files(written(tmp_path / "b.csv", BUILDINGS)) == []
    (fault,) = check_files(written(tmp_path / "c.json", "[]"))
    assert "empty" in fault.message
    write_mask(tmp_path / "masks" / "x.TIF", np.ones((4, 4)))
    assert check_files(tmp_path / "masks") == []
    assert check_files(write_labels(tmp_path / "a.geojson", [[(0, 0), (9, 9)]])) == []
    with pytest.raises(SatmapError, match="COCO annotations, which no challenge takes"):
        check_files(written(tmp_path / "e.json", '{"images": []}'))


def test_images_of_the_directories_must_appear(tmp_path: Path) -> None:
    for name in ("3band_AOI_1_A_img0.tif", "3band_AOI_1_A_img7.tif"):
        write_image(tmp_path / "3band" / name)
    faults = check_files(written(tmp_path / "b.csv", BUILDINGS), [tmp_path / "3band"])
    messages = [fault.message for fault in faults]
    assert any("unknown image" in text and "img1" in text for text in messages)
    assert any("missing image" in text and "img7" in text for text in messages)
    assert len(messages) == 2

    write_mask(tmp_path / "masks" / "x.TIF", np.ones((4, 4)))
    write_image(tmp_path / "chips" / "x" / "x.tif", size=(4, 5))
    (fault,) = check_files(tmp_path / "masks", [tmp_path / "chips"])
    assert "x.TIF: 4 x 4 px, but the chip has 5 x 4" in fault.message

    with rasterio.open(tmp_path / "3band" / "3band_AOI_1_A_img0.tif") as image:
        assert image.count == 3
    with pytest.raises(SatmapError, match="no images of the Mapping Challenge"):
        check_files(written(tmp_path / "c.json", "[]"), [tmp_path / "chips"])
