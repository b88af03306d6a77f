"""Synthetic city of buildings: geometry of oblique views, layouts and labels."""

import csv
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from shapely import Polygon, STRtree, box

from full_disks import full_disk
from satmap.cli import main
from satmap.data.layouts.spacenet_buildings import building_image_id, building_image_ids
from satmap.evaluation.score import score_files
from satmap.io.geojson_reader import read_geojson
from satmap.submissions.buildings_csv import (
    check_buildings_csv,
    read_buildings_csv,
    write_buildings_csv,
)
from satmap.vectors.georeference import georeference_of
from synthcity import BuildingLayout, CityError, make_building_city
from synthcity.city import City, Land, build_city
from synthcity.files import write_jpeg, write_tiff
from synthcity.labels import Footprint, coco, hidden
from synthcity.noise import Grid, Window
from synthcity.oblique import RenderedImage, Site, render_image
from synthcity.solids import Cladding, Solid, flat_block, pitched_block
from synthcity.spectra import RGB_BANDS, Material, draw_sensor
from synthcity.strokes import Fill, scene_of
from synthcity.views import (
    GROUND,
    VIEW_ANGLE_COUNT,
    Skyline,
    View,
    ViewAngle,
    coverage,
    make_view_angles,
    render_view,
    skyline_of,
)

PIXEL_M = 0.5
GRID = Grid(PIXEL_M, PIXEL_M)
CLADDING = Cladding(Material.STUCCO, 1.0, Material.ROOF_GREY, 1.0)
SIZE = 192
# GEOS warns of underflow near zero.
COORDINATE = st.floats(0, 9).map(lambda value: round(value, 6))
SOLUTIONS = "train/AOI_99_Made_Train/summaryData/AOI_99_Made_Train_Building_Solutions.csv"


@pytest.fixture(scope="module")
def oblique(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("oblique")
    make_building_city(
        directory, BuildingLayout.SPACENET4, chips=2, test_chips=1, seed=3, size=SIZE, view_angles=3
    )
    return directory


@pytest.fixture(scope="module")
def vertical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vertical")
    make_building_city(directory, BuildingLayout.SPACENET2, chips=4, test_chips=0, seed=2, size=200)
    return directory


@pytest.fixture(scope="module")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("coco")
    make_building_city(directory, BuildingLayout.COCO, chips=3, test_chips=2, seed=4)
    return directory


@pytest.fixture(scope="module")
def town() -> City:
    return build_city(Land(450.0, 450.0, None, (0.3, -1.4)), np.random.default_rng(1))


def skyline(*solids: Solid) -> Skyline:
    return skyline_of(solids, [])


def block(x0: float, y0: float, x1: float, y1: float, height: float) -> Solid:
    return flat_block(box(x0, y0, x1, y1), height, CLADDING, parapet=False)


def toward(angle: float, azimuth: float) -> ViewAngle:
    return ViewAngle(angle, azimuth, 0.5)


def roof_of(view: View, line: Skyline) -> NDArray[np.bool_]:
    roofs = np.append(np.abs(line.normals[:, 2]) > 1e-6, False)
    return np.asarray(roofs[view.surface])


def site_of(*solids: Solid, sun: tuple[float, float] = (0.0, -1.0), size: int = 160) -> Site:
    meadow = Fill(
        np.array(((-500.0, -500), (500, -500), (500, 500), (-500, 500))), Material.CONCRETE
    )
    city = City((), solids, (), (), (scene_of([meadow]),), sun, 7)
    return Site.of(city, Window(0, 0, size, size), GRID)


def shoot(site: Site, collect: ViewAngle) -> RenderedImage:
    sensor = draw_sensor(np.random.default_rng(0))
    return render_image(site, collect, sensor, tuple(range(8)), np.random.default_rng(1))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as image:
        return np.asarray(image.read())


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("azimuth", "columns", "rows"),
    [(0, 0, -40), (90, 40, 0), (180, 0, 40), (270, -40, 0)],
)
def test_a_roof_moves_by_height_times_tangent(azimuth: float, columns: int, rows: int) -> None:
    line = skyline(block(40, 40, 55, 60, 20))
    view = render_view(line, Window(0, 0, 200, 200), GRID, toward(45, azimuth).shift)
    expected = np.zeros((200, 200), dtype=bool)
    # 20 m high, seen at 45 degrees, in pixels of half a metre.
    expected[80 + rows : 120 + rows, 80 + columns : 110 + columns] = True
    assert np.array_equal(roof_of(view, line), expected)
    assert (view.height[expected] == 20).all()


@settings(deadline=None, max_examples=25)
@given(angle=st.floats(1, 54), azimuth=st.floats(0, 360), height=st.floats(3, 40))
def test_roof_displacement_in_any_view(angle: float, azimuth: float, height: float) -> None:
    line = skyline(block(60, 60, 75, 80, height))
    view = render_view(line, Window(0, 0, 280, 280), GRID, toward(angle, azimuth).shift)
    centre = np.argwhere(roof_of(view, line))[:, ::-1].mean(axis=0) + 0.5
    reach = height * np.tan(np.radians(angle)) / PIXEL_M
    heading = np.radians(azimuth)
    moved = (reach * np.sin(heading), -reach * np.cos(heading))
    assert centre - (135, 140) == pytest.approx(moved, abs=0.51)
    assert roof_of(view, line).sum() == pytest.approx(30 * 40, rel=0.06)


@pytest.mark.parametrize(
    ("azimuth", "sides"),
    [
        (0, {"south"}),
        (90, {"west"}),
        (182.8, {"north", "east"}),
        (17.4, {"south", "west"}),
        (148.6, {"north", "west"}),
    ],
)
def test_the_facade_towards_the_satellite_shows(azimuth: float, sides: set[str]) -> None:
    line = skyline(block(40, 40, 60, 60, 20))
    view = render_view(line, Window(0, 0, 200, 200), GRID, toward(40, azimuth).shift)
    names = {(0, 1): "south", (0, -1): "north", (1, 0): "east", (-1, 0): "west"}
    shown = {
        names[round(float(x)), round(float(y))]
        for x, y, z in (line.faces[i].normal for i in np.unique(view.surface[view.surface >= 0]))
        if abs(z) < 0.5
    }
    assert shown == sides


def test_a_wall_hides_what_lies_behind_it_and_nothing_in_front() -> None:
    tower, behind, before = (
        block(40, 40, 60, 60, 20),
        block(44, 30, 56, 38, 4),
        block(44, 66, 56, 74, 4),
    )
    line = skyline(tower, behind, before)
    view = render_view(line, Window(0, 0, 200, 200), GRID, toward(45, 0).shift)
    owner = np.append(line.owner, -1)[view.surface]
    assert set(np.unique(owner)) == {-1, 0, 2}
    # From foot to eaves, the facade covers exactly its height.
    column = view.height[:, 100]
    assert column[80:120] == pytest.approx(np.arange(19.75, 0, -0.5))
    assert (column[40:80] == 20).all()


@settings(deadline=None, max_examples=12)
@given(
    boxes=st.lists(
        st.tuples(st.integers(4, 22), st.integers(4, 22), st.integers(2, 8), st.integers(2, 8),
                  st.floats(2, 12)),
        min_size=1, max_size=5,
    ),
    angle=st.floats(5, 54),
    azimuth=st.floats(0, 360),
)  # fmt: skip
def test_views_agree_with_marching_down_the_line_of_sight(
    boxes: list[tuple[int, int, int, int, float]], angle: float, azimuth: float
) -> None:
    solids = [block(x, y, x + w, y + h, top) for x, y, w, h, top in boxes]
    view = render_view(skyline(*solids), Window(0, 0, 60, 60), GRID, toward(angle, azimuth).shift)
    step = 0.05
    x, y = np.meshgrid((np.arange(60) + 0.5) * PIXEL_M, (np.arange(60) + 0.5) * PIXEL_M)
    found = np.zeros((60, 60))
    for z in np.arange(step, 12 + step, step):
        there = np.zeros((60, 60), dtype=bool)
        for x0, y0, w, h, top in boxes:
            px, py = x - z * view.shift[0], y - z * view.shift[1]
            there |= (px > x0) & (px < x0 + w) & (py > y0) & (py < y0 + h) & (z <= top)
        found[there] = z
    # At the edges of faces, rounding may decide either way.
    assert (np.abs(found - view.height) <= step + 1e-3).mean() > 0.97


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=7, unique=True))
def test_coverage_is_that_of_the_polygon(corners: list[tuple[float, float]]) -> None:
    hull = shapely.MultiPoint(corners).convex_hull
    if hull.geom_type != "Polygon" or hull.area < 0.1:
        return
    hole = shapely.affinity.scale(hull, 0.5, 0.5)
    rings = [np.asarray(ring.coords)[:-1] for ring in (hull.exterior, hole.exterior)]
    places = np.linspace(0.217, 9.717, 20)
    covered = coverage(rings, places, places)
    x, y = np.meshgrid(places, places)
    shape = hull.difference(hole)
    off_edges = shapely.distance(shape.boundary, shapely.points(x, y)) > 1e-9
    assert (covered == shapely.contains_xy(shape, x, y))[off_edges].all()


@pytest.mark.parametrize("hipped", [False, True])
def test_pitched_roofs_are_closed_and_have_the_given_height(hipped: bool) -> None:
    body = np.array(((10.0, 10), (30, 10), (30, 20), (10, 20)))
    solid = pitched_block(body, 4.0, 3.0, CLADDING, hipped=hipped)
    assert solid.height == 7
    line = skyline(solid)
    above = render_view(line, Window(0, 0, 80, 60), GRID, (0.0, 0.0))
    assert (above.height > 0).sum() == 40 * 20
    assert above.height.max() == pytest.approx(7, abs=0.2)
    # The ridge runs along the longer side, half way.
    assert above.height[29:31, 40] == pytest.approx((7 - 0.15, 7 - 0.15))
    assert above.height[20, 40] == pytest.approx(4 + 3 * 0.25 / 5)
    gable = above.height[30, 20]
    assert gable < 4.5 if hipped else gable > 6.5
    # Normals point outward: all faces together enclose the volume (divergence theorem).
    volume = 0.0
    for face in solid.faces:
        ring = face.rings[0]
        for one, other in pairwise(ring[1:]):
            volume += float(np.dot(ring[0], np.cross(one, other))) / 6
    full = 20 * 10 * 4
    prism = 3 * 10 / 6 * (2 * 20 + 12) if hipped else 20 * 10 * 3 / 2
    expected = full + prism
    # The floor has no face, but it lies at height 0 and adds nothing.
    assert abs(volume) == pytest.approx(expected, rel=0.03)


def test_a_courtyard_shows_its_far_wall() -> None:
    ring = box(20, 20, 60, 60).difference(box(30, 30, 50, 50))
    line = skyline(flat_block(ring, 8, CLADDING, parapet=False))
    above = render_view(line, Window(0, 0, 160, 160), GRID, (0.0, 0.0))
    assert (above.surface == GROUND)[60:100, 60:100].all()
    view = render_view(line, Window(0, 0, 160, 160), GRID, toward(45, 0).shift)
    # The northern wall of the court stands at row 60 and leans 16 px north. The southern edge of
    # the court leans as far and does not hide it.
    assert view.height[44:60, 80] == pytest.approx(np.arange(7.75, 0, -0.5))
    assert (view.height[60:84, 80] == 0).all()


# --- light ----------------------------------------------------------------------------------------


def test_shadow_direction_and_length_follow_the_sun() -> None:
    site = site_of(block(30, 40, 50, 50, 10), sun=(0.0, -1.0))
    counts = shoot(site, toward(0, 0)).counts[..., 4].astype(float)
    open_ground = np.median(counts[130:150, 60:100])
    shadow = counts[80 - 18 : 80 - 2, 64:96]
    assert np.median(shadow) < 0.55 * open_ground
    assert np.median(counts[80 - 40 : 80 - 24, 64:96]) == pytest.approx(open_ground, rel=0.1)
    assert np.median(counts[102:120, 64:96]) == pytest.approx(open_ground, rel=0.1)


def test_the_sunny_facade_is_brighter_than_the_shaded_one() -> None:
    blank = Cladding(Material.STUCCO, 1.0, Material.ROOF_GREY, 1.0, bay_m=0)
    solid = flat_block(box(30, 30, 50, 50), 16, blank, parapet=False)
    site = site_of(solid, sun=(0.0, -1.4))
    # The sun is in the south, so a view to the north shows the lit side.
    lit = shoot(site, toward(40, 0)).counts[80:94, 64:96, 4].astype(float)
    dark = shoot(site, toward(40, 180)).counts[66:80, 64:96, 4].astype(float)
    assert np.median(lit) > 2 * np.median(dark)


def test_oblique_images_are_coarser_and_hazier() -> None:
    solids = [block(8 + 12 * i, 8 + 12 * j, 14 + 12 * i, 14 + 12 * j, 0.01)
              for i in range(6) for j in range(6)]  # fmt: skip
    site = site_of(*solids)
    sharp = []
    for collect in (make_view_angles(27, np.random.default_rng(0))[i] for i in (0, 26)):
        counts = shoot(site, collect).counts[..., 4].astype(float)
        sharp.append(np.abs(np.diff(counts, axis=1)).max() / counts.mean())
    assert sharp[1] < 0.6 * sharp[0]


def test_a_tower_hides_the_building_behind_it() -> None:
    tower, house = block(30, 40, 50, 50, 30), block(34, 20, 46, 30, 4)
    site = site_of(tower, house)
    footprints = [
        Footprint(shapely.transform(s.footprint, lambda xy: xy / PIXEL_M), s.footprint, i, 1, 9)
        for i, s in enumerate((tower, house))
    ]
    everything = np.ones((160, 160), dtype=bool)
    assert hidden(footprints, shoot(site, toward(7, 0)).roof, everything) == set()
    assert hidden(footprints, shoot(site, toward(45, 0)).roof, everything) == {1}
    assert hidden(footprints, shoot(site, toward(45, 180)).roof, everything) == set()
    nothing = np.zeros((160, 160), dtype=bool)
    assert hidden(footprints, shoot(site, toward(45, 180)).roof, nothing) == {0, 1}


# --- buildings of the city ------------------------------------------------------------------------


def test_buildings_differ_touch_and_do_not_overlap(town: City) -> None:
    shapes = np.array([solid.footprint for solid in town.solids])
    assert shapely.is_valid(shapes).all()
    pairs = STRtree(shapes).query(shapes, predicate="intersects").T
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    common = shapely.intersection(shapes[pairs[:, 0]], shapes[pairs[:, 1]])
    assert shapely.area(common).max() < 0.05
    assert (shapely.length(common) > 5).sum() > 30
    heights = np.array([solid.height for solid in town.solids])
    assert ((heights > 3) & (heights < 10)).mean() > 0.5
    assert (heights > 30).any()
    area, hull = shapely.area(shapes), shapely.area(shapely.convex_hull(shapes))
    assert 0.2 < (area < 0.95 * hull).mean() < 0.7
    assert max(solid.faces[0].rings[0][:, 2].max() for solid in town.solids) <= heights.max()


def test_some_buildings_have_courtyards() -> None:
    made = build_city(Land(300.0, 300.0, None, (0.3, -1.4)), np.random.default_rng(2))
    assert any(solid.footprint.interiors for solid in made.solids)


# --- view angles and names ------------------------------------------------------------------------


def test_view_angles_are_those_of_the_challenge() -> None:
    collects = make_view_angles(VIEW_ANGLE_COUNT, np.random.default_rng(0))
    assert [int(c.angle) for c in collects] == [
        7, 8, 10, 10, 13, 14, 16, 19, 21, 23, 25, 27, 29, 30, 32, 34, 36, 39, 42, 44, 46, 47, 49,
        50, 52, 53, 53,
    ]  # fmt: skip
    south = [c.angle for c in collects if c.azimuth > 90]
    assert south == [7.8, 10.5, 13.9, 16.9, 21.3, 25.4, 29.1, 32.5]
    assert len({c.name for c in collects}) == VIEW_ANGLE_COUNT
    few = make_view_angles(3, np.random.default_rng(0))
    assert [int(c.angle) for c in few] == [7, 30, 53]
    assert {c.name for c in few} <= {c.name for c in collects}


@pytest.mark.parametrize("count", [0, 28])
def test_invalid_numbers_of_view_angles_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(CityError, match="from 1 to 27"):
        make_building_city(tmp_path / "city", BuildingLayout.SPACENET4, view_angles=count)
    assert not (tmp_path / "city").exists()


def test_names_are_those_of_the_challenge(oblique: Path) -> None:
    images = sorted((oblique / "train").rglob("*.tif"))
    assert len(images) == 6
    for path in images:
        name = re.fullmatch(
            r"Pan-Sharpen_(Atlanta_nadir\d+_catid_[0-9A-F]{16})_(\d{6}_\d{7})", path.stem
        )
        assert name
        assert path.parent.name == "Pan-Sharpen"
        assert path.parent.parent.name == name[1]
        assert building_image_id(path.stem) == f"{name[1]}_{name[2]}"
        assert (oblique_labels(oblique) / f"spacenet-buildings_{name[2]}.geojson").is_file()
    assert len([*oblique_labels(oblique).iterdir()]) == 2


def oblique_labels(city: Path) -> Path:
    return city / "train" / "geojson" / "spacenet-buildings"


def test_images_are_those_of_the_challenge(oblique: Path) -> None:
    seen = []
    for path in sorted(oblique.rglob("*.tif")):
        with rasterio.open(path) as image:
            assert image.crs.to_epsg() == 32616
            assert image.res == (PIXEL_M, PIXEL_M)
            assert (image.count, image.height, image.width) == (4, SIZE, SIZE)
            assert set(image.dtypes) == {"uint16"}
            # Tiles are named by their south-west corner.
            west, south = map(int, path.stem.split("_")[-2:])
            assert (image.bounds.left, image.bounds.bottom) == (west, south)
        counts = pixels(path)
        empty = (counts == 0).all(axis=0)
        assert np.array_equal(empty, (counts == 0).any(axis=0))
        seen.append(1 - empty.mean())
        red, infrared = counts[0][~empty].astype(float), counts[3][~empty].astype(float)
        green = (infrared - red) / (infrared + red) > 0.3
        assert 0.02 < green.mean() < 0.9
    assert min(seen) < 1
    assert max(seen) == 1
    assert min(seen) > 0.5


# --- truth ----------------------------------------------------------------------------------------


def test_labels_and_truth_agree_and_are_the_same_for_all_view_angles(oblique: Path) -> None:
    tables = [read_rows(path) for path in sorted((oblique / "train/summaryData").iterdir())]
    assert len(tables) == 3
    assert {tuple(row) for rows in tables for row in rows} == {
        ("ImageId", "BuildingId", "PolygonWKT_Pix", "PolygonWKT_Geo", "Occluded")
    }
    shapes = [
        [
            (row["ImageId"].split("_", 4)[4], row["BuildingId"], row["PolygonWKT_Pix"])
            for row in rows
        ]
        for rows in tables
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    for path in sorted((oblique / "train").rglob("*.tif")):
        image_id = building_image_id(path.stem)
        rows = [row for table in tables for row in table if row["ImageId"] == image_id]
        tile = "_".join(path.stem.split("_")[-2:])
        labels = read_geojson(oblique_labels(oblique) / f"spacenet-buildings_{tile}.geojson")
        with rasterio.open(path) as image:
            place = georeference_of(image.crs, image.transform, image.width, image.height)
        assert place
        assert len(rows) == len(labels.surfaces) > 3
        for row, surface in zip(rows, labels.surfaces, strict=True):
            corners = shapely.get_coordinates(surface.polygon)
            drawn = shapely.set_coordinates(
                shapely.from_wkb(surface.polygon.wkb), place.to_pixels(corners, labels.crs)
            )
            written = shapely.from_wkt(row["PolygonWKT_Pix"])
            assert shapely.hausdorff_distance(drawn, written) < 0.01
            geographic = shapely.from_wkt(row["PolygonWKT_Geo"])
            assert shapely.hausdorff_distance(geographic, surface.polygon) < 1e-8
            assert written.area >= 20
            assert box(0, 0, SIZE, SIZE).contains(written)


def test_occlusion_grows_with_the_angle(oblique: Path) -> None:
    shares = {}
    for path in (oblique / "train/summaryData").iterdir():
        match = re.search(r"nadir(\d+)", path.name)
        assert match
        flags = [row["Occluded"] for row in read_rows(path)]
        assert set(flags) <= {"0", "1"}
        shares[int(match[1])] = np.mean([flag == "1" for flag in flags])
    assert shares[7] < shares[53]


def test_labels_cover_the_roofs_in_the_steepest_view(oblique: Path) -> None:
    """Labelled pixels are grey or red, not green."""
    (path,) = (oblique / "test").rglob("*nadir7_*.tif")
    counts = pixels(path).astype(float)
    ndvi = (counts[3] - counts[0]) / np.maximum(1, counts[3] + counts[0])
    mask = np.zeros(ndvi.shape, dtype=bool)
    places = np.linspace(0.5, SIZE - 0.5, SIZE)
    for rows in read_buildings_csv(oblique / "test_truth.csv").values():
        for row in rows:
            assert isinstance(row.polygon, Polygon)
            inner = row.polygon.buffer(-3)
            if isinstance(inner, Polygon) and not inner.is_empty:
                mask |= coverage([np.asarray(inner.exterior.coords)[:-1]], places, places)
        break
    assert mask.sum() > 500
    assert (ndvi[mask] > 0.3).mean() < 0.35
    assert (ndvi[mask] > 0.3).mean() < 0.6 * (ndvi[~mask] > 0.3).mean()


@pytest.mark.parametrize(
    ("layout", "truth", "images"),
    [("oblique", "test_truth.csv", "test"), ("vertical", SOLUTIONS, "train")],
)
def test_the_truth_scores_one_and_would_be_accepted(
    layout: str, truth: str, images: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    city: Path = request.getfixturevalue(layout)
    solutions = city / truth
    scores = score_files(solutions, solutions)
    assert scores.report.total["f1"] == 1.0
    assert (scores.report.total["tp"] or 0) > 3
    submission = tmp_path / "out.csv"
    write_buildings_csv(submission, read_buildings_csv(solutions))
    assert check_buildings_csv(submission, building_image_ids([city / images])) == []
    assert len(read_rows(submission)) == len(read_rows(solutions))


def test_the_layout_of_spacenet_2(vertical: Path) -> None:
    root = vertical / "train" / "AOI_99_Made_Train"
    assert {path.name for path in root.iterdir()} == {
        "MUL-PanSharpen", "RGB-PanSharpen", "geojson", "summaryData",
    }  # fmt: skip
    rows = read_rows(vertical / SOLUTIONS)
    assert {row["ImageId"] for row in rows} == {f"AOI_99_Made_img{n}" for n in range(4)}
    for number in range(4):
        bands = pixels(root / f"MUL-PanSharpen/MUL-PanSharpen_AOI_99_Made_img{number}.tif")
        rgb = pixels(root / f"RGB-PanSharpen/RGB-PanSharpen_AOI_99_Made_img{number}.tif")
        assert bands.shape == (8, 200, 200)
        assert bands.dtype == rgb.dtype == np.uint16
        assert np.array_equal(rgb, bands[list(RGB_BANDS)])
        label = root / f"geojson/buildings/buildings_AOI_99_Made_img{number}.geojson"
        surfaces = read_geojson(label).surfaces
        own = [row for row in rows if row["ImageId"] == f"AOI_99_Made_img{number}"]
        assert len(surfaces) == sum(row["BuildingId"] != "-1" for row in own)
    assert not (vertical / "test").exists()


def test_coco_areas_and_boxes_are_right(
    challenge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids: set[int] = set()
    for split, count in (("train", 3), ("val", 2)):
        annotations: Any = COCO(str(challenge / split / "annotation.json"))
        assert annotations.getCatIds() == [100]
        assert len(annotations.imgs) == count
        assert not ids & set(annotations.imgs)
        ids |= set(annotations.imgs)
        assert len(annotations.anns) > 3
        for image in annotations.imgs.values():
            path = challenge / split / "images" / image["file_name"]
            assert int(path.stem) == image["id"]
            with rasterio.open(path) as picture:
                assert (picture.count, picture.height, picture.width) == (3, 300, 300)
        for entry in annotations.anns.values():
            mask = annotations.annToRLE(entry)
            edge = sum(Polygon(np.reshape(s, (-1, 2))).length for s in entry["segmentation"])
            assert coco_masks.area(mask) == pytest.approx(entry["area"], abs=0.6 * edge)
            corners = np.concatenate([np.reshape(s, (-1, 2)) for s in entry["segmentation"]])
            size = corners.max(axis=0) - corners.min(axis=0)
            assert entry["bbox"] == pytest.approx([*corners.min(axis=0), *size], abs=0.011)
            # Parts thinner than a pixel are not drawn, so the mask may be smaller.
            drawn, stated = coco_masks.toBbox(mask), np.array(entry["bbox"])
            assert (drawn[:2] > stated[:2] - 1).all()
            assert (drawn[:2] + drawn[2:] < stated[:2] + stated[2:] + 1).all()
    tested = sorted((challenge / "test_images").iterdir())
    truth = COCO(str(challenge / "test_annotation.json"))
    assert {int(path.stem) for path in tested} == set(truth.imgs)
    assert not ids & set(truth.imgs)
    capsys.readouterr()


def test_coco_keeps_courtyards_open() -> None:
    ring = box(10, 10, 90, 80).difference(box(30, 30, 60, 60)).difference(box(70, 20, 80, 50))
    text = json.loads(coco([(5, "000000000005.jpg", 100, [Footprint(ring, ring, 0, 1.0, 5.0)])]))
    (entry,) = text["annotations"]
    assert entry["area"] == 80 * 70 - 30 * 30 - 10 * 30
    assert entry["bbox"] == [10, 10, 80, 70]
    mask = coco_masks.merge(coco_masks.frPyObjects(entry["segmentation"], 100, 100))
    assert coco_masks.area(mask) == pytest.approx(entry["area"], abs=4)
    for court in ((31.0, 31, 28, 28), (71.0, 21, 8, 28)):
        (inside,) = coco_masks.frPyObjects(np.array([court]), 100, 100)
        assert coco_masks.area(coco_masks.merge([mask, inside], intersect=True)) == 0


# --- seeds and files ------------------------------------------------------------------------------


def test_seeds_reproduce_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_building_city(
            tmp_path / name, BuildingLayout.SPACENET4, chips=1, test_chips=0, seed=seed, size=64,
            view_angles=2,
        )  # fmt: skip
    one, duplicate, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in "abc"
    )
    assert one == duplicate
    assert len(one) == 5
    assert not set(one.values()) & set(other.values())


def test_images_of_another_city_are_not_mixed_in(vertical: Path) -> None:
    with pytest.raises(CityError, match="another city"):
        make_building_city(vertical, BuildingLayout.SPACENET2, chips=1, test_chips=0, size=64)


def test_a_full_disk_leaves_no_part_of_an_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 255, (128, 128, 3), dtype=np.uint8)
    place = rasterio.Affine(0.5, 0, 732701, 0, -0.5, 3730539)
    with full_disk(4000):
        with pytest.raises(CityError, match="cannot write"):
            write_tiff(tmp_path / "new" / "image.tif", noise, place, "EPSG:32616")
        with pytest.raises(CityError, match="cannot write"):
            write_jpeg(tmp_path / "image.jpg", noise)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_command_makes_cities_in_any_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--chips", "1", "--test-chips", "0", "--size", "64"]
    with pytest.raises(SystemExit) as done:
        main(["make-city", str(tmp_path / "a"), "--layout", "spacenet4", "--looks", "1", *small])
    assert done.value.code in (0, None)
    assert len([*(tmp_path / "a").rglob("*.tif")]) == 1
    with pytest.raises(SystemExit) as done:
        main(["make-city", str(tmp_path / "c"), "--layout", "coco", "--overpasses", "many", *small])
    assert done.value.code in (0, None)
    assert len([*(tmp_path / "c").rglob("*.jpg")]) == 1
    with pytest.raises(SystemExit) as refused:
        main(["make-city", str(tmp_path / "b"), "--layout", "coco", "--looks", "1", *small])
    assert refused.value.code == 1
    assert "--looks is for" in capsys.readouterr().err
