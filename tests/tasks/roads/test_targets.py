import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from round_trips import decode_target
from satmap.data.imagery import RGB, read_info
from satmap.errors import SatmapError
from satmap.tasks.roads.labels import clip_to_image, read_road_labels
from satmap.tasks.roads.settings import ROAD_MAPS, TargetSettings
from satmap.tasks.roads.targets import (
    CENTRE_BIT,
    CLASS_BITS,
    CROSSING_BIT,
    DECK_BIT,
    DECK_UNKNOWN_BIT,
    JUNCTION_BIT,
    RoadLabel,
    rasterize_levels,
    rasterize_roads,
)
from synthetic_images import lon_lat, write_image, write_labels

SETTINGS = TargetSettings()


def label(*points: tuple[float, float], mph: float = 25) -> RoadLabel:
    return RoadLabel(np.array(points, float), mph)


def test_a_road_is_four_metres_wide_on_the_ground() -> None:
    # Pixels of 0.25 m by 0.5 m: 16 columns across a road that runs down, 8 rows across one along.
    down = rasterize_roads([label((50, -10), (50, 110))], (100, 100), (0.25, 0.5), SETTINGS)
    assert (down > 0).sum(axis=1).tolist() == [16] * 100
    along = rasterize_roads([label((-10, 50), (110, 50))], (100, 100), (0.25, 0.5), SETTINGS)
    assert (along > 0).sum(axis=0).tolist() == [8] * 100


def test_the_faster_road_lies_on_top() -> None:
    roads = [label((0, 50), (100, 50), mph=65), label((50, 0), (50, 100), mph=20)]
    for order in (roads, roads[::-1]):
        target = rasterize_roads(order, (100, 100), (0.5, 0.5), SETTINGS)
        assert target[50, 50] & 0x0F == 10
        assert target[20, 50] & 0x0F == 4


def test_junctions_need_three_ends_and_get_stubs() -> None:
    # A T at (50, 50), and a bend at (90, 50), which is no junction.
    tee = [label((10, 50), (50, 50), (90, 50), (90, 90)), label((50, 50), (50, 10))]
    junction = rasterize_roads(tee, (100, 100), (0.5, 0.5), SETTINGS) >= JUNCTION_BIT
    assert junction[50, 50]
    # Stubs reach 9.6 m, 19 px, plus half the 4.8 m width.
    assert junction[50, 33]
    assert not junction[50, 20]
    assert junction[33, 50]
    assert not junction[67, 50]
    assert not junction[50, 88]


def test_passing_roads_are_no_junction() -> None:
    # An overpass whose roads have vertices 0.2 m apart, and a bend with a vertex every 0.5 m.
    bend = [(10 + i, 90.0) for i in range(4)] + [(13, 89), (13, 88), (13, 87)]
    roads = [
        label((10, 50), (50, 50), (90, 50)), label((50.4, 10), (50.4, 50), (50.4, 90)), label(*bend)
    ]  # fmt: skip
    assert not (rasterize_roads(roads, (100, 100), (0.5, 0.5), SETTINGS) >= JUNCTION_BIT).any()


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_roads_that_meet_or_nearly_meet_are_a_junction(gap: float) -> None:
    crossing = [label((10, 50), (50, 50), (90, 50)), label((50, 10), (50, 50), (50, 90))]
    assert rasterize_roads(crossing, (100, 100), (0.5, 0.5), SETTINGS)[50, 50] >= JUNCTION_BIT
    # A side street that ends short of the road, as in hand-drawn labels.
    side = [label((10, 50), (51, 50), (90, 50)), label((51, 90), (51, 50 + gap))]
    assert rasterize_roads(side, (100, 100), (0.5, 0.5), SETTINGS)[52, 51] >= JUNCTION_BIT


def test_decoded_maps() -> None:
    target = rasterize_roads(
        [label((0, 20), (100, 20), mph=25), label((0, 70), (100, 70), mph=65)],
        (100, 100),
        (0.5, 0.5),
        SETTINGS,
    )
    maps = dict(zip(ROAD_MAPS, decode_target(target), strict=True))
    assert maps["speed4"][20, 50] == 1
    assert maps["speed9"][70, 50] == 1
    assert np.array_equal(sum(maps[f"speed{i}"] for i in range(10)), maps["road"])
    assert not maps["junction"].any()


def test_no_labels_and_labels_far_away_are_an_empty_target() -> None:
    assert not rasterize_roads([], (10, 12), (0.3, 0.3), SETTINGS).any()
    ends = ((2e7, 1e7), (1e7, 2e7), (0, 3e7))
    far = [label((1e7, 1e7), end) for end in ends]
    assert not rasterize_roads(far, (10, 12), (0.3, 0.3), SETTINGS).any()


def test_clipping_cuts_a_road_into_its_parts() -> None:
    zigzag = label((-10, 50), (50, 50), (50, -20), (80, -20), (80, 30))
    parts = clip_to_image(zigzag, 100, 100)
    assert sorted(part.line.tolist() for part in parts) == [
        [[0, 50], [50, 50], [50, 0]],
        [[80, 0], [80, 30]],
    ]
    assert clip_to_image(label((200, 0), (200, 50)), 100, 100) == []


def write(path: Path, geometry: object, crs: str | None = None) -> Path:
    document: dict[str, object] = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "properties": {"speed_mph": 20}, "geometry": geometry}],
    }
    if crs:
        document["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(document))
    return path


def read(path: Path, image: Path) -> list[list[list[float]]]:
    georeference = read_info(image, RGB).georeference
    assert georeference is not None
    return [np.round(x.line, 3).tolist() for x in read_road_labels(path, georeference)]


def test_geometries_of_all_kinds(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.tif")
    a, b, c = (lon_lat(*xy) for xy in ((10, 10), (50, 10), (50, 60)))
    path = tmp_path / "labels.geojson"
    line = {"type": "LineString", "coordinates": [(*a, 12.5), (*b, 13.0)]}
    assert read(write(path, line), image) == [[[10, 10], [50, 10]]]
    many = {"type": "MultiLineString", "coordinates": [[a, b], [b, c], [c]]}
    assert read(write(path, many), image) == [[[10, 10], [50, 10]], [[50, 10], [50, 60]]]
    point = {"type": "Point", "coordinates": a}
    collection = {"type": "GeometryCollection", "geometries": [line, point]}
    assert read(write(path, collection), image) == [[[10, 10], [50, 10]]]
    repeated = {"type": "LineString", "coordinates": [a, a, b, b]}
    assert read(write(path, repeated), image) == [[[10, 10], [50, 10]]]
    assert read(write(path, None), image) == []
    # Features without lines are labels of another challenge, not an empty chip.
    for geometry in ({"type": "Polygon", "coordinates": [[a, b, c, a]]}, point):
        with pytest.raises(SatmapError, match="none of its 1 features is a line"):
            read(write(path, geometry), image)
    nested = {"type": "LineString", "coordinates": [[a, b], [b, c]]}
    with pytest.raises(SatmapError, match="feature 0 is malformed"):
        read(write(path, nested), image)
    path.write_text("null")
    assert read(path, image) == []


def test_labels_in_another_reference_system(tmp_path: Path) -> None:
    place = Affine(0.5, 0, 664000, 0, -0.5, 4012000)
    image = write_image(tmp_path / "a.tif", crs="EPSG:32611", transform=place)
    line = {"type": "LineString", "coordinates": [(664005, 4011995), (664020, 4011995)]}
    path = write(tmp_path / "labels.geojson", line, "urn:ogc:def:crs:EPSG::32611")
    assert read(path, image) == [[[10, 10], [40, 10]]]
    # The same numbers without the crs member cannot be degrees.
    path = write(tmp_path / "labels.geojson", line)
    with pytest.raises(SatmapError, match="is not a longitude and latitude"):
        read(path, image)
    # An unknown crs is ignored.
    degrees = {"type": "LineString", "coordinates": [lon_lat(10, 10), lon_lat(20, 10)]}
    image = write_image(tmp_path / "b.tif")
    assert read(write(path, degrees, "what is this"), image) == [[[10, 10], [20, 10]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a GeoJSON"),
        ("[1, 2]", "not a GeoJSON"),
        ('{"type": "Feature"}', "not a GeoJSON"),
        ('{"features": 3}', "not a GeoJSON"),
        ('{"features": [3]}', "feature 0 is malformed"),
        ('{"features": [{"geometry": {"type": "LineString"}}]}', "feature 0 is malformed"),
        ('{"features": [{"geometry": {"type": "LineString", "coordinates": [["a", 1], [2, 3]]}}]}',
         "feature 0 is malformed"),
        ('{"features": [{"geometry": {"type": "LineString", "coordinates": [[NaN, 1], [2, 3]]}}]}',
         "not a finite number"),
    ],
)  # fmt: skip
def test_broken_label_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.geojson"
    path.write_text(text)
    with pytest.raises(SatmapError, match=message):
        read(path, write_image(tmp_path / "a.tif"))


def test_a_file_without_features_is_an_empty_chip(tmp_path: Path) -> None:
    assert read(write_labels(tmp_path / "l.geojson", []), write_image(tmp_path / "a.tif")) == []


def test_middles_of_roads_are_marked() -> None:
    roads = [RoadLabel(np.array([[0.0, 50.2], [100.0, 50.2]]), 25)]
    target = rasterize_roads(roads, (100, 100), (0.25, 0.5), SETTINGS)
    middle = (target & CENTRE_BIT) > 0
    # 0.75 m to either side, in pixels of half a metre.
    assert np.flatnonzero(middle[:, 40]).tolist() == [49, 50, 51]
    assert (middle <= ((target & CLASS_BITS) > 0)).all()
    assert decode_target(target).max() == 1


def on(level: float, *points: tuple[float, float]) -> RoadLabel:
    return RoadLabel(np.array(points, float), 25, level=level)


ALONG, DOWN = ((-20.0, 50.0), (120.0, 50.0)), ((50.0, -20.0), (50.0, 120.0))


def test_a_bridge_is_the_deck_of_a_crossing() -> None:
    for order in (1, -1):
        roads = [on(1, *ALONG), on(0, *DOWN)][::order]
        target = rasterize_levels(roads, (100, 100), (1, 1), SETTINGS)
        crossing, deck = (target & CROSSING_BIT) > 0, (target & DECK_BIT) > 0
        # Two roads of four metres, and two metres around their overlap.
        assert crossing[46:54, 46:54].all()
        assert crossing.sum() == 64
        # The deck is as wide as the road and goes on for 12 m.
        assert deck[50, 36:64].all()
        assert not deck[50, :30].any()
        assert not deck[:47].any()
        assert not (target & DECK_UNKNOWN_BIT).any()


def test_roads_that_meet_or_lie_apart_have_no_levels() -> None:
    meeting = [on(0, (0, 50), (50, 50)), on(0, (50, 50), (99, 50)), on(0, (50, 50), (50, 99))]
    apart = [on(1, (0, 20), (99, 20)), on(0, (0, 60), (99, 60))]
    for roads in (meeting, apart, []):
        assert not rasterize_levels(roads, (100, 100), (1, 1), SETTINGS).any()


def test_labels_without_levels_do_not_tell_the_deck() -> None:
    target = rasterize_levels([on(0, *ALONG), on(0, *DOWN)], (100, 100), (1, 1), SETTINGS)
    assert target[50, 50] & CROSSING_BIT
    assert target[50, 50] & DECK_UNKNOWN_BIT
    assert target[50, 40] & DECK_UNKNOWN_BIT
    assert not (target & DECK_BIT).any()


def test_the_highest_of_three_decks_hides_the_others() -> None:
    slanted = (20.0, 80.0), (80.0, 20.0)
    roads = [on(0, *ALONG), on(2, *slanted), on(1, *DOWN)]
    target = rasterize_levels(roads, (100, 100), (1, 1), SETTINGS)
    deck = (target & DECK_BIT) > 0
    assert deck[50, 50]
    # Above the road on the ground, but below the slanted one.
    assert deck[58, 42]
    assert not deck[50, 40]


def test_a_crossing_on_the_border_of_a_chip() -> None:
    roads = [on(1, (-20, 0), (120, 0)), on(0, *DOWN)]
    target = rasterize_levels(roads, (100, 100), (1, 1), SETTINGS)
    assert target[0, 50] & CROSSING_BIT
    assert target[0, 50] & DECK_BIT
    assert not target[10:].any()
