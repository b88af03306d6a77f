import json
import math
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from full_disks import full_disk
from satmap.errors import CannotWriteError, SatmapError
from satmap.evaluation.metrics.apls import apls
from satmap.exports import ROAD_SUFFIXES
from satmap.exports.roads import export_roads
from satmap.io.geojson_reader import LON_LAT
from satmap.submissions.output_checks import require_formats
from satmap.submissions.roads_csv import rows_of_graph
from satmap.submissions.vector_maps import read_road_maps
from satmap.tasks.roads.settings import RoadTaskSettings
from satmap.vectors.georeference import Georeference
from satmap.vectors.road_graph import ImageRoads, RoadEdge, RoadGraph, highway_of, line_length_m
from satmap.vectors.speeds import BIN_SPEEDS_MPH, MPS_PER_MPH

Points = Sequence[tuple[float, float]]

# A pixel is a hundred thousandth of a degree; the corner lies at 10 E, 50 N.
DEGREES = Georeference(
    CRS.from_epsg(4326).to_wkt(), Affine(1e-5, 0, 10, 0, -1e-5, 50), (0.717, 1.112)
)
# 0.3 m per pixel; the corner lies on the middle meridian of the zone.
METRES = Georeference(
    CRS.from_epsg(32631).to_wkt(), Affine(0.3, 0, 500_000, 0, -0.3, 4_000_000), (0.3, 0.3)
)

every_format = pytest.mark.parametrize("suffix", ROAD_SUFFIXES)


def export(path: Path, images: Sequence[ImageRoads], crs: str | None = None) -> dict[str, str]:
    return export_roads(path, lambda: images, crs)


def graph(*roads: tuple[Points, float]) -> RoadGraph:
    """Return a graph of lines with speeds in mph; equal ends are one node."""
    nodes: dict[tuple[float, float], int] = {}
    edges = []
    for points, mph in roads:
        line = np.array(points, np.float64)
        ends = tuple(nodes.setdefault(p, len(nodes)) for p in (points[0], points[-1]))
        edges.append(
            RoadEdge(
                nodes=(ends[0], ends[1]),
                line=line,
                length_m=line_length_m(line, (0.3, 0.3)),
                speed_mps=mph * MPS_PER_MPH,
                mean_probability=0.75,
            )
        )
    return RoadGraph(np.array(list(nodes), np.float64).reshape(-1, 2), tuple(edges))


def rated(roads: ImageRoads, confidence: float) -> ImageRoads:
    """Return roads with a calibrated confidence."""
    edges = tuple(replace(edge, confidence=confidence) for edge in roads.graph.edges)
    return replace(roads, graph=replace(roads.graph, edges=edges))


def image(
    *roads: tuple[Points, float], name: str = "a", georeference: Georeference | None = METRES
) -> ImageRoads:
    return ImageRoads(name, replace(graph(*roads), georeference=georeference))


#: A road with a loop at its start, two parallel roads, and an isolated one.
TANGLE: tuple[tuple[Points, float], ...] = (
    ([(0, 0), (300, 100)], 25),
    ([(0, 0), (60, 0), (0, 80), (0, 0)], 20),
    ([(300, 100), (500, 400)], 35),
    ([(500, 400), (450, 100), (300, 100)], 45),
    ([(700, 10), (900, 600), (650, 700)], 65),
)


def features(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    assert content.keys() == {"type", "features"}  # RFC 7946 has no crs
    assert content["type"] == "FeatureCollection"
    found: list[dict[str, Any]] = content["features"]
    return found


def layer(path: Path, name: str) -> tuple[list[dict[str, Any]], list[shapely.Geometry]]:
    """Return the attributes and geometries of a layer."""
    meta, _, geometries, columns = pyogrio.raw.read(path, layer=name)
    rows = [
        dict(zip(meta["fields"], row, strict=True))
        for row in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return rows, shapely.from_wkb(geometries).tolist()


def table(path: Path) -> list[dict[str, Any]]:
    """Return the attributes of a single-layer format."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]
    meta, _, _, columns = pyogrio.raw.read(path)
    values = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(meta["fields"], row, strict=True)) for row in values]


def read_graphml(path: Path) -> nx.MultiDiGraph:
    return nx.read_graphml(path, node_type=int, force_multigraph=True)


# --- attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mph", "highway"),
    [
        (7.5, "unclassified"), (20, "unclassified"), (22.4, "unclassified"), (22.5, "residential"),
        (25, "residential"), (30, "tertiary"), (35, "secondary"), (39, "secondary"),
        (45, "primary"), (49.9, "primary"), (55, "trunk"), (65, "trunk"), (200, "trunk"),
    ],
)  # fmt: skip
def test_the_class_is_that_of_the_nearest_speed(mph: float, highway: str) -> None:
    assert highway_of(mph) == highway


def test_faster_roads_never_have_a_lower_class() -> None:
    order = ["unclassified", "residential", "tertiary", "secondary", "primary", "trunk"]
    classes = [order.index(highway_of(mph)) for mph in BIN_SPEEDS_MPH]
    assert classes == sorted(classes)


# --- GeoJSON --------------------------------------------------------------------------------------


def test_exact_geojson(tmp_path: Path) -> None:
    path = tmp_path / "new" / "roads.geojson"
    first = image(([(0, 0), (100, 50)], 25), name="a", georeference=DEGREES)
    second = image(([(8, 0), (8, 0.1), (8.5, 1)], 18.75), name="é", georeference=DEGREES)
    export(path, [first, rated(second, 0.62345)])
    # 0.3 m x hypot(100, 50) = 33.541 m, at 11.176 m/s. The second: 0.3 x (0.1 + hypot(0.5, 0.9)).
    assert path.read_text(encoding="utf-8") == (
        '{"type":"FeatureCollection","features":[\n'
        '{"type":"Feature","properties":{"image_id":"a","u":0,"v":1,"highway":"residential",'
        '"maxspeed":"25 mph","speed_kmh":40.23,"speed_mph":25.0,"speed_source":"estimated",'
        '"length_m":33.541,"travel_time_s":3.001,"width_m":null,"mean_probability":0.75,'
        '"confidence":null,"calibration":"uncalibrated"},'
        '"geometry":{"type":"LineString",'
        '"coordinates":[[10.0,50.0],[10.001,49.9995]]}},\n'
        '{"type":"Feature","properties":{"image_id":"é","u":2,"v":3,"highway":"unclassified",'
        '"maxspeed":"19 mph","speed_kmh":30.18,"speed_mph":18.75,"speed_source":"estimated",'
        '"length_m":0.339,"travel_time_s":0.04,"width_m":null,"mean_probability":0.75,'
        '"confidence":0.623,"calibration":"calibrated"},'
        '"geometry":{"type":"LineString",'
        '"coordinates":[[10.00008,50.0],[10.00008,49.999999],[10.000085,49.99999]]}}\n'
        "]}\n"
    )


def test_geojson_scores_like_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    roads = image(*TANGLE)
    export(path, [roads])
    # The CRS is that of the image, and roads touch its left and upper edge.
    read, *_ = read_road_maps(path, path, 0.3)
    assert list(read) == ["a"]
    rows = rows_of_graph(roads.graph)
    for row, back in zip(rows, read["a"], strict=True):
        assert np.abs(row.line - back.line).max() < 0.05
        assert back.travel_time_s == pytest.approx(row.travel_time_s, abs=1e-3)
    score = apls(rows, read["a"], metres_per_pixel=0.3)
    assert score.time is not None
    assert score.length.score > 0.9995
    assert score.time.score > 0.9995
    # The score is sensitive: it falls without one of the parallel roads.
    assert apls(rows, read["a"][:3], metres_per_pixel=0.3).length.score < 0.9


def test_geojson_of_a_road_shorter_than_its_grid_has_two_positions(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    export(path, [image(([(8, 8), (8.001, 8), (8.002, 8)], 25), georeference=DEGREES)])
    (feature,) = features(path)
    assert feature["geometry"]["coordinates"] == [[10.00008, 49.99992]] * 2


def test_geojson_drops_repeated_positions(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    line = [(8, 8), (8.001, 8), (18, 8), (8, 8)]
    export(path, [image((line, 25), georeference=DEGREES)])
    (feature,) = features(path)
    ends = [10.00008, 49.99992]
    assert feature["geometry"]["coordinates"] == [ends, [10.00018, 49.99992], ends]


def test_geojson_is_written_while_the_images_come(tmp_path: Path) -> None:
    alive: list[weakref.ref[ImageRoads]] = []

    def images() -> Iterator[ImageRoads]:
        for number in range(3):
            # Only the last image is still in memory, so memory does not grow with their number.
            assert all(reference() is None for reference in alive[:-1])
            roads = image(*TANGLE, name=f"{number}")
            alive.append(weakref.ref(roads))
            yield roads
            del roads

    export_roads(tmp_path / "a.geojson", images)
    assert len(features(tmp_path / "a.geojson")) == 3 * len(TANGLE)


# --- GeoPackage -----------------------------------------------------------------------------------


def test_geopackage_opens_with_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "roads.gpkg"
    first = image(*TANGLE, name="é", georeference=METRES)
    second = image(([(0, 0), (100, 50)], 30), name="b", georeference=DEGREES)
    export(path, [first, second])
    assert pyogrio.list_layers(path).tolist() == [
        ["roads", "LineString"], ["junctions", "Point"], ["layer_styles", None],
    ]  # fmt: skip

    roads, lines = layer(path, "roads")
    assert len(roads) == len(TANGLE) + 1
    assert roads[-1] == {
        "image_id": "b", "u": 5, "v": 6, "highway": "tertiary", "maxspeed": "30 mph",
        "speed_kmh": 48.28, "speed_mph": 30, "speed_source": "estimated", "length_m": 33.541,
        "travel_time_s": 2.501, "width_m": pytest.approx(math.nan, nan_ok=True),
        "mean_probability": 0.75, "confidence": pytest.approx(math.nan, nan_ok=True),
        "calibration": "uncalibrated",
    }  # fmt: skip
    assert np.allclose(shapely.get_coordinates(lines[-1]), [(10, 50), (10.001, 49.9995)], atol=1e-9)
    # The loop starts and ends at node 0; both roads between nodes 1 and 2 exist.
    assert [(row["u"], row["v"]) for row in roads[:4]] == [(0, 1), (0, 0), (1, 2), (2, 1)]

    junctions, points = layer(path, "junctions")
    assert [(row["image_id"], row["node"], row["degree"]) for row in junctions] == [
        ("é", 0, 3), ("é", 1, 3), ("é", 2, 2), ("é", 3, 1), ("é", 4, 1), ("b", 5, 1), ("b", 6, 1),
    ]  # fmt: skip
    for row, line in zip(roads, lines, strict=True):
        ends = [points[row["u"]], points[row["v"]]]
        assert [end.coords[0] for end in ends] == [line.coords[0], line.coords[-1]]


def test_geopackage_leaves_gdal_as_it_was(tmp_path: Path) -> None:
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2020-02-02T00:00:00.000Z"})
    try:
        export(tmp_path / "a.gpkg", [image(*TANGLE)])
        assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") == "2020-02-02T00:00:00.000Z"
        assert pyogrio.get_gdal_config_option("OGR_SQLITE_JOURNAL") is None
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


# --- GraphML --------------------------------------------------------------------------------------


def test_graphml_keeps_parallel_roads_and_loops(tmp_path: Path) -> None:
    path = tmp_path / "roads.graphml"
    export(path, [image(*TANGLE, name="a", georeference=DEGREES)])
    whole = read_graphml(path)
    assert whole.is_directed()
    assert whole.graph["crs"] == "EPSG:4326"
    # Every road is there both ways.
    assert whole.number_of_edges() == 2 * len(TANGLE)
    assert whole.number_of_edges(1, 2) == whole.number_of_edges(2, 1) == 2
    assert whole.number_of_edges(0, 0) == 2
    assert whole.nodes[1] == {"image_id": "a", "x": "10.003", "y": "49.999", "street_count": "3"}
    for u, v, road in whole.edges(data=True):
        ends = [tuple(float(whole.nodes[node][axis]) for axis in "xy") for node in (u, v)]
        assert ends == [shapely.from_wkt(road["geometry"]).coords[at] for at in (0, -1)]
    there, back = (whole.edges[edge] for edge in ((0, 1, 0), (1, 0, 0)))
    assert (there["reversed"], back["reversed"]) == ("False", "True")
    assert there["osmid"] == back["osmid"] == "1"


def test_graphml_of_images_without_georeference_is_in_pixels(tmp_path: Path) -> None:
    bare = image(([(5, 7), (8, 11)], 25), name="b", georeference=None)
    assert export(tmp_path / "a.graphml", [bare]) == {}
    whole = read_graphml(tmp_path / "a.graphml")
    assert "crs" not in whole.graph
    assert [(node["x"], node["y"]) for _, node in whole.nodes(data=True)] == [
        ("5.0", "7.0"), ("8.0", "11.0"),
    ]  # fmt: skip
    assert whole.edges[0, 1, 0] == {
        "image_id": "b", "highway": "residential", "maxspeed": "25 mph", "speed_kmh": "40.23",
        "speed_mph": "25.0", "speed_source": "estimated", "length_m": "1.5",
        "travel_time_s": "0.134", "mean_probability": "0.75", "calibration": "uncalibrated",
        "osmid": "1", "oneway": "False",
        "reversed": "False", "length": "1.5", "speed_kph": "40.23", "travel_time": "0.134",
        "geometry": "LINESTRING (5 7, 8 11)",
    }  # fmt: skip
    # Beside an image with a georeference it has no place.
    problems = export(tmp_path / "b.graphml", [bare, image(*TANGLE)])
    assert "b has no georeference" in problems["b"]


places = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda xy: (xy[0] * 9.1, xy[1] * 7.3))
tangles = st.lists(st.tuples(st.lists(places, min_size=2, max_size=4), st.floats(5, 80)))


@settings(max_examples=12, deadline=None)
@given(st.lists(tangles, max_size=3))
def test_all_formats_hold_the_same_graph(
    tmp_path_factory: pytest.TempPathFactory, content: list[list[tuple[Points, float]]]
) -> None:
    folder = tmp_path_factory.mktemp("graphs")
    images = [image(*roads, name=f"i{number}") for number, roads in enumerate(content)]
    for suffix in ROAD_SUFFIXES:
        export(folder / f"a{suffix}", images)
    first = 0
    expected = []
    for roads in images:
        for edge in roads.graph.edges:
            u, v = edge.nodes
            expected.append((roads.image_id, first + u, first + v, round(edge.length_m, 3)))
        first += len(roads.graph.nodes)
    names = ("image_id", "u", "v", "length_m")

    def values_of(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [tuple(row[name] for name in names) for row in rows]

    assert (
        values_of([feature["properties"] for feature in features(folder / "a.geojson")]) == expected
    )
    assert values_of(layer(folder / "a.gpkg", "roads")[0]) == expected
    assert len(layer(folder / "a.gpkg", "junctions")[0]) == first
    whole = read_graphml(folder / "a.graphml")
    assert sorted(
        (road["image_id"], u, v, float(road["length_m"]))
        for u, v, road in whole.edges(data=True)
        if road["reversed"] == "False"
    ) == sorted(expected)
    assert sorted(whole.nodes) == list(range(first))
    for suffix in (".fgb", ".parquet", ".zip"):
        assert sorted(values_of(table(folder / f"a{suffix}"))) == sorted(expected)


# --- all ------------------------------------------------------------------------------------------


@every_format
def test_the_suffix_picks_the_format_and_bytes_repeat(tmp_path: Path, suffix: str) -> None:
    images = [image(*TANGLE), image(*TANGLE, name="b")]
    export(tmp_path / f"a{suffix}", images)
    export(tmp_path / f"b{suffix.upper()}", images)
    export(tmp_path / f"b{suffix.upper()}", images)  # in place of another
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix.upper()}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@every_format
def test_no_roads_make_an_empty_file(tmp_path: Path, suffix: str) -> None:
    for name, images in (("none", []), ("empty", [image()])):
        path = tmp_path / f"{name}{suffix}"
        export(path, images)
        if suffix == ".geojson":
            assert features(path) == []
        elif suffix == ".gpkg":
            assert layer(path, "roads")[0] == layer(path, "junctions")[0] == []
        elif suffix == ".graphml":
            assert len(read_graphml(path)) == 0
        elif suffix in (".fgb", ".parquet", ".zip"):
            assert table(path) == []
        else:
            assert path.stat().st_size > 0


@pytest.mark.parametrize("name", ["a.shp", "a", "a.json", ".geojson"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SatmapError, match=r"suffix.*\.geojson, \.gpkg, .*\.graphml"):
        require_formats(RoadTaskSettings(), tmp_path / "a.csv", [tmp_path / name])
    with pytest.raises(ValueError, match="is none of"):
        export(tmp_path / name, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".osm"])
def test_images_without_georeference_are_left_out(tmp_path: Path, suffix: str) -> None:
    images = [image(*TANGLE, name="chip7", georeference=None), image(*TANGLE)]
    problems = export(tmp_path / f"a{suffix}", images)
    assert problems.keys() == {"chip7"}
    assert re.match("chip7 has no georeference.*CSV", problems["chip7"])
    # The nodes of the other image are numbered from 0.
    assert export(tmp_path / f"b{suffix}", images[1:]) == {}
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        # In degrees the coordinates leave the range; from the metres of zone 60 they jump.
        (4326, Affine(1e-5, 0, 179.9995, 0, -1e-5, 50)),
        (32660, Affine(0.3, 0, 714_900, 0, -0.3, 5_543_200)),
    ],
)
def test_images_across_the_180th_meridian(tmp_path: Path, crs: int, transform: Affine) -> None:
    georeference = Georeference(CRS.from_epsg(crs).to_wkt(), transform, (0.3, 0.3))
    images = [image(*TANGLE, georeference=georeference)]
    for suffix in (".geojson", ".graphml", ".osm"):
        problems = export(tmp_path / f"a{suffix}", images)
        assert problems["a"].startswith("a lies across the 180th meridian")
    # A projected system has no seam there.
    assert bool(export(tmp_path / "a.gpkg", images)) == (crs == 4326)
    assert bool(export(tmp_path / "b.gpkg", images, LON_LAT))


def test_images_beside_the_180th_meridian(tmp_path: Path) -> None:
    transform = Affine(1e-5, 0, 179.99, 0, -1e-5, 50)
    georeference = Georeference(DEGREES.crs, transform, (0.7, 1.1))
    export(tmp_path / "a.geojson", [image(*TANGLE, georeference=georeference)])
    assert len(features(tmp_path / "a.geojson")) == len(TANGLE)


def test_nan_values_are_a_programming_error(tmp_path: Path) -> None:
    roads = graph(*TANGLE)
    bad = RoadEdge((0, 1), roads.edges[0].line, math.nan, 1.0, 0.5)
    images = [ImageRoads("a", RoadGraph(roads.nodes, (bad,), METRES))]
    with pytest.raises(ValueError, match="not JSON compliant"):
        export(tmp_path / "a.geojson", images)


@every_format
def test_unwritable_outputs(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="cannot write"):
        export(tmp_path / "file" / f"a{suffix}", [image(*TANGLE)])
    (tmp_path / f"directory{suffix}").mkdir()
    with pytest.raises(CannotWriteError, match="is a directory"):
        export(tmp_path / f"directory{suffix}", [image(*TANGLE)])


@every_format
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    images = [image(*TANGLE, name=f"{number}") for number in range(20)]
    export(path, images)
    size = path.stat().st_size
    path.write_text("old")
    # From no byte to the last one: an index or footer written late counts too.
    for limit in [*np.linspace(0, size, 9, endpoint=False, dtype=int).tolist(), size - 1]:
        with pytest.raises(CannotWriteError, match=r"cannot write .*space"), full_disk(limit):
            export(path, images)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.read_text() == "old"
