"""Pictures of roads over their image."""

import numpy as np
import pytest

from satmap.report.panels import CASING, WHITE
from satmap.report.road_overlay import draw_roads, speed_colour
from satmap.submissions.roads_csv import RoadRow
from satmap.vectors.speeds import MPS_PER_MPH

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def road(*points: tuple[float, float], mph: float = 25) -> RoadRow:
    return RoadRow(np.array(points, np.float64), 100.0, 100.0 / (mph * MPS_PER_MPH))


def test_only_lines_and_their_casing_change_the_image() -> None:
    before = IMAGE.copy()
    assert np.array_equal(draw_roads(IMAGE, []), IMAGE)
    drawn = draw_roads(IMAGE, [road((10.5, 30.5), (70.5, 30.5))], thickness=3)
    assert np.array_equal(IMAGE, before)
    changed = (drawn != IMAGE).any(axis=2)
    # OpenCV draws smooth lines of 3 pixels 5 wide; then one of casing on each side.
    assert changed[27:34, 20:60].mean() > 0.99
    assert not changed[:25].any() and not changed[36:].any()
    middle = drawn[:, 40].astype(int)
    assert np.abs(middle[30] - speed_colour(25 * MPS_PER_MPH)).max() <= 2
    assert np.abs(middle[[27, 33]] - CASING).max() <= 60
    # Dots where the edge ends.
    assert [drawn[30, x].tolist() for x in (10, 70)] == [list(WHITE)] * 2


def test_no_casing_cuts_through_another_road() -> None:
    rows = [road((10, 30), (70, 30)), road((40, 5), (40, 55), mph=60)]
    for order in (rows, rows[::-1]):
        drawn = draw_roads(IMAGE, order, thickness=3).astype(int)
        for x in range(15, 66):
            colours = [speed_colour(mph * MPS_PER_MPH) for mph in (25, 60)]
            assert min(np.abs(drawn[30, x] - colour).max() for colour in colours) < 120


@pytest.mark.parametrize("mph", [5, 10, 15, 25, 45, 65, 80])
def test_every_speed_stands_out_from_its_casing(mph: float) -> None:
    assert max(speed_colour(mph * MPS_PER_MPH)) > 150
