import csv
import itertools
import json
import math
import random
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plain_apls import Road, plain_apls
from repository import SHARED
from satmap.evaluation.metrics.apls import (
    _TILE,
    METRES_PER_PIXEL,
    MIDPOINT_M,
    AplsScore,
    apls,
    score_roads,
)
from satmap.evaluation.metrics.apls_graph import Ways, build_graph
from satmap.evaluation.metrics.shortest_paths import all_pairs
from satmap.submissions.roads_csv import RoadRow, read_roads_csv
from satmap.vectors.road_graph import RoadEdge, RoadGraph

FIXTURES = SHARED / "fixtures" / "apls"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no shared fixtures here")

Line = Sequence[tuple[float, float]]


def road(*points: tuple[float, float], time: float = math.nan) -> RoadRow:
    return RoadRow(np.array(points, dtype=np.float64), math.nan, time)


def roads(*lines: Line) -> list[RoadRow]:
    return [road(*line) for line in lines]


def timed(rows: Sequence[RoadRow], seconds_per_pixel: float = 0.37) -> list[RoadRow]:
    return [RoadRow(row.line, row.length_m, seconds_per_pixel * pixel_length(row)) for row in rows]


def pixel_length(row: RoadRow) -> float:
    return float(np.linalg.norm(np.diff(row.line, axis=0), axis=1).sum())


def length_scores(
    truth: Sequence[RoadRow], proposal: Sequence[RoadRow]
) -> tuple[float, float, float]:
    """Return scores at 1 m per pixel: midpoints every 50 px, snapping within 4 px."""
    score = apls(truth, proposal, metres_per_pixel=1).length
    return score.truth_to_proposal, score.proposal_to_truth, score.score


# --- computed by hand, 1 m per pixel --------------------------------------------------------------


def test_missing_road() -> None:
    # Truth: a T of three 30 px roads, too short for midpoints, so 4 nodes and 12 ordered pairs.
    # The proposal lacks the stem S: the 6 pairs with S differ by 1, the other 6 by 0.
    # Back: W, E and the midpoint of W-E (60 px has one, where the junction is) are all found.
    truth = roads([(0, 0), (30, 0)], [(30, 0), (60, 0)], [(30, 0), (30, 30)])
    proposal = roads([(0, 0), (60, 0)])
    assert length_scores(truth, proposal) == pytest.approx((0.5, 1, 2 / 3))
    assert length_scores(proposal, truth) == pytest.approx((1, 0.5, 2 / 3))


@pytest.mark.parametrize(
    ("length", "midpoints"),
    [(37.4, []), (37.5, [18.75]), (49.9, [24.95]), (50, [25]), (100, [100 / 3, 200 / 3])],
)
def test_midpoints(length: float, midpoints: list[float]) -> None:
    graph = build_graph(roads([(0, 0), (10, 0), (length, 0)]), 50)
    assert graph is not None
    assert graph.node_xy[2:, 0] == pytest.approx(midpoints)
    assert graph.nodes.offset[2:, 0] == pytest.approx(midpoints)


def test_chain_of_rows_is_one_edge() -> None:
    # 20 + 20 px: neither row has a midpoint alone, but both together have one where they meet.
    graph = build_graph(roads([(0, 0), (20, 0)], [(40, 0), (20, 0)]), 50)
    assert graph is not None
    assert graph.node_xy.tolist() == [[0, 0], [40, 0], [20, 0]]


@pytest.mark.parametrize(("gap", "expected"), [(3.9, 1), (4, 1), (4.1, 0)])
def test_snap_distance(gap: float, expected: float) -> None:
    truth, proposal = roads([(0, 0), (30, 0)]), roads([(0, gap), (30, gap)])
    assert length_scores(truth, proposal) == (expected, expected, expected)


def test_parallel_edges_take_the_shorter() -> None:
    # Between (0, 0) and (40, 0) a straight road of 40 px and a detour of 25 + 25 px, each with one
    # midpoint; stubs at both ends. 6 nodes, 30 pairs. The proposal lacks the detour: the 10 pairs
    # with its midpoint differ by 1; all others go by the straight road.
    truth = roads(
        [(-10, 0), (0, 0)], [(0, 0), (40, 0)], [(0, 0), (20, 15), (40, 0)], [(40, 0), (50, 0)]
    )
    proposal = roads([(-10, 0), (50, 0)])
    assert length_scores(truth, proposal) == pytest.approx((2 / 3, 1, 0.8))


def test_loop_at_the_end_of_a_road() -> None:
    # Truth: O(0,0) - J(20,0), where a loop of 80 px begins and ends, its midpoint at (40,20).
    # The proposal lacks the loop's last side: O to N(20,20), 80 px, midpoint (40,0).
    # There: O-J 20, J-M 40, O-M 60 px in both. Back: O-N is 80 px, but 20 + 20 by the missing
    # side: 1/2. O-mid and N-mid are 40 px in both. Mean of the three: 1/6.
    truth = roads([(0, 0), (20, 0)], [(20, 0), (40, 0), (40, 20), (20, 20), (20, 0)])
    proposal = roads([(0, 0), (20, 0), (40, 0), (40, 20), (20, 20)])
    assert length_scores(truth, proposal) == pytest.approx((1, 5 / 6, 10 / 11))


def test_ring_without_junction_keeps_its_nodes() -> None:
    # Truth: a square of 20 px sides, 4 nodes. The proposal lacks the side D-A: 60 px with one
    # midpoint. There: of 6 unordered pairs only D-A differs (20 against 60: capped at 1).
    # Back: A-D 60 against 20: 2/3; both to the midpoint 30 in both. Mean 2/9.
    square = [(0, 0), (20, 0), (20, 20), (0, 20)]
    truth, proposal = roads([*square, (0, 0)]), roads(square)
    assert length_scores(truth, proposal) == pytest.approx((5 / 6, 7 / 9, 70 / 87))
    assert length_scores(truth, truth) == (1, 1, 1)


def test_crossing_without_common_vertex_does_not_connect() -> None:
    # Truth: an overpass; routes W-E and N-S only. The proposal has a junction C there. There: 1.
    # Back: of 10 unordered pairs, 4 from one road to the other have no route, and C lies on one of
    # the two roads only, so 2 of its 4 have none either.
    overpass = roads([(0, 15), (30, 15)], [(15, 0), (15, 30)])
    crossing = roads([(0, 15), (15, 15), (30, 15)], [(15, 0), (15, 15), (15, 30)])
    assert length_scores(overpass, crossing) == pytest.approx((1, 0.4, 0.8 / 1.4))


def test_two_control_points_at_one_place() -> None:
    # Truth: a hairpin of 20 + 2 + 20 px, P(0,0) to Q(0,2), midpoint (20,1). The proposal is one
    # line between its legs: P and Q both land on (0,1). P-Q 42 against 0: 1; P-M and Q-M 21
    # against 20: 1/21 each.
    truth = roads([(0, 0), (20, 0), (20, 2), (0, 2)])
    proposal = roads([(-10, 1), (30, 1)])
    assert length_scores(truth, proposal)[0] == pytest.approx(1 - (1 + 2 / 21) / 3)


def test_coincident_midpoints_of_an_overpass_match_themselves() -> None:
    overpass = roads([(0, 30), (60, 30)], [(30, 0), (30, 60)])
    assert length_scores(overpass, overpass) == (1, 1, 1)


def test_time_is_spread_along_merged_rows() -> None:
    # One road of 60 px in 60 s, midpoint after 30 s; the proposal takes 10 s, then 50 s.
    # There: W-E equal, W-M 30 against 10: 2/3, M-E 30 against 50: 2/3. Mean 4/9.
    # Back: W-M 10 against 30: capped at 1, M-E 50 against 30: 2/5. Mean 7/15.
    truth = [road((0, 0), (60, 0), time=60)]
    proposal = [road((0, 0), (30, 0), time=10), road((30, 0), (60, 0), time=50)]
    score = apls(truth, proposal, metres_per_pixel=1)
    assert score.length.score == 1
    assert score.time is not None
    assert score.time.truth_to_proposal == pytest.approx(5 / 9)
    assert score.time.proposal_to_truth == pytest.approx(8 / 15)


def test_roads_without_duration_connect() -> None:
    # A to C takes 0 s + 5 s. The zero must count as a road, not as a gap.
    rows = [
        road((0, 0), (30, 0), time=0),
        road((30, 0), (60, 0), time=5),
        road((30, 0), (30, 30), time=5),
    ]
    score = apls(rows, rows, metres_per_pixel=1).time
    assert score is not None
    assert score.score == 1
    graph = build_graph(rows, 50)
    assert graph is not None
    assert np.isfinite(Ways(graph, graph.nodes, 1)[slice(0, 4), slice(0, 4)]).all()


def test_empty_maps() -> None:
    some = roads([(0, 0), (30, 0)])
    assert length_scores([], []) == (1, 1, 1)
    assert length_scores(some, []) == (0, 0, 0)
    assert length_scores([], some) == (0, 0, 0)
    # A line too short for a segment is no road.
    assert length_scores([], roads([(1, 1)], [(5, 5), (5, 5)])) == (1, 1, 1)


def test_vertices_in_one_cell_are_one_node() -> None:
    whole = roads([(0, 0), (30, 0)], [(30, 0), (60, 0)])
    joined = roads([(0, 0), (30, 0)], [(30.04, 0.04), (60, 0)])
    torn = roads([(0, 0), (30, 0)], [(30.2, 0), (60, 0)])
    assert length_scores(whole, joined)[0] == pytest.approx(1, abs=0.002)
    # W-E has no route any more, and the midpoint lies on one half only.
    assert length_scores(whole, torn)[0] == pytest.approx(1 / 3, abs=0.01)


def test_scale_moves_midpoints_and_snap() -> None:
    truth, proposal = roads([(0, 0), (100, 0)]), roads([(0, 10), (100, 10)])
    assert apls(truth, proposal).length.score == 1  # 10 px = 3.1 m
    assert apls(truth, proposal, metres_per_pixel=0.5).length.score == 0  # 5 m
    with pytest.raises(ValueError, match="positive"):
        apls(truth, proposal, metres_per_pixel=0)


def test_arrays_and_graphs_are_accepted() -> None:
    # The roads of test_missing_road.
    tee = [np.array(line) for line in ([(0, 0), (30, 0)], [(30, 0), (60, 0)], [(30, 0), (30, 30)])]
    score = apls(tee, [np.array([(0, 0), (60, 0)])], metres_per_pixel=1)
    assert score.length.score == pytest.approx(2 / 3)
    assert score.time is None
    nodes = np.array([(0, 0), (30, 0), (60, 0), (30, 30)], np.float64)
    edges = [
        RoadEdge((0, 1), nodes[[0, 1]], 30, 10, 1), RoadEdge((1, 2), nodes[[1, 2]], 30, 10, 1),
        RoadEdge((1, 3), nodes[[1, 3]], 30, 10, 1),
    ]  # fmt: skip
    graphs = RoadGraph(nodes, tuple(edges)), RoadGraph(nodes, tuple(edges[:2]))
    score = apls(*graphs, metres_per_pixel=1)
    assert score.time is not None
    assert score.length.score == pytest.approx(2 / 3)
    assert score.time.score == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([road((0, 0), (9, 9), time=-1)], "travel time"),
        ([road((0, 0), (math.nan, 9))], "not finite"),
        ([RoadRow(np.zeros((2, 3)), 1, 1)], "shape"),
    ],
)
def test_invalid_roads_are_refused(rows: list[RoadRow], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apls(rows, rows)


def test_memory_for_a_long_road_is_not_quadratic() -> None:
    # 310 km with 6,199 midpoints; memory must not grow with their square.
    far = roads([(0, 0), (1e6, 0)])
    tracemalloc.start()
    try:
        assert apls(far, far).length.score == 1
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


# --- files ----------------------------------------------------------------------------------------


def test_report_counts_images_and_areas() -> None:
    # Moscow: chip2 perfect, chip10 half (test_missing_road), chip3 only in the truth.
    # Paris: only in the proposal, so an area without a scored image: 0 in both averages.
    tee = roads([(0, 0), (30, 0)], [(30, 0), (60, 0)], [(30, 0), (30, 30)])
    bar = roads([(0, 0), (60, 0)])
    moscow, paris = "AOI_7_Moscow", "AOI_3_Paris"
    truth = {f"{moscow}_chip10": tee, f"{moscow}_chip2": bar, f"{moscow}_chip3": bar}
    proposal = {f"{moscow}_chip10": bar, f"{moscow}_chip2": bar, f"{paris}_chip0": bar}
    report = score_roads(truth, proposal, metres_per_pixel=1)
    assert list(report.images) == [f"{moscow}_chip2", f"{moscow}_chip10"]
    assert report.truth_only == (f"{moscow}_chip3",)
    assert report.proposal_only == (f"{paris}_chip0",)
    assert report.aois[moscow]["apls_length"] == pytest.approx(5 / 6)
    assert report.aois[moscow]["fair_apls_length"] == pytest.approx(5 / 9)
    assert report.aois[paris]["apls_length"] == 0
    assert report.total["apls_length"] == pytest.approx(5 / 12)
    assert report.total["fair_apls_length"] == pytest.approx(5 / 18)
    assert report.total["images"] == 2


def test_report_as_json() -> None:
    rows = {"AOI_7_Moscow_chip0": roads([(0, 0), (60, 0)]), "AOI_7_Moscow_chip1": []}
    report = json.loads(json.dumps(score_roads(rows, rows).to_json()))
    assert report["metric"] == "apls"
    figures = {
        "apls_length": 1.0,
        "truth_to_proposal_length": 1.0,
        "proposal_to_truth_length": 1.0,
        "apls_time": None,
        "truth_to_proposal_time": None,
        "proposal_to_truth_time": None,
    }
    assert report["images"] == dict.fromkeys(rows, figures)
    total = {**figures, "fair_apls_length": 1.0, "fair_apls_time": None, "images": 2}
    assert report["total"] == total
    assert report["aois"] == {"AOI_7_Moscow": total}
    assert report["truth_only"] == report["proposal_only"] == []

    with_times = {image_id: timed(record) for image_id, record in rows.items()}
    assert score_roads(with_times, with_times).total == {
        **dict.fromkeys(figures, 1.0), "fair_apls_length": 1.0, "fair_apls_time": 1.0, "images": 2,
    }  # fmt: skip


def test_report_without_images() -> None:
    report = score_roads({}, {})
    assert report.total["images"] == 0
    assert report.total["apls_length"] == 0


@needs_fixtures
@pytest.mark.parametrize(
    ("truth", "proposal", "expected", "tolerance"),
    [
        ("vegas_img0_truth", "sn3_sample_submission_albu", (0.803, 0.771, 0.786), 6e-4),
        ("deepglobe_truth", "deepglobe_proposal", (0.989, 0.983, 0.98627), 6e-4),
    ],
)
def test_official_scores(
    truth: str, proposal: str, expected: tuple[float, float, float], tolerance: float
) -> None:
    report = score_roads(
        read_roads_csv(FIXTURES / f"{truth}.csv"), read_roads_csv(FIXTURES / f"{proposal}.csv")
    )
    names = ("truth_to_proposal", "proposal_to_truth", "apls")
    measured = tuple(report.total[f"{name}_length"] for name in names)
    assert measured == pytest.approx(expected, abs=tolerance)


@needs_fixtures
def test_official_scores_of_synthetic_cities() -> None:
    truth = read_roads_csv(FIXTURES / "made_truth.csv")
    report = score_roads(truth, read_roads_csv(FIXTURES / "made_proposal.csv"))
    with (FIXTURES / "made_expected.csv").open(newline="") as file:
        for expected in csv.DictReader(file):
            figures = report.images[expected["ImageId"]]
            names = ("truth_to_proposal", "proposal_to_truth", "apls")
            measured = [figures[f"{name}_length"] for name in names]
            # The table has three decimals; chip7 lies on a rounding boundary.
            assert measured == pytest.approx([float(expected[n]) for n in names], abs=6e-4)
    assert score_roads(truth, truth).total["apls_length"] == 1


# --- properties -----------------------------------------------------------------------------------

# A coarse grid makes junctions, repeated segments and rings likely; fractions make near misses.
coordinates = st.integers(0, 5).map(lambda i: 60.0 * i) | st.floats(0, 300)
lines = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=6)
road_maps = st.lists(lines, max_size=6).map(lambda drawn: roads(*drawn))


@settings(max_examples=60, deadline=None)
@given(truth=road_maps, proposal=road_maps, seed=st.integers(0, 99))
def test_order_and_direction_of_rows_do_not_matter(
    truth: list[RoadRow], proposal: list[RoadRow], seed: int
) -> None:
    shuffle = random.Random(seed)

    def shuffled(rows: Sequence[RoadRow]) -> list[RoadRow]:
        turned = [
            RoadRow(row.line[:: shuffle.choice((1, -1))], row.length_m, row.travel_time_s)
            for row in rows
        ]
        return shuffle.sample(turned, len(turned))

    assert apls(truth, proposal) == apls(shuffled(truth), shuffled(proposal))


@settings(max_examples=60, deadline=None)
@given(truth=road_maps, proposal=road_maps)
def test_scores_are_shares_and_time_follows_length(
    truth: list[RoadRow], proposal: list[RoadRow]
) -> None:
    score: AplsScore = apls(timed(truth), timed(proposal))
    route = score.length
    swapped = apls(timed(proposal), timed(truth)).length
    assert all(0 <= s <= 1 for s in (route.truth_to_proposal, route.proposal_to_truth, route.score))
    assert (route.truth_to_proposal, route.score) == (swapped.proposal_to_truth, swapped.score)
    assert score.time is not None
    assert score.time.score == pytest.approx(route.score, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(truth=road_maps)
def test_a_map_compared_with_itself_scores_one(truth: list[RoadRow]) -> None:
    assert apls(truth, truth).length.score == 1


@settings(max_examples=30, deadline=None)
@given(truth=road_maps, seed=st.integers(0, 99))
def test_distances_equal_those_of_a_graph_with_the_nodes_inserted(
    truth: list[RoadRow], seed: int
) -> None:
    # Alternative computation: split the edges at the positions and run Floyd-Warshall.
    graph = build_graph(truth, 50 / 0.31)
    if graph is None:
        return
    positions = graph.nodes
    size, count = graph.junctions, len(positions.edge)
    table = np.full((size + count, size + count), np.inf)
    np.fill_diagonal(table, 0)

    def connect(a: int, b: int, way: float) -> None:
        table[a, b] = table[b, a] = min(table[a, b], way)

    for edge, (u, v) in enumerate(graph.ends):
        here = np.flatnonzero(positions.edge == edge).tolist()
        inner = sorted((float(positions.offset[i, 0]), size + i) for i in here)
        stops = [(0.0, int(u)), *inner, (float(graph.totals[edge, 0]), int(v))]
        for (from_offset, a), (to_offset, b) in itertools.pairwise(stops):
            connect(a, b, to_offset - from_offset)
    for k in range(size + count):
        table = np.minimum(table, table[:, k, None] + table[k])
    measured = Ways(graph, positions, 0)[slice(0, count), slice(0, count)]
    np.testing.assert_allclose(measured, table[size:, size:], atol=1e-9)


# --- against the plain implementation -----------------------------------------------------------


def city_chip(seed: int, columns: int = 5) -> list[RoadRow]:
    """Return the streets of a wavy grid, some missing, each with its own speed."""
    rng = np.random.default_rng(seed)
    nodes = np.stack(np.meshgrid(np.arange(columns), np.arange(columns)), axis=-1) * 170.0
    nodes += rng.uniform(-50, 50, nodes.shape)
    streets = []
    for a, b in itertools.chain(
        itertools.product(np.ndindex(columns, columns - 1), [(0, 1)]),
        itertools.product(np.ndindex(columns - 1, columns), [(1, 0)]),
    ):
        start, stop = nodes[a], nodes[a[0] + b[0], a[1] + b[1]]
        if rng.random() < 0.2:
            continue
        bend = (start + stop) / 2 + rng.uniform(-15, 15, 2)
        # The 0.1 px grid on which both implementations see the same nodes.
        line = np.round([start, bend, stop], 1)
        way = float(np.hypot(*np.diff(line, axis=0).T).sum())
        streets.append(RoadRow(line, math.nan, way * rng.uniform(0.02, 0.1)))
    return streets


def redrawn(streets: Sequence[RoadRow], seed: int) -> list[RoadRow]:
    """Return the streets as another annotator might draw them: moved, some missing, other times."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, 2)
    drawn = []
    for street in streets:
        if rng.random() < 0.1:
            continue
        line = np.round(street.line + 5 * np.sin(street.line[:, ::-1] / 60 + phase), 1)
        drawn.append(RoadRow(line, math.nan, street.travel_time_s * rng.uniform(0.6, 1.6)))
    return drawn


def plain(rows: Sequence[RoadRow]) -> list[Road]:
    """Convert the rows to the input of the plain implementation."""
    return [([(x, y) for x, y in row.line.tolist()], row.travel_time_s) for row in rows]


def assert_plain_agrees(truth: Sequence[RoadRow], proposal: Sequence[RoadRow]) -> None:
    score = apls(truth, proposal)
    assert score.time is not None
    for weight, route in (("length", score.length), ("time", score.time)):
        measured = (route.truth_to_proposal, route.proposal_to_truth, route.score)
        expected = plain_apls(plain(truth), plain(proposal), METRES_PER_PIXEL, weight)
        # The plain implementation moves a control point onto an earlier one within 0.1 px.
        assert measured == pytest.approx(expected, abs=3e-5)


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_plain_implementation(seed: int) -> None:
    truth = city_chip(seed)
    assert_plain_agrees(truth, redrawn(truth, seed + 100))
    assert_plain_agrees(truth, redrawn(city_chip(seed + 1), seed))


def test_a_city_of_several_tiles_equals_the_plain_implementation() -> None:
    truth = city_chip(7, columns=16)
    proposal = redrawn(truth, 8)
    graph = build_graph(truth, MIDPOINT_M / METRES_PER_PIXEL)
    assert graph is not None
    # Distances are computed in squares of as many nodes.
    assert len(graph.node_xy) > 2 * _TILE
    assert_plain_agrees(truth, proposal)


def test_duplicate_rows() -> None:
    # A duplicate road makes two parallel edges. Its end at (60, 0) has two edges, and only the rule
    # for rings keeps it. Nodes and routes are those of a single road.
    once = roads([(0, 0), (60, 0)], [(60, 0), (60, 60)], [(60, 0), (120, 0)])
    twice = [*once, *roads([(60, 0), (0, 0)])]
    assert length_scores(once, twice)[0] == 1
    expected = plain_apls(plain(timed(twice)), plain(timed(once)), 1, "length")
    assert length_scores(twice, once) == pytest.approx(expected)


@pytest.mark.parametrize("weights", [1, 2])
@pytest.mark.parametrize("nodes", [30, 260])
def test_shortest_paths(nodes: int, weights: int) -> None:
    # Sizes below and above the switch between algorithms; with loops, parallel edges, edges of
    # length 0 and isolated nodes.
    rng = np.random.default_rng(nodes)
    ends = rng.integers(0, nodes - 5, (int(nodes * 1.4), 2))
    ends = np.concatenate([ends, ends[:7, ::-1], [[3, 3]]])
    costs = rng.uniform(0, 9, (len(ends), weights)) * (rng.random((len(ends), weights)) < 0.95)
    expected = np.full((weights, nodes, nodes), np.inf)
    for (u, v), cost in zip(ends.tolist(), costs, strict=True):
        expected[:, u, v] = expected[:, v, u] = np.minimum(expected[:, u, v], cost)
    expected[:, np.arange(nodes), np.arange(nodes)] = 0
    for k in range(nodes):
        expected = np.minimum(expected, expected[:, :, k, None] + expected[:, k, None])
    measured = all_pairs(ends.astype(np.int64), costs, nodes)
    np.testing.assert_allclose(measured, expected, rtol=1e-12)
    assert np.isinf(measured).any()


# --- invariances --------------------------------------------------------------------------------

seeds = st.integers(0, 10_000)


def scores(truth: Sequence[RoadRow], proposal: Sequence[RoadRow]) -> tuple[float, ...]:
    score = apls(truth, proposal)
    assert score.time is not None
    routes = (score.length, score.time)
    return tuple(x for r in routes for x in (r.truth_to_proposal, r.proposal_to_truth, r.score))


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_splitting_roads_at_vertices_changes_nothing(seed: int) -> None:
    truth = city_chip(seed)
    proposal = redrawn(truth, seed)
    rng = np.random.default_rng(seed)

    def split(rows: Sequence[RoadRow]) -> list[RoadRow]:
        pieces = []
        for row in rows:
            ways = np.append(0, np.cumsum(np.hypot(*np.diff(row.line, axis=0).T)))
            cut = int(rng.integers(1, len(row.line) - 1))
            share = float(ways[cut] / ways[-1])
            pieces.append(RoadRow(row.line[: cut + 1], math.nan, row.travel_time_s * share))
            pieces.append(RoadRow(row.line[cut:], math.nan, row.travel_time_s * (1 - share)))
        return pieces

    expected = scores(truth, proposal)
    assert scores(split(truth), proposal) == pytest.approx(expected, abs=1e-9)
    assert scores(truth, split(proposal)) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, degrees=st.floats(0, 360), x=st.floats(-500, 500), y=st.floats(-500, 500))
def test_rotating_and_shifting_changes_nothing(
    seed: int, degrees: float, x: float, y: float
) -> None:
    truth = city_chip(seed)
    proposal = redrawn(truth, seed)
    turn = math.radians(degrees)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])

    def moved(rows: Sequence[RoadRow]) -> list[RoadRow]:
        return [RoadRow(r.line @ matrix.T + (x, y), math.nan, r.travel_time_s) for r in rows]

    assert scores(moved(truth), moved(proposal)) == pytest.approx(scores(truth, proposal), abs=1e-6)
