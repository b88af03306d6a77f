import itertools
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repository import SHARED
from satmap.errors import SatmapError
from satmap.io.text import natural_key
from satmap.submissions.fault import Fault
from satmap.submissions.roads_csv import (
    RoadRow,
    check_roads_csv,
    read_roads_csv,
    write_roads_csv,
)

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")

HEADER = "ImageId,WKT_Pix,length_m,travel_time_s\n"
CHIP = "AOI_7_Moscow_chip0"


def road(
    points: Sequence[tuple[float, float]], length_m: float = 10, travel_time_s: float = 2
) -> RoadRow:
    line = np.array(points, dtype=np.float64).reshape(-1, 2)
    return RoadRow(line, length_m, travel_time_s)


def format_roads(rows: Mapping[str, Sequence[RoadRow]]) -> str:
    """Return the text of a written file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "roads.csv"
        write_roads_csv(path, rows)
        return path.read_bytes().decode()


def written(*rows: RoadRow) -> list[str]:
    """Return the written rows of one image, without id and header."""
    lines = format_roads({CHIP: rows}).splitlines()
    assert lines[0] + "\n" == HEADER
    return [line.removeprefix(f"{CHIP},") for line in lines[1:]]


def faults_of(tmp_path: Path, rows: str, expected: Sequence[str] | None = None) -> list[Fault]:
    path = tmp_path / "roads.csv"
    path.write_text(HEADER + rows)
    return check_roads_csv(path, expected)


# --- writing --------------------------------------------------------------------------------------


def test_images_in_natural_order_and_empty_ones_kept() -> None:
    text = format_roads({"chip10": [], "chip2": [road([(0, 0), (1.5, 20)], 12.3456, 1)]})
    assert text == (
        HEADER
        + 'chip2,"LINESTRING (0.00 0.00, 1.50 20.00)",12.346,1.000\n'
        + "chip10,LINESTRING EMPTY,0,0\n"
    )
    assert sorted(["a10b", "a9b", "a9", "10", "b1"], key=natural_key) == [
        "10", "a9", "a9b", "a10b", "b1",
    ]  # fmt: skip


def test_a_segment_of_two_roads_is_written_once() -> None:
    # Both roads run from (10, 0) to (20, 0). The second in canonical order is cut there; the
    # remaining 10 of its 30 px keep a third of the length and time.
    rows = written(
        road([(0, 0), (10, 0), (20, 0)], 20, 4),
        road([(30, 0), (20, 0), (10, 0), (10, 10)], 30, 6),
    )
    assert rows == [
        '"LINESTRING (0.00 0.00, 10.00 0.00, 20.00 0.00)",20.000,4.000',
        '"LINESTRING (10.00 0.00, 10.00 10.00)",10.000,2.000',
        '"LINESTRING (20.00 0.00, 30.00 0.00)",10.000,2.000',
    ]


def test_a_line_that_turns_back_over_itself_keeps_one_way() -> None:
    rows = written(road([(0, 0), (10, 0), (20, 0), (10, 0)], 30, 3))
    assert rows == ['"LINESTRING (0.00 0.00, 10.00 0.00, 20.00 0.00)",20.000,2.000']


def test_copies_and_reversals_of_a_road_are_dropped() -> None:
    points = [(0.0, 0.0), (10.0, 3.0), (20.0, 0.0)]
    moved = [(x + 0.03, y) for x, y in points]  # the same 0.1 px cells
    assert len(written(road(points), road(points[::-1]), road(moved))) == 1


def test_near_points_merge_without_moving_the_ends() -> None:
    rows = written(road([(0, 0), (0.02, 0.01), (5, 5), (5.001, 5), (9.98, 9), (10.02, 9)]))
    assert rows == ['"LINESTRING (0.00 0.00, 5.00 5.00, 10.02 9.00)",10.000,2.000']


def test_adjacent_hundredths_in_two_cells_stay_apart() -> None:
    # 0.29 - 0.28 is less than 0.01 in doubles, and 0.14 | 0.15 lie in two cells.
    for rows in ([(0.28, 0), (0.29, 0)], [(0.14, 0), (0.15, 0)]):
        (row,) = written(road([(-9, 0), *rows, (9, 0)]))
        numbers = np.array([part.split()[0] for part in row.split("(")[1].split(",")[:-3]])
        assert np.all(np.diff(numbers.astype(float)) >= 0.0199)


def test_roads_without_extent_are_dropped() -> None:
    rows = written(road([(3, 3)]), road([(4, 4), (4, 4.01)]), road([]))
    assert rows == ["LINESTRING EMPTY,0,0"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (road([(0, 0), (math.nan, 1)]), "not finite"),
        (road([(0, 0), (math.inf, 1)]), "not finite"),
        (road([(0, 0), (1, 1)], length_m=math.nan), "length and time"),
        (road([(0, 0), (1, 1)], travel_time_s=-1), "length and time"),
        (RoadRow(np.zeros((2, 3)), 1, 1), "shape"),
    ],
)
def test_writer_refuses_invalid_numbers(row: RoadRow, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        written(row)


@pytest.mark.parametrize("image_id", ["", "a,b", 'a"', " a", "a\nb"])
def test_writer_refuses_ids_that_would_break_the_table(image_id: str) -> None:
    with pytest.raises(ValueError, match="image id"):
        format_roads({image_id: []})


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "roads.csv"
    write_roads_csv(path, {"chip1": [road([(0, 0), (7.25, 3.14)], 4, 0.5)], "chip0": []})
    rows = read_roads_csv(path)
    assert list(rows) == ["chip0", "chip1"]
    assert rows["chip0"] == []
    (row,) = rows["chip1"]
    assert row.line.dtype == np.float64
    assert row.line.tolist() == [[0, 0], [7.26, 3.14]]  # no last digit 5: it rounds both ways
    assert (row.length_m, row.travel_time_s) == (4, 0.5)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        HEADER + f'{CHIP},"LINESTRING (1 2, 3 4.5)",7,8\n',
        HEADER + f'{CHIP},"LINESTRING(1 2,3 4.5)",7,8\n',
        HEADER + f'{CHIP},"linestring ( 1.0e0   2 , 3 45E-1 )",7,8\n\n',
        HEADER + f'{CHIP},"LINESTRING Z (1 2 0, 3 4.5 0)",7,8\n',
        HEADER + f'{CHIP},"LINESTRING (1 2 9, 3 4.5 9)",7.0,8e0\n',
        "\ufeff" + HEADER + f'{CHIP},"LINESTRING (1 2, 3 4.5)",7,8\n',
        (HEADER + f'{CHIP},"LINESTRING (1 2, 3 4.5)",7,8\n').replace("\n", "\r\n"),
        "flag,Travel_Time_s,imageid, wkt_pix,LENGTH_M,note\n"
        f'1,8,{CHIP},"LINESTRING (1 2, 3 4.5)",7,\n',
    ],
)
def test_variants_read_alike(tmp_path: Path, text: str) -> None:
    path = tmp_path / "roads.csv"
    path.write_bytes(text.encode())
    ((image_id, (row,)),) = read_roads_csv(path).items()
    assert image_id == CHIP
    assert row.line.tolist() == [[1, 2], [3, 4.5]]
    assert (row.length_m, row.travel_time_s) == (7, 8)


def test_two_columns_leave_length_and_time_unknown(tmp_path: Path) -> None:
    path = tmp_path / "roads.csv"
    path.write_text(f'ImageId,WKT_Pix\n{CHIP},"LINESTRING (1 2, 3 4)"\nother,LINESTRING EMPTY\n')
    rows = read_roads_csv(path)
    assert rows["other"] == []
    assert math.isnan(rows[CHIP][0].length_m)
    assert math.isnan(rows[CHIP][0].travel_time_s)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('c,"POLYGON ((0 0, 1 1))",1,1', "not a LINESTRING"),
        ('c,"LINESTRING (0 0, 1 1",1,1', "not a LINESTRING"),
        ('c,"LINESTRING (0 0, 1)",1,1', "needs x and y"),
        ('c,"LINESTRING (0 0, 1 one)",1,1', "not a number"),
        ('c,"LINESTRING (0 0, 1 nan)",1,1', "not a finite number"),
        ('c,"LINESTRING (0 0, 1_0 1)",1,1', "not a finite number"),
        ('c,"LINESTRING (0 0, ١ 1)",1,1', "not a finite number"),
        ('c,"LINESTRING (0 0, 1 1),1,1', "opened but not closed"),
        ('c\0,"LINESTRING (0 0, 1 1)",1,1', "NUL"),
        ('c,"LINESTRING (0 0)",1,1', "one point"),
        ('c,"LINESTRING (0 0, 1 1)",x,1', "length_m is not a number"),
        ('c,"LINESTRING (0 0, 1 1)",1,-1', "travel_time_s must lie between 0 and"),
        ('c,"LINESTRING (0 0, 1 1)",1,nan', "travel_time_s is not a finite number"),
        ('c,"LINESTRING (0 0, 1 1)",1', "3 columns where the header has 4"),
        ("c,LINESTRING (0 0, 1 1),1,1", "double quotes"),
        (',"LINESTRING (0 0, 1 1)",1,1', "ImageId is empty"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "roads.csv"
    path.write_text(HEADER + "a,LINESTRING EMPTY,0,0\n\n" + row + "\n")
    with pytest.raises(SatmapError, match=rf"roads\.csv, line 4: .*{message}"):
        read_roads_csv(path)
    assert [fault.line for fault in check_roads_csv(path, None)] == [4]


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(SatmapError, match=r"cannot read .*none\.csv"):
        read_roads_csv(tmp_path / "none.csv")
    with pytest.raises(SatmapError, match=r"cannot read .*none\.csv"):
        check_roads_csv(tmp_path / "none.csv", None)
    path = tmp_path / "roads.csv"
    for content in (b"", b"a,b\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(SatmapError, match=r"line 1: .*no column ImageId and WKT_Pix"):
            read_roads_csv(path)
        assert {fault.line for fault in check_roads_csv(path, None)} == {1}
    path.write_bytes(b"ImageId,WKT_Pix\n\xff\xfe\n")
    with pytest.raises(SatmapError, match="not UTF-8"):
        read_roads_csv(path)


# --- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        ('c,"LINESTRING (0 0, 0.005 0, 9 9)",1,1\n', 2, "closer than 0.01 px"),
        ('c,"LINESTRING (0.28 0, 0.29 0, 9 9)",1,1\n', 2, "closer than 0.01 px"),
        ('c,"LINESTRING (0 0, 9 9)",1,1\nc,"LINESTRING (9 9.02, 0 0)",1,1\n', 3, "first on line 2"),
        ('c,"LINESTRING (0 0, 9 9, 0 0)",1,1\n', 2, "appears twice"),
        # Two segments within one cell are the same segment.
        ('c,"LINESTRING (0 0, 0.02 0, 0.04 0, 9 9)",1,1\n', 2, "appears twice"),
        ('c,"LINESTRING (0 0)",1,1\n', 2, "one point"),
        ('c,"LINESTRING (0 0, 9 9)",1,1\nc,LINESTRING EMPTY,0,0\n', 3, "only row"),
        ("c,LINESTRING EMPTY,0,0\nc,LINESTRING EMPTY,0,0\n", 2, "only row"),
        ('c,"LINESTRING (0 0, 9 9)",nan,1\n', 2, "length_m"),
        ('c,"LINESTRING (0 0, 9 9)",1,\n', 2, "travel_time_s is empty"),
        ('c,"LINESTRING (0  0, 9 9)",1,1\n', 2, "one blank"),
        ('c,"LINESTRING Z (0 0 1, 9 9 1)",1,1\n', 2, "without Z"),
        ('c,"LINESTRING (0 0, 9 9)",1,1,5\n', 2, "5 columns"),
        ("", None, "no rows"),
    ],
)
def test_each_fault_is_found(tmp_path: Path, rows: str, line: int | None, message: str) -> None:
    (fault,) = faults_of(tmp_path, rows)
    assert fault.line == line
    assert message in fault.message


def test_files_that_the_organisers_accept_have_no_fault(tmp_path: Path) -> None:
    rows = (
        'c,"LINESTRING(0 0,9.5 9, 1e1 0)",1,1\n'
        'c,"LINESTRING (0 0, 5 5)",0,0\n'  # along the first, but not the same segment
        'd,"LINESTRING (0 0, 9.5 9 3)",1,1\n'  # the same segment in another image; a third number
        "e,LINESTRING EMPTY,0,0\n"
    )
    assert faults_of(tmp_path, rows, ["e", "d", "c"]) == []


def test_missing_and_unknown_images(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path, "b,LINESTRING EMPTY,0,0\na,LINESTRING EMPTY,0,0\n", ["a", "c10", "c9"]
    )
    assert faults == [
        Fault(2, "unknown image b"),
        Fault(None, "missing image c9"),
        Fault(None, "missing image c10"),
    ]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("\ufeff" + HEADER, "byte order mark"),
        ("ImageId,WKT_Pix\n", "the header is"),
        ("imageid,WKT_Pix,length_m,travel_time_s\n", "the header is"),
    ],
)
def test_header_faults(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "roads.csv"
    cells = ",0" * (header.count(",") - 1)
    path.write_bytes(f"{header}c,LINESTRING EMPTY{cells}\n".encode())
    (fault,) = check_roads_csv(path, None)
    assert fault.line == 1
    assert message in fault.message


@needs_shared
def test_files_that_the_official_scorer_reads_differ_in_the_header_only() -> None:
    for name in ("apls/made_truth", "apls/sn3_sample_submission_albu", "masks/truth_noded"):
        faults = check_roads_csv(SHARED / "fixtures" / f"{name}.csv", None)
        assert [fault.line for fault in faults] == [1], name


# --- properties -----------------------------------------------------------------------------------

# Few positions, near misses and arbitrary ones make repeated, close and shared segments.
near = st.builds(
    lambda place, hundredths: place + hundredths / 100, st.integers(0, 2), st.integers(-12, 12)
)
coordinates = near | st.integers(0, 3).map(float) | st.floats(-50, 50)
drawn_lines = st.lists(st.tuples(coordinates, coordinates), max_size=8)
drawn_roads = st.lists(
    st.builds(road, drawn_lines, st.floats(0, 1e6), st.floats(0, 1e6)), max_size=6
)


def official_faults(text: str) -> list[str]:
    """Return the faults by the organisers' rules, from the text and with exact decimals."""
    faults = []
    by_image: dict[str, list[list[tuple[int, int]]]] = {}
    for line in text.splitlines()[1:]:
        image_id, rest = line.split(",", 1)
        points = []
        if "EMPTY" not in rest:
            for vertex in rest.split("(")[1].split(")")[0].split(", "):
                x, y = (round(float(number) * 100) for number in vertex.split(" "))
                points.append((x, y))
        by_image.setdefault(image_id, []).append(points)
    for lines in by_image.values():
        if [] in lines and len(lines) > 1:
            faults.append("EMPTY beside others")
        for up in (4, 5):  # a last digit 5 rounds down, up
            seen = set()
            for points in lines:
                if len(points) == 1:
                    faults.append("one point")
                for a, b in itertools.pairwise(points):
                    if math.dist(a, b) < 1.001:
                        faults.append("points too close")
                    cells = {((x + up) // 10, (y + up) // 10) for x, y in (a, b)}
                    if len(cells) == 1 or frozenset(cells) in seen:
                        faults.append("segment twice, or within a cell")
                    seen.add(frozenset(cells))
    return faults


@settings(max_examples=300, deadline=None)
@given(rows=drawn_roads)
def test_writer_passes_the_checker(
    rows: list[RoadRow], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = format_roads({CHIP: rows})
    assert official_faults(text) == []
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_text(text)
    assert check_roads_csv(path, [CHIP]) == []
    # Reading and writing again changes nothing.
    assert format_roads(read_roads_csv(path)) == text


@settings(max_examples=100, deadline=None)
@given(rows=drawn_roads, seed=st.integers(0, 99))
def test_text_does_not_depend_on_order_or_direction(rows: list[RoadRow], seed: int) -> None:
    shuffle = random.Random(seed)
    turned = [
        RoadRow(row.line[:: shuffle.choice((1, -1))], row.length_m, row.travel_time_s)
        for row in rows
    ]
    shuffled = shuffle.sample(turned, len(turned))
    assert format_roads({CHIP: rows}) == format_roads({CHIP: shuffled})


@settings(max_examples=100, deadline=None)
@given(rows=drawn_roads)
def test_every_segment_is_kept_once_and_nothing_grows(rows: list[RoadRow]) -> None:
    def segments(lines: Sequence[np.ndarray]) -> set[frozenset[tuple[int, int]]]:
        found = set()
        for line in lines:
            grid = np.rint(line * 100).astype(int)
            cells = (grid + 5) // 10
            pairs = itertools.pairwise((int(x), int(y)) for x, y in cells)
            found |= {frozenset(pair) for pair in pairs if pair[0] != pair[1]}
        return found

    text = format_roads({CHIP: rows}).splitlines()[1:]
    kept = [line.split('"')[1] for line in text if "EMPTY" not in line]
    lines = [
        np.array([vertex.split() for vertex in wkt[12:-1].split(",")], dtype=np.float64)
        for wkt in kept
    ]
    assert segments(lines) == segments([row.line for row in rows])
    if kept:
        total = sum(float(line.split(",")[-2]) for line in text)
        assert total <= sum(row.length_m for row in rows) + 0.001 * len(kept)
