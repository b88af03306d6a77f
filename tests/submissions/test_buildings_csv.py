import itertools
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repository import SHARED
from satmap.errors import SatmapError
from satmap.submissions import buildings_csv
from satmap.submissions.buildings_csv import (
    BuildingRow,
    canonical_id,
    check_buildings_csv,
    read_buildings_csv,
    write_buildings_csv,
)
from satmap.submissions.fault import Fault

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")

HEADER = "ImageId,BuildingId,PolygonWKT_Pix,Confidence\n"
IMAGE = "AOI_2_Vegas_img0"
SQUARE = '"POLYGON ((0 0,9 0,9 9,0 9,0 0))"'

Points = Sequence[tuple[float, float]]


def building(points: Points, *holes: Points, confidence: float = 0.5) -> BuildingRow:
    return BuildingRow(shapely.Polygon(points, holes), confidence)


def box(
    x0: float, y0: float, x1: float, y1: float, *holes: Points, confidence: float = 0.5
) -> BuildingRow:
    return building([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], *holes, confidence=confidence)


def format_buildings(rows: Mapping[str, Sequence[BuildingRow]]) -> str:
    """Return the text of a written file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "buildings.csv"
        write_buildings_csv(path, rows)
        return path.read_bytes().decode()


def written(*rows: BuildingRow) -> list[str]:
    """Return the written rows of one image, without id and header."""
    lines = format_buildings({IMAGE: rows}).splitlines()
    assert lines[0] + "\n" == HEADER
    return [line.removeprefix(f"{IMAGE},") for line in lines[1:]]


def polygons_of(lines: Sequence[str]) -> list[shapely.Polygon]:
    return [shapely.from_wkt(line.split('"')[1]) for line in lines]


def faults_of(tmp_path: Path, rows: str, expected: Sequence[str] | None = None) -> list[Fault]:
    path = tmp_path / "buildings.csv"
    path.write_text(HEADER + rows)
    return check_buildings_csv(path, expected)


# --- writing --------------------------------------------------------------------------------------


def test_images_in_natural_order_and_most_confident_buildings_first() -> None:
    text = format_buildings({
        "img10": [],
        "img2": [
            box(0, 0, 5, 5, confidence=0.25),
            box(0, 0, 7.126, 5, [(1, 1), (2, 1), (2, 2)], confidence=3),
        ],
    })  # fmt: skip
    assert text == (
        HEADER
        # No blank between rings, because the Java scorer would join them.
        + 'img2,1,"POLYGON ((0.00 0.00,0.00 5.00,7.13 5.00,7.13 0.00,0.00 0.00),'
        + '(1.00 1.00,2.00 1.00,2.00 2.00,1.00 1.00))",3.0\n'
        + 'img2,2,"POLYGON ((0.00 0.00,0.00 5.00,5.00 5.00,5.00 0.00,0.00 0.00))",0.25\n'
        + "img10,-1,POLYGON EMPTY,1\n"
    )


def test_both_halves_of_a_bow_tie_are_written() -> None:
    # Two triangles of 10 px base and 5 px height each: 25 px^2. A zero buffer would keep one.
    lines = written(building([(0, 0), (10, 10), (10, 0), (0, 10)], confidence=0.75))
    assert [line.split(",")[0] for line in lines] == ["1", "2"]
    assert all(line.endswith(",0.75") for line in lines)
    halves = polygons_of(lines)
    assert [polygon.area for polygon in halves] == [25, 25]
    assert shapely.union_all(halves).area == 50


def test_a_building_that_falls_apart_by_rounding() -> None:
    # Two squares of 6 px joined by a bridge 0.004 px high, which has no height when rounded.
    points = [
        (0, 0), (6, 0), (6, 3), (10, 3), (10, 0), (16, 0),
        (16, 6), (10, 6), (10, 3.004), (6, 3.004), (6, 6), (0, 6),
    ]  # fmt: skip
    squares = polygons_of(written(building(points)))
    assert sorted(polygon.bounds for polygon in squares) == [(0, 0, 6, 6), (10, 0, 16, 6)]
    assert all(polygon.area == 36 for polygon in squares)


def test_parts_become_separate_rows() -> None:
    parts = shapely.MultiPolygon([shapely.box(0, 0, 5, 5), shapely.box(10, 0, 20, 5)])
    lines = written(BuildingRow(parts, 0.5))
    assert sorted(polygon.area for polygon in polygons_of(lines)) == [25, 50]


@pytest.mark.parametrize(
    "row",
    [
        box(0, 0, 5, 3.99),  # 19.95 px^2
        box(0, 0, 1000, 0.004),
        box(0, 0, 5, 5, [(0, 0), (5, 0), (5, 5)]),
        building([(0, 0), (1, 1), (2, 2)]),
        BuildingRow(shapely.Polygon()),
    ],
)
def test_buildings_that_the_scorers_drop_are_left_out(row: BuildingRow) -> None:
    assert written(row) == ["-1,POLYGON EMPTY,1"]


def test_the_area_after_rounding_counts() -> None:
    assert len(polygons_of(written(box(0, 0, 19.9951, 0.9951)))) == 1  # 19.90, written as 20.00
    assert written(box(0, 0, 19.9949, 1.0049)) == ["-1,POLYGON EMPTY,1"]  # 20.09, written as 19.99


def test_confidences_keep_their_order() -> None:
    # Adjacent doubles; the more confident building has the text that sorts last.
    less, more = 0.1, math.nextafter(0.1, 1)
    lines = written(box(0, 0, 5, 5, confidence=less), box(9, 0, 15, 5, confidence=more))
    confidences = [float(line.rpartition(",")[2]) for line in lines]
    assert confidences == [more, less]
    assert polygons_of(lines)[0].bounds == (9, 0, 15, 5)
    assert written(box(0, 0, 5, 5, confidence=-0.0))[0].endswith(",0.0")


def test_third_coordinates_are_dropped() -> None:
    flat, high = box(0, 0, 5, 5), shapely.force_3d(shapely.box(0, 0, 5, 5), 7)
    assert written(BuildingRow(high, 0.5)) == written(flat)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (building([(0, 0), (math.inf, 1), (1, 1)]), "not finite"),
        (box(0, 0, 1e8, 1), "beyond"),
        (box(0, 0, 9, 9, confidence=math.nan), "confidence"),
        (box(0, 0, 9, 9, confidence=math.inf), "confidence"),
        (BuildingRow(shapely.LineString([(0, 0), (9, 9)])), "not a Polygon"),
    ],
)
def test_writer_refuses_invalid_buildings(row: BuildingRow, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        written(row)


@pytest.mark.parametrize("image_id", ["", "a,b", 'a"', " a", "a\nb", "#a", "a\0"])
def test_writer_refuses_ids_that_would_break_the_table(image_id: str) -> None:
    with pytest.raises(ValueError, match="image id"):
        format_buildings({image_id: []})


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "buildings.csv"
    hole = [(1, 1), (2, 1), (2, 2)]
    write_buildings_csv(path, {"img1": [box(0, 0, 9.25, 9, hole)], "img0": []})
    rows = read_buildings_csv(path)
    assert list(rows) == ["img0", "img1"]
    assert rows["img0"] == []
    (row,) = rows["img1"]
    assert row.polygon.equals(box(0, 0, 9.25, 9, hole).polygon)
    assert len(row.polygon.interiors) == 1
    assert (row.score, row.building_id) == (0.5, "1")


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        HEADER + f'{IMAGE},7,"POLYGON ((0 0,9 0,9 9.5,0 0))",0.5\n',
        HEADER + f'{IMAGE},7,"POLYGON((0 0, 9 0, 9 9.5, 0 0))",5e-1\n\n',
        HEADER + f'{IMAGE},7,"polygon (( 0 0 0 , 9  0 0 , 9 95e-1 0 , 0 0 0 ))",.5\n',
        HEADER + f'{IMAGE},7,"POLYGON Z ((0 0 1, 9 0 1, 9 9.5 1, 0 0 1))",0.50\n',
        "\ufeff" + HEADER + f'{IMAGE},7,"POLYGON ((0 0,9 0,9 9.5,0 0))",0.5\n',
        (HEADER + f'{IMAGE},7,"POLYGON ((0 0,9 0,9 9.5,0 0))",0.5\n').replace("\n", "\r\n"),
        HEADER + f'Pan-Sharpen_{IMAGE},7,"POLYGON ((0 0,9 0,9 9.5,0 0))",0.5\n',
        "occluded,CONFIDENCE,polygonwkt_geo,PolygonWKT_PIX,buildingid, imageid\n"
        f'1,0.5,"POLYGON ((-84 33,-85 33,-85 34,-84 33))","POLYGON ((0 0,9 0,9 9.5,0 0))",7,{IMAGE}\n',  # noqa: E501
    ],
)
def test_variants_read_alike(tmp_path: Path, text: str) -> None:
    path = tmp_path / "buildings.csv"
    path.write_bytes(text.encode())
    ((image_id, (row,)),) = read_buildings_csv(path).items()
    assert image_id == IMAGE
    assert row.polygon.wkt == "POLYGON ((0 0, 9 0, 9 9.5, 0 0))"
    assert (row.score, row.building_id) == (0.5, "7")


def test_truth_without_confidence_and_with_two_kinds_of_empty_rows(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(
        "ImageId,BuildingId,PolygonWKT_Pix,PolygonWKT_Geo\n"
        f'a,1,{SQUARE},"POLYGON ((0 0, 0 0, 0 0, 0 0))"\n'
        'b,-1,"POLYGON ((0 0, 0 0, 0 0, 0 0))","POLYGON ((0 0, 0 0, 0 0, 0 0))"\n'
        "c,-1,POLYGON EMPTY,POLYGON EMPTY\n"
        "d,-1,nothing here,\n"
    )
    rows = read_buildings_csv(path)
    assert [len(record) for record in rows.values()] == [1, 0, 0, 0]
    assert rows["a"][0].score == 1


def test_two_columns_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "buildings.csv"
    path.write_text(f"ImageId,PolygonWKT_Pix\na,{SQUARE}\nb,POLYGON EMPTY\n")
    rows = read_buildings_csv(path)
    assert (rows["a"][0].score, rows["a"][0].building_id) == (1, "")
    assert rows["b"] == []


def test_invalid_and_multi_part_polygons_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "buildings.csv"
    path.write_text(
        HEADER
        + 'a,1,"POLYGON ((0 0,9 9,9 0,0 9,0 0))",1\n'
        + 'a,2,"MULTIPOLYGON (((0 0,9 0,9 9,0 0)),((20 0,29 0,29 9,20 0)))",1\n'
    )
    bow_tie, parts = read_buildings_csv(path)["a"]
    assert not bow_tie.polygon.is_valid
    assert parts.polygon.area == 81


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('c,1,"LINESTRING (0 0,1 1)",1', "not a POLYGON"),
        ('c,1,"POLYGON ((0 0,9 0,9 9,0 0)",1', "not a POLYGON"),
        ('c,1,"POLYGON ((0 0,9 0,9 9,0 0)) x",1', "not a POLYGON"),
        ("c,1,,1", "the polygon is empty"),
        ('c,1,"POLYGON ((0 0,9 0,9,0 0))",1', "needs x and y"),
        ('c,1,"POLYGON ((0 0,9 0,9 nine,0 0))",1', "a coordinate is not a number"),
        ('c,1,"POLYGON ((0 0,9 0,9 nan,0 0))",1', "a coordinate is not a finite number"),
        ('c,1,"POLYGON ((0 0,9 0,9 1e999,0 0))",1', "a coordinate is not a finite number"),
        ('c,1,"POLYGON ((0 0,9 0,9 1_0,0 0))",1', "a coordinate is not a finite number"),
        ('c,1,"POLYGON ((0 0,9 0,9 2e7,0 0))",1', "beyond 1e"),
        ('c,1,"POLYGON ((0 0,9 0))",1', "a ring has 2 points"),
        ('c,1,"POLYGON ((0 0,9 0,9 9,0 9))",1', "a ring is not closed"),
        ('c,1,"POLYGON ((0 0,9 0,9 9,0 0),(1 1,2 1,2 2,1 2))",1', "a ring is not closed"),
        (f"c,1,{SQUARE},sure", "the confidence is not a number"),
        (f"c,1,{SQUARE},nan", "the confidence is not a finite number"),
        (f"c,1,{SQUARE}", "3 columns where the header has 4"),
        ("c,1,POLYGON ((0 0,9 0,9 9,0 0)),1", "double quotes"),
        (f",1,{SQUARE},1", "the ImageId is empty"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "buildings.csv"
    path.write_text(HEADER + "a,-1,POLYGON EMPTY,1\n\n" + row + "\n")
    with pytest.raises(SatmapError, match=rf"buildings\.csv, line 4: .*{message}"):
        read_buildings_csv(path)
    (fault,) = check_buildings_csv(path)
    assert fault.line == 4
    assert message in fault.message


def test_unusable_files(tmp_path: Path) -> None:
    for call in (read_buildings_csv, check_buildings_csv):
        with pytest.raises(SatmapError, match=r"cannot read .*none\.csv"):
            call(tmp_path / "none.csv")
    path = tmp_path / "buildings.csv"
    for content in (b"", b"a,b\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(SatmapError, match=r"line 1: .*no column ImageId and PolygonWKT_Pix"):
            read_buildings_csv(path)
        assert {fault.line for fault in check_buildings_csv(path)} == {1}
    path.write_bytes(HEADER.encode() + b"\xff\xfe\n")
    with pytest.raises(SatmapError, match=r"line 2: .*not UTF-8"):
        read_buildings_csv(path)


def test_canonical_id() -> None:
    assert canonical_id("Pan-Sharpen_Atlanta_nadir7_catid_1_2_3") == "Atlanta_nadir7_catid_1_2_3"
    assert canonical_id("AOI_2_Vegas_img1") == "AOI_2_Vegas_img1"


# --- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        # Both scorers.
        ('c,1,"POLYGON ((0 0,4 0,4 4,0 4,0 0))",1\n', 2, "16.00 square pixels"),
        ('c,1,"POLYGON ((0 0,9 9,9 0,0 9,0 0))",1\n', 2, "invalid (Self-intersection"),
        ('c,1,"POLYGON ((0 0,5 5,0 0))",1\n', 2, "oint"),  # too few; GEOS versions differ
        ('c,1,"POLYGON ((0 0,9 0,9 9,0 0),(20 20,21 20,21 21,20 20))",1\n', 2, "invalid (Hole"),
        (f"c,-1,{SQUARE},1\n", 2, "stands for no building"),
        (f"c,1,{SQUARE},\n", 2, "the confidence is not a number"),
        # One of them.
        ('c,1,"POLYGON ((0 0,9 0,9 9,0 0), (2 1,3 1,3 2,2 1))",1\n', 2, "none beside the inner"),
        ('c,1,"POLYGON ( (0 0,9 0,9 9,0 0))",1\n', 2, "none beside the inner"),
        ('c,1,"POLYGON ((0 0,9 0,9 9,0 0) )",1\n', 2, "none beside the inner"),
        ('c,1,"POLYGON ((0  0,9 0,9 9,0  0))",1\n', 2, "one blank between"),
        ('c,1,"POLYGON ((0\t0,9 0,9 9,0\t0))",1\n', 2, "one blank between"),
        ('c,1,"POLYGON ((0x10 0,9 0,9 9,0x10 0))",1\n', 2, "plain numbers"),
        ('c,1,"MULTIPOLYGON (((0 0,9 0,9 9,0 0)))",1\n', 2, "rows of their own"),
        ("c,3,POLYGON EMPTY,1\n", 2, "must have the BuildingId -1"),
        # The rules.
        (f"c,x,{SQUARE},1\n", 2, "not a positive whole number: 'x'"),
        (f"c,1.0,{SQUARE},1\n", 2, "not a positive whole number"),
        (f"c,-2,{SQUARE},1\n", 2, "not a positive whole number"),
        (f"c,,{SQUARE},1\n", 2, "not a positive whole number"),
        (f"c,1,{SQUARE},1\nb,1,{SQUARE},1\nc,1,{SQUARE},1\n", 4, "twice, first on line 2"),
        (f"c,1,{SQUARE},1\nc,-1,POLYGON EMPTY,1\n", 3, "only row"),
        ("c,-1,POLYGON EMPTY,1\nc,-1,POLYGON EMPTY,1\n", 2, "only row"),
        ("", None, "no rows"),
    ],
)
def test_each_fault_is_found(tmp_path: Path, rows: str, line: int | None, message: str) -> None:
    fault, *others = faults_of(tmp_path, rows)
    assert not others
    assert fault.line == line
    assert message in fault.message


def test_files_that_the_scorers_accept_have_no_fault(tmp_path: Path) -> None:
    rows = (
        f"c,0,{SQUARE},0.5\n"
        'c,1,"POLYGON((0 0, 5 0, 5 4, 0 4, 0 0))",-1e-3\n'  # 20 px^2, beside an equal building
        'd,1,"POLYGON ((0 0 0,9 0 0,9 9 0,0 0 0),(2 1 0,3 1 0,3 2 0,2 1 0))",7\n'
        'd,999,"polygon Z ((0 0 5, 9.5 0 5, 9 1e1 5, 0 0 5))",1e10\n'
        "e,-1,POLYGON EMPTY,1\n"
    )
    assert faults_of(tmp_path, rows, ["e", "d", "Pan-Sharpen_c"]) == []


def test_faults_of_many_rows_come_in_one_pass_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buildings_csv, "_BATCH_ROWS", 2)
    faults = faults_of(
        tmp_path,
        f"c,1,{SQUARE},1\n"
        'c,x,"POLYGON ((0 0,1 0,1 1,0 0))",no\n'
        f"b,1,{SQUARE}\n"
        f"c,1,{SQUARE},1\n"
        "c,-1,POLYGON EMPTY,1\n"
        'd,1,"POLYGON ((0 0,9 9,9 0,0 9,0 0))",1\n',
        ["c", "f10", "f9"],
    )
    assert [fault.line for fault in faults] == [3, 3, 3, 4, 5, 6, 7, 7, None, None]
    # A bow-tie of equal halves has a signed area of 0.
    assert "invalid" in faults[7].message
    assert "0.00 square pixels" in faults[7].message
    assert faults[6] == Fault(7, "unknown image d")
    assert [fault.message for fault in faults[-2:]] == ["missing image f9", "missing image f10"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("\ufeff" + HEADER, "byte order mark"),
        ("ImageId,PolygonWKT_Pix\n", "the header is"),
        ("imageid,BuildingId,PolygonWKT_Pix,Confidence\n", "the header is"),
    ],
)
def test_header_faults(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "buildings.csv"
    row = "c,-1,POLYGON EMPTY,1" if header.count(",") > 1 else "c,POLYGON EMPTY"
    path.write_bytes(f"{header}{row}\n".encode())
    (fault,) = check_buildings_csv(path)
    assert fault.line == 1
    assert message in fault.message


@needs_shared
def test_files_that_the_official_scorers_read(tmp_path: Path) -> None:
    directory = SHARED / "fixtures" / "building_f1"
    preds = read_buildings_csv(directory / "SN2_sample_preds.csv")
    assert check_buildings_csv(directory / "SN2_sample_preds.csv", preds.keys()) == []
    # Two of the truth's buildings have less than 20 px^2.
    truth = read_buildings_csv(directory / "SN2_sample_truth.csv")
    write_buildings_csv(tmp_path / "again.csv", truth)
    assert check_buildings_csv(tmp_path / "again.csv", truth.keys()) == []
    again = read_buildings_csv(tmp_path / "again.csv")
    assert sum(map(len, again.values())) == sum(map(len, truth.values())) - 2


# --- properties -----------------------------------------------------------------------------------

# Few coordinates make bow-ties, spikes, copies and touching rings; fractions make near misses.
places = st.integers(0, 4).map(lambda i: 5.0 * i)
near = st.builds(lambda place, thousandths: place + thousandths / 1000, places, st.integers(-9, 9))
coordinates = places | near | st.floats(-30, 30) | st.floats(-1e7, 1e7)
rings = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8)
drawn = st.builds(shapely.Polygon, rings, st.lists(rings, max_size=2))
boxes = st.builds(
    lambda x, y, w, h: shapely.box(x, y, x + w, y + h), near, near, near | st.floats(0, 1e3), near
)
polygons = drawn | boxes | st.lists(boxes, max_size=3).map(shapely.MultiPolygon)
confidences = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(allow_nan=False, allow_infinity=False)
drawn_rows = st.lists(st.builds(BuildingRow, polygons, confidences), max_size=5)


def java_scorer_faults(text: str) -> list[str]:
    """Return the faults that the challenge's scorer would find, parsed by text marks as it does."""
    faults = []
    last = math.inf
    ids = []
    for line in text.splitlines()[1:]:
        image_id, building_id, rest = line.split(",", 2)
        assert image_id == IMAGE
        ids.append(int(building_id))
        if "POLYGON EMPTY" in rest:
            continue
        begin, end = line.index("(("), line.index("))")
        area = 0.0
        for number, ring in enumerate(line[begin + 2 : end].split("),(")):
            points = []
            for vertex in ring.split(","):
                x, y = vertex.strip().split(" ")[:2]
                assert len(x.partition(".")[2]) == len(y.partition(".")[2]) == 2
                points.append((float(x), float(y)))
            if len(points) < 4 or points[0] != points[-1]:
                faults.append("ring")
            signed = sum(
                (x0 + x1) * (y0 - y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points)
            )
            area += -abs(signed) if number else abs(signed)
        if area < 20 * (1 - 1e-9):
            faults.append(f"area {area}")
        confidence = float(line[end + 4 :])
        if confidence > last:
            faults.append("order")
        last = confidence
        if not shapely.from_wkt(line.split('"')[1]).is_valid:
            faults.append("invalid")
    return faults if ids in ([-1], list(range(1, len(ids) + 1))) else [*faults, "ids"]


@settings(max_examples=400, deadline=None)
@given(rows=drawn_rows)
@example(rows=[building([(0, 0), (10, 10), (10, 0), (0, 10)])] * 2)
@example(rows=[box(0, 0, 20, 1.0000001), box(0, 0, 19.9999, 1)])
@example(rows=[box(0, 0, 9, 9, [(0, 4), (9, 4), (4, 9)])])  # a hole that parts the building
@example(rows=[box(-1e7, -1e7, 1e7, 1e7, [(-1e7, 0), (1e7, 0.001), (1e7, 0.011)])])
def test_writer_passes_the_checker(
    rows: list[BuildingRow], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = format_buildings({IMAGE: rows})
    assert java_scorer_faults(text) == []
    path = tmp_path_factory.getbasetemp() / "written_buildings.csv"
    path.write_text(text)
    assert check_buildings_csv(path, [IMAGE]) == []
    # Reading and writing again changes nothing.
    assert format_buildings(read_buildings_csv(path)) == text


# GEOS cannot put this one on a grid.
_HUGE = BuildingRow(
    shapely.Polygon(
        [(0, 0), (10, 5), (-6493076.75, 15)],
        [
            [(0, 0), (0, 20), (140407, 0)],
            [(-6493076.75, 15), (10, 5), (10, 0), (-3416585.9375, 20)],
        ],
    ),
    0.0,
)


@settings(max_examples=100, deadline=None)
@given(rows=drawn_rows, seed=st.integers(0, 99))
@example(rows=[_HUGE], seed=0)
def test_text_does_not_depend_on_the_order_of_rows(rows: list[BuildingRow], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert format_buildings({IMAGE: rows}) == format_buildings({IMAGE: shuffled})


@settings(max_examples=150, deadline=None)
@given(polygon=drawn | boxes)
def test_a_valid_building_keeps_its_shape(polygon: shapely.Polygon) -> None:
    if not polygon.is_valid or polygon.area < 21:
        return
    lines = written(BuildingRow(polygon))
    if lines == ["-1,POLYGON EMPTY,1"]:
        # Only its rim may differ, 0.005 px and its diagonal to each side.
        assert polygon.area < 20 + 0.0075 * polygon.length
        return
    left = shapely.union_all(polygons_of(lines))
    lost = polygon.area - left.area
    # Parts under 20 px^2 may have gone, at most one for each vertex where it falls apart.
    assert abs(lost) < 20 * shapely.get_num_coordinates(polygon) + 0.0075 * polygon.length


def test_nested_collections_do_not_exhaust_the_parser(tmp_path: Path) -> None:
    path = tmp_path / "deep.csv"
    path.write_text(HEADER + 'a,1,"' + "GEOMETRYCOLLECTION(" * 200_000 + '",1\n')
    (fault,) = check_buildings_csv(path)
    assert fault.line == 2
    assert "not a POLYGON" in fault.message or "polygon" in fault.message
