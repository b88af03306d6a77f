"""Roads on different levels: their network, their labels and what both renderers show of them."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from shapely import Point, STRtree, from_wkt

from satmap.vectors.levels import road_level
from synthcity import CityError, make_city
from synthcity.city import City, Land, build_city
from synthcity.network import Edge, make_edges
from synthcity.noise import Grid, Window
from synthcity.oblique import Site, render_image
from synthcity.paint import Canvas, paint
from synthcity.plan import LEVEL_M, Overpasses, make_plan
from synthcity.spectra import Material, draw_sensor
from synthcity.views import ViewAngle, render_view

SIDE_M, PIXEL_M = 480.0, 0.5
GRID = Grid(PIXEL_M, PIXEL_M)
WINDOW = Window(0, 0, int(SIDE_M / PIXEL_M), int(SIDE_M / PIXEL_M))
SUN = (-0.25, -0.8)
ROAD = (Material.ASPHALT, Material.CONCRETE, Material.GRAVEL)


def network(seed: int, overpasses: Overpasses = Overpasses.MANY) -> list[Edge]:
    rng = np.random.default_rng(seed)
    return make_edges(make_plan(SIDE_M, SIDE_M, None, rng, overpasses), rng)


def height_at(edge: Edge, place: Point) -> float:
    way = [edge.line.project(Point(xy)) for xy in edge.line.coords]
    return float(np.interp(edge.line.project(place), way, edge.heights))


def crossings(edges: list[Edge]) -> list[tuple[Edge, Edge, Point]]:
    """Return pairs of edges that cross away from their ends, the upper one first."""
    lines = [edge.line for edge in edges]
    found = []
    for i, j in STRtree(lines).query(lines, predicate="crosses").T:
        for place in shapely.get_parts(lines[i].intersection(lines[j])) if i < j else ():
            if min(place.distance(lines[k].boundary) for k in (i, j)) > 0.05:
                pair = sorted((edges[i], edges[j]), key=lambda edge: -height_at(edge, place))
                found.append((pair[0], pair[1], place.centroid))
    return found


@pytest.fixture(scope="module", params=[2, 3, 12])
def city(request: pytest.FixtureRequest) -> City:
    """Cities with a diamond, with a cloverleaf, and with a motorway on a viaduct."""
    rng = np.random.default_rng((int(request.param), 2))
    return build_city(Land(SIDE_M, SIDE_M, None, SUN, Overpasses.MANY), rng)


@pytest.mark.parametrize("seed", range(12))
def test_roads_that_cross_without_a_node_keep_clear_and_know_which_is_above(seed: int) -> None:
    found = crossings(network(seed))
    assert len(found) > 5
    for upper, lower, place in found:
        assert height_at(upper, place) - height_at(lower, place) > 4.3
        assert upper.layer > lower.layer


@pytest.mark.parametrize("seed", range(12))
def test_levels_join_only_over_ramps(seed: int) -> None:
    """All edges of a node have about one height, and no road is steeper than a ramp."""
    at_node: dict[tuple[float, float], list[float]] = {}
    for edge in network(seed):
        if not edge.street.is_road:
            continue
        for end in (0, -1):
            x, y = edge.line.coords[end]
            at_node.setdefault((round(x, 3), round(y, 3)), []).append(edge.heights[end])
        steps = np.hypot(*np.diff(np.asarray(edge.line.coords), axis=0).T)
        rises = np.abs(np.diff(edge.heights))
        assert (rises[steps > 1] / steps[steps > 1]).max(initial=0) < 0.3
    assert max(np.ptp(heights) for heights in at_node.values()) < 1.0


def test_many_cities_have_every_structure() -> None:
    kinds = set()
    levels = set()
    for seed in range(12):
        edges = network(seed)
        levels |= {edge.layer for edge in edges}
        for upper, lower, _ in crossings(edges):
            kinds.add((upper.street.highway, lower.street.highway, upper.layer, lower.layer))
        plan = make_plan(SIDE_M, SIDE_M, None, np.random.default_rng(seed), Overpasses.MANY)
        kinds.add(("cloverleaf" if plan.clover else "diamond", "", 0, 0))
    assert {-1, 0, 1, 2} <= levels
    uppers = {kind[0] for kind in kinds}
    assert {"cloverleaf", "diamond", "rail", "footway", "motorway", "primary"} <= uppers
    # Three levels: a railway over a motorway on a viaduct.
    assert any(kind[0] == "rail" and kind[1] == "motorway" and kind[2:] == (2, 1) for kind in kinds)
    assert any(kind[0] == "motorway" and kind[3] == -1 for kind in kinds)


def test_without_overpasses_all_roads_meet() -> None:
    for seed in range(4):
        edges = network(seed, Overpasses.NONE)
        assert {edge.layer for edge in edges} == {0}
        assert crossings(edges) == []
    assert {edge.layer for edge in network(1, Overpasses.FEW)} == {0, 1}


def test_labels_say_what_is_a_bridge_or_a_tunnel(tmp_path: Path) -> None:
    make_city(tmp_path, chips=4, test_chips=0, size=700, seed=3, overpasses="many")
    crossed = tunnels = 0
    for path in sorted(tmp_path.rglob("*.geojson")):
        roads: list[dict[str, Any]] = json.loads(path.read_text())["features"]
        number = path.stem.rpartition("chip")[2]
        with next(tmp_path.rglob("*.csv")).open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["ImageId"].endswith(f"chip{number}")]
        assert len(rows) == max(1, len(roads))
        lines = [from_wkt(row["WKT_Pix"]) for row in rows]
        for road in roads:
            properties = road["properties"]
            assert properties["highway"] not in {"rail", "footway"}
            layer = int(properties["layer"])
            assert properties["bridge"] == ("yes" if layer > 0 else "no")
            assert properties["bridge_type"] == ("1" if layer > 0 else "2")
            assert properties["tunnel"] == ("yes" if layer < 0 else "no")
            assert road_level(properties) == layer
            tunnels += layer < 0
        for i, j in STRtree(lines).query(lines, predicate="crosses").T:
            place = lines[i].intersection(lines[j])
            if i < j and place.distance(lines[i].boundary) > 0.5 < place.distance(
                lines[j].boundary
            ):
                crossed += 1
                assert roads[i]["properties"]["layer"] != roads[j]["properties"]["layer"]
                # They share no vertex.
                assert not set(lines[i].coords) & set(lines[j].coords)
    assert crossed >= 4
    assert tunnels


def test_the_upper_deck_covers_the_lower_road(city: City) -> None:
    """At a crossing, both renderers show the surface of the upper deck, not the road below."""
    above = Canvas(WINDOW, GRID).draw(city.from_above)
    site = Site.of(city, WINDOW, GRID)
    view = render_view(site.skyline, WINDOW, GRID, (0.0, 0.0))
    agree, lifted = [], []
    for upper, _, place in crossings(list(city.edges)):
        if not (upper.deck and box_holds(place, 15)):
            continue
        shape = upper.line.buffer(upper.street.width_m / 2 - 0.5).intersection(place.buffer(4))
        rows, columns = pixels_of(shape)
        deck = site.surfaces[upper.deck]
        corner = WINDOW.row - deck.window.row
        painted = deck.material[rows + corner, columns + corner]
        agree.append(above.material[rows, columns] == painted)
        numbers = site.facets.deck[view.surface[rows, columns]]
        near = np.abs(view.height[rows, columns] - height_at(upper, place)) < 1
        lifted.append((numbers == upper.deck) & near)
    assert len(agree) >= 3
    # Trees and tall buildings nearby may cover a little.
    assert np.concatenate(agree).mean() > 0.93
    assert np.concatenate(lifted).mean() > 0.93


def box_holds(place: Point, margin: float) -> bool:
    return bool(margin < place.x < SIDE_M - margin and margin < place.y < SIDE_M - margin)


def pixels_of(shape: shapely.Polygon) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    x0, y0, x1, y1 = shape.bounds
    columns, rows = np.meshgrid(
        np.arange(max(0, int(x0 / PIXEL_M)), min(WINDOW.width, int(x1 / PIXEL_M) + 1)),
        np.arange(max(0, int(y0 / PIXEL_M)), min(WINDOW.height, int(y1 / PIXEL_M) + 1)),
    )
    inside = shapely.contains_xy(shape, (columns + 0.5) * PIXEL_M, (rows + 0.5) * PIXEL_M)
    return rows[inside], columns[inside]


def test_decks_throw_shadows_away_from_the_sun(city: City) -> None:
    bare = replace(city, bridges=(), surfaces=city.surfaces[:1])
    shade = Canvas(WINDOW, GRID).draw(city.from_above).shade > 0.5
    dark = shade & ~(Canvas(WINDOW, GRID).draw(bare.from_above).shade > 0.5)
    assert dark.sum() > 300
    decks = shapely.union_all(
        [edge.line.buffer(edge.street.width_m / 2 + 1.5) for edge in city.edges if edge.deck]
    )
    reach = 2 * (LEVEL_M + 1)
    swept = shapely.union_all(
        [
            shapely.affinity.translate(decks, SUN[0] * h, SUN[1] * h)
            for h in np.arange(0, reach, 0.5)
        ]
    ).buffer(1.5)
    rows, columns = np.nonzero(dark)
    # The shadows of cars and trains on the decks lie within the same area.
    inside = shapely.contains_xy(swept, (columns + 0.5) * PIXEL_M, (rows + 0.5) * PIXEL_M)
    assert inside.mean() > 0.97


def test_tunnels_hide_their_road(city: City) -> None:
    material = Canvas(WINDOW, GRID).draw(city.from_above).material
    others = shapely.union_all(
        [e.line.buffer(e.street.width_m / 2 + 5, quad_segs=2) for e in city.edges if e.layer >= 0]
    )
    tunnels = [edge.line.buffer(1.5) for edge in city.edges if edge.layer < 0]
    if any(edge.layer > 0 for edge in city.edges if edge.street.highway == "motorway"):
        # Where the motorway is on a viaduct, all roads pass below it on the ground.
        assert not tunnels
        return
    rows, columns = pixels_of(shapely.union_all(tunnels).difference(others))
    assert len(rows) > 200
    assert not np.isin(material[rows, columns], ROAD).any()


def test_both_renderers_show_the_same_world(city: City) -> None:
    sensor = draw_sensor(np.random.default_rng(0))
    flat = paint(city.from_above, WINDOW, GRID, sensor, city.texture, np.random.default_rng(1))
    site = Site.of(city, WINDOW, GRID)
    steep = render_image(
        site, ViewAngle(0.0, 0.0, PIXEL_M), sensor, tuple(range(8)), np.random.default_rng(1)
    )
    inner = (slice(20, -20), slice(20, -20))
    one, other = (of[inner][..., 6].astype(float) for of in (flat, steep.counts))
    agreement = {}
    for move in (0, 3):
        part = other[:, : other.shape[1] - move], one[:, move:]
        agreement[move] = np.corrcoef(part[0].ravel(), part[1].ravel())[0, 1]
    assert agreement[0] > 0.9
    assert agreement[0] > agreement[3] + 0.1


def test_an_unknown_amount_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CityError, match="none, few or many"):
        make_city(tmp_path / "city", overpasses="all")
    assert not (tmp_path / "city").exists()
