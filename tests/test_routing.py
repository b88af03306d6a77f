"""Routes and reach, compared with networkx and with cases worked out by hand."""

import json
import math
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import shapely

from satmap.cli import main
from satmap.io.geojson_reader import GeoLine
from satmap.routing import Network, Position, build_network, find_reach, find_route
from satmap.vectors.georeference import metres_per_degree

# Longitude, latitude and metres per degree of the corner of the test networks.
LON, LAT = 2.0, 48.0
SCALE = np.array(metres_per_degree(LAT))


def at(x: float, y: float) -> tuple[float, float]:
    """Return longitude and latitude of a place, in metres from the corner."""
    longitude, latitude = (np.array([LON, LAT]) + np.array([x, y]) / SCALE).tolist()
    return longitude, latitude


def road(*metres: tuple[float, float], **properties: Any) -> GeoLine:
    return GeoLine(np.array([at(*place) for place in metres]), properties)


# A square of 100 m: its lower side takes 10 s, the others 20 s, the diagonal 100 s.
SQUARE = [
    road((0, 0), (100, 0), length_m=100.0, travel_time_s=10.0),
    road((100, 0), (100, 100), length_m=100.0, travel_time_s=20.0),
    road((100, 100), (0, 100), length_m=100.0, travel_time_s=20.0),
    road((0, 100), (0, 0), length_m=100.0, travel_time_s=20.0),
    road((0, 0), (100, 100), length_m=141.4, travel_time_s=100.0),
]


def test_route_by_hand() -> None:
    network = build_network(SQUARE)
    assert len(network.places) == 4 and len(network.ends) == 5
    # From the middle of the left side to the right side, by the fast lower side.
    route = find_route(network, network.snap(*at(-3, 50)), network.snap(*at(100, 20)))
    assert route is not None
    assert route.time_s == pytest.approx(10 + 10 + 4, abs=1e-3)
    assert route.length_m == pytest.approx(50 + 100 + 20, abs=1e-2)
    expected = [at(0, 50), at(0, 0), at(100, 0), at(100, 20)]
    np.testing.assert_allclose(route.line, expected, atol=1e-6)
    assert [(turn.words, round(turn.after_m)) for turn in route.turns] == [
        ("left", 50),
        ("left", 150),
    ]
    assert network.snap(*at(-3, 50)).distance_m == pytest.approx(3, abs=0.01)


def test_a_place_at_a_crossing_may_use_all_of_its_roads() -> None:
    one_way = {"oneway": "yes", "travel_time_s": 10.0}
    network = build_network(
        [
            road((0, 0), (100, 0), **one_way),
            road((0, 0), (0, 100), **one_way),
            road((0, 0), (-100, 0), **one_way),
            road((-100, -100), (0, 0), **one_way),
        ]
    )
    # Whichever road is the nearest one there, the others are as near.
    for edge, share in ((0, 0.0), (1, 0.0), (2, 0.0), (3, 1.0)):
        start = Position(edge, share, 0.0)
        for end in (at(50, 0), at(0, 50), at(-50, 0)):
            route = find_route(network, start, network.snap(*end))
            assert route is not None and route.time_s == pytest.approx(5, abs=1e-3)
        before = find_route(network, network.snap(*at(-50, -50)), start)
        assert before is not None and before.time_s == pytest.approx(5, abs=1e-3)


def test_places_on_one_road() -> None:
    network = build_network(SQUARE)
    start, end = network.snap(*at(20, 0)), network.snap(*at(70, 0))
    for a, b in ((start, end), (end, start)):
        route = find_route(network, a, b)
        assert route is not None and not route.turns
        assert (route.time_s, route.length_m) == pytest.approx((5, 50), abs=1e-3)
    same = find_route(network, start, start)
    assert same is not None and same.time_s == 0 and len(same.line) >= 2


def test_one_way_roads_and_loops() -> None:
    """Against a one-way road the route leads around the block; a loop is left the shorter way."""
    one_way = [
        road((0, 0), (100, 0), length_m=100.0, travel_time_s=10.0, oneway="yes"),
        *SQUARE[1:4],
    ]
    network = build_network(one_way)
    there, back = network.snap(*at(20, 0)), network.snap(*at(70, 0))
    route = find_route(network, back, there)
    assert route is not None
    assert route.time_s == pytest.approx(3 + 20 + 20 + 20 + 2, abs=1e-3)
    forward = find_route(network, there, back)
    assert forward is not None and forward.time_s == pytest.approx(5, abs=1e-3)
    reverse = build_network(
        [GeoLine(one_way[0].xy[::-1], {**one_way[0].properties, "oneway": "-1"})]
    )
    assert reverse.directions.tolist() == [-1]
    loop = road((0, 0), (100, 0), (100, 100), (0, 100), (0, 0), length_m=400.0, travel_time_s=40.0)
    network = build_network([loop, road((0, 0), (-100, 0), length_m=100.0, travel_time_s=10.0)])
    position = Position(0, 0.25, 0.0)
    route = find_route(network, position, network.snap(*at(-100, 0)))
    assert route is not None and route.time_s == pytest.approx(20, abs=1e-3)
    assert route.length_m == pytest.approx(200, abs=1e-3)
    np.testing.assert_allclose(route.line[-2], at(0, 0), atol=1e-6)
    into = find_route(network, network.snap(*at(-100, 0)), Position(0, 0.75, 0.0))
    assert into is not None and into.time_s == pytest.approx(20, abs=1e-3)


def test_roads_meet_where_they_share_a_vertex_only() -> None:
    """The third road meets the first in a vertex; the second crosses it on another level."""
    roads = [
        road((0, 0), (50, 0), (100, 0), maxspeed="36"),
        road((20, -50), (20, 50), maxspeed="36"),
        road((50, 0), (50, 50), maxspeed="36"),
    ]
    network = build_network(roads)
    assert len(network.ends) == 4
    assert find_route(network, network.snap(*at(0, 0)), network.snap(*at(20, 40))) is None
    route = find_route(network, network.snap(*at(0, 0)), network.snap(*at(50, 50)))
    assert route is not None
    # 36 km/h are 10 m/s.
    assert (route.length_m, route.time_s) == pytest.approx((100, 10), rel=1e-3)


def test_parts_of_a_road_have_their_share_of_its_time() -> None:
    """Two parts of a MultiLineString, each with the length and time of the whole."""
    whole = {"length_m": 300.0, "travel_time_s": 30.0}
    network = build_network([road((0, 0), (100, 0), **whole), road((100, 0), (300, 0), **whole)])
    np.testing.assert_allclose(network.lengths_m, [100, 200], rtol=1e-3)
    np.testing.assert_allclose(network.times_s, [10, 20], rtol=1e-3)


def random_network(count: int = 400) -> tuple[Network, "networkx.MultiGraph[int]"]:
    random = np.random.default_rng(1)
    places = random.uniform(0, 5000, (count, 2))
    pairs = {tuple(sorted(pair)) for pair in random.integers(0, count, (2 * count, 2)).tolist()}
    roads = [
        road(
            tuple(places[a]), tuple(places[b]), length_m=d, travel_time_s=d / random.uniform(5, 30)
        )
        for a, b in sorted(pairs)
        if a != b
        for d in [float(np.hypot(*(places[a] - places[b])))]
    ]
    network = build_network(roads)
    graph: networkx.MultiGraph[int] = networkx.MultiGraph()
    for (a, b), length, time in zip(
        network.ends.tolist(), network.lengths_m, network.times_s, strict=True
    ):
        graph.add_edge(a, b, length=length, time=time)
    return network, graph


def test_random_routes_equal_those_of_networkx() -> None:
    network, graph = random_network()
    random = np.random.default_rng(2)
    found = 0
    for first, last in random.integers(0, len(network.ends), (200, 2)).tolist():
        (a, b), (c, d) = network.ends[[first, last]].tolist()
        start, end = Position(first, 0.25, 0.0), Position(last, 0.75, 0.0)
        copy = graph.copy()
        for name, (u, v), edge, share in (("s", (a, b), first, 0.25), ("t", (c, d), last, 0.75)):
            copy.add_edge(name, u, time=share * network.times_s[edge])
            copy.add_edge(name, v, time=(1 - share) * network.times_s[edge])
        if first == last:
            copy.add_edge("s", "t", time=0.5 * network.times_s[first])
        route = find_route(network, start, end)
        if route is None:
            assert not networkx.has_path(copy, "s", "t")
            continue
        found += 1
        expected = networkx.shortest_path_length(copy, "s", "t", weight="time")
        assert route.time_s == pytest.approx(expected, rel=1e-6)
        # The line begins and ends at the positions and is as long as stated.
        np.testing.assert_allclose(route.line[0], network.part(first, 0.25, 0.5)[0], atol=1e-9)
        np.testing.assert_allclose(route.line[-1], network.part(last, 0.75, 1)[0], atol=1e-9)
        drawn = np.hypot(*(np.diff(route.line, axis=0) * SCALE).T).sum()
        assert drawn == pytest.approx(route.length_m, rel=5e-3)
    assert found > 150


def test_reach_by_hand() -> None:
    network = build_network(SQUARE)
    # From the middle of the lower side: 5 s to its ends, 5 s more along a quarter of the left and
    # right sides and a twentieth of the diagonal.
    lines, length = find_reach(network, network.snap(*at(50, 0)), 10)
    assert length == pytest.approx(100 + 25 + 25 + 0.05 * 141.4, abs=0.1)
    assert len(lines) == 4
    drawn = shapely.length([shapely.LineString(line * SCALE) for line in lines]).sum()
    assert drawn == pytest.approx(length, rel=1e-3)
    few, short = find_reach(network, network.snap(*at(50, 0)), 2)
    assert len(few) == 1 and short == pytest.approx(40, abs=0.1)
    _, whole = find_reach(network, network.snap(*at(50, 0)), 1000)
    assert whole == pytest.approx(541.4, abs=0.1)


def test_reach_never_ends_before_a_route() -> None:
    """A place is reached in a time exactly if the route to it takes no longer."""
    network, _ = random_network(100)
    start = Position(3, 0.4, 0.0)
    lines, _ = find_reach(network, start, 200)
    reached = shapely.buffer(shapely.MultiLineString([line * SCALE for line in lines]), 0.01)
    for edge in range(0, len(network.ends), 5):
        for share in (0.2, 0.6):
            route = find_route(network, start, Position(edge, share, 0.0))
            point = shapely.Point(network.part(edge, share, 1)[0] * SCALE)
            inside = route is not None and route.time_s <= 200
            if route is None or not math.isclose(route.time_s, 200, abs_tol=1):
                assert reached.covers(point) or not inside


def write(path: Path, roads: list[GeoLine]) -> Path:
    features = [
        {
            "type": "Feature", "properties": dict(each.properties),
            "geometry": {"type": "LineString", "coordinates": each.xy.tolist()},
        }
        for each in roads
    ]  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "roads.geojson", SQUARE)
    start, end = (f"{x},{y}" for x, y in (at(0, 50), at(100, 20)))
    assert run("route", path, start, end) == 0
    route = json.loads(capsys.readouterr().out)
    assert route["properties"]["time_s"] == 24
    assert [turn["turn"] for turn in route["properties"]["turns"]] == ["left", "left"]
    out = tmp_path / "reach.geojson"
    assert run("reach", path, start, "--minutes", "0.1,2", "--output", out) == 0
    features = json.loads(out.read_text())["features"]
    assert [feature["properties"]["minutes"] for feature in features] == [2, 0.1]
    assert features[0]["properties"]["length_m"] == pytest.approx(541.4, abs=0.2)
    # A road without a speed, and a place far away.
    plain = write(tmp_path / "plain.geojson", [road((0, 0), (100, 0))])
    assert run("route", plain, start, end) == 0
    errors = capsys.readouterr().err
    assert "1 roads state no speed" in errors
    near = ",".join(map(str, at(0, 500)))
    assert run("route", plain, near, end) == 0
    assert "is 500 m from the nearest road of" in capsys.readouterr().err
    assert run("route", plain, "-71.3,42.3", end) == 1
    assert "km from the roads of" in capsys.readouterr().err
    assert run("route", tmp_path, start, end) == 1
    assert "is a directory. Give a vector file" in capsys.readouterr().err
    for name, text, reason in (
        ("notes.txt", "no roads", "is no vector file of roads. Give one that ends in .gpkg"),
        ("empty", "", "is no vector file of roads"),
        ("coco.json", '[{"image_id": 1}]', "is a list of COCO results. Give a vector file"),
    ):
        (tmp_path / name).write_text(text)
        assert run("route", tmp_path / name, start, end) == 1
        assert reason in capsys.readouterr().err
    apart = write(tmp_path / "apart.geojson", [SQUARE[0], road((0, 500), (100, 500))])
    far = ",".join(map(str, at(50, 500)))
    assert run("route", apart, start, far) == 1
    assert "no route leads from" in capsys.readouterr().err
    buildings = tmp_path / "buildings.geojson"
    buildings.write_text('{"type": "FeatureCollection", "features": []}')
    assert run("route", buildings, start, end) == 1
    assert "no roads" in capsys.readouterr().err
    for wrong in ("2.0", "north,south", "2,200"):
        with pytest.raises(SystemExit):
            main(["route", str(path), wrong, end])
        assert "is not LON,LAT" in capsys.readouterr().err
