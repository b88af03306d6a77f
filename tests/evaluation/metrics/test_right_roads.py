"""Which roads are right, worked out by hand."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satmap.evaluation.metrics.right_roads import right_roads

Line = NDArray[np.float64]


def line(*points: tuple[float, float]) -> Line:
    return np.array(points, np.float64)


def right(truth: list[Line], *roads: Line, metres: float = 1.0) -> list[bool]:
    found: list[bool] = right_roads(truth, roads, metres).tolist()
    return found


STREET = line((0, 0), (100, 0))


@pytest.mark.parametrize(("aside", "expected"), [(0, True), (1.9, True), (2.1, False), (3, False)])
def test_a_road_beside_the_true_one_is_right_within_two_metres(
    aside: float, expected: bool
) -> None:
    assert right([STREET], line((0, aside), (100, aside))) == [expected]
    # In pixels of half a metre, it is twice as far off in pixels.
    moved = [2 * STREET], line((0, 2 * aside), (200, 2 * aside))
    assert right(*moved, metres=0.5) == [expected]


def test_four_fifths_of_the_length_must_be_near() -> None:
    # Both ends are near. In between, 16 m of 100 m lie off the street, then 24 m.
    assert right([STREET], line((0, 0), (42, 0), (50, 4), (58, 0), (100, 0))) == [True]
    assert right([STREET], line((0, 0), (30, 0), (33, 9), (67, 9), (70, 0), (100, 0))) == [False]


def test_both_ends_must_be_near() -> None:
    # 97 % is near, but the end overshoots the street's by 3 m.
    assert right([STREET], line((0, 0), (103, 0)), line((0, 0), (101, 0))) == [False, True]


def test_a_road_that_the_truth_does_not_connect_is_wrong() -> None:
    parts = [line((0, 0), (48, 0)), line((52, 0), (100, 0))]
    # All of the road lies within 2 m of one of the two, whose ends are 4 m apart.
    assert right(parts, STREET) == [False]
    assert right(parts, line((0, 0), (48, 0)), line((51, 0), (100, 0))) == [True, True]
    # Roads that cross on two levels share no vertex.
    crossing = [line((0, 0), (40, 0)), line((20, -20), (20, 20))]
    turn = line((0, 0), (20, 0), (20, 20))
    assert right(crossing, turn) == [False]
    joined = [line((0, 0), (20, 0), (40, 0)), line((20, -20), (20, 0), (20, 20))]
    assert right(joined, turn) == [True]


@pytest.mark.parametrize(("depth", "expected"), [(9, True), (11, False)])
def test_the_path_in_the_truth_may_be_a_fifth_longer(depth: float, expected: bool) -> None:
    # The road crosses a gap of 8 m, where the true way goes around: 92 m + 8 m + 2 x depth.
    around = line((0, 0), (46, 0), (46, depth), (54, depth), (54, 0), (100, 0))
    assert right([around], STREET) == [expected]


def test_ends_are_joined_along_the_road_that_they_lie_on() -> None:
    # Pieces of the street in its middle, in either direction, and a loop with one end.
    assert right([STREET], line((20, 1), (60, 1)), line((60, -1), (20, -1))) == [True, True]
    loop = line((0, 0), (30, 0), (30, 30), (0, 30), (0, 0))
    assert right([loop], loop) == [True]


def test_nothing_is_right_without_a_truth() -> None:
    assert right([], STREET) == [False]
    assert right([STREET]) == []
    point = line((5, 0), (5, 0))
    assert right([point], STREET) == [False]
    assert right([STREET], point) == [False]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_a_truth_is_right_by_itself_and_after_a_turn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = rng.uniform(0, 300, (8, 2))
    pairs = {tuple(sorted(rng.choice(8, 2, replace=False).tolist())) for _ in range(10)}
    roads = [nodes[list(pair)] for pair in pairs]
    assert all(right(roads, *roads))
    turned = [
        shapely.get_coordinates(
            shapely.affinity.rotate(shapely.LineString(road), seed % 360, origin=(0, 0))
        )
        for road in roads
    ]
    assert all(right(turned, *turned))
    aside = [road + np.array([400.0, 0.0]) for road in roads]
    assert not any(right(roads, *aside))
