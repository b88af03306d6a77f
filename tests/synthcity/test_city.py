"""Synthetic city: layout, images and labels, and their agreement."""

import ast
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from shapely import LineString, from_wkt

import synthcity
from satmap.vectors.speeds import MPS_PER_MPH, class_speed_mph
from synthcity import CityError, make_city
from synthcity.noise import Grid, Window
from synthcity.paint import paint
from synthcity.spectra import Material, draw_sensor
from synthcity.strokes import Fill, rectangle, scene_of

NAME = "AOI_99_Made"
CHIPS, TEST_CHIPS, SIZE = 12, 2, 320
TRAIN = Path("train") / f"{NAME}_Train"
TEST = Path("test") / f"{NAME}_Test_Public"
CSV = f"SN5_roads_train_{NAME}_geojson_roads_speed_wkt_weighted_simp.csv"


@dataclass(frozen=True)
class Row:
    image: str
    line: LineString
    length_m: float
    time_s: float


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("city")
    make_city(directory, chips=CHIPS, test_chips=TEST_CHIPS, seed=3, size=SIZE)
    return directory


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [
            Row(
                r["ImageId"],
                from_wkt(r["WKT_Pix"]),
                float(r["length_m"]),
                float(r["travel_time_s"]),
            )
            for r in csv.DictReader(file)
        ]


def chip_path(city: Path, number: int, kind: str = "PS-MS") -> Path:
    return city / TRAIN / kind / f"SN5_roads_train_{NAME}_{kind}_chip{number}.tif"


def features(city: Path, number: int) -> list[dict[str, Any]]:
    kind = "geojson_roads_speed"
    path = city / TRAIN / kind / f"SN5_roads_train_{NAME}_{kind}_chip{number}.geojson"
    found = json.loads(path.read_text())["features"]
    assert isinstance(found, list)
    return found


def pixels(path: Path) -> NDArray[np.float64]:
    with rasterio.open(path) as image:
        return np.asarray(image.read(), dtype=np.float64)


def ndvi(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    red, near = counts[4], counts[6]
    return np.asarray((near - red) / np.maximum(1, near + red))


def label_lines(city: Path, number: int) -> list[NDArray[np.float64]]:
    """Return the lines of the GeoJSON in pixels, converted by the georeference."""
    with rasterio.open(chip_path(city, number)) as image:
        t = image.transform
    lines = []
    for feature in features(city, number):
        lonlat = np.array(feature["geometry"]["coordinates"])
        lines.append(np.stack([(lonlat[:, 0] - t.c) / t.a, (lonlat[:, 1] - t.f) / t.e], axis=1))
    return lines


def band_mask(line: NDArray[np.float64], width: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.polylines(mask, [np.rint((line - 0.5) * 16).astype(np.int32)], False, 1, width, shift=4)
    return mask > 0


def metres_on_wgs84(lonlat: NDArray[np.float64]) -> float:
    """Return the length by the ellipsoid's radii of curvature, independent of synthcity's code."""
    a, e2 = 6378137.0, 0.00669437999014
    phi = np.radians(lonlat[:, 1].mean())
    w = np.sqrt(1 - e2 * np.sin(phi) ** 2)
    east = np.radians(np.diff(lonlat[:, 0])) * a / w * np.cos(phi)
    north = np.radians(np.diff(lonlat[:, 1])) * a * (1 - e2) / w**3
    return float(np.hypot(east, north).sum())


def organisers_faults(rows: list[Row]) -> list[str]:
    """Return the faults by the official validator's rules."""
    faults = []
    empties = {row.image for row in rows if row.line.is_empty}
    seen: set[tuple[str, frozenset[tuple[float, float]]]] = set()
    for row in rows:
        if row.line.is_empty:
            continue
        if row.image in empties:
            faults.append(f"{row.image}: roads beside EMPTY")
        for a, b in pairwise(row.line.coords):
            if np.hypot(a[0] - b[0], a[1] - b[1]) < 0.01:
                faults.append(f"{row.image}: twin points {a}")
            ends = frozenset({(round(a[0], 1), round(a[1], 1)), (round(b[0], 1), round(b[1], 1))})
            if (row.image, ends) in seen:
                faults.append(f"{row.image}: segment twice {a} {b}")
            seen.add((row.image, ends))
    return faults


def test_files_lie_where_spacenet_puts_them(city: Path) -> None:
    found = {str(path.relative_to(city)) for path in city.rglob("*") if path.is_file()}
    expected = {"test_truth.csv", str(TRAIN / CSV)}
    for n in range(CHIPS):
        for kind, end in (("PS-MS", "tif"), ("PS-RGB", "tif"), ("geojson_roads_speed", "geojson")):
            expected.add(str(TRAIN / kind / f"SN5_roads_train_{NAME}_{kind}_chip{n}.{end}"))
    for n in range(CHIPS, CHIPS + TEST_CHIPS):
        for kind in ("PS-MS", "PS-RGB"):
            expected.add(str(TEST / kind / f"SN5_roads_test_public_{NAME}_{kind}_chip{n}.tif"))
    assert found == expected


def test_images_are_like_spacenets(city: Path) -> None:
    for kind, bands, dtype in (("PS-MS", 8, "uint16"), ("PS-RGB", 3, "uint8")):
        with rasterio.open(chip_path(city, 1, kind)) as image:
            assert image.count == bands
            assert set(image.dtypes) == {dtype}
            assert image.crs.to_epsg() == 4326
            assert image.shape == (SIZE, SIZE)
            t = image.transform
            assert t.b == t.d == 0
            assert t.a == -t.e > 0
            phi = np.radians(image.bounds.top)
            assert t.a * 111_000 == pytest.approx(0.30, abs=0.02)
            assert t.a * 111_300 * np.cos(phi) == pytest.approx(0.243, abs=0.02)
    counts = pixels(chip_path(city, 1))
    assert 1 <= counts.min() < counts.max() <= 2047


def test_rgb_picture_shows_bands_5_3_2(city: Path) -> None:
    counts, picture = pixels(chip_path(city, 1)), pixels(chip_path(city, 1, "PS-RGB"))
    for shown, band in enumerate((4, 2, 1)):
        unclipped = (picture[shown] > 1) & (picture[shown] < 255)
        assert unclipped.mean() > 0.8
        fit = np.corrcoef(picture[shown][unclipped], counts[band][unclipped])[0, 1]
        assert fit > 0.999
    assert picture.std() > 20


def test_neighbouring_chips_continue_into_each_other(city: Path) -> None:
    left, right = pixels(chip_path(city, 1)), pixels(chip_path(city, 2))
    with rasterio.open(chip_path(city, 1)) as one, rasterio.open(chip_path(city, 2)) as two:
        assert one.bounds.right == pytest.approx(two.bounds.left, abs=1e-10)
        assert one.bounds.top == two.bounds.top
    seam = np.corrcoef(left[6][:, -1], right[6][:, 0])[0, 1]
    apart = np.corrcoef(left[6][:, -1], right[6][:, 60])[0, 1]
    assert seam > 0.8 > apart
    crossings = cut_short = 0
    for number in set(range(CHIPS - 1)) - set(range(3, CHIPS, 4)):
        ends = {p[1] for row in chip_rows(city, number) for p in row if p[0] == SIZE}
        starts = {p[1] for row in chip_rows(city, number + 1) for p in row if p[0] == 0}
        crossings += len(ends & starts)
        cut_short += len(ends ^ starts)
    # Only pieces of less than a metre have no label on the other side of a border.
    assert crossings > 10
    assert cut_short <= 2


def chip_rows(city: Path, number: int) -> list[list[tuple[float, ...]]]:
    image = f"{NAME}_chip{number}"
    return [list(row.line.coords) for row in read_csv(city / TRAIN / CSV) if row.image == image]


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for directory, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_city(tmp_path / directory, chips=2, test_chips=1, seed=seed, size=96)
    make_city(tmp_path / "b", chips=2, test_chips=1, seed=5, size=96)
    files = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2 * 3 + 2 + 2
    for path in files:
        duplicate = tmp_path / "b" / path.relative_to(tmp_path / "a")
        other = tmp_path / "c" / path.relative_to(tmp_path / "a")
        if path.suffix == ".tif":
            assert np.array_equal(pixels(path), pixels(duplicate))
            assert not np.array_equal(pixels(path), pixels(other))
        else:
            assert path.read_bytes() == duplicate.read_bytes()
    assert (tmp_path / "a" / TRAIN / CSV).read_bytes() != (
        tmp_path / "c" / TRAIN / CSV
    ).read_bytes()


def test_labels_lie_on_asphalt_and_not_beside_it(city: Path) -> None:
    on, beside = [], []
    for number in range(CHIPS):
        counts = pixels(chip_path(city, number))
        green = ndvi(counts)
        green[counts[0] == 0] = np.nan
        lines = label_lines(city, number)
        for line in lines:
            assert line.min() >= -0.01
            assert line.max() <= SIZE + 0.01
            on.append(green[band_mask(line, 3)])
        if lines:
            roads = np.any([band_mask(line, 121) for line in lines], axis=0)
            near = np.any([band_mask(line, 75) for line in lines], axis=0)
            beside.append(green[roads & ~near])
    on_road, off_road = np.concatenate(on), np.concatenate(beside)
    # Trees overhang some of it; the rest is bare.
    assert np.nanmean(on_road < 0.1) > 0.8
    assert 0.001 < np.nanmean(on_road > 0.35) < 0.25
    assert np.nanmean(off_road < 0.1) < 0.6


def test_shifted_labels_leave_the_asphalt(city: Path) -> None:
    bare = {}
    for move in ((0, 0), (30, 0), (-30, 0), (0, 30), (0, -30)):
        parts = []
        for number in range(CHIPS):
            counts = pixels(chip_path(city, number))
            for line in label_lines(city, number):
                seen = band_mask(line + move, 1) & (counts[0] > 0)
                parts.append(ndvi(counts)[seen] < 0.1)
        bare[move] = np.concatenate(parts).mean()
    # Most roads of this small city run east-west, so only shifts in y matter.
    assert bare[0, 0] > max(bare[0, 30], bare[0, -30]) + 0.2
    assert bare[0, 0] > max(bare[30, 0], bare[-30, 0]) + 0.01


def test_a_stroke_is_painted_at_its_position() -> None:
    """Integers are pixel edges; an error of half a pixel would shift all labels."""
    grid, window = Grid(0.243, 0.2996), Window(40, 70, 160, 160)
    scale, east = np.array((grid.x_m, grid.y_m)), np.array((1.0, 0.0))
    crops = rectangle(np.array((25.0, 35.0)), east, 120.0, 120.0)
    rng = np.random.default_rng(0)
    middles = [
        np.array((20.0 + 30 * i, 20.0 + 30 * j)) + rng.uniform(0, 1, 2)
        for i in range(5)
        for j in range(5)
    ]
    areas = [
        rectangle(np.add(m, (40, 70)) * scale, east, 12 * scale[0], 12 * scale[1]) for m in middles
    ]
    scene = scene_of(
        [Fill(crops, Material.CROP), *(Fill(area, Material.ASPHALT) for area in areas)]
    )
    counts = paint(scene, window, grid, draw_sensor(rng), 1, rng)
    bare = ndvi(np.moveaxis(counts.astype(np.float64), 2, 0)) < 0.3
    off, sides = [], []
    for m in middles:
        x, y = (int(v) - 14 for v in m)
        rows, columns = np.nonzero(bare[y : y + 29, x : x + 29])
        off.append((columns.mean() + x + 0.5 - m[0], rows.mean() + y + 0.5 - m[1]))
        sides.append((np.ptp(columns) + 1, np.ptp(rows) + 1))
    assert np.abs(np.mean(off, axis=0)).max() < 0.12
    # OpenCV also fills the pixels that the outline crosses.
    assert np.abs(np.mean(sides, axis=0) - 12.5).max() < 0.8


def test_vegetation_is_green_only_in_the_infrared(city: Path) -> None:
    """In the road-free park chip, trees and lawn have a red edge and the pond is dark."""
    numbers = [int(row.image.rpartition("chip")[2]) for row in read_csv(city / TRAIN / CSV)
               if row.line.is_empty]  # fmt: skip
    assert 0 < len(numbers) < CHIPS / 2
    assert all(features(city, number) == [] for number in numbers)
    images = [pixels(chip_path(city, number)) for number in numbers]
    counts = max(images, key=lambda image: (ndvi(image) < -0.2).mean())
    green = ndvi(counts)
    assert (green > 0.35).mean() > 0.3
    water = green < -0.2
    assert water.mean() > 0.03
    assert counts[7][water].mean() < 0.25 * counts[7][green > 0.35].mean()
    assert counts[5][green > 0.35].mean() > 1.5 * counts[4][green > 0.35].mean()


def test_csv_and_geojson_have_the_same_lengths_and_speeds(city: Path) -> None:
    rows = read_csv(city / TRAIN / CSV)
    assert {row.image for row in rows} == {f"{NAME}_chip{n}" for n in range(CHIPS)}
    for number in range(CHIPS):
        here = [r for r in rows if r.image == f"{NAME}_chip{number}" and not r.line.is_empty]
        roads = features(city, number)
        assert len(here) == len(roads)
        pairs = zip(here, roads, label_lines(city, number), strict=True)
        for row, feature, line in pairs:
            properties = feature["properties"]
            assert set(properties) == {
                "highway", "lanes", "surface", "bridge", "bridge_type", "layer", "tunnel",
                "inferred_speed_mph", "inferred_speed_mps",
            }  # fmt: skip
            mph = class_speed_mph(
                properties["highway"], int(properties["lanes"]), properties["surface"] == "paved"
            )
            assert properties["inferred_speed_mph"] == mph
            assert properties["inferred_speed_mps"] == pytest.approx(mph * MPS_PER_MPH, abs=1e-3)
            lonlat = np.array(feature["geometry"]["coordinates"])
            assert row.length_m == pytest.approx(metres_on_wgs84(lonlat), rel=1e-3)
            assert row.time_s == pytest.approx(row.length_m / (mph * MPS_PER_MPH), abs=1e-3)
            assert np.allclose(np.array(row.line.coords), line, atol=0.006)


def test_the_organisers_would_accept_the_truth(city: Path) -> None:
    train, test = read_csv(city / TRAIN / CSV), read_csv(city / "test_truth.csv")
    assert organisers_faults(train) == []
    assert organisers_faults(test) == []
    assert {row.image for row in test} == {
        f"{NAME}_chip{n}" for n in range(CHIPS, CHIPS + TEST_CHIPS)
    }
    text = (city / TRAIN / CSV).read_text()
    assert text.startswith("ImageId,WKT_Pix,length_m,travel_time_s\n")
    assert ",LINESTRING EMPTY,0,0\n" in text
    # The rules can fail: duplicate rows are refused.
    assert organisers_faults(test + test)


def test_roads_meet_in_nodes_except_at_overpasses(city: Path) -> None:
    overpasses = junctions = 0
    for number in range(CHIPS):
        roads = [
            (LineString(line), feature["properties"])
            for line, feature in zip(label_lines(city, number), features(city, number), strict=True)
        ]
        for (one, a), (two, b) in combinations(roads, 2):
            if not one.intersects(two):
                continue
            meeting = one.intersection(two)
            # Roads that meet share an end within the rounding to two decimals.
            if meeting.distance(one.boundary) < 0.05 and meeting.distance(two.boundary) < 0.05:
                junctions += 1
            else:
                overpasses += 1
                assert a["layer"] != b["layer"]
                above = max(a, b, key=lambda road: int(road["layer"]))
                assert above["bridge"] == "yes" and above["bridge_type"] == "1"
    assert overpasses >= 2
    assert junctions >= 10


def test_swath_edge_has_neither_counts_nor_labels(city: Path) -> None:
    empty_pixels = {}
    for number in range(CHIPS):
        dark = (pixels(chip_path(city, number)) == 0).all(axis=0)
        assert np.array_equal(dark, (pixels(chip_path(city, number, "PS-RGB")) == 0).all(axis=0))
        if dark.any():
            empty_pixels[number] = dark
    (dark,) = empty_pixels.values()
    assert 0.1 < dark.mean() < 0.25
    inner = cv2.erode(dark.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0
    for line in label_lines(city, next(iter(empty_pixels))):
        assert not (band_mask(line, 1) & inner).any()


def test_one_chip_without_tests_is_enough(tmp_path: Path) -> None:
    make_city(tmp_path, chips=1, test_chips=0, size=64, name="AOI_7_Tiny")
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) == 4
    assert "SN5_roads_train_AOI_7_Tiny_PS-RGB_chip0.tif" in files


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"chips": 0}, "chips = 0"),
        ({"test_chips": -1}, "test_chips = -1"),
        ({"size": 63}, "at least 64"),
        ({"seed": -1}, "seed = -1"),
        ({"name": "Made"}, "AOI_99_Made"),
        ({"name": "AOI_99_Made_City"}, "three parts"),
        ({"name": "AOI_9_../x"}, "three parts"),
    ],
)
def test_bad_arguments_are_explained(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(CityError, match=says):
        make_city(tmp_path / "city", **arguments)
    assert not (tmp_path / "city").exists()


def test_chips_of_another_city_are_not_mixed_in(tmp_path: Path) -> None:
    make_city(tmp_path, chips=2, test_chips=1, size=64)
    with pytest.raises(CityError, match="another city"):
        make_city(tmp_path, chips=1, test_chips=1, size=64)


def test_a_file_instead_of_a_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "city").write_text("no directory")
    with pytest.raises(CityError, match="cannot write"):
        make_city(tmp_path / "city", chips=1, test_chips=0, size=64)


def test_no_file_of_synthcity_imports_satmap() -> None:
    package = Path(synthcity.__file__).parent
    files = sorted(package.rglob("*.py"))
    assert files
    for path in files:
        modules: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module or "")
        assert not [name for name in modules if name.partition(".")[0] == "satmap"], path.name


def test_synthcity_works_without_satmap(tmp_path: Path) -> None:
    """Block satmap by an entry of None in sys.modules, which makes its import fail."""
    code = (
        "import sys; sys.modules['satmap'] = None\n"
        "from pathlib import Path\n"
        "from synthcity import make_city\n"
        "make_city(Path(sys.argv[1]), chips=1, test_chips=0, size=64)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len([*tmp_path.rglob("*.tif")]) == 2
