"""Road vectoriser: topology, cleaning, joining, lengths, speeds, odd inputs."""

import dataclasses
import math
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.spatial.distance import directed_hausdorff

from degraded_masks import METRES_PER_PIXEL, degraded_mask
from drawn_roads import SCALE, Points, degrees, draw, graph_of, total_m
from repository import SHARED
from round_trips import made_city
from satmap.errors import SatmapError
from satmap.evaluation.metrics.apls import apls
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.submissions.roads_csv import read_roads_csv, rows_of_graph
from satmap.tasks.roads.settings import ROAD, ROAD_MAPS, SPEED_MAPS, RoadSettings
from satmap.tasks.roads.vectorizer.clean import prune_spurs
from satmap.tasks.roads.vectorizer.evidence import Evidence
from satmap.tasks.roads.vectorizer.lines import cut_lines, simplify
from satmap.tasks.roads.vectorizer.network import Network, follow_chains
from satmap.tasks.roads.vectorizer.skeleton import road_mask
from satmap.tasks.roads.vectorizer.speed import prior_speeds
from satmap.tasks.roads.vectorizer.trace import trace_skeleton
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadGraph
from satmap.vectors.speeds import BIN_SPEEDS_MPH, MPS_PER_MPH

MASKS = SHARED / "fixtures" / "masks"


def circle(x: float, y: float, radius: float) -> Points:
    phases = np.linspace(0, 2 * np.pi, 181)
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in phases]


def check_sound(graph: RoadGraph, shape: tuple[int, int]) -> None:
    """Check the properties that every graph must have."""
    for edge in graph.edges:
        np.testing.assert_array_equal(edge.line[[0, -1]], graph.nodes[list(edge.nodes)])
        assert (edge.line >= 0).all()
        assert (edge.line <= [shape[1], shape[0]]).all()
        assert (np.abs(np.diff(edge.line, axis=0)).max(axis=1) > 0.05).all()
        assert edge.length_m > 0
        assert edge.speed_mps > 0
        assert 0 <= edge.mean_probability <= 1
        if edge.nodes[0] == edge.nodes[1]:
            assert len(np.unique(edge.line, axis=0)) >= 3
    if graph.edges:
        assert min(degrees(graph)) >= 1


# --- topology -------------------------------------------------------------------------------------


def test_cross_is_one_junction_and_four_roads_to_the_border() -> None:
    graph = graph_of(draw([(200, -20), (200, 420)], [(-20, 150), (420, 150)]))
    assert degrees(graph) == [1, 1, 1, 1, 4]
    assert len(graph.edges) == 4
    ends = {tuple(node) for node in graph.nodes.tolist()}
    for x, y in ((200, 0), (200, 400), (0, 150), (400, 150), (200, 150)):
        assert min(math.dist((x, y), end) for end in ends) <= 2
    assert total_m(graph) == pytest.approx(240, rel=0.01)


def test_slanting_road_ends_on_the_border() -> None:
    graph = graph_of(draw([(-30, 100), (430, 330)]))
    (edge,) = graph.edges
    (left, _), (right, _) = sorted(edge.line[[0, -1]].tolist())
    assert (left, right) == (0, 400)


def test_ring_without_junction_is_a_loop() -> None:
    graph = graph_of(draw(circle(200, 200, 120)))
    (edge,) = graph.edges
    assert edge.nodes == (0, 0)
    assert edge.length_m == pytest.approx(2 * math.pi * 120 * 0.3, rel=0.02)


def test_loop_at_the_end_of_a_road() -> None:
    graph = graph_of(draw([(0, 200), (140, 200)], circle(220, 200, 80)))
    assert degrees(graph) == [1, 3]
    assert sorted(edge.nodes[0] == edge.nodes[1] for edge in graph.edges) == [False, True]


def test_parallel_roads_are_kept() -> None:
    up, down = ([(100, 200), (200, 120), (300, 200)], [(100, 200), (200, 280), (300, 200)])
    graph = graph_of(draw([(0, 200), (100, 200)], [(300, 200), (400, 200)], up, down))
    assert degrees(graph) == [1, 1, 3, 3]
    pairs = [tuple(sorted(edge.nodes)) for edge in graph.edges]
    assert len(pairs) == 4
    assert len(set(pairs)) == 3


def test_road_that_crosses_itself_keeps_all_its_parts() -> None:
    line = [(0, 100), (300, 100), (300, 300), (150, 300), (150, 0)]
    graph = graph_of(draw(line))
    assert degrees(graph) == [1, 1, 4]
    assert len(graph.edges) == 3
    length = sum(math.dist(a, b) for a, b in pairwise(line)) * 0.3
    assert total_m(graph) == pytest.approx(length, rel=0.02)


def test_trace_keeps_two_ways_between_the_same_nodes() -> None:
    skeleton = np.zeros((9, 13), np.bool_)
    skeleton[4, :3] = skeleton[4, 10:] = True
    skeleton[2, 4:9] = skeleton[6, 4:9] = True
    skeleton[3, [3, 9]] = skeleton[5, [3, 9]] = True
    network = trace_skeleton(*np.nonzero(skeleton))
    assert sorted(network.degrees.tolist()) == [1, 1, 3, 3]
    assert len(network.lines) == 4
    for (start, end), line in zip(network.ends, network.lines, strict=True):
        np.testing.assert_array_equal(line[[0, -1]], network.nodes[[start, end]])


def test_chains_on_half_edges() -> None:
    # 0-1-2-0 is a ring, 3-4-5 a chain, 6-6 a loop, 7-8 twice a pair of parallel edges.
    ends = np.array([[1, 0], [1, 2], [0, 2], [4, 3], [4, 5], [6, 6], [7, 8], [8, 7], [8, 9]])
    halves, counts = follow_chains(10, ends)
    origin = ends.reshape(-1)
    parts = np.split(halves, np.cumsum(counts)[:-1])
    chains = {(*origin[part].tolist(), int(origin[part[-1] ^ 1])) for part in parts}
    assert {min(chain, chain[::-1]) for chain in chains} == {
        min((0, 1, 2, 0), (0, 2, 1, 0)),
        (3, 4, 5),
        (6, 6),
        (8, 7, 8),
        (8, 9),
    }
    assert len(chains) == 5


def test_dissolve_joins_lines_in_order() -> None:
    nodes = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 5.0]])
    lines = (np.array([[10.0, 0.0], [5.0, 1.0], [0.0, 0.0]]), np.array([[10.0, 0.0], [20.0, 5.0]]))
    network = Network.of_lines(nodes, np.array([[1, 0], [1, 2]]), lines).dissolve()
    (line,) = network.lines
    expected = [[0.0, 0.0], [5.0, 1.0], [10.0, 0.0], [20.0, 5.0]]
    assert line.tolist() in (expected, expected[::-1])


# --- geometry -------------------------------------------------------------------------------------


def test_centre_line_is_followed_within_two_pixels() -> None:
    x = np.linspace(-20, 420, 200)
    truth = np.stack([x, 200 + 90 * np.sin(x / 60 + 1.2)], axis=1)
    (edge,) = graph_of(draw(truth.tolist())).edges
    lines = [np.concatenate([np.linspace(*pair, 50) for pair in pairwise(line)])
             for line in (edge.line, truth)]  # fmt: skip
    found, drawn = (line[(line[:, 0] >= 0) & (line[:, 0] <= 400)] for line in lines)
    assert directed_hausdorff(found, drawn)[0] <= 2
    assert directed_hausdorff(drawn, found)[0] <= 2


def test_pixel_centres_are_at_half() -> None:
    skeleton = np.zeros((5, 8), np.bool_)
    skeleton[2, 1:7] = True
    (line,) = trace_skeleton(*np.nonzero(skeleton)).lines
    np.testing.assert_array_equal(line[:, 1], 2.5)
    np.testing.assert_array_equal(np.sort(line[:, 0]), np.arange(1.5, 7))

    mask = np.zeros((60, 200), np.uint8)
    mask[20:31] = 255  # Centre of row 25; the ends of a thinned bar may be a pixel off.
    (edge,) = graph_of(mask).edges
    np.testing.assert_allclose(edge.line[:, 1], 25.5, atol=1)
    assert sorted(edge.line[[0, -1], 0].tolist()) == [0, 200]


def test_lengths_where_pixels_are_wider_than_high() -> None:
    mask = cv2.resize(
        draw([(0, 200), (200, 200), (200, 0)]), (200, 400), interpolation=cv2.INTER_AREA
    )
    graph = graph_of(np.asarray(mask, np.uint8), (0.6, 0.3))
    assert total_m(graph) == pytest.approx(120, rel=0.01)
    (edge,) = graph.edges
    assert edge.travel_time_s == pytest.approx(edge.length_m / (25 * MPS_PER_MPH))


def test_settings_are_metres() -> None:
    mask = draw([(200, -20), (200, 420)], [(-20, 150), (420, 150)], [(200, 290), (320, 290)])
    half = np.asarray(
        cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8
    )
    fine, coarse = graph_of(mask), graph_of(half, (0.6, 0.6))
    assert degrees(fine) == degrees(coarse)
    assert total_m(fine) == pytest.approx(total_m(coarse), rel=0.02)


def test_simplify_keeps_loops_and_parallel_roads_apart() -> None:
    square = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0], [0.0, 0.0]])
    up = np.array([[0.0, 0.0], [5.0, 1.0], [10.0, 0.0]])
    nodes = np.array([[0.0, 0.0], [10.0, 0.0]])
    lines = (square, up, up[::-1] * [1, -1])
    network = Network.of_lines(nodes, np.array([[0, 0], [0, 1], [1, 0]]), lines)
    loop, first, second = simplify(network, 50.0).lines
    assert len(np.unique(loop, axis=0)) >= 3
    assert len(first) + len(second) == 5


def test_cut_pieces_add_up() -> None:
    line = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])
    pieces = cut_lines(line, np.array([4.0, 15.0]))
    assert [piece.tolist() for piece in pieces] == [
        [[0, 0], [4, 0]],
        [[4, 0], [10, 0], [10, 5]],
        [[10, 5], [10, 10]],
    ]


# --- cleaning and joining -------------------------------------------------------------------------


def test_spur_is_pruned_and_dead_end_kept() -> None:
    road, spur = [(0.0, 200.0), (400.0, 200.0)], [(120.0, 200.0), (120.0, 185.0)]
    dead_end = [(280.0, 200.0), (280.0, 60.0)]
    assert degrees(graph_of(draw(road, spur))) == [1, 1]
    assert degrees(graph_of(draw(road, spur, dead_end))) == [1, 1, 1, 3]


def test_fork_at_a_dead_end_loses_one_prong_only() -> None:
    nodes = np.array([[0.0, 10.0], [50.0, 10.0], [53.0, 13.0], [54.0, 6.0]])
    ends = np.array([[0, 1], [1, 2], [1, 3]])
    network = Network.of_lines(nodes, ends, [nodes[pair] for pair in ends])
    certain = Evidence(np.full((100, 100), 255, np.uint8), np.ones(2), 0.3)
    pruned = prune_spurs(network, 6.0, 2.0, certain)
    (line,) = pruned.lines
    assert [54.0, 6.0] in line.tolist()


def test_components_are_kept_by_length_and_certainty() -> None:
    road: Points = [(0, 200), (400, 200)]
    part: Points = [(100, 300), (160, 300)]
    certain = draw(road, part, [(300, 60), (310, 60)])
    assert len(graph_of(certain).edges) == 2
    doubtful = np.maximum(draw(road), draw(part, value=165))
    assert len(graph_of(doubtful).edges) == 1


def test_uncertain_blot_beside_a_road_is_dropped() -> None:
    road = draw([(0, 200), (400, 200)])
    blot = draw([(200, 200), (200, 172)], width=18)
    assert len(graph_of(np.maximum(road, blot)).edges) == 3
    assert len(graph_of(np.maximum(road, blot // 8 * 5)).edges) == 1


@pytest.mark.parametrize(("gap", "value", "edges"), [(30, 0, 1), (75, 0, 2), (75, 100, 1)])
def test_gaps_close_when_short_or_with_evidence(gap: int, value: int, edges: int) -> None:
    left, right = (300 - gap) / 2, (300 + gap) / 2
    # A faint trace, below the threshold for road.
    faint = draw([(left, 100), (right, 100)], shape=(200, 300), value=value * 2 // 3)
    roads = draw([(0, 100), (left, 100)], [(right, 100), (300, 100)], shape=(200, 300))
    assert len(graph_of(np.maximum(faint, roads)).edges) == edges


def test_ends_side_by_side_stay_separate() -> None:
    graph = graph_of(draw([(0, 150), (220, 150)], [(180, 190), (400, 190)]))
    assert degrees(graph) == [1, 1, 1, 1]


def test_hidden_corner_is_closed() -> None:
    mask = draw([(0, 200), (200, 200), (200, 0)])
    cv2.circle(mask, (200, 200), 13, 0, -1)
    (edge,) = graph_of(mask).edges
    corner = np.abs(edge.line - 200).max(axis=1).min()
    assert corner <= 5


def test_dead_end_is_extended_to_the_road_ahead() -> None:
    road = [(0.0, 200.0), (400.0, 200.0)]
    near = graph_of(draw(road, [(200, 0), (200, 172)]))
    assert degrees(near) == [1, 1, 1, 3]
    far = graph_of(draw(road, [(200, 0), (200, 110)]))
    assert degrees(far) == [1, 1, 1, 1]


def test_dead_end_is_extended_to_the_border() -> None:
    (edge,) = graph_of(draw([(0, 200), (392, 200)])).edges
    assert sorted(edge.line[[0, -1], 0].tolist()) == [0, 400]
    # A road may also end before the border.
    (edge,) = graph_of(draw([(0, 200), (375, 200)])).edges
    assert sorted(edge.line[[0, -1], 0].tolist()) == pytest.approx([0, 375], abs=2)


def test_roads_side_by_side_do_not_merge() -> None:
    pair = np.maximum(draw([(0, 100), (400, 100)]), draw([(0, 121), (400, 121)]))
    # Blurred as by a network: the gap between the two stays above the low threshold.
    graph = graph_of(np.asarray(cv2.GaussianBlur(pair, (0, 0), 3), np.uint8))
    assert degrees(graph) == [1, 1, 1, 1]


def test_faint_stretch_of_a_certain_road_is_kept_and_faint_blob_not() -> None:
    road = np.zeros((200, 400), np.uint8)
    road[90:104] = 220
    road[90:104, 150:250] = 100
    settings = RoadSettings(smooth_m=0, low=0.3, high=0.6, apart_m=7, object_m2=300, hole_m2=300)
    assert road_mask(road, settings, np.ones(2))[97].all()
    road[20:40, 50:350] = 100
    (edge,) = graph_of(road).edges
    assert edge.length_m == pytest.approx(120, rel=0.01)


# --- speeds ---------------------------------------------------------------------------------------


def speed_maps(road: NDArray[np.uint8], **bins: NDArray[np.uint8]) -> ProbabilityMaps:
    empty = np.zeros_like(road)
    values = [road if name == ROAD else bins.get(name, empty) for name in ROAD_MAPS]
    return ProbabilityMaps(ROAD_MAPS, np.array(values), SCALE)


def test_speed_is_the_expectation_weighted_by_length() -> None:
    road = draw([(0, 100), (400, 100)], shape=(200, 400))
    slow, fast = np.zeros_like(road), np.zeros_like(road)
    slow[:, :100] = 255  # A quarter of the way at 20 mph,
    fast[:, 100:] = 255  # the rest at 45 mph.
    (edge,) = vectorize_roads(speed_maps(road, speed3=slow, speed7=fast)).edges
    assert edge.speed_mps == pytest.approx((20 + 3 * 45) / 4 * MPS_PER_MPH, rel=0.005)
    assert edge.length_m == pytest.approx(120, rel=1e-3)
    assert edge.travel_time_s == pytest.approx(edge.length_m / edge.speed_mps)


def test_speed_weighs_bins_by_probability() -> None:
    road = draw([(0, 100), (400, 100)], shape=(200, 400))
    low, high = np.full_like(road, 50), np.full_like(road, 150)
    (edge,) = vectorize_roads(speed_maps(road, speed1=low, speed9=high)).edges
    assert edge.speed_mps == pytest.approx((15 * 50 + 65 * 150) / 200 * MPS_PER_MPH)


def test_speed_without_evidence_is_the_default_or_that_of_similar_roads() -> None:
    road = draw([(0, 60), (400, 60)], [(0, 140), (400, 140)], shape=(200, 400))
    graph = vectorize_roads(speed_maps(road))
    assert [edge.speed_mps for edge in graph.edges] == pytest.approx([25 * MPS_PER_MPH] * 2)
    upper = np.zeros_like(road)
    upper[:100] = 255
    graph = vectorize_roads(speed_maps(road, speed6=upper))
    assert [edge.speed_mps for edge in graph.edges] == pytest.approx([35 * MPS_PER_MPH] * 2)


def test_unknown_speeds_come_from_similar_roads_near_and_far() -> None:
    # A star of five roads, three with known speeds, and three separate roads. The last two of each
    # are wide.
    angles = np.linspace(0, 5, 5)
    star = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[10], [30], [20], [10], [20]]
    apart = np.array([[900.0, 0], [910, 0], [900, 50], [910, 50], [900, 90], [910, 90]])
    nodes = np.concatenate([[[0.0, 0.0]], star, apart])
    ends = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [6, 7], [8, 9], [10, 11]])
    network = Network.of_lines(nodes, ends, [nodes[pair] for pair in ends])
    widths = np.array([4.0, 4, 4.2, 8, 8.5, 4, 8, 16])
    nan = np.nan
    speeds = np.array([10.0, 20, nan, 30, nan, nan, nan, nan])
    near = (10 * 10 + 30 * 20) / 40
    mean = (10 * 10 + 30 * 20 + 10 * 30) / 50
    # Speeds come from similar roads that meet the road, else from similar roads in the image, else
    # from all roads.
    np.testing.assert_allclose(
        prior_speeds(speeds, widths, network, 7.0)[[2, 4, 5, 6, 7]], [near, 30, near, 30, mean]
    )
    # A road that meets known roads, none of them similar, takes their mean.
    widths[3] = 4
    assert prior_speeds(speeds, widths, network, 7.0)[4] == pytest.approx(mean)


def test_width_identifies_fast_roads_without_known_speeds() -> None:
    road = draw([(0, 60), (400, 60)], shape=(260, 400))
    wide = draw([(0, 180), (400, 180)], shape=(260, 400), width=34)
    graph = vectorize_roads(ProbabilityMaps((ROAD,), np.maximum(road, wide)[None], SCALE))
    narrow_mps, wide_mps = (
        edge.speed_mps for edge in sorted(graph.edges, key=lambda edge: edge.line[0, 1])
    )
    assert narrow_mps == pytest.approx(25 * MPS_PER_MPH)
    assert 1.3 < wide_mps / narrow_mps < 2.2


def test_weak_evidence_is_mixed_with_the_prior() -> None:
    road = draw([(0, 60), (400, 60)], [(0, 140), (400, 140)], shape=(200, 400))
    fast, slow = np.zeros_like(road), np.zeros_like(road)
    fast[:100] = 255
    # Half of the required evidence.
    slow[100:] = 6
    settings = RoadSettings(speed_evidence=12 / 255)
    upper, lower = sorted(
        vectorize_roads(speed_maps(road, speed9=fast, speed1=slow), settings).edges,
        key=lambda edge: edge.line[0, 1],
    )
    assert upper.speed_mps == pytest.approx(65 * MPS_PER_MPH)
    assert lower.speed_mps == pytest.approx((15 + 65) / 2 * MPS_PER_MPH)


def test_confidence_is_the_mean_probability() -> None:
    mask = draw([(0, 100), (400, 100)], shape=(200, 400), value=204)
    (edge,) = graph_of(mask).edges
    assert edge.mean_probability == pytest.approx(0.8)


def test_every_speed_bin_is_decoded() -> None:
    road = draw([(0, 100), (200, 100)], shape=(200, 200))
    for name, mph in zip(SPEED_MAPS, BIN_SPEEDS_MPH, strict=True):
        (edge,) = vectorize_roads(speed_maps(road, **{name: road})).edges
        assert edge.speed_mps == pytest.approx(mph * MPS_PER_MPH)


# --- odd inputs -----------------------------------------------------------------------------------


def odd_masks() -> dict[str, NDArray[np.uint8]]:
    noise = np.random.default_rng(0).integers(0, 256, (500, 500)).astype(np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    pixel = np.zeros((300, 300), np.uint8)
    pixel[150, 150] = 255
    border = np.zeros((300, 300), np.uint8)
    border[:8] = 255
    grid = np.zeros((600, 600), np.uint8)
    for shift in range(7):
        grid[shift::40] = grid[:, shift::40] = 255
    small = np.zeros((16, 16), np.uint8)
    small[6:10] = 255
    return {
        "zero": np.zeros((300, 300), np.uint8),
        "full": np.full((300, 300), 255, np.uint8),
        "full oblong": np.full((100, 300), 255, np.uint8),
        "noise": noise,
        "labyrinth": np.asarray((smooth > 127) * 255, np.uint8),
        "one pixel": pixel,
        "at the border": border,
        "dense grid": grid,
        "16 x 16": small,
        "1 x 1": np.full((1, 1), 255, np.uint8),
        "one row": np.full((1, 300), 255, np.uint8),
        "ring": draw(circle(200, 200, 100)),
    }


def test_an_island_in_a_gap_makes_it_shorter() -> None:
    # 20 m between the ends, with an island of road of 4 m.
    mask = draw([(0, 200), (400, 200)])
    mask[:, 167:233] = 0
    assert len(graph_of(mask).edges) == 2
    island = mask.copy()
    island[193:207, 193:207] = 255
    assert len(graph_of(island).edges) == 1


def test_a_hidden_crossing_is_a_crossing() -> None:
    mask = draw([(0, 200), (400, 200)], [(200, 0), (200, 400)])
    cv2.circle(mask, (200, 200), 18, 0, -1)
    graph = graph_of(mask)
    assert degrees(graph) == [1, 1, 1, 1, 4]
    assert min(math.dist((200, 200), node) for node in graph.nodes.tolist()) < 7


@pytest.mark.parametrize("name", list(odd_masks()))
def test_odd_masks_are_safe_and_repeatable(name: str) -> None:
    mask = odd_masks()[name]
    start = time.perf_counter()
    graph = graph_of(mask)
    assert time.perf_counter() - start < 5
    check_sound(graph, (mask.shape[0], mask.shape[1]))
    again = graph_of(mask.copy())
    np.testing.assert_array_equal(graph.nodes, again.nodes)
    for one, other in zip(graph.edges, again.edges, strict=True):
        assert dataclasses.replace(one, line=other.line) == other
        np.testing.assert_array_equal(one.line, other.line)
    if name in {"zero", "one pixel", "1 x 1"}:
        assert not graph.edges
    if name == "dense grid":
        assert len(graph.edges) > 300


def test_maps_without_road_are_named() -> None:
    maps = ProbabilityMaps(("junction",), np.zeros((1, 8, 8), np.uint8), SCALE)
    with pytest.raises(SatmapError, match="junction"):
        vectorize_roads(maps)


def test_unknown_setting_is_an_error() -> None:
    with pytest.raises(ValidationError, match="spur_px"):
        RoadSettings.model_validate({"spur_px": 10})


def noise_masks() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    uniform = rng.integers(0, 256, (1300, 1300)).astype(np.uint8)
    salt = np.zeros((1300, 1300), np.uint8)
    salt[rng.random(salt.shape) < 0.02] = 255
    pepper = np.full((1300, 1300), 255, np.uint8)
    pepper[rng.random(pepper.shape) < 0.02] = 0
    blurred = cv2.GaussianBlur(uniform.astype(np.float32), (0, 0), 3)
    soft = np.clip(127 + (blurred - blurred.mean()) * 12, 0, 255).astype(np.uint8)
    return {"uniform": uniform, "salt": salt, "pepper": pepper, "soft": soft}


@pytest.mark.parametrize("name", list(noise_masks()))
def test_noise_takes_seconds_at_most(name: str) -> None:
    mask = noise_masks()[name]
    start = time.perf_counter()
    graph = graph_of(mask)
    # A loose limit: a fifth of it is usual.
    assert time.perf_counter() - start < 20
    check_sound(graph, (1300, 1300))


@pytest.mark.parametrize("scale", [(0.05, 3.0), (3.0, 0.05), (30.0, 30.0)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (64, 64)])
def test_odd_shapes_and_pixels(shape: tuple[int, int], scale: tuple[float, float]) -> None:
    for value in (0, 255):
        check_sound(graph_of(np.full(shape, value, np.uint8), scale), shape)
    rng = np.random.default_rng(2)
    check_sound(graph_of(rng.integers(0, 256, shape).astype(np.uint8), scale), shape)


def test_extreme_settings_are_safe() -> None:
    mask = draw([(0, 200), (400, 200)], [(200, 0), (200, 172)])
    for name, field in RoadSettings.model_fields.items():
        least = max([0.01, *(m.ge for m in field.metadata if hasattr(m, "ge") and m.ge)])
        least = 0.0 if any(getattr(m, "ge", None) == 0 for m in field.metadata) else least
        low = {"low": least} if name == "high" else {"high": 1.0} if name == "low" else {}
        most = next((m.le for m in field.metadata if hasattr(m, "le")), 1.0)
        for value in (least, most):
            settings = RoadSettings.model_validate({name: value, **low})
            check_sound(
                vectorize_roads(ProbabilityMaps((ROAD,), mask[None], SCALE), settings), (400, 400)
            )


def test_invalid_settings_are_refused() -> None:
    for nonsense in ({"low": 0.7}, {"smooth_m": 1e6}, {"border_m": 1e5}, {"default_speed_mph": 0}):
        with pytest.raises(ValidationError):
            RoadSettings.model_validate(nonsense)


@pytest.mark.parametrize("metres", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("slant", [0.05, 0.3, 0.7])
def test_straight_roads_have_no_staircases(metres: float, slant: float) -> None:
    graph = graph_of(
        draw([(-20, 50), (420, 50 + 440 * slant)], width=max(3, round(4 / metres))),
        (metres, metres),
    )
    (edge,) = graph.edges
    assert len(edge.line) <= 6
    assert np.abs(edge.line[:, 1] - 50 - (edge.line[:, 0] + 20) * slant).max() <= 2


# --- quality --------------------------------------------------------------------------------------


@pytest.mark.skipif(not MASKS.is_dir(), reason="the shared masks are not here")
def test_apls_on_the_shared_masks() -> None:
    truth = read_roads_csv(MASKS / "truth_noded.csv")
    scores = []
    for path in sorted(MASKS.glob("*.png")):
        mask = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
        graph = graph_of(mask, (0.31, 0.31))
        check_sound(graph, (mask.shape[0], mask.shape[1]))
        image_id = "AOI_7_Moscow_" + path.stem.rsplit("_", 1)[1]
        scores.append(apls(truth[image_id], rows_of_graph(graph)).length.score)
    assert len(scores) == 8
    assert np.mean(scores) > 0.96
    assert min(scores) > 0.88


def test_apls_on_synthetic_degraded_masks() -> None:
    scores = []
    for seed in range(2000, 2008):
        made = degraded_mask(seed)
        graph = graph_of(made.road, (METRES_PER_PIXEL, METRES_PER_PIXEL))
        check_sound(graph, (made.road.shape[0], made.road.shape[1]))
        scores.append(apls(made.truth, rows_of_graph(graph)).length.score)
    assert np.mean(scores) > 0.92


def test_degraded_masks_repeat_by_seed() -> None:
    one, same, other = degraded_mask(5, 400), degraded_mask(5, 400), degraded_mask(7, 400)
    np.testing.assert_array_equal(one.road, same.road)
    assert (one.road != other.road).any()
    for row, duplicate in zip(one.truth, same.truth, strict=True):
        np.testing.assert_array_equal(row.line, duplicate.line)


def test_targets_of_synthetic_cities_vectorise_back() -> None:
    scores = [trip.score() for seed in (1, 3) for trip in made_city(seed)]
    times = [score.time.score for score in scores if score.time is not None]
    assert np.mean([score.length.score for score in scores]) > 0.98
    assert np.mean(times) > 0.97
