import itertools
import math
from collections.abc import Sequence

import networkx
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from satmap.evaluation.metrics import turns
from satmap.evaluation.metrics.apls_graph import LENGTH, AplsGraph, build_graph
from satmap.evaluation.metrics.turns import TurnScore, check_turns, score_turns
from satmap.submissions.roads_csv import RoadRow

Point = tuple[float, float]


def road(*points: Point) -> RoadRow:
    return RoadRow(np.array(points, np.float64), math.nan, math.nan)


@pytest.fixture(autouse=True)
def _all_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all routes of small maps, so that their number can be computed by hand."""
    monkeypatch.setattr(turns, "_STARTS", 10_000)
    monkeypatch.setattr(turns, "_GOALS", 10_000)


def score(truth: Sequence[RoadRow], proposal: Sequence[RoadRow]) -> TurnScore:
    return score_turns(truth, proposal, metres_per_pixel=1)


# --- computed by hand, 1 m per pixel --------------------------------------------------------------

# Each road of 100 m has 10 nodes between its ends: 12 * 11 routes.
OVERPASS = [road((0, 50), (100, 50)), road((50, 0), (50, 100))]
# Each arm of 50 m has 5 nodes and its end, and there is the junction: 25 * 24 routes.
ARMS = [road((50, 50), end) for end in ((0, 50), (100, 50), (50, 0), (50, 100))]


def test_a_map_follows_itself() -> None:
    assert score(OVERPASS, OVERPASS) == TurnScore(264, 0, 264, 0, 0)
    assert score(ARMS, ARMS) == TurnScore(600, 0, 600, 0, 0)


def test_an_overpass_joined_to_a_junction_has_false_turns() -> None:
    # From each of 12 places of one road to each of 12 of the other, and back.
    assert score(OVERPASS, ARMS) == TurnScore(600, 288, 264, 0, 0)
    figures = score(OVERPASS, ARMS).figures()
    assert (figures["false_turns"], figures["missed_turns"]) == (0.48, 0)
    assert figures["false_turn_rate"] == 0.24


def test_a_junction_taken_apart_has_missed_turns() -> None:
    assert score(ARMS, OVERPASS) == TurnScore(264, 0, 600, 288, 288)


def test_a_missing_road_is_no_missed_turn() -> None:
    assert score(OVERPASS, OVERPASS[:1]) == TurnScore(132, 0, 264, 0, 132)
    # Without an arm, the routes between the other 19 places are left.
    assert score(ARMS, ARMS[1:]) == TurnScore(342, 0, 600, 0, 600 - 342)


def test_a_false_road_has_no_false_turns() -> None:
    assert score(OVERPASS[:1], OVERPASS) == TurnScore(264, 0, 132, 0, 0)
    assert score(ARMS[1:], ARMS) == TurnScore(600, 0, 342, 0, 0)


def test_empty_maps() -> None:
    assert score([], []) == TurnScore()
    assert score([], ARMS) == TurnScore(600, 0, 0, 0, 0)
    assert score(ARMS, []) == TurnScore(0, 0, 600, 0, 600)
    figures = score(ARMS, []).figures()
    assert figures["false_turns"] is figures["false_turn_rate"] is None
    assert figures["lost_routes"] == 1
    dot = [road((5, 5), (5, 5)), road((1, 1))]
    assert score(dot, dot) == TurnScore()


@pytest.mark.parametrize(("gap", "missed"), [(6, True), (20, False)])
def test_a_gap_is_a_missed_turn_only_if_no_place_is_missing(gap: float, missed: bool) -> None:
    whole = [road((0, 0), (200, 0))]
    broken = [road((0, 0), (100 - gap / 2, 0)), road((100 + gap / 2, 0), (200, 0))]
    result = score(whole, broken)
    assert (result.missed_turns > 0) == missed
    assert result.lost > 0
    # Whoever stays on one side arrives.
    assert result.lost < result.true
    assert score(broken, whole).false_turns == (result.missed_turns if missed else 0)


def test_bends_that_touch_instead_of_an_overpass_are_false_turns() -> None:
    bends = [
        road((0, 50), (48, 50), (50, 48), (50, 0)),
        road((100, 50), (52, 50), (50, 52), (50, 100)),
    ]
    result = score(OVERPASS, bends)
    assert result.false_turns > result.proposed / 3
    assert result.missed_turns > result.true / 3
    assert result.lost == result.missed_turns


def test_the_ramps_of_a_cloverleaf_do_not_excuse_a_turn_at_the_crossing() -> None:
    ends = (-200, 0), (200, 0), (0, -200), (0, 200)
    ramps = [road((60 * i, 0), (60 * i, 60 * j), (0, 60 * j)) for i in (-1, 1) for j in (-1, 1)]
    main = [
        road((-200, 0), (-60, 0), (60, 0), (200, 0)),
        road((0, -200), (0, -60), (0, 60), (0, 200)),
    ]
    joined = [road((0, 0), (end[0] * 0.3, end[1] * 0.3), end) for end in ends]
    assert score([*main, *ramps], [*main, *ramps]).figures()["false_turn_rate"] == 0
    result = score([*main, *ramps], [*joined, *ramps])
    assert result.missed_turns == result.lost == 0
    assert 0.05 < result.false_turns / result.proposed < 0.9
    # Without the ramps, routes that take them are lost, but no wrong connection is.
    without = score([*main, *ramps], main)
    assert without.false_turns == without.missed_turns == 0
    assert without.lost > 0


def test_parallel_decks_are_not_mistaken_for_each_other() -> None:
    decks = [road((0, 0), (300, 0)), road((0, 3), (300, 3))]
    shifted = [RoadRow(row.line + np.array((0, 2)), math.nan, math.nan) for row in decks]
    assert score(decks, shifted).figures()["false_turn_rate"] == 0
    stacked = [road((0, 0), (300, 0)), road((10, 0), (290, 0))]
    assert score(stacked, decks).figures()["false_turn_rate"] == 0


def test_three_levels() -> None:
    three = [*OVERPASS, road((0, 0), (100, 100))]
    joined = [*ARMS, road((0, 0), (50, 50)), road((50, 50), (100, 100))]
    assert score(three, three).figures()["false_turn_rate"] == 0
    assert score(three, joined).false_turns > score(three, joined).proposed / 3
    # Only two of the roads meet.
    assert score(three, [*ARMS, three[2]]).false_turns == 288


def test_moved_junctions_and_roads_are_tolerated() -> None:
    moved = [RoadRow(row.line + np.array((2, 2)), math.nan, math.nan) for row in ARMS]
    assert score(ARMS, moved).figures()["false_turn_rate"] == 0
    # A junction of four arms as two of three, 5 m apart.
    offset = [
        road((50, 0), (50, 50), (50, 100)), road((50, 47.5), (0, 47.5)),
        road((50, 52.5), (100, 52.5)), road((50, 47.5), (50, 52.5)),
    ]  # fmt: skip
    offset[0] = road((50, 0), (50, 47.5))
    offset.append(road((50, 52.5), (50, 100)))
    assert score(ARMS, offset).figures()["false_turn_rate"] == 0


def test_routes_end_after_500_m() -> None:
    # A start has as many goals as nodes follow within 500 m, on either side.
    long = [road((0, 0), (1000, 0))]
    nodes = 1 + 1000 // 10 + 1
    spacing = 1000 / (nodes - 1)
    steps = int(500 / spacing)
    expected = 2 * sum(nodes - step for step in range(1, steps + 1))
    assert score(long, long).proposed == expected


def test_the_places_of_false_turns_are_at_the_crossing() -> None:
    false, missed = check_turns(OVERPASS, ARMS, 1)
    assert len(missed.places) == 0
    assert len(false.places) > 0
    assert np.abs(false.places - 50).max() < 30


def test_the_sample_of_routes_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_STARTS", 10)
    monkeypatch.setattr(turns, "_GOALS", 3)
    first = score(OVERPASS, ARMS)
    assert first == score(OVERPASS, ARMS)
    assert first.proposed == 30
    assert 5 < first.false_turns < 25
    assert sum([first, first], TurnScore()) == TurnScore(60, 2 * first.false_turns, 60, 0, 0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="metres_per_pixel"):
        score_turns(ARMS, ARMS, metres_per_pixel=0)


# --- against a plain implementation ---------------------------------------------------------------

Node = int | tuple[str, int, int]


def plain_graph(graph: AplsGraph, extra: Sequence[Point] = ()) -> "networkx.Graph[Node]":
    """Return the roads as a networkx graph: nodes, and ``("at", k, segment)`` for extra points.

    These are the places nearest to point k on every segment within 4 m.
    """
    found: networkx.Graph[Node] = networkx.Graph()
    for edge, (u, v) in enumerate(graph.ends.tolist()):
        total = float(graph.totals[edge, LENGTH])
        on: list[tuple[float, Node]] = [(0, u), (total, v)]
        on += [
            (float(graph.nodes.offset[node, LENGTH]), node)
            for node in np.flatnonzero(graph.nodes.edge == edge).tolist()
            if node >= graph.junctions
        ]
        for segment in np.flatnonzero(graph.segment_edge == edge).tolist():
            line = shapely.LineString([graph.starts[segment], graph.stops[segment]])
            for k, point in enumerate(extra):
                if line.distance(shapely.Point(point)) <= 4:
                    way = float(graph.segment_offset[segment, LENGTH])
                    on.append((way + line.project(shapely.Point(point)), ("at", k, segment)))
        on.sort(key=lambda each: (each[0], each[1] == v))
        for (start, one), (stop, other) in itertools.pairwise(on):
            known = found.get_edge_data(one, other, {"weight": math.inf})["weight"]
            found.add_edge(one, other, weight=min(stop - start, known))
    return found


def plain_check(a: Sequence[RoadRow], b: Sequence[RoadRow]) -> tuple[int, int, int]:
    """Return the routes of ``a``, those with a wrong connection in ``b`` and those lost."""
    graph, other = build_graph(a, 10), build_graph(b, 10)
    assert graph is not None
    assert other is not None
    points = [(float(x), float(y)) for x, y in graph.node_xy]
    there = plain_graph(other, points)
    places: dict[int, list[Node]] = {k: [] for k in range(len(points))}
    for node in there:
        if isinstance(node, tuple):
            places[node[1]].append(node)
    ways: dict[Node, dict[Node, float]] = {
        node: networkx.single_source_dijkstra_path_length(there, node, cutoff=80)
        for node in there
        if isinstance(node, tuple)
    }
    routes = wrong = lost = 0
    here = plain_graph(graph)
    for start in here:
        lengths, paths = networkx.single_source_dijkstra(here, start, cutoff=500)
        for goal, path in paths.items():
            if not lengths[goal]:
                continue
            along = [lengths[node] for node in path]
            is_wrong = False
            for first in range(len(path)):
                rest = [k for k in range(first, len(path)) if along[k] - along[first] >= 40 - 1e-6]
                if rest or not first:
                    last = rest[0] if rest else len(path) - 1
                    limit = 1.2 * (along[last] - along[first]) + 8
                    if all(places[node] for node in path[first : last + 1]) and not any(
                        ways[one].get(two, math.inf) <= limit
                        for one in places[path[first]]
                        for two in places[path[last]]
                    ):
                        is_wrong = True
            routes += 1
            wrong += is_wrong
            lost += is_wrong or not all(places[node] for node in path)
    return routes, wrong, lost


def network(random: np.random.Generator, size: int = 4) -> list[RoadRow]:
    """Return a grid of about 30 m, distorted, without some roads and with some crossings."""
    grid = np.stack(np.meshgrid(range(size), range(size)), axis=-1) * 30.0
    grid += random.uniform(-8, 8, grid.shape)
    rows = []
    for i, j in np.ndindex(size, size):
        for down, right in ((0, 1), (1, 0), (1, 1)):
            inside = i + down < size and j + right < size
            if inside and random.random() < (0.25 if down and right else 0.8):
                rows.append(road(tuple(grid[i, j]), tuple(grid[i + down, j + right])))
    return rows


def loosened(rows: Sequence[RoadRow], random: np.random.Generator) -> list[RoadRow]:
    """Return most of the roads, some of them moved by up to 3 m at each end, so off their nodes."""
    return [
        RoadRow(
            row.line + random.uniform(-3, 3, (2, 2)) * (random.random() < 0.2), math.nan, math.nan
        )
        for row in rows
        if random.random() < 0.95
    ]


# Around a ring, as with seed 0 or 5, some routes have two shortest ways.
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 6, 7, 8, 9])
def test_routes_equal_a_plain_implementation(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = network(random)
    truth, proposal = loosened(rows, random), loosened(rows, random)
    result = score(truth, proposal)
    assert (result.proposed, result.false_turns) == plain_check(proposal, truth)[:2]
    assert (result.true, result.missed_turns, result.lost) == plain_check(truth, proposal)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32 - 1))
def test_the_order_and_direction_of_rows_do_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = network(random, 3)
    other = [
        RoadRow(row.line[:: int(random.choice((-1, 1)))], math.nan, math.nan)
        for row in random.permutation(np.array(rows, object)).tolist()
    ]
    result = score(rows, other)
    assert result == TurnScore(result.true, 0, result.true, 0, 0)
    thinned = rows[::2]
    assert score(rows, thinned) == score(other, thinned)
