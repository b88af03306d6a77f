"""Vectorising with surroundings: neighbours help, and roads stay within their image."""

from collections.abc import Sequence

import numpy as np
import pytest

from drawn_roads import draw
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.tasks.roads.settings import ROAD
from satmap.tasks.roads.tiles import crop_graph, margin_px
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadEdge, RoadGraph
from surroundings import with_surroundings

SCALE = (0.3, 0.3)


def maps_of(mask: np.ndarray) -> ProbabilityMaps:
    return ProbabilityMaps((ROAD,), np.ascontiguousarray(mask)[None], SCALE)


def graph_of(*lines: Sequence[tuple[float, float]]) -> RoadGraph:
    nodes: list[tuple[float, float]] = []
    edges = []
    for line in lines:
        for place in (line[0], line[-1]):
            if place not in nodes:
                nodes.append(place)
        ends = (nodes.index(line[0]), nodes.index(line[-1]))
        edges.append(RoadEdge(ends, np.array(line, np.float64), 1.0, 10.0, 0.5, 6.5, "default"))
    return RoadGraph(np.array(nodes, np.float64), tuple(edges))


def test_crop_cuts_roads_at_the_edges() -> None:
    graph = graph_of([(-10, 5), (20, 5), (50, 25)], [(20, 30), (35, 30)])
    cropped = crop_graph(graph, Box(0, 0, 40, 40), (0.5, 0.5))
    assert len(cropped.edges) == 2
    (long,) = [edge for edge in cropped.edges if len(edge.line) == 3]
    assert sorted(map(tuple, long.line.tolist())) == [(0, 5), (20, 5), (40, 18.3)]
    assert long.length_m == pytest.approx(0.5 * (20 + np.hypot(20, 13.3)))
    assert (long.speed_mps, long.mean_probability) == (10, 0.5)
    assert (long.width_m, long.speed_source) == (6.5, "default")
    for edge in cropped.edges:
        np.testing.assert_array_equal(edge.line[[0, -1]], cropped.nodes[list(edge.nodes)])


def test_crop_shifts_roads_and_splits_roads_that_reenter() -> None:
    # Out over the right edge and back in: two roads.
    graph = graph_of([(12, 12), (40, 12), (40, 20), (12, 20)])
    cropped = crop_graph(graph, Box(10, 10, 20, 20), SCALE)
    assert sorted(sorted(map(tuple, e.line.tolist())) for e in cropped.edges) == [
        [(2, 2), (20, 2)], [(2, 10), (20, 10)],
    ]  # fmt: skip
    assert crop_graph(graph, Box(100, 100, 9, 9), SCALE).edges == ()
    assert crop_graph(RoadGraph(), Box(0, 0, 9, 9), SCALE).edges == ()


def test_crop_keeps_a_crossing_without_junction() -> None:
    eight = [(5, 5), (30, 30), (30, 5), (5, 30), (-20, 30)]
    (edge,) = crop_graph(graph_of(eight), Box(0, 0, 40, 40), SCALE).edges
    assert len(edge.line) == 5


def test_surroundings_come_from_neighbours_and_are_empty_elsewhere() -> None:
    x, _ = margin_px(SCALE)
    own = maps_of(np.full((300, 400), 10, np.uint8))
    right = maps_of(np.full((300, 400), 20, np.uint8))
    maps, box = with_surroundings(own, [(right, 400, 5)])
    # Sides without a touching neighbour have no margin.
    assert box == Box(0, 0, 400, 300)
    whole = maps[ROAD]
    assert whole.shape == (300, 400 + x)
    assert (whole[:, :400] == 10).all()
    assert (whole[5:, 400:] == 20).all()
    # Above the neighbour's first row, the margin continues the border.
    assert (whole[:5, 400:402] == 10).all()
    assert (whole[:5, 402:] == 0).all()


def test_a_chip_beyond_a_gap_is_no_neighbour() -> None:
    own = maps_of(draw([(0, 295), (400, 295)], shape=(300, 400)))
    near, far = ((own, 0, 300 + gap) for gap in (2, 3))
    assert with_surroundings(own, [near])[1] == Box(0, 0, 400, 300)
    assert with_surroundings(own, [near])[0].shape[0] > 300
    maps, box = with_surroundings(own, [far])
    assert (maps.shape, box) == ((300, 400), Box(0, 0, 400, 300))


def test_a_road_along_a_border_stays_where_the_neighbour_covers_half_of_it() -> None:
    road = [(0, 296), (400, 296)]
    own = maps_of(draw(road, shape=(300, 400)))
    below = maps_of(np.zeros((300, 400), np.uint8))
    maps, box = with_surroundings(own, [(below, 200, 300)])
    (edge,) = crop_graph(vectorize_roads(maps), box, SCALE).edges
    assert np.abs(edge.line[:, 1] - 296).max() < 3
    assert edge.length_m == pytest.approx(120, abs=2)


def test_surroundings_on_all_sides() -> None:
    x, y = margin_px(SCALE)
    scene = np.random.default_rng(0).integers(0, 256, (900, 1200)).astype(np.uint8)
    own = Box(400, 300, 400, 300)
    parts = [
        (maps_of(scene[part.pixels]), part.left - own.left, part.top - own.top)
        for part in Box(0, 0, 1200, 900).tiles(400, 300)
    ]
    maps, box = with_surroundings(maps_of(scene[own.pixels]), parts)
    assert box == Box(x, y, 400, 300)
    np.testing.assert_array_equal(maps[ROAD], scene[own.grown(x, y).pixels])
    # A neighbour that touches only a corner adds no margin.
    corner = [parts[0]]
    assert with_surroundings(maps_of(scene[own.pixels]), corner)[1] == Box(0, 0, 400, 300)


def test_overlaps_use_the_image_then_the_first_neighbour() -> None:
    own = maps_of(np.full((300, 400), 10, np.uint8))
    first, second = (maps_of(np.full((300, 400), value, np.uint8)) for value in (20, 30))
    maps, box = with_surroundings(own, [(first, 390, 0), (second, 380, 0), (second, 0, 100)])
    assert (maps[ROAD][box.pixels] == 10).all()
    assert (maps[ROAD][:300, 400:] == 20).all()
    assert (maps[ROAD][300:400, :390] == 30).all()


def test_a_neighbour_shows_where_a_road_continues() -> None:
    # Trees hide a street from 20 px before the border to 20 px after it.
    street = draw([(0, 150), (800, 150)], shape=(300, 800))
    street[:, 380:420] = 0
    left, right = maps_of(street[:, :400]), maps_of(street[:, 400:])
    alone = vectorize_roads(left)
    assert max(edge.line[:, 0].max() for edge in alone.edges) < 400
    together, box = with_surroundings(left, [(right, 400, 0)])
    cropped = crop_graph(vectorize_roads(together), box, SCALE)
    assert max(edge.line[:, 0].max() for edge in cropped.edges) == 400
    for edge in cropped.edges:
        assert (edge.line >= 0).all()
        assert (edge.line <= [400, 300]).all()


def test_a_short_piece_of_a_long_road_is_kept_by_its_neighbour() -> None:
    # A corner of this image shows 25 m of a street; most of it lies in the next image.
    street = draw([(317, 150), (800, 150)], shape=(300, 800))
    left, right = maps_of(street[:, :400]), maps_of(street[:, 400:])
    together, box = with_surroundings(left, [(right, 400, 0)])
    (edge,) = crop_graph(vectorize_roads(together), box, SCALE).edges
    assert edge.length_m == pytest.approx(25, abs=3)
