"""The map in a real browser: it opens offline, draws, finds routes and shows attributes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from browser import MISSING, Browser, browser
from satmap.routing import find_reach, find_route, read_network
from satmap.viewer.compare import compared
from satmap.viewer.data import MapData, read_results
from satmap.viewer.imagery import Imagery
from satmap.viewer.page import make_page, write_page
from satmap.viewer.server import served

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING} for the browser tests")

WEST, NORTH, STEP = 2.3, 48.9, 0.001
SIDE = 12
MARKUP = '<img src=x onerror="window.hurt=1"></script><script>window.hurt=1</script>\'"&amp;'
ENTER, ESCAPE, LEFT, HOME = "\ue007", "\ue00c", "\ue012", "\ue011"
ROAD_WIDTH_M, DECK = 9.0, (0xEF, 0x8A, 0x17)


def grid_roads() -> list[dict[str, Any]]:
    """Return the streets of a town with crossings, one-way roads, a bridge, and a lonely road."""
    rng = np.random.default_rng(5)
    roads: list[dict[str, Any]] = []
    for row in range(SIDE):
        for column in range(SIDE):
            for down, right in ((0, 1), (1, 0)):
                if row + down == SIDE or column + right == SIDE or rng.random() < 0.12:
                    continue
                a = np.array([WEST + STEP * column, NORTH - STEP * row])
                b = np.array([WEST + STEP * (column + right), NORTH - STEP * (row + down)])
                middle = (a + b) / 2 + rng.normal(0, STEP / 9, 2)
                properties: dict[str, Any] = {
                    "highway": str(rng.choice(["residential", "primary", "service"])),
                    "speed_mph": float(rng.choice([15, 25, 35, 55])),
                    "mean_probability": round(float(rng.uniform(0.2, 1)), 3),
                    "name": MARKUP if len(roads) == 0 else f"Street {len(roads)}",
                }
                if rng.random() < 0.2:
                    properties["oneway"] = str(rng.choice(["yes", "-1"]))
                if row == 3:
                    properties |= {"bridge": "yes", "width": "9 m"}
                roads.append(line([a, middle, b], properties))
    ring = [
        [WEST + x, NORTH + y] for x, y in ((0, 0), (-STEP, 0), (-STEP, STEP), (0, STEP), (0, 0))
    ]
    roads.append(line(ring, {"junction": "roundabout", "speed_mph": 20}))
    far = [[WEST + STEP * 14, NORTH], [WEST + STEP * 14, NORTH - STEP]]
    roads.append(line(far, {"speed_mph": 20, "mean_probability": 0.1}))
    return roads


def line(points: Any, properties: dict[str, Any]) -> dict[str, Any]:
    coordinates = np.round(np.array(points), 7).tolist()
    geometry = {"type": "LineString", "coordinates": coordinates}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def houses(shift: float = 0.0, confidence: float = 0.9) -> list[dict[str, Any]]:
    found = []
    for k in range(30):
        x, y = WEST + STEP * (0.3 + k % 6), NORTH - STEP * (0.3 + k // 6)
        x += shift if k % 5 == 0 else 0
        ring = [[x, y], [x + 4e-4, y], [x + 4e-4, y - 3e-4], [x, y - 3e-4], [x, y]]
        properties = {"expected_iou": confidence if k % 2 else 0.3, "note": MARKUP}
        geometry = {"type": "Polygon", "coordinates": [np.round(ring, 7).tolist()]}
        found.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return found


def write(path: Path, features: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    write(folder / "roads.geojson", grid_roads())
    write(folder / "houses.geojson", houses())
    write(folder / "true_roads.geojson", grid_roads()[:-30])
    write(folder / "true_houses.geojson", houses(shift=0.0006))
    pixels = np.zeros((3, 200, 200), np.uint8)
    pixels[0], pixels[1], pixels[2] = 40, np.linspace(60, 200, 200).astype(np.uint8), 60
    profile = {
        "driver": "GTiff", "width": 200, "height": 200, "count": 3, "dtype": "uint8",
        "crs": "EPSG:4326", "transform": Affine(7e-5, 0, WEST - STEP, 0, -7e-5, NORTH + STEP),
        "photometric": "RGB",
    }  # fmt: skip
    with rasterio.open(folder / "town.tif", "w", **profile) as file:
        file.write(pixels)
    return folder


@pytest.fixture(scope="module")
def town(folder: Path) -> MapData:
    return read_results([folder / "roads.geojson", folder / "houses.geojson"])


@pytest.fixture(scope="module")
def page(folder: Path, town: MapData) -> str:
    write_page(folder / "map.html", town, Imagery([folder / "town.tif"]))
    return (folder / "map.html").as_uri()


@pytest.fixture(scope="module")
def shown() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(autouse=True)
def quiet(shown: Browser) -> Iterator[None]:
    """No test may leave a message in the console."""
    shown.messages()
    yield
    assert shown.messages() == []


def test_a_file_opens_without_network_and_draws(shown: Browser, page: str) -> None:
    shown.requests()
    shown.open(page)
    assert {each.partition(":")[0] for each in shown.requests()} <= {"file", "blob", "data"}
    picture = shown.screenshot()
    assert picture.shape[1] >= 1000
    shown_map = picture[:, 320:].reshape(-1, 3).astype(int)
    # The green of the imagery, the red of fast roads, and the purple of unlikely buildings.
    assert ((shown_map[:, 1] - shown_map[:, 0]) > 50).mean() > 0.1
    assert (np.abs(shown_map - (0xD2, 0x28, 0x14)).max(axis=1) < 12).mean() > 0.001
    assert shown.run("return document.title") == "roads.geojson + houses.geojson – satmap"


@pytest.mark.parametrize(("zoom", "bearing"), [(14.3, 0), (15, 37), (21, 0)])
def test_roads_are_where_the_map_has_them(
    shown: Browser, page: str, zoom: float, bearing: float
) -> None:
    shown.open(page + "#road=plain&hide=imagery.buildings")
    places = shown.run(
        "const { map, roads } = satmap; const [zoom, bearing] = args;"
        " const [[x, y], [u, v]] = roads.ring(100);"
        " map.jumpTo({ center: [(x + u) / 2, (y + v) / 2], zoom, bearing });"
        " const found = []; for (let k = 0; k < roads.count; k++) {"
        "   const [[x, y], [u, v]] = roads.ring(k), p = map.project([(x + u) / 2, (y + v) / 2]);"
        "   if (p.x > 320 && p.x < innerWidth - 60 && p.y > 10 && p.y < innerHeight - 10)"
        "     found.push([p.x, p.y, satmap.under(p)?.number === k]); } return found;",
        zoom, bearing,
    )  # fmt: skip
    shown.idle()
    assert len(places) > (0 if zoom > 20 else 40)
    picture = shown.screenshot().astype(int)
    for x, y, is_found in places:
        assert is_found
        assert np.abs(picture[int(y), int(x)] - (0xF2, 0xB6, 0x32)).max() < 40, (x, y)


def test_routes_take_the_times_of_satmap_route(shown: Browser, page: str, folder: Path) -> None:
    shown.open(page)
    network = read_network(folder / "roads.geojson")
    rng = np.random.default_rng(8)
    low, high = network.places.min(axis=0) - STEP / 2, network.places.max(axis=0) + STEP / 2
    pairs = rng.uniform(low, high, (300, 2, 2)).tolist()
    found = shown.run(
        "const all = []; for (const [a, b] of args[0]) {"
        " const r = await satmap.route(a, b);"
        " all.push([r.time, r.length, r.turns && r.turns.map((t) => [t.words, t.after])]); }"
        " return all;",
        pairs,
    )
    unreachable = 0
    for (start, end), (time, length, turns) in zip(pairs, found, strict=True):
        route = find_route(network, network.snap(*start), network.snap(*end))
        if route is None:
            unreachable += 1
            assert time is None
            continue
        assert time == pytest.approx(route.time_s, abs=0.02)
        assert length == pytest.approx(route.length_m, abs=0.5)
        assert [words for words, _ in turns] == [turn.words for turn in route.turns]
    assert 0 < unreachable < len(pairs) / 2


def test_reachable_roads_are_those_of_satmap_reach(shown: Browser, page: str, folder: Path) -> None:
    shown.open(page)
    network = read_network(folder / "roads.geojson")
    for place in ([WEST + STEP * 3.2, NORTH - STEP * 4.4], [WEST, NORTH]):
        found = shown.run(
            "return (await satmap.reach(args[0], [0.2, 1, 3])).found"
            ".map(({ minutes, length, sizes }) => ({ minutes, length, lines: sizes.length }))",
            place,
        )
        for each in found:
            _, length = find_reach(network, network.snap(*place), 60 * each["minutes"])
            assert each["length"] == pytest.approx(length, abs=1)
            assert each["lines"]


def test_two_clicks_show_a_route_and_its_turns(shown: Browser, page: str) -> None:
    shown.open(page)
    shown.press("r")
    corner, opposite = shown.run(
        "return [[1, 1], [9, 8]].map(([x, y]) => { const p = satmap.map.project("
        "[args[0] + args[2] * x, args[1] - args[2] * y]); return [p.x, p.y].map(Math.round); })",
        WEST, NORTH, STEP,
    )  # fmt: skip
    before = shown.screenshot()
    shown.click(*corner)
    shown.click(*opposite)
    shown.run(
        "while (!document.querySelector('.figures'))"
        " await new Promise((resolve) => { setTimeout(resolve, 50); })"
    )
    shown.idle()
    text = shown.run("return document.getElementById('travel').innerText")
    assert "min" in text
    assert "Arrive" in text
    assert "Turn" in text
    assert (shown.screenshot() != before).any(axis=2).mean() > 0.01
    assert shown.run("return document.querySelectorAll('.pin').length") == 2
    # The address holds the route.
    link = shown.run("return location.href")
    shown.open(link)
    assert shown.run("return document.querySelector('.figures').innerText") in text
    shown.press(ESCAPE)
    assert shown.run("return document.querySelectorAll('.pin').length") == 0


def test_keys_alone_show_what_can_be_reached(shown: Browser, page: str) -> None:
    shown.open(page)
    shown.press("t")
    shown.press(ENTER)
    shown.run(
        "while (!document.querySelector('#travel .legend'))"
        " await new Promise((resolve) => { setTimeout(resolve, 50); })"
    )
    assert "5 minutes" in shown.run("return document.getElementById('status').textContent")
    shown.press("d")
    assert shown.run("return document.documentElement.dataset.theme") == "dark"
    shown.press("u")
    assert shown.run("return document.getElementById('unit').textContent") == "mph"
    shown.press("b")
    assert shown.run("return satmap.map.getLayoutProperty('imagery', 'visibility')") == "none"


def test_the_slider_hides_what_is_less_certain(shown: Browser, page: str, town: MapData) -> None:
    shown.open(page)
    # Without imagery the colours are exact.
    shown.press("b")
    drawn = []
    for least in (0, 50, 95):
        shown.run(
            "const slider = document.getElementById('least'); slider.value = args[0];"
            " slider.dispatchEvent(new Event('input'))",
            least,
        )
        shown.idle()
        # What the pointer finds in the middle of each road and each building.
        found = shown.run(
            "return ['roads', 'buildings'].map((kind) => { const d = satmap.drawings[kind];"
            " const all = new Set(); for (let k = 0; k < d.shapes.count; k++) {"
            "   const [[x, y], [u, v]] = d.shapes.ring(d.shapes.firstRing[k]),"
            "     w = kind === 'roads' ? v : v - 1e-4;"
            "   all.add(d.find([(x + u) / 2, (y + w) / 2], 1e-9, args[0])); }"
            " all.delete(-1); return [...all]; })",
            least,
        )
        for numbers, shapes in zip(found, (town.roads, town.buildings), strict=True):
            assert set(numbers) == set(np.flatnonzero(~(shapes.rating[1] < least / 100)).tolist())
        picture = shown.screenshot()[:, 320:].astype(int)
        drawn.append((np.abs(picture - (0xEC, 0xEA, 0xE4)).max(axis=2) > 40).mean())
    assert drawn[0] > 1.3 * drawn[1] > 1.3 * drawn[2] > 0


def test_attributes_with_markup_are_shown_as_text(shown: Browser, page: str) -> None:
    shown.open(page)
    x, y = shown.run(
        "satmap.map.jumpTo({ center: satmap.roads.ring(0)[1], zoom: 18 });"
        " const p = satmap.map.project(satmap.roads.ring(0)[1]);"
        " return [Math.round(p.x), Math.round(p.y)]"
    )
    shown.idle()
    shown.hover(x, y)
    shown.click(x, y)
    details = shown.run("return document.getElementById('details').innerText")
    assert MARKUP in details
    assert "mean_probability" in details
    assert shown.run("return document.getElementById('tip').textContent.includes('km/h')")
    assert shown.run("return typeof window.hurt") == "undefined"
    assert shown.run("return document.querySelectorAll('#details img').length") == 0


@pytest.mark.parametrize("kind", ["roads", "houses"])
def test_a_comparison_shows_errors_and_flies_to_them(
    shown: Browser, folder: Path, kind: str
) -> None:
    result, truth = folder / f"{kind}.geojson", folder / f"true_{kind}.geojson"
    path = folder / f"compared_{kind}.html"
    write_page(path, compared(read_results([result]), truth, result))
    shown.open(path.as_uri())
    shown.press("c")
    shown.press("c")
    shown.idle()
    text = shown.run("return document.getElementById('compare').innerText")
    assert "missed" in text
    colours = shown.screenshot()[:, 320:].reshape(-1, 3).astype(int)
    assert (np.abs(colours - (0xD5, 0x5E, 0x00)).max(axis=1) < 90).any()
    if kind == "houses":
        assert "found: 24" in text
        assert "missed: 6" in text
        return
    assert "APLS" in text
    before = shown.run("return satmap.map.getZoom()")
    shown.run("document.querySelector('#compare li button').click()")
    shown.idle()
    assert shown.run("return satmap.map.getZoom()") != before
    shown.press("r")
    shown.run(
        "satmap.state.route = args; await satmap.setMode('route')",
        [WEST, NORTH], [WEST + 5 * STEP, NORTH - 5 * STEP],
    )  # fmt: skip
    assert "In the truth" in shown.run("return document.getElementById('travel').innerText")


def test_the_divider_moves_by_mouse_finger_and_keys(shown: Browser, folder: Path) -> None:
    result, truth = folder / "houses.geojson", folder / "true_houses.geojson"
    path = folder / "swiped.html"
    write_page(path, compared(read_results([result]), truth, result))
    shown.open(path.as_uri() + "#show=swipe&building=plain")
    orange = np.array((0xE8, 0x74, 0x3B)) * 0.5 + np.array((0xEC, 0xEA, 0xE4)) * 0.5

    def side() -> int:
        return int(shown.run("return document.getElementById('divider').ariaValueNow"))

    def drawn() -> NDArray[np.bool_]:
        shown.idle()
        # Without the panel, the label of the divider, and the buttons.
        picture = shown.screenshot()[:, 320:1200].astype(float)
        return np.asarray(np.abs(picture - orange).max(axis=2) < 12)

    assert side() == 50
    middle, half = (640, 400), drawn()
    for kind, target in (("mouse", 400), ("touch", 1100)):
        shown.drag(middle, (target, 400), kind)
        assert abs(side() - 100 * target / 1280) <= 1
        middle = (target, 400)
    shown.run("document.getElementById('divider').focus()")
    shown.press(LEFT)
    assert abs(side() - 84) <= 1
    assert f"swipe={shown.run('return satmap.state.swipe.toFixed(3)')}" in shown.run(
        "return location.hash"
    )
    shown.press(HOME)
    assert side() == 0
    all_true = drawn()
    shown.run("document.querySelector('[data-truth=result]').click()")
    assert shown.run("return document.getElementById('divider').hidden")
    all_found = drawn()
    # The halves are those of the result and of the truth.
    near = slice(0, 270), slice(380, 880)
    for columns, whole in zip(near, (all_found, all_true), strict=True):
        assert (half[:, columns] != whole[:, columns]).mean() < 0.002
    assert (all_true != all_found).mean() > 0.002


def test_roads_are_coloured_by_width_and_deck_and_have_arrows(shown: Browser, page: str) -> None:
    shown.open(page + "#road=deck&hide=imagery.buildings")
    legend = shown.run("return document.getElementById('road-legend').innerText")
    assert legend == "ground\nbridge"
    picture = shown.screenshot()[:, 320:].reshape(-1, 3).astype(int)
    bridges = (np.abs(picture - DECK).max(axis=1) < 12).mean()
    assert 0.001 < bridges < 0.02
    choices = shown.run(
        "return [...document.getElementById('road-colour').options].map((each) => each.value)"
    )
    assert choices == ["speed", "time", "confidence", "class", "width", "deck", "plain"]
    assert ROAD_WIDTH_M in shown.run("return [...new Set(satmap.roads.width)]")
    # Arrows show from zoom level 14 on; they are white on dark.
    white = []
    for zoom in (13.9, 15.5):
        shown.run("satmap.map.jumpTo({ zoom: args[0] })", zoom)
        shown.idle()
        picture = shown.screenshot()[100:600, 320:1200].reshape(-1, 3)
        white.append((picture > 248).all(axis=1).sum())
    assert white[0] < 50 < white[1]


def test_the_server_shows_the_map_with_tiles(shown: Browser, town: MapData, folder: Path) -> None:
    imagery = Imagery([folder / "town.tif"])
    imagery.prepare()
    tiles = {"maxzoom": imagery.deepest_zoom, "bounds": imagery.bounds}
    with served(make_page(town, tiles=tiles).encode(), imagery) as server:
        shown.requests()
        shown.open(server.url)
        addresses = [each for each in shown.requests() if each.startswith("http")]
        assert len(addresses) > 1
        assert all(each.startswith(server.url) for each in addresses)
        picture = shown.screenshot()[:, 320:].reshape(-1, 3).astype(int)
        assert ((picture[:, 1] - picture[:, 0]) > 50).mean() > 0.1


def test_a_network_without_roads_of_that_kind_still_opens(shown: Browser, folder: Path) -> None:
    path = folder / "houses.html"
    write_page(path, read_results([folder / "houses.geojson"]))
    shown.open(path.as_uri())
    assert shown.run("return document.getElementById('modes').hidden")
    assert not shown.run("return document.getElementById('buildings-box').hidden")
