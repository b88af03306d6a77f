"""Buildings as GeoJSON and GeoPackage, read back without the libraries that wrote them."""

import json
import sqlite3
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from building_recipes import undecided_weights
from satmap.cli import main
from satmap.exports.buildings import export_buildings
from satmap.io.geojson_reader import LON_LAT, project
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.submissions.buildings_csv import read_buildings_csv
from satmap.vectors.buildings import Building, ImageBuildings
from satmap.vectors.georeference import Georeference
from synthetic_blocks import made_blocks, maps_of_labels
from synthetic_chips import write_coco, write_tile

# A pixel is a hundred thousandth of a degree; the corner lies at 10 E, 50 N.
DEGREES = Georeference(
    CRS.from_epsg(4326).to_wkt(), Affine(1e-5, 0, 10, 0, -1e-5, 50), (0.717, 1.112)
)
# 0.5 m per pixel; the corner lies on the middle meridian of the zone.
METRES = Georeference(
    CRS.from_epsg(32631).to_wkt(), Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000), (0.5, 0.5)
)
YARD = shapely.Polygon(
    [(10, 20), (40, 20), (40, 60), (10, 60)], [[(20, 30), (20, 40), (30, 40), (30, 30)]]
)
HUT = shapely.box(100, 100, 104, 110)


def image(georeference: Georeference | None, name: str = "a") -> ImageBuildings:
    buildings = (Building(YARD, 0.98765), Building(HUT, 12.5, 0.62544, 0.81249))
    return ImageBuildings(name, None, (200, 300), buildings, georeference)


def geojson(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    assert content.keys() == {"type", "features"}  # RFC 7946 has no crs
    found: list[dict[str, Any]] = content["features"]
    return found


def geopackage(path: Path) -> tuple[int, list[tuple[Any, ...]], list[shapely.Polygon]]:
    """Return EPSG code, attributes and polygons of the only layer, decoded by the standard."""
    with sqlite3.connect(path) as base:
        ((table, kind, srs),) = base.execute(
            "SELECT g.table_name, geometry_type_name, organization_coordsys_id "
            "FROM gpkg_geometry_columns g JOIN gpkg_spatial_ref_sys s ON g.srs_id = s.srs_id"
        ).fetchall()
        assert (table, kind) == ("buildings", "POLYGON")
        rows = base.execute(
            "SELECT geom, image_id, mean_probability, expected_iou, area_m2 FROM buildings "
            "ORDER BY fid"
        ).fetchall()
    polygons = []
    for blob, *_ in rows:
        magic, _, flags, _ = struct.unpack("<2sBBi", blob[:8])
        assert magic == b"GP"
        envelope = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}[(flags >> 1) & 7]
        polygons.append(shapely.from_wkb(blob[8 + envelope :]))
    return srs, [tuple(row[1:]) for row in rows], polygons


def test_exact_geojson(tmp_path: Path) -> None:
    path = tmp_path / "new" / "b.geojson"
    assert export_buildings(path, lambda: [image(DEGREES)]) == {}
    # 1100 px of 0.717 x 1.112 m; the outer ring runs anticlockwise on the map, the hole clockwise.
    assert path.read_text() == (
        '{"type":"FeatureCollection","features":[\n'
        '{"type":"Feature","properties":{"image_id":"a","mean_probability":null,'
        '"expected_iou":0.988,"confidence":null,"calibration":"uncalibrated","area_m2":877.034},'
        '"geometry":{"type":"Polygon","coordinates":['
        "[[10.0001,49.9998],[10.0001,49.9994],[10.0004,49.9994],[10.0004,49.9998],"
        "[10.0001,49.9998]],"
        "[[10.0002,49.9997],[10.0003,49.9997],[10.0003,49.9996],[10.0002,49.9996],"
        "[10.0002,49.9997]]]}},\n"
        '{"type":"Feature","properties":{"image_id":"a","mean_probability":0.625,'
        '"expected_iou":null,"confidence":0.812,"calibration":"calibrated","area_m2":31.892},'
        '"geometry":{"type":"Polygon","coordinates":['
        "[[10.00104,49.999],[10.001,49.999],[10.001,49.9989],[10.00104,49.9989],"
        "[10.00104,49.999]]]}}\n"
        "]}\n"
    )


def test_a_geopackage_keeps_the_system_of_the_images(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    nothing = ImageBuildings("none", None, (9, 9), (), DEGREES)
    assert export_buildings(path, lambda: [image(METRES), nothing, image(METRES, "b")]) == {}
    srs, rows, polygons = geopackage(path)
    assert srs == 32631
    own = [(None, 0.988, 275.0), (0.625, None, 10.0)]
    assert rows == [(name, *row) for name in ("a", "b") for row in own]
    expected = shapely.transform(YARD, lambda xy: xy * (0.5, -0.5) + (500_000, 4_000_000))
    assert shapely.equals(polygons[0], expected) and len(polygons[0].interiors) == 1
    assert polygons[0].area == 275
    # The same bytes again.
    again = tmp_path / "again.gpkg"
    export_buildings(again, lambda: [image(METRES), image(METRES, "b")])
    assert again.read_bytes() == path.read_bytes()


def test_images_of_two_crs_are_exported_in_longitude_and_latitude(tmp_path: Path) -> None:
    path, nowhere = tmp_path / "b.gpkg", image(None, "nowhere")
    faults = export_buildings(path, lambda: [image(METRES), nowhere, image(DEGREES, "b")])
    assert list(faults) == ["nowhere"]
    assert faults["nowhere"].startswith("nowhere has no georeference, which all formats")
    srs, rows, polygons = geopackage(path)
    assert (srs, [row[0] for row in rows]) == (4326, ["a", "a", "b", "b"])
    back = project(shapely.get_coordinates(polygons[0]), LON_LAT, METRES.crs)
    pixels = (back - (500_000, 4_000_000)) * (2, -2)
    moved = shapely.set_coordinates(polygons[0], pixels)
    assert shapely.hausdorff_distance(moved, YARD) < 1e-3
    empty = tmp_path / "empty.gpkg"
    export_buildings(empty, lambda: [])
    assert geopackage(empty) == (4326, [], [])
    with pytest.raises(ValueError, match="graphml"):
        export_buildings(tmp_path / "a.graphml", lambda: [])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(2e-8, 3e-7))
def test_polygons_stay_valid_after_rounding(seed: int, pixel: float) -> None:
    rng = np.random.default_rng(seed)
    ring = rng.integers(0, 6, (12, 2)) + rng.random((12, 2))
    outline = shapely.convex_hull(shapely.MultiPoint(ring))
    cut = outline.difference(shapely.box(2, 2, 2.5, 2.5))
    polygon = max(shapely.get_parts(cut), key=lambda part: part.area)
    small = Georeference(DEGREES.crs, Affine(pixel, 0, 10, 0, -pixel, 50), (0.01, 0.01))
    found = ImageBuildings("a", None, (9, 9), (Building(polygon, 1.0),), small)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.geojson"
        export_buildings(path, lambda: [found])
        for feature in geojson(path):
            assert shapely.geometry.shape(feature["geometry"]).is_valid


# --- the commands ---------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    read = capsys.readouterr()
    return int(ended.value.code or 0), read.out + read.err


def write_mask(path: Path, maps: ProbabilityMaps, place: Georeference | None) -> None:
    where = {"crs": place.crs, "transform": place.transform} if place else {}
    height, width = maps.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8", **where
    ) as raster:
        raster.write(maps.values)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_masks_are_exported_as_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = tmp_path / "masks"
    for number, place in enumerate((METRES, METRES, None)):
        maps = maps_of_labels(made_blocks(number, 120, 30, (12, 30)).labels, 1.0)
        write_mask(masks / f"AOI_9_Made_img{number}.tif", maps, place)
    outputs = {name: tmp_path / f"out{name}" for name in (".csv", ".geojson", ".gpkg")}
    for suffix, output in outputs.items():
        status, printed = run(
            capsys, "vectorize", masks, output, "--task", "buildings", "--workers", 0
        )
        assert status == 0
        lacks = "AOI_9_Made_img2: AOI_9_Made_img2 has no georeference" in printed
        assert lacks == (suffix != ".csv")
    rows = read_buildings_csv(outputs[".csv"])
    srs, attributes, polygons = geopackage(outputs[".gpkg"])
    assert srs == 32631 and len(polygons) == len(geojson(outputs[".geojson"])) > 10
    for number in (0, 1):
        name = f"AOI_9_Made_img{number}"
        own = [p for p, row in zip(polygons, attributes, strict=True) if row[0] == name]
        in_pixels = shapely.transform(own, lambda xy: (xy - (500_000, 4_000_000)) * (2, -2))
        drawn = shapely.union_all(in_pixels)
        asked = shapely.union_all([row.polygon for row in rows[name]])
        assert drawn.symmetric_difference(asked).area < 0.01 * asked.area
    # A file that is not a map is not replaced.
    outputs[".gpkg"].write_text("notes")
    status, printed = run(capsys, "vectorize", masks, outputs[".gpkg"], "--task", "buildings")
    assert status == 1 and "is not overwritten" in printed
    status, printed = run(capsys, "vectorize", masks, tmp_path / "a.graphml", "--task", "buildings")
    assert status == 1 and "'.graphml' is none of .csv, .json, .geojson, .gpkg," in printed


def test_predictions_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write_tile(tmp_path / "data", number, [])
    undecided_weights(tmp_path / "weights")
    layers = [tmp_path / "b.gpkg", tmp_path / "b.geojson"]
    flags = [part for path in layers for part in ("--export", path)]
    common = ("--weights", tmp_path / "weights", "--device", "cpu", "--workers", 0, *flags)
    out = tmp_path / "out.csv"
    status, printed = run(capsys, "predict", tmp_path / "data", out, *common)
    assert status == 0 and "lacks" not in printed
    # The CSV leaves out buildings that the scorers would drop.
    counts = [len(rows) for rows in read_buildings_csv(out).values()]
    _, attributes, _ = geopackage(layers[0])
    assert len(geojson(layers[1])) == len(attributes) >= sum(counts) > 0
    # Images without georeference are reported and left out of the maps.
    write_coco(tmp_path / "coco", {3: []})
    status, printed = run(capsys, "predict", tmp_path / "coco", tmp_path / "out.json", *common)
    assert status == 0
    assert "b.gpkg lacks 1 images. 3 has no georeference, which all formats" in printed
    assert geojson(layers[1]) == []
