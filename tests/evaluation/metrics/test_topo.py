import itertools
import math
import random
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satmap.evaluation.metrics.apls_graph import build_graph
from satmap.evaluation.metrics.road_samples import nearest_places, sample_roads
from satmap.evaluation.metrics.topo import TopoScore, topo
from satmap.submissions.roads_csv import RoadRow

Point = tuple[float, float]


def roads(*lines: Sequence[Point]) -> list[RoadRow]:
    return [RoadRow(np.array(line, dtype=np.float64), math.nan, math.nan) for line in lines]


def counts(truth: Sequence[RoadRow], proposal: Sequence[RoadRow]) -> tuple[int, int, int]:
    """Return matched, holes and marbles at 1 m per pixel: samples every 5 px, holes within 4 px."""
    score = topo(truth, proposal, metres_per_pixel=1)
    return score.matched, score.holes, score.marbles


# --- computed by hand, 1 m per pixel --------------------------------------------------------------

# 20 samples, at 2.5, 7.5, ... 97.5; each ride meets them all.
STREET = roads([(0, 0), (100, 0)])


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ((0, 0), (400, 400, 400)),
        ((0, 3), (400, 400, 400)),
        ((0, 5), (0, 400, 400)),
        # Along the road: 5.5 lies 3 from 2.5. By 5 the first hole and the last marble are left.
        ((3, 0), (400, 400, 400)),
        ((5, 0), (380, 400, 400)),
    ],
)
def test_shifted_road(shift: Point, expected: tuple[int, int, int]) -> None:
    shifted = [RoadRow(row.line + shift, math.nan, math.nan) for row in STREET]
    assert counts(STREET, shifted) == expected


def test_ride_ends_after_150_m() -> None:
    # 80 samples; 30 others on either side, as far as the road goes: 80 * 61 - 2 * (30 + ... + 1).
    road = roads([(0, 0), (400, 0)])
    assert counts(road, road) == (3950, 3950, 3950)


def test_broken_road() -> None:
    # Of the 20 seeds those at 47.5 and 52.5 find no road; the others meet 8 marbles on their half.
    broken = roads([(0, 0), (40, 0)], [(60, 0), (100, 0)])
    assert counts(STREET, broken) == (18 * 8, 20 * 20, 18 * 8)
    score = topo(STREET, broken, metres_per_pixel=1)
    assert (score.precision, score.recall) == (1, 0.36)
    assert score.f1 == pytest.approx(2 * 0.36 / 1.36)


def test_extra_road_within_reach() -> None:
    # A stem of 10 samples: every ride meets 30 marbles. 9 of its samples have no road of the truth
    # within 4 m, and lose the 30 marbles of their rides.
    extra = roads([(0, 0), (50, 0)], [(50, 0), (100, 0)], [(50, 0), (50, 50)])
    assert counts(STREET, extra) == (20 * 20, 20 * 20, 20 * 30 + 9 * 30)


def test_extra_road_out_of_reach() -> None:
    extra = [*STREET, *roads([(0, 200), (50, 200)])]
    assert counts(STREET, extra) == (400, 400, 400 + 10 * 10)


def test_two_roads_have_no_hole_in_common() -> None:
    # There and back, 1 m apart: every ride meets 24 marbles, and 12 holes to take them.
    street, double = roads([(0, 0), (60, 0)]), roads([(0, 0), (60, 0), (60, 1), (0, 1)])
    assert counts(street, double) == (12 * 12, 12 * 12, 12 * 24)


def test_empty_maps() -> None:
    nothing = roads([(3, 3)])
    both, lacking, inventing = (
        topo(truth, proposal, metres_per_pixel=1)
        for truth, proposal in ((nothing, []), (STREET, nothing), ([], STREET))
    )
    assert (both.precision, both.recall, both.f1) == (1, 1, 1)
    assert lacking == TopoScore(matched=0, holes=400, marbles=0)
    assert inventing == TopoScore(matched=0, holes=0, marbles=400)
    for score in (lacking, inventing):
        assert (score.precision, score.recall, score.f1) == (0, 0, 0)


def test_scores_add_up() -> None:
    total = sum([TopoScore(1, 2, 4), TopoScore(3, 3, 4), TopoScore()], TopoScore())
    assert total == TopoScore(4, 5, 8)
    assert (total.precision, total.recall, total.f1) == pytest.approx((0.5, 0.8, 8 / 13))


def test_scale() -> None:
    truth, proposal = roads([(0, 0), (100, 0)]), roads([(0, 10), (100, 10)])
    assert topo(truth, proposal).f1 == 1  # 3.1 m
    assert topo(truth, proposal, metres_per_pixel=0.5).f1 == 0  # 5 m
    with pytest.raises(ValueError, match="positive"):
        topo(truth, proposal, metres_per_pixel=0)


def test_overpass_equals_itself() -> None:
    # Both roads have a sample at the crossing, but no path connects them.
    crossing = roads([(0, 52.5), (105, 52.5)], [(52.5, 0), (52.5, 105)])
    assert counts(crossing, crossing) == (2 * 21**2,) * 3


def test_heading_decides_on_an_overpass() -> None:
    graph = build_graph(roads([(-50, 0), (50, 0)], [(0, -50), (0, 50)]), math.inf)
    assert graph is not None
    # Nearer to the road from north to south than to the one from west to east.
    xy = np.array([[1.0, 2.0]])
    for heading, direction in ((None, [0, 1]), ([1.0, 0.2], [1, 0]), ([0.0, 0.0], [0, 1])):
        headings = None if heading is None else np.array([heading])
        point, places = nearest_places(graph, xy, 4, headings)
        (segment,) = np.flatnonzero(graph.segment_edge == places.edge[0])
        along = graph.stops[segment] - graph.starts[segment]
        assert point.tolist() == [0]
        assert (np.abs(along) / 100).tolist() == direction


# --- where the vertices are -----------------------------------------------------------------------

# A lonely ring, a street with two side streets, one of them winding, and a loop at its end.
TOWN: tuple[list[Point], ...] = (
    [(20, 20), (83, 24), (70, 77), (20, 81), (20, 20)],
    [(0, 150), (96, 150)],
    [(96, 150), (201, 153)],
    [(96, 150), (99, 211), (120, 240), (99, 270), (101, 333)],
    [(201, 153), (260, 120), (290, 160), (250, 190), (201, 153)],
    [(201, 153), (203, 320)],
)


def test_vertices_and_rows_change_nothing() -> None:
    town = roads(*TOWN)
    moved = [RoadRow(row.line + np.array([1.3, -0.8]), math.nan, math.nan) for row in town[1:]]
    expected = counts(town, moved)
    shuffle = random.Random(5)
    for _ in range(20):
        lines = []
        for line in TOWN:
            points = [line[0]]
            for (x0, y0), (x1, y1) in itertools.pairwise(line):
                cuts = sorted(shuffle.sample((0.11, 0.23, 0.37, 0.52, 0.71, 0.93), 2))
                points += [(x0 + f * (x1 - x0), y0 + f * (y1 - y0)) for f in cuts]
                points.append((x1, y1))
            if line is TOWN[0]:
                start = shuffle.randrange(len(points) - 1)
                points = [*points[start:-1], *points[: start + 1]]
            middle = shuffle.randrange(1, len(points))
            lines += [points[: middle + 1], points[middle:]]
        lines = [line[:: shuffle.choice((1, -1))] for line in lines if len(line) > 1]
        shuffle.shuffle(lines)
        assert counts(roads(*lines), moved) == expected
    assert 0 < expected[0] < expected[1]


def test_samples_of_a_ring_start_at_its_leftmost_place() -> None:
    # 80 px round; from (0, 0): 8 shares of 10 px.
    ring = [(0, 0), (20, 0), (20, 20), (0, 20), (0, 0)]
    ring_with_vertex = [(20, 0), (20, 7), (20, 20), (0, 20), (0, 3), (0, 0), (20, 0)]
    expected = {(5, 0), (15, 0), (20, 5), (20, 15), (15, 20), (5, 20), (0, 15), (0, 5)}
    for line in (ring, ring_with_vertex):
        graph = build_graph(roads(line), math.inf)
        assert graph is not None
        _, xy = sample_roads(graph, 10)
        assert set(map(tuple, np.round(xy, 9).tolist())) == expected


# --- properties -----------------------------------------------------------------------------------

coordinates = st.integers(0, 5).map(lambda i: 60.0 * i) | st.floats(0, 300)
lines = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=6)
road_maps = st.lists(lines, max_size=6).map(lambda drawn: roads(*drawn))


@settings(max_examples=60, deadline=None)
@given(truth=road_maps)
def test_a_map_compared_with_itself_scores_one(truth: list[RoadRow]) -> None:
    assert topo(truth, truth).f1 == 1


@settings(max_examples=60, deadline=None)
@given(truth=road_maps, proposal=road_maps, seed=st.integers(0, 99))
def test_order_and_direction_of_rows_do_not_matter(
    truth: list[RoadRow], proposal: list[RoadRow], seed: int
) -> None:
    shuffle = random.Random(seed)

    def shuffled(rows: Sequence[RoadRow]) -> list[RoadRow]:
        turned = [RoadRow(row.line[:: shuffle.choice((1, -1))], math.nan, math.nan) for row in rows]
        return shuffle.sample(turned, len(turned))

    score = topo(truth, proposal)
    assert topo(shuffled(truth), shuffled(proposal)) == score
    assert all(0 <= share <= 1 for share in (score.precision, score.recall, score.f1))


# --- brute force ----------------------------------------------------------------------------------

# Streets between corners 50 m apart: wherever edges merge, samples lie at 2.5 m, 7.5 m, ... from
# the corners. Everything happens on a grid of half metres, in integers.
Cell = tuple[int, int]
BLOCK = 100

corners = [(x, y) for x in range(4) for y in range(3)]
streets = [((x, y), (x + 1, y)) for x, y in corners if x < 3] + [
    ((x, y), (x, y + 1)) for x, y in corners if y < 2
]
towns = st.sets(st.sampled_from(streets), max_size=14)


class GridTown:
    def __init__(self, town: set[tuple[Cell, Cell]], shift: Cell) -> None:
        self.links: dict[Cell, set[Cell]] = {}
        self.samples: list[Cell] = []
        self.rows = []
        for (x0, y0), (x1, y1) in sorted(town):
            way = [
                (
                    x0 * BLOCK + (x1 - x0) * step + shift[0],
                    y0 * BLOCK + (y1 - y0) * step + shift[1],
                )
                for step in range(BLOCK + 1)
            ]
            for a, b in itertools.pairwise(way):
                self.links.setdefault(a, set()).add(b)
                self.links.setdefault(b, set()).add(a)
            self.samples += way[5::10]
            self.rows += roads([(way[0][0] / 2, way[0][1] / 2), (way[-1][0] / 2, way[-1][1] / 2)])

    def ride(self, start: Cell) -> list[Cell]:
        ways = {start: 0}
        waiting = deque([start])
        while waiting:
            here = waiting.popleft()
            for there in self.links[here]:
                if there not in ways and ways[here] < 300:
                    ways[there] = ways[here] + 1
                    waiting.append(there)
        return [sample for sample in self.samples if sample in ways]

    def nearest(self, place: Cell) -> list[Cell]:
        least = min((squared(place, cell) for cell in self.links), default=65)
        return [cell for cell in self.links if squared(place, cell) == least <= 64]


def squared(a: Cell, b: Cell) -> int:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def most_matches(holes: list[Cell], marbles: list[Cell]) -> int:
    """Kuhn's algorithm: give every hole a marble, moving those that are in the way."""
    taken: dict[Cell, Cell] = {}

    def fill(hole: Cell, tried: set[Cell]) -> bool:
        for marble in marbles:
            if squared(hole, marble) <= 64 and marble not in tried:
                tried.add(marble)
                if marble not in taken or fill(taken[marble], tried):
                    taken[marble] = hole
                    return True
        return False

    return sum(fill(hole, set()) for hole in holes)


def plain_topo(truth: GridTown, proposal: GridTown) -> tuple[int, int, int]:
    total = np.zeros(3, np.int64)
    for seed in truth.samples:
        holes = truth.ride(seed)
        trials = [(0, len(holes), 0)]
        for place in proposal.nearest(seed):
            marbles = proposal.ride(place)
            trials.append((most_matches(holes, marbles), len(holes), len(marbles)))
        total += max(trials[1:] or trials, key=lambda t: (2 * t[0] / (t[1] + t[2]), t[0]))
    for seed in proposal.samples:
        if not truth.nearest(seed):
            total[2] += len(proposal.ride(seed))
    return int(total[0]), int(total[1]), int(total[2])


@settings(max_examples=12, deadline=None)
@given(truth=towns, proposal=towns, shift=st.tuples(st.integers(-7, 7), st.integers(-7, 7)))
def test_equals_brute_force(
    truth: set[tuple[Cell, Cell]], proposal: set[tuple[Cell, Cell]], shift: Cell
) -> None:
    a, b = GridTown(truth, (0, 0)), GridTown(proposal, shift)
    assert counts(a.rows, b.rows) == plain_topo(a, b)
