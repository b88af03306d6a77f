import itertools
import math
from collections.abc import Sequence

import networkx
import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from satmap.evaluation.metrics.crossings import (
    ANGLE_DEG,
    PLACE_M,
    Crossings,
    CrossingScore,
    find_crossings,
    match_crossings,
    score_crossings,
)
from satmap.submissions.roads_csv import RoadRow
from satmap.vectors.levels import road_level

Point = tuple[float, float]


def road(*points: Point, level: float = 0) -> RoadRow:
    return RoadRow(np.array(points, np.float64), math.nan, math.nan, level)


def counts(truth: Sequence[RoadRow], proposal: Sequence[RoadRow]) -> tuple[int, int, int]:
    """Return found, missed and false crossings at 1 m per pixel."""
    score = score_crossings(truth, proposal, metres_per_pixel=1)
    return score.found, score.missed, score.false


def order(truth: Sequence[RoadRow], proposal: Sequence[RoadRow]) -> tuple[int, int]:
    """Return how many found crossings have a known order, and how many the right one."""
    score = score_crossings(truth, proposal, metres_per_pixel=1)
    return score.ordered, score.order_right


ACROSS, DOWN = road((0, 50), (100, 50)), road((50, 0), (50, 100))
OVERPASS = [ACROSS, DOWN]
JUNCTION = [road((0, 50), (50, 50)), road((50, 50), (100, 50)), road((50, 0), (50, 50), (50, 100))]

# --- places ---------------------------------------------------------------------------------------


def test_an_overpass_is_a_crossing_and_a_junction_is_none() -> None:
    found = find_crossings(OVERPASS, 1)
    assert found.xy.tolist() == [[50, 50]]
    assert found.directions.tolist() == [[0, pytest.approx(math.pi / 2)]]
    assert counts(OVERPASS, OVERPASS) == (1, 0, 0)
    assert counts(OVERPASS, JUNCTION) == (0, 1, 0)
    assert counts(JUNCTION, OVERPASS) == (0, 0, 1)


def test_empty_maps() -> None:
    assert counts([], []) == (0, 0, 0)
    assert counts(OVERPASS, []) == (0, 1, 0)
    assert counts([], OVERPASS) == (0, 0, 1)
    figures = CrossingScore().figures()
    assert figures["crossings_f1"] is figures["crossings_precision"] is None
    assert CrossingScore(missed=1).figures()["crossings_f1"] == 0


@pytest.mark.parametrize(
    "other",
    [
        # A T-junction with and without a vertex in common, and one that falls short.
        road((50, 0), (50, 50)),
        road((50, 0), (50, 49.5)),
        # Corners that touch, by a vertex and within the rounding error.
        road((0, 0), (50, 50), (100, 0)),
        road((0, 0), (50, 50 + 1e-9), (100, 0)),
        # Roads on top of each other, and roads that cross twice within 10 m.
        road((0, 50), (100, 50)),
        road((20, 50), (80, 50)),
        road((0, 45), (45, 49), (50, 51), (55, 49), (100, 45)),
        # Parallel decks.
        road((0, 53), (100, 53)),
    ],
)
def test_roads_that_touch_do_not_cross(other: RoadRow) -> None:
    assert len(find_crossings([ACROSS, other], 1).xy) == 0


def test_a_vertex_on_the_other_road_crosses_once() -> None:
    for other in (
        road((50, 0), (50, 50), (50, 100)),
        road((20, 0), (50, 50), (50, 100)),
        road((50, 0), (50, 50 - 1e-9), (60, 60), (60, 100)),
    ):
        found = find_crossings([ACROSS, other], 1)
        assert len(found.xy) == 1
        assert not found.borderline.any()


def test_a_road_may_cross_twice_and_itself() -> None:
    twice = road((20, 0), (20, 80), (70, 80), (70, 0))
    assert find_crossings([ACROSS, twice], 1).xy.tolist() == [[20, 50], [70, 50]]
    spiral = road((0, 0), (100, 0), (100, 60), (50, 60), (50, -60))
    assert find_crossings([spiral], 1).xy.tolist() == [[50, 0]]
    curl = road((0, 0), (100, 0), (100, 1), (99, 1), (99, -50))
    assert len(find_crossings([curl], 1).xy) == 0


def test_a_junction_drawn_badly_is_no_crossing() -> None:
    # Both roads share a vertex 3 m further on: whoever arrives at the crossing can turn.
    other = road((47, 0), (47, 47), (53, 50))
    assert len(find_crossings([road((0, 49), (53, 50), (100, 50)), other], 1).xy) == 0


def test_a_cloverleaf_has_one_crossing() -> None:
    main = [
        road((-200, 0), (-60, 0), (60, 0), (200, 0)),
        road((0, -200), (0, -60), (0, 60), (0, 200)),
    ]
    loops = [road((60 * i, 0), (60 * i, 60 * j), (0, 60 * j)) for i in (-1, 1) for j in (-1, 1)]
    assert counts([*main, *loops], [*main, *loops]) == (1, 0, 0)


def test_three_levels_cross_in_three_pairs() -> None:
    three = [
        road((0, 0), (100, 0), level=0),
        road((50, -50), (50, 50), level=1),
        road((0, -50), (100, 50), level=2),
    ]
    assert counts(three, three) == (3, 0, 0)
    assert order(three, three) == (3, 3)
    swapped = [three[0], road((50, -50), (50, 50), level=2), road((0, -50), (100, 50), level=1)]
    assert order(three, swapped) == (3, 2)
    assert counts(three, three[:2]) == (1, 2, 0)


# --- borders --------------------------------------------------------------------------------------


def test_a_crossing_on_the_border_of_a_chip_does_not_count() -> None:
    # The chip ends at x = 50: one road ends at the other, or both end in the same place.
    for cut in (
        [road((0, 50), (50, 50)), DOWN],
        [road((0, 50), (50, 50)), road((20, 0), (50, 50))],
        [road((0, 50), (51, 50)), DOWN],
    ):
        assert counts(cut, cut) == (0, 0, 0)
        assert counts(cut, []) == counts([], cut) == (0, 0, 0)


def test_a_borderline_crossing_may_be_matched() -> None:
    near_end = [road((0, 50), (53, 50)), DOWN]
    assert find_crossings(near_end, 1).borderline.all()
    assert counts(near_end, []) == (0, 0, 0)
    assert counts(near_end, OVERPASS) == counts(OVERPASS, near_end) == (1, 0, 0)
    # The road goes on behind a junction, so it does not end.
    on = [*near_end, road((53, 50), (100, 20)), road((53, 50), (100, 80))]
    assert not find_crossings(on, 1).borderline.any()


def test_roads_at_a_small_angle_are_borderline() -> None:
    for degrees, borderline in ((10, True), (20, False)):
        rise = 50 * math.tan(math.radians(degrees))
        found = find_crossings([ACROSS, road((0, 50 - rise), (100, 50 + rise))], 1)
        assert found.borderline.tolist() == [borderline]


# --- matching -------------------------------------------------------------------------------------


def moved(rows: Sequence[RoadRow], x: float, y: float = 0) -> list[RoadRow]:
    return [RoadRow(row.line + np.array((x, y)), math.nan, math.nan, row.level) for row in rows]


def test_places_match_within_10_m() -> None:
    assert counts(OVERPASS, moved(OVERPASS, 9)) == (1, 0, 0)
    assert counts(OVERPASS, moved(OVERPASS, 11)) == (0, 1, 1)
    # The tolerance is in metres.
    score = score_crossings(OVERPASS, moved(OVERPASS, 11), metres_per_pixel=0.5)
    assert score.found == 1


@pytest.mark.parametrize(("degrees", "found"), [(25, 1), (35, 0), (65, 1), (90, 1), (180, 1)])
def test_both_directions_must_match(degrees: float, found: int) -> None:
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = [RoadRow((row.line - 50) @ turn + 50, math.nan, math.nan) for row in OVERPASS]
    assert counts(OVERPASS, turned) == (found, 1 - found, 1 - found)


def test_carriageways_match_one_to_one() -> None:
    dual = [ACROSS, *moved([ACROSS], 0, 8), DOWN, *moved([DOWN], 8)]
    assert counts(dual, dual) == (4, 0, 0)
    assert counts(dual, OVERPASS) == (1, 3, 0)
    # Shifted by 4 m, each crossing has four candidates.
    assert counts(dual, moved(dual, 4, 4)) == (4, 0, 0)


@st.composite
def crossings(draw: st.DrawFn) -> Crossings:
    size = draw(st.integers(0, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Crossings(
        random.uniform(0, 25, (size, 2)),
        random.uniform(0, math.pi, (size, 2)) % draw(st.sampled_from((0.8, 1.6, math.pi))),
        random.integers(-1, 2, size),
        random.random(size) < 0.3,
    )


@settings(deadline=None)
@given(crossings(), crossings())
def test_matches_equal_the_best_of_all_assignments(truth: Crossings, proposal: Crossings) -> None:
    def cost(t: int, p: int) -> float | None:
        distance = math.dist(truth.xy[t], proposal.xy[p])
        ways = []
        for swap in ([0, 1], [1, 0]):
            turn = np.abs(truth.directions[t] - proposal.directions[p][swap])
            ways.append(np.degrees(np.minimum(turn, math.pi - turn)))
        if distance > PLACE_M or min(ways, key=max).max() > ANGLE_DEG:
            return None
        return float(distance / PLACE_M + truth.borderline[t] + proposal.borderline[p])

    few, many = sorted((len(truth.xy), len(proposal.xy)))
    best = (0, 0.0)
    for chosen in itertools.permutations(range(many), few):
        pairs = (
            enumerate(chosen) if few == len(truth.xy) else ((t, p) for p, t in enumerate(chosen))
        )
        costs = [each for t, p in pairs if (each := cost(t, p)) is not None]
        best = min(best, (-len(costs), sum(costs)))
    matches = match_crossings(truth, proposal, 1)
    taken = [each for t, p in matches.pairs.tolist() if (each := cost(t, p)) is not None]
    assert len(taken) == len(matches.pairs) == -best[0]
    assert sum(taken) == pytest.approx(best[1])


# --- which road is above --------------------------------------------------------------------------


def test_the_order_counts_where_both_maps_know_it() -> None:
    upper, lower = road(*ACROSS.line.tolist(), level=1), road(*DOWN.line.tolist(), level=-1)
    assert order([upper, DOWN], [DOWN, upper]) == (1, 1)
    assert order([upper, DOWN], [ACROSS, lower]) == (1, 1)
    assert order([upper, DOWN], [ACROSS, road(*DOWN.line.tolist(), level=1)]) == (1, 0)
    assert order([upper, DOWN], OVERPASS) == (0, 0)
    # Contradictory: both roads are above, or one is drawn twice, on two levels.
    both = [upper, road(*DOWN.line.tolist(), level=1)]
    assert order(both, [upper, DOWN]) == (0, 0)
    twice = [upper, DOWN, road(*DOWN.line.tolist(), level=2)]
    assert (find_crossings(twice, 1).above == 0).all()


@pytest.mark.parametrize(
    ("properties", "level"),
    [
        ({}, 0),
        ({"layer": "2"}, 2),
        ({"layer": -1, "bridge": "yes"}, -1),
        ({"layer": None, "bridge": "viaduct"}, 1),
        ({"layer": "None", "bridge": "None", "tunnel": "None"}, 0),
        ({"layer": "upper", "tunnel": "yes"}, -1),
        ({"layer": float("nan"), "bridge": True}, 1),
        ({"bridge": "yes", "tunnel": "yes"}, 0),
        ({"bridge": "no"}, 0),
        ({"bridge_type": 1}, 1),
        ({"bridge_typ": "1"}, 1),
        ({"bridge_type": "2"}, 0),
        ({"bridge_type": "3"}, 0),
    ],
)
def test_levels_of_properties(properties: dict[str, object], level: float) -> None:
    assert road_level(properties) == level


# --- against a plain implementation ---------------------------------------------------------------


def plain_crossings(lines: list[tuple[Point, Point]]) -> list[Point]:
    """Return the crossings of straight roads that are not joined by 10 m of road."""
    graph: networkx.Graph[object] = networkx.Graph()
    # Ends of roads are nodes by their place; a crossing is a node of each of its roads.
    cuts: list[list[tuple[float, object]]] = [
        [(0, start), (math.dist(start, end), end)] for start, end in lines
    ]
    places = {}
    for i, j in itertools.combinations(range(len(lines)), 2):
        a, b = shapely.LineString(lines[i]), shapely.LineString(lines[j])
        if a.crosses(b):
            point = a.intersection(b)
            places[i, j] = (point.x, point.y)
            cuts[i].append((a.project(point), (i, j, "first")))
            cuts[j].append((b.project(point), (i, j, "second")))
    for on in cuts:
        for (start, one), (end, other) in itertools.pairwise(sorted(on, key=lambda cut: cut[0])):
            graph.add_edge(one, other, weight=end - start)
    found = []
    for (i, j), place in places.items():
        ways = networkx.single_source_dijkstra_path_length(graph, (i, j, "first"), cutoff=10)
        if (i, j, "second") not in ways:
            found.append(place)
    return sorted(found)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_crossings_equal_a_plain_implementation(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    nodes = random.uniform(0, 120, (size, 2)).tolist()
    chosen = random.permutation(list(itertools.combinations(range(size), 2)))[: 2 * size]
    lines = [(tuple(nodes[i]), tuple(nodes[j])) for i, j in chosen.tolist()]
    # Roads of several lines that cross twice within 10 m are tested by hand.
    places = [
        shapely.LineString(a).intersection(shapely.LineString(b))
        for a, b in itertools.combinations(lines, 2)
        if shapely.LineString(a).crosses(shapely.LineString(b))
    ]
    assume(all(a.distance(b) > 10 for a, b in itertools.combinations(places, 2)))
    found = find_crossings([road(*line) for line in lines], 1)
    plain = plain_crossings(lines)
    assert len(found.xy) == len(plain)
    if plain:
        assert np.allclose(sorted(found.xy.tolist()), plain, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_order_and_direction_of_rows_do_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = [
        RoadRow(random.uniform(0, 100, (3, 2)).round(2), math.nan, math.nan, float(level))
        for level in range(6)
    ]
    other = [
        RoadRow(rows[k].line[:: int(step)], math.nan, math.nan, rows[k].level)
        for k, step in zip(random.permutation(6), random.choice((-1, 1), 6), strict=True)
    ]
    assert find_crossings(rows, 1).xy.tolist() == find_crossings(other, 1).xy.tolist()
    score = score_crossings(rows, other, metres_per_pixel=1)
    assert score.missed == score.false == 0
    assert score.ordered == score.order_right == score.found
    pixels = [RoadRow(row.line / 0.31, math.nan, math.nan, row.level) for row in rows]
    assert score_crossings(pixels, pixels, metres_per_pixel=0.31) == score


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="metres_per_pixel"):
        find_crossings(OVERPASS, 0)
    with pytest.raises(ValueError, match="not finite"):
        find_crossings([road((0, 0), (math.nan, 1))], 1)
