"""Roads that meet, cross, pass each other and leave the image."""

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from drawn_roads import SCALE, Points, degrees, draw, graph_of, total_m
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.roads.settings import JUNCTION, ROAD
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadGraph

HORIZONTAL: Points = [(-20, 200), (420, 200)]


def with_junctions(road: NDArray[np.uint8], *places: tuple[int, int]) -> RoadGraph:
    """Return the graph of a road map with a junction map of the given places."""
    junctions = np.zeros_like(road)
    for place in places:
        cv2.circle(junctions, place, 16, 255, -1)
    return vectorize_roads(ProbabilityMaps((ROAD, JUNCTION), np.stack([road, junctions]), SCALE))


def nearest_node(graph: RoadGraph, x: float, y: float) -> float:
    return min(math.dist((x, y), node) for node in graph.nodes.tolist())


@pytest.mark.parametrize("angle", [20, 30, 45, 60, 90])
def test_acute_crossing_is_one_junction_where_the_roads_cross(angle: int) -> None:
    turn = math.radians(angle)
    across = [
        (200 + side * 400 * math.cos(turn), 200 + side * 400 * math.sin(turn)) for side in (-1, 1)
    ]
    graph = graph_of(draw(HORIZONTAL, across))
    assert degrees(graph) == [1, 1, 1, 1, 4]
    assert nearest_node(graph, 200, 200) <= (2 if angle > 25 else 4)


@pytest.mark.parametrize("angle", [25, 45, 90])
def test_side_road_meets_the_middle_of_its_road(angle: int) -> None:
    turn = math.radians(angle)
    side: Points = [(200, 200), (200 + 300 * math.cos(turn), 200 - 300 * math.sin(turn))]
    graph = graph_of(draw(HORIZONTAL, side))
    assert degrees(graph) == [1, 1, 1, 3]
    assert nearest_node(graph, 200, 200) <= (2 if angle > 25 else 7)
    # The through road is not dented.
    for edge in graph.edges:
        if {tuple(node) for node in edge.line[[0, -1]].tolist()} & {(0.0, 200.0), (400.0, 200.0)}:
            assert np.abs(edge.line[:, 1] - 200).max() <= 1


def test_roads_that_touch_side_by_side_do_not_cross() -> None:
    # They run together for longer than the blur of a crossing and part on their own sides.
    upper = [(-20.0, 120.0), (150.0, 195.0), (250.0, 195.0), (420.0, 120.0)]
    lower = [(x, 400 - y) for x, y in upper]
    graph = graph_of(draw(upper, lower))
    assert degrees(graph) == [1, 1, 1, 1, 3, 3]


def test_staggered_side_roads_stay_two_junctions() -> None:
    graph = graph_of(draw(HORIZONTAL, [(180, 200), (180, -20)], [(225, 200), (225, 420)]))
    assert degrees(graph) == [1, 1, 1, 1, 3, 3]


# The visible junction of a side road makes the junction map count.
SIDE: Points = [(320, 200), (320, 420)]


def test_overpass_passes_where_the_junction_map_shows_none() -> None:
    road = draw(HORIZONTAL, [(120, -20), (120, 420)], SIDE)
    passing = with_junctions(road, (320, 200))
    assert degrees(passing) == [1, 1, 1, 1, 1, 3]
    assert total_m(passing) == pytest.approx((400 + 400 + 200) * 0.3, rel=0.01)
    # The roads share no vertex at the crossing, which the scorer would take for a junction.
    crossing = [edge for edge in passing.edges if np.ptp(edge.line[:, 1]) > 300]
    assert len(crossing) == 1
    assert np.hypot(*(crossing[0].line - (120, 200)).T).min() > 2
    assert degrees(with_junctions(road, (320, 200), (120, 200))) == [1, 1, 1, 1, 1, 3, 4]


def test_empty_junction_map_is_ignored() -> None:
    road = draw(HORIZONTAL, [(120, -20), (120, 420)], SIDE)
    assert degrees(with_junctions(road)) == [1, 1, 1, 1, 1, 3, 4]


def test_touching_corners_do_not_meet_where_the_junction_map_shows_none() -> None:
    corner, other = [(190.0, -20.0), (190.0, 190.0), (-20.0, 190.0)], [(200.0, 420.0)]
    other += [(200.0, 200.0), (420.0, 200.0)]
    road = draw(corner, other, [(320, 200), (320, 420)], width=12)
    graph = with_junctions(road, (320, 200))
    assert degrees(graph).count(3) == 1
    assert 4 not in degrees(graph)


def test_dead_end_is_joined_to_a_road_only_at_a_predicted_junction() -> None:
    dead: Points = [(120, 30), (120, 170)]
    road = draw(HORIZONTAL, dead, SIDE)
    assert degrees(with_junctions(road, (320, 200))) == [1, 1, 1, 1, 1, 3]
    assert degrees(with_junctions(road, (320, 200), (120, 196))) == [1, 1, 1, 1, 3, 3]


# --- the image's border ---------------------------------------------------------------------------


def test_roads_that_meet_beyond_the_border_stay_apart() -> None:
    graph = graph_of(draw([(120, 100), (205, 410)], [(290, 100), (205, 410)]))
    assert degrees(graph) == [1, 1, 1, 1]
    # A bend within the image is kept.
    graph = graph_of(draw([(120, 100), (205, 380), (290, 100)]))
    assert degrees(graph) == [1, 1]


def test_junction_just_inside_the_border_is_kept() -> None:
    graph = graph_of(draw([(120, 100), (200, 380), (290, 100)], [(200, 380), (200, 420)]))
    assert degrees(graph) == [1, 1, 1, 3]


def test_road_across_a_corner_reaches_both_edges() -> None:
    main: Points = [(-20, 200), (420, 200)]
    graph = graph_of(draw(main, [(-30, 50), (50, -30)]))
    assert len(graph.edges) == 2
    assert nearest_node(graph, 0, 20) <= 3
    assert nearest_node(graph, 20, 0) <= 3


@pytest.mark.parametrize("slope", [0.0, 0.4, 1.0])
def test_road_that_leaves_aslant_ends_where_it_crosses_the_border(slope: float) -> None:
    graph = graph_of(draw([(-30, 150 - 30 * slope), (430, 150 + 430 * slope)], shape=(700, 400)))
    assert nearest_node(graph, 0, 150) <= 2.5
    assert nearest_node(graph, 400, 150 + 400 * slope) <= 2.5


def test_free_ends_are_where_the_road_ends() -> None:
    (edge,) = graph_of(draw([(60, 100), (330, 210)])).edges
    (left, right) = sorted(edge.line[[0, -1]].tolist())
    assert math.dist(left, (60, 100)) <= 3
    assert math.dist(right, (330, 210)) <= 3


@pytest.mark.parametrize("turn", [60, 90, 120])
def test_corners_are_not_cut(turn: int) -> None:
    angle = math.radians(turn)
    line = [(50.0, 200.0), (200.0, 200.0)]
    line.append((200 + 150 * math.cos(angle), 200 + 150 * math.sin(angle)))
    graph = graph_of(draw(line))
    length = sum(math.dist(one, other) for one, other in pairwise(line)) * 0.3
    assert total_m(graph) == pytest.approx(length, abs=2.0)
    assert min(math.dist((200, 200), p) for e in graph.edges for p in e.line.tolist()) <= 3


def test_roads_that_merge_slowly_meet_where_the_junction_map_says() -> None:
    # Other junctions make the junction map count.
    tees: list[Points] = [[(x, 350), (x, 420)] for x in (50, 450)]
    ramp: Points = [(300, 200), (-20, 200 - 320 * math.tan(math.radians(6)))]
    road = draw([(-20, 200), (520, 200)], ramp, [(-20, 350), (520, 350)], *tees, shape=(400, 500))
    early = graph_of(road)
    assert nearest_node(early, 300, 200) > 60
    late = with_junctions(road, (300, 200), (50, 350), (450, 350))
    assert nearest_node(late, 300, 200) <= 4
    assert degrees(late) == degrees(early) == [1] * 7 + [3] * 3
    # Both roads exist side by side up to the merge.
    assert total_m(late) > total_m(early) + 15
    drawn = shapely.MultiLineString([ramp, [(-20, 200), (520, 200)]])
    for edge in late.edges:
        if edge.line[:, 1].max() < 300:
            assert shapely.distance(shapely.points(edge.line), drawn).max() <= 3
    # If the stem is no wider than one road, a more distant junction belongs to something else.
    split: Points = [(150, 200), (-20, 160)]
    road = draw([(-20, 200), (520, 200)], split, [(-20, 350), (520, 350)], *tees, shape=(400, 500))
    graph = with_junctions(road, (300, 200), (50, 350), (450, 350))
    assert nearest_node(graph, 300, 200) > 100
