"""Exports as their users read them: geopandas, OSMnx, pyosmium, pyarrow, QGIS's style table."""

import json
import shutil
import sqlite3
import struct
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas
import numpy as np
import osmium
import osmnx
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS

from full_disks import full_disk
from satmap.cli import main
from satmap.data import label_files
from satmap.data.label_files import read_label_file
from satmap.errors import CannotWriteError, SatmapError
from satmap.evaluation.check import check_files
from satmap.evaluation.score import score_files
from satmap.exports import BUILDING_SUFFIXES, gis_files
from satmap.exports.buildings import export_buildings
from satmap.exports.gis_files import SHORT_NAMES
from satmap.exports.roads import export_roads
from satmap.io.files import remove_temporary_files_of
from satmap.io.geojson_reader import LON_LAT
from satmap.submissions.convert import convert_to_csv
from satmap.submissions.roads_csv import read_roads_csv, rows_of_graph, write_roads_csv
from satmap.submissions.vector_maps import read_building_maps, read_map
from satmap.vectors.buildings import Building, ImageBuildings
from satmap.vectors.georeference import Georeference, reference_system
from satmap.vectors.road_graph import ImageRoads, RoadEdge, RoadGraph, line_length_m

UTM = Georeference(
    CRS.from_epsg(32631).to_wkt(), Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000), (0.5, 0.5)
)
# A street with a side street, and a faster road that passes over the side street.
STREETS = (
    ((0, 1), [(10, 10), (200, 10)], 10.0, 5.25),
    ((1, 2), [(200, 10), (400, 10)], 10.0, 6.0),
    ((1, 3), [(200, 10), (200, 380)], 8.0, None),
    ((4, 5), [(20, 200), (390, 220)], 20.0, 7.0),
)
NODES = np.array([(10, 10), (200, 10), (400, 10), (200, 380), (20, 200), (390, 220)], float)
YARD = shapely.Polygon(
    [(10, 20), (40, 20), (40, 60), (10, 60)], [[(20, 30), (20, 40), (30, 40), (30, 30)]]
)
TABLES = (".gpkg", ".geojson", ".fgb", ".parquet", ".zip")


def roads() -> ImageRoads:
    edges = tuple(
        RoadEdge(nodes, np.array(line, float), line_length_m(np.array(line), (0.5, 0.5)), speed,
                 0.75, width)
        for nodes, line, speed, width in STREETS
    )  # fmt: skip
    return ImageRoads("town", RoadGraph(NODES, edges, UTM))


def buildings() -> ImageBuildings:
    found = (Building(YARD, 30.0, 0.9), Building(shapely.box(100, 100, 120, 110), 9.0, 0.6))
    return ImageBuildings("town", None, (400, 400), found, UTM)


def written(folder: Path, suffix: str, crs: str | None = None) -> Path:
    path = folder / f"roads{suffix}"
    assert export_roads(path, lambda: [roads()], crs) == {}
    return path


def built(folder: Path, suffix: str, crs: str | None = None) -> Path:
    path = folder / f"buildings{suffix}"
    assert export_buildings(path, lambda: [buildings()], crs) == {}
    return path


def table(path: Path, **options: Any) -> Any:
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, **options)


@pytest.mark.parametrize("suffix", TABLES)
def test_geopandas_reads_tables(tmp_path: Path, suffix: str) -> None:
    layer = {"layer": "roads"} if suffix == ".gpkg" else {}
    found = table(written(tmp_path, suffix), **layer).sort_values(["u", "v"]).reset_index()
    degrees = suffix == ".geojson"
    assert found.crs.to_epsg() == (4326 if degrees else 32631)
    assert np.allclose(found.to_crs(32631).length, found["length_m"], rtol=1e-3)
    found = found.rename(columns={short: name for name, short in SHORT_NAMES.items()})
    assert found["speed_kmh"].tolist() == [36, 36, 28.8, 72]
    assert np.allclose(found["speed_mph"], found["speed_kmh"] / 1.609344, atol=0.01)
    seconds = found["length_m"] / found["speed_kmh"] * 3.6
    assert np.allclose(found["travel_time_s"], seconds, atol=1e-3)
    assert found["width_m"].fillna(-1).tolist() == [5.25, 6, -1, 7]
    assert set(found["speed_source"]) == {"estimated"}
    assert set(found["mean_probability"]) == {0.75}
    layer = {"layer": "buildings"} if suffix == ".gpkg" else {}
    found = table(built(tmp_path, suffix), **layer)
    found = found.rename(columns={short: name for name, short in SHORT_NAMES.items()})
    found = found.sort_values("area_m2")
    assert found["area_m2"].tolist() == [50, 275]
    assert found["mean_probability"].tolist() == [0.6, 0.9]
    assert found["expected_iou"].isna().all()
    assert np.allclose(found.to_crs(32631).area, found["area_m2"], rtol=1e-3)


@pytest.mark.parametrize("suffix", TABLES)
def test_the_user_chooses_the_reference_system(tmp_path: Path, suffix: str) -> None:
    for crs, code in (("EPSG:3857", 3857), ("EPSG:4326", 4326)):
        path = written(tmp_path, suffix, reference_system(crs))
        found = table(path, **({"layer": "roads"} if suffix == ".gpkg" else {}))
        # GeoJSON demands longitude and latitude.
        assert found.crs.to_epsg() == (4326 if suffix == ".geojson" else code)
        middle = found.to_crs(4326).union_all().centroid
        assert (middle.x, middle.y) == pytest.approx((3.001, 36.144), abs=2e-3)


@pytest.mark.parametrize(
    "crs", ["EPSG:0", "/etc/passwd", "http://example.org/crs", 'LOCAL_CS["x"]']
)
def test_unusable_reference_systems_are_refused(
    crs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["vectorize", "maps", "a.gpkg", "--crs", crs])
    assert ended.value.code == 2
    assert "reference system" in capsys.readouterr().err


def test_geoparquet_metadata(tmp_path: Path) -> None:
    schema = pyarrow.parquet.read_schema(written(tmp_path, ".parquet"))
    about = json.loads(schema.metadata[b"geo"])
    assert (about["version"], about["primary_column"]) == ("1.1.0", "geometry")
    column = about["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["LineString"])
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32631}


def test_one_open_ring_does_not_spoil_a_label_file(tmp_path: Path) -> None:
    path = built(tmp_path, ".parquet")
    found = pyarrow.parquet.read_table(path)
    # A triangle whose ring lacks its last point, and a ring of a single point.
    corners = [(0.0, 0.0), (9.0, 0.0), (9.0, 9.0)]
    broken = [
        struct.pack("<BIII", 1, 3, 1, len(points)) + np.array(points).tobytes()
        for points in (corners, corners[:1])
    ]
    number = found.column_names.index("geometry")
    changed = found.set_column(number, "geometry", pyarrow.array(broken))
    pyarrow.parquet.write_table(pyarrow.concat_tables([found, changed]), path)
    shapes = read_label_file(path, "polygons").shapes
    assert sorted(shapely.area(shapes)) == pytest.approx([40.5, 50, 275], rel=1e-3)


def test_zipped_shapefiles(tmp_path: Path) -> None:
    with zipfile.ZipFile(written(tmp_path, ".shp.zip")) as archive:
        assert archive.namelist() == [
            f"roads.{part}" for part in ("cpg", "dbf", "prj", "shp", "shx")
        ]
    fields = pyogrio.read_info(tmp_path / "roads.shp.zip")["fields"]
    assert max(map(len, fields)) <= 10


def test_a_killed_writer_of_zipped_shapefiles_leaves_nothing_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, killed = tmp_path / "outputs", tmp_path / "killed"

    def stopped_at(*arguments: Any) -> zipfile.ZipFile:
        shutil.copytree(folder, killed)
        return zipfile.ZipFile(*arguments)

    monkeypatch.setattr(gis_files, "zipfile", SimpleNamespace(
        ZipFile=stopped_at, ZipInfo=zipfile.ZipInfo, ZIP_DEFLATED=zipfile.ZIP_DEFLATED
    ))  # fmt: skip
    path = written(folder, ".shp.zip")
    assert len(list(killed.iterdir())) == 2
    (killed / ".roads").mkdir()
    (killed / ".other.shp-abcd1234.zip").mkdir()
    remove_temporary_files_of([killed / path.name])
    assert {left.name for left in killed.iterdir()} == {".roads", ".other.shp-abcd1234.zip"}


def test_osmnx_finds_a_route(tmp_path: Path) -> None:
    graph = osmnx.load_graphml(written(tmp_path, ".graphml"))
    assert graph.graph["crs"] == "EPSG:4326"
    for start, end in ((0, 3), (3, 0)):
        route = osmnx.shortest_path(graph, start, end, weight="travel_time")
        assert route in ([0, 1, 3], [3, 1, 0])
        taken = osmnx.routing.route_to_gdf(graph, route)
        assert taken["length"].sum() == pytest.approx(95 + 185)
        assert taken["travel_time"].sum() == pytest.approx(95 / 10 + 185 / 8)
    near = osmnx.nearest_nodes(osmnx.project_graph(graph, to_crs=32631), 500_100, 3_999_995)
    assert near == 1
    edges = osmnx.graph_to_gdfs(graph, nodes=False)
    assert len(edges) == 2 * len(STREETS)
    assert edges["oneway"].tolist() == [False] * len(edges)
    assert np.allclose(edges.to_crs(32631).length, edges["length"], rtol=1e-3)


class Objects(osmium.SimpleHandler):
    """Collects the objects of an OpenStreetMap file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.nodes: dict[int, tuple[float, float]] = {}
        self.ways: dict[int, tuple[list[int], dict[str, str]]] = {}
        self.relations: list[tuple[list[tuple[str, int, str]], dict[str, str]]] = []
        self.apply_file(str(path))

    def node(self, node: Any) -> None:
        self.nodes[node.id] = node.location.lon, node.location.lat

    def way(self, way: Any) -> None:
        self.ways[way.id] = [node.ref for node in way.nodes], dict(way.tags)

    def relation(self, relation: Any) -> None:
        members = [(member.type, member.ref, member.role) for member in relation.members]
        self.relations.append((members, dict(relation.tags)))


@pytest.mark.parametrize("suffix", [".osm", ".osm.pbf"])
def test_osmium_reads_roads(tmp_path: Path, suffix: str) -> None:
    found = Objects(written(tmp_path, suffix))
    assert all(number < 0 for number in (*found.nodes, *found.ways))
    ways = list(found.ways.values())
    assert len(ways) == 3 + 3
    # Three streets share a node.
    shared = set(ways[0][0]) & set(ways[1][0]) & set(ways[2][0])
    assert len(shared) == 1
    assert ways[0][1] == {
        "highway": "unclassified", "maxspeed": "22 mph", "source:maxspeed": "estimated",
        "width": "5.2", "source:width": "estimated",
    }  # fmt: skip
    assert "width" not in ways[2][1]
    # The fast road passes over the side street, between two nodes of its own.
    before, bridge, after = ways[3:]
    assert (before[0][-1], bridge[0][-1]) == (bridge[0][0], after[0][0])
    assert (bridge[1]["bridge"], bridge[1]["layer"]) == ("yes", "1")
    assert "guess" in bridge[1]["fixme"]
    assert "bridge" not in before[1] | after[1]
    over, side = (shapely.LineString([found.nodes[n] for n in way[0]]) for way in (bridge, ways[2]))
    assert over.crosses(side)
    assert over.length * 9e4 == pytest.approx(2 * (6 / 2 + 5), rel=0.1)


@pytest.mark.parametrize("suffix", [".osm", ".osm.pbf"])
def test_osmium_reads_buildings(tmp_path: Path, suffix: str) -> None:
    found = Objects(built(tmp_path, suffix))
    outer, inner, hut = found.ways.values()
    assert all(nodes[0] == nodes[-1] for nodes, _ in (outer, inner, hut))
    assert (outer[1], inner[1], hut[1]) == ({}, {}, {"building": "yes"})
    ((members, tags),) = found.relations
    assert tags == {"type": "multipolygon", "building": "yes"}
    assert members == [("w", -1, "outer"), ("w", -2, "inner")]


def test_josm_is_asked_not_to_upload(tmp_path: Path) -> None:
    root = ET.parse(written(tmp_path, ".osm")).getroot()
    assert (root.tag, root.get("version"), root.get("upload")) == ("osm", "0.6", "false")


def test_qgis_finds_the_styles(tmp_path: Path) -> None:
    wanted = {
        written(tmp_path, ".gpkg"): ("roads", "graduatedSymbol", "LineSymbolizer"),
        built(tmp_path, ".gpkg"): ("buildings", "singleSymbol", "PolygonSymbolizer"),
    }
    for path, (name, renderer, symbolizer) in wanted.items():
        with sqlite3.connect(path) as base:
            # QGIS asks for the default style of a layer like this.
            ((qml, sld),) = base.execute(
                "SELECT styleQML, styleSLD FROM layer_styles WHERE f_table_schema = '' AND "
                "f_table_name = ? AND f_geometry_column = ? AND useAsDefault",
                (name, "geom"),
            ).fetchall()
            ((column,),) = base.execute(
                "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (name,)
            ).fetchall()
            assert column == "geom"
            ((kind,),) = base.execute(
                "SELECT data_type FROM gpkg_contents WHERE table_name = 'layer_styles'"
            ).fetchall()
            assert kind == "attributes"
        found = ET.fromstring(qml).find("renderer-v2")
        assert found is not None and found.get("type") == renderer
        symbols = {symbol.get("name") for symbol in found.iter("symbol")}
        assert {part.get("symbol") for part in found.iter("range")} <= symbols
        assert ET.fromstring(sld.encode()).findall(f".//{{*}}{symbolizer}")


@pytest.mark.parametrize("suffix", BUILDING_SUFFIXES)
def test_bytes_of_buildings_repeat_and_a_full_disk_leaves_the_old_file(
    tmp_path: Path, suffix: str
) -> None:
    path = built(tmp_path, suffix)
    content = path.read_bytes()
    assert built(tmp_path, suffix).read_bytes() == content
    for limit in (0, len(content) // 2, len(content) - 1):
        with pytest.raises(CannotWriteError, match=r"cannot write .*space"), full_disk(limit):
            built(tmp_path, suffix)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


# --- reading them back ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet", ".osm", ".shp.zip"])
def test_exports_score_like_the_graph(tmp_path: Path, suffix: str) -> None:
    truth = tmp_path / "labels.geojson"
    export_roads(truth, lambda: [roads()], LON_LAT)
    scores = score_files(truth, written(tmp_path, suffix), metres_per_pixel=0.5).report.total
    assert (scores["apls_length"] or 0) > 0.999
    assert (scores["apls_time"] or 0) > 0.98
    export_buildings(truth, lambda: [buildings()], LON_LAT)
    scores = score_files(truth, built(tmp_path, suffix), metres_per_pixel=0.5).report.total
    assert (scores["tp"], scores["fp"], scores["fn"]) == (2, 0, 0)


def test_shapefiles_keep_times_and_confidences(tmp_path: Path) -> None:
    zipped = written(tmp_path, ".shp.zip"), built(tmp_path, ".zip")
    for path in zipped:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
    for path in (zipped[0], tmp_path / "roads.shp"):
        times = [row["travel_time_s"] for row in read_label_file(path, "lines").properties]
        assert sorted(times) == pytest.approx([9.263, 9.5, 10, 23.125], abs=1e-3)
        assert [line.properties["travel_time_s"] for line in read_map(path).lines] == times
    for path in (zipped[1], tmp_path / "buildings.shp"):
        rows, *_ = read_building_maps(path, path, 0.5)
        confidences = [row.score for found in rows.values() for row in found]
        assert sorted(confidences) == pytest.approx([0.6 * 50**0.5, 0.9 * 275**0.5])
        assert len(read_label_file(path, "polygons").shapes) == 2


def test_archives_that_are_no_zipped_shapefile_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = written(tmp_path, ".shp.zip")

    def changed(**added: bytes) -> Path:
        path = tmp_path / "changed.zip"
        path.write_bytes(good.read_bytes())
        with zipfile.ZipFile(path, "a") as archive:
            for name, content in added.items():
                archive.writestr(name, content)
        return path

    assert len(read_map(changed(**{"__MACOSX/._roads.shp": b"", "readme": b""})).lines) == 4
    for name in ("../a.dbf", "/a.dbf", "a\\b"):
        with pytest.raises(SatmapError, match="does not unpack"):
            read_map(changed(**{name: b""}))
    with pytest.raises(SatmapError, match="holds 2 shapefiles"):
        read_map(changed(**{"other.shp": b""}))
    damaged = tmp_path / "damaged.zip"
    content = bytearray(good.read_bytes())
    content[content.index(b"roads.dbf") + 60] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(SatmapError, match="cannot be unpacked"):
        read_map(damaged)
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("roads.shp", "<VRTDataset/>")
    with pytest.raises(SatmapError, match="cannot be unpacked"):
        read_map(tmp_path / "text.zip")
    monkeypatch.setattr(label_files, "_MOST_UNZIPPED", 100)
    with pytest.raises(SatmapError, match="larger than"):
        read_map(good)


def test_exports_of_several_images_score_against_a_directory(tmp_path: Path) -> None:
    images = [
        replace(roads(), image_id=f"SN5_roads_test_public_AOI_7_Moscow_chip{n}") for n in (1, 2)
    ]
    for number, image in enumerate(images, 1):
        folder = tmp_path / "labels"
        export_roads(folder / f"AOI_7_Moscow_chip{number}.geojson", lambda image=image: [image])  # type: ignore[misc]
    export_roads(tmp_path / "all.gpkg", lambda: images)
    report = score_files(tmp_path / "labels", tmp_path / "all.gpkg", metres_per_pixel=0.5).report
    assert list(report.images) == ["AOI_7_Moscow_chip1", "AOI_7_Moscow_chip2"]
    assert (report.total["apls_length"] or 0) > 0.999


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip3.tif"
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(1, 255, (3, 400, 400), np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=400, height=400, count=3, dtype="uint8", crs=UTM.crs,
        transform=UTM.transform,
    ) as raster:  # fmt: skip
        raster.write(pixels)
    return path


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".zip"])
def test_exports_are_checked_and_drawn(
    tmp_path: Path, image: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (written(tmp_path, suffix), built(tmp_path, suffix)):
        assert check_files(path, [image.parent]) == []
        pictures = tmp_path / path.stem
        with pytest.raises(SystemExit) as ended:
            main(["overlay", str(path), str(pictures), str(image), "--truth", str(path)])
        assert ended.value.code == 0
        assert [picture.name for picture in pictures.iterdir()] == [f"{path.stem}.png"]
    assert "1 pictures" in capsys.readouterr().out


def test_problems_of_maps_are_reported(tmp_path: Path, image: Path) -> None:
    path = written(tmp_path, ".geojson")
    content = json.loads(path.read_text())
    content["features"][0]["properties"]["travel_time_s"] = 0
    content["features"][2]["geometry"]["coordinates"][0][0] += 1e-5
    content["features"][3]["geometry"]["coordinates"] = [[10, 50], [10.1, 50]]
    bow = [[[3, 36], [3.1, 36.1], [3.1, 36], [3, 36.1], [3, 36]]]
    geometry = {"type": "Polygon", "coordinates": bow}
    content["features"].append({"type": "Feature", "properties": {}, "geometry": geometry})
    path.write_text(json.dumps(content))
    messages = [fault.message for fault in check_files(path, [image.parent])]
    assert len(messages) == 5
    assert messages[0] == "road 1: travel_time_s is 0, not above 0"
    assert messages[1] == "road 3: it does not end where other roads have node 1"
    assert messages[2].startswith("building 1: Self-intersection")
    assert messages[3] == "road 4 lies on none of the 1 images with a georeference"
    assert messages[4].startswith("building 1 lies on none")


def test_maps_become_the_challenges_csv(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "AOI_7_Moscow_chip3"
    write_roads_csv(tmp_path / "graph.csv", {name: rows_of_graph(roads().graph)})
    expected = read_roads_csv(tmp_path / "graph.csv")[name]
    folder = tmp_path / "geojson"
    label = "SN5_roads_train_AOI_7_Moscow_geojson_roads_speed_chip3.geojson"
    export_roads(folder / label, lambda: [roads()])
    for maps in (folder, written(tmp_path, ".gpkg"), written(tmp_path, ".osm")):
        output = tmp_path / "out.csv"
        with pytest.raises(SystemExit) as ended:
            main(["convert", str(maps), str(output), str(image.parent)])
        assert ended.value.code == 0
        assert check_files(output, [image.parent]) == []
        found = read_roads_csv(output)[name]
        if maps.suffix == ".osm":
            continue
        assert len(found) == len(expected)
        for row, known in zip(found, expected, strict=True):
            forth, back = (np.abs(line - known.line).max() for line in (row.line, row.line[::-1]))
            assert min(forth, back) < 0.05
            assert row.travel_time_s == pytest.approx(known.travel_time_s, abs=0.02)
    assert "1 images, 4 objects" in capsys.readouterr().out
    counts, faults = convert_to_csv(written(tmp_path, ".fgb"), output, [image.parent])
    assert (counts, faults) == ({name: 4}, {})
