import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from repository import SHARED
from satmap.errors import SatmapError
from satmap.evaluation.metrics.apls_diagnosis import Diagnosis, LostRoads, diagnose
from satmap.evaluation.metrics.figures import Report
from satmap.evaluation.score import Scoring, score_files
from satmap.report import overlay
from satmap.report.overlay import write_misses
from satmap.submissions.roads_csv import RoadRow, read_roads_csv

FIXTURES = SHARED / "fixtures" / "apls"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no shared fixtures here")

Point = tuple[float, float]
Picture = NDArray[np.uint8]


def roads(*lines: Sequence[Point]) -> list[RoadRow]:
    return [RoadRow(np.array(line, dtype=np.float64), math.nan, math.nan) for line in lines]


def diagnosed(truth: Sequence[RoadRow], proposal: Sequence[RoadRow]) -> Diagnosis:
    """Return the diagnosis at 1 m per pixel."""
    return diagnose(truth, proposal, metres_per_pixel=1)


def faultless(losses: LostRoads) -> bool:
    return not (losses.pieces or len(losses.lost_nodes) or losses.breaks or losses.routes)


# --- diagnosis, computed by hand, 1 m per pixel ---------------------------------------------------

STREET = roads([(0, 0), (100, 0)])


def test_gap() -> None:
    diagnosis = diagnosed(STREET, roads([(0, 0), (45, 0)], [(55, 0), (100, 0)]))
    missed = diagnosis.missed
    # From 49 to 51 nothing is within 4 m. The midpoints at 33.3 and 66.7 are found.
    assert (missed.roads_m, missed.nodes, len(missed.lost_nodes)) == (100, 4, 0)
    assert missed.lost_m == pytest.approx(2, abs=0.01)
    (piece,) = missed.pieces
    assert np.sort(piece[:, 0]) == pytest.approx([49, 51], abs=0.01)
    # The samples at 47.5 and 52.5 represent the ends at 45 and 55.
    (gap,) = missed.breaks
    assert gap.xy == pytest.approx((50, 0))
    assert gap.way_m == pytest.approx(5)
    assert gap.other_m == math.inf
    (route,) = missed.routes
    assert sorted(route.path.tolist()) == [
        pytest.approx([100 / 3, 0]),
        pytest.approx([200 / 3, 0]),
    ]
    assert route.way_m == pytest.approx(100 / 3)
    assert route.other_m == math.inf
    assert route.other is None
    assert faultless(diagnosis.false)


def test_gap_across_a_junction() -> None:
    # 6 m are missing on each arm of the junction: neither it nor a sample 2.5 m away is found.
    branches = [(-50.0, 0.0), (50.0, 0.0), (0.0, 50.0)]
    star = roads(*[[(0, 0), arm] for arm in branches])
    burst = roads(*[[(x * 0.12, y * 0.12), (x, y)] for x, y in branches])
    missed = diagnosed(star, burst).missed
    assert missed.lost_m == pytest.approx(6, abs=0.02)
    assert missed.lost_nodes.tolist() == [[0, 0]]
    # There are three routes between the samples 2.5 or 7.5 m along the arms, but one visible gap.
    (gap,) = missed.breaks
    assert math.dist(gap.xy, (0, 0)) < 5
    assert gap.other_m == math.inf


def test_detour() -> None:
    # A block of 100 m with junctions at its corners. One side has a gap; the detour is 390 m.
    corners = [(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0)]
    stubs = roads(*[[(x, y), (x * 1.6 - 30, y * 1.6 - 30)] for x, y in corners])
    sides = roads(*[[corners[i], corners[(i + 1) % 4]] for i in range(4)])
    open_side = roads([(0, 0), (45, 0)], [(55, 0), (100, 0)])
    missed = diagnosed([*sides, *stubs], [*sides[1:], *open_side, *stubs]).missed
    (gap,) = missed.breaks
    assert [gap.way_m, gap.other_m] == pytest.approx([5, 390])
    (route,) = missed.routes
    # Between the midpoints at 33.3 and 66.7 it is 400 m minus their distance.
    assert route.way_m == pytest.approx(100 / 3)
    assert route.other_m == pytest.approx(400 - 100 / 3)
    assert route.other is not None
    assert np.linalg.norm(np.diff(route.other, axis=0), axis=1).sum() == pytest.approx(
        route.other_m
    )
    assert route.other[[0, -1]] == pytest.approx(route.path[[0, -1]])
    assert [100, 100] in route.other.tolist()


def test_side_street_that_does_not_reach() -> None:
    truth = roads([(0, 0), (60, 0)], [(60, 0), (120, 0)], [(60, 0), (60, 60)])
    proposal = roads([(0, 0), (120, 0)], [(60, 3), (60, 60)])
    diagnosis = diagnosed(truth, proposal)
    assert diagnosis.missed.lost_m == 0
    (gap,) = diagnosis.missed.breaks
    assert math.dist(gap.xy, (60, 0)) < 4
    assert gap.other_m == math.inf
    assert diagnosis.missed.routes
    # In the other direction it is a false join.
    joined = diagnosed(proposal, truth)
    assert not joined.missed.breaks
    assert [join.xy for join in joined.false.breaks] == [gap.xy]


def test_missing_road_is_no_gap() -> None:
    truth = roads([(0, 0), (60, 0)], [(60, 0), (120, 0)], [(60, 0), (60, 200)])
    missed = diagnosed(truth, roads([(0, 0), (120, 0)])).missed
    assert missed.lost_m == pytest.approx(196)
    assert not missed.breaks
    # The far end and the midpoints of 200 m, at 40, 80, 120 and 160 m.
    assert sorted(missed.lost_nodes[:, 1].tolist()) == pytest.approx([40, 80, 120, 160, 200])


def test_overpass_is_no_gap() -> None:
    truth = roads([(-80, 0), (80, 0)], [(0, -80), (0, 80)])
    shifted = roads([(-78, 1), (82, 1)], [(2, -79), (2, 81)])
    diagnosis = diagnosed(truth, shifted)
    for losses in (diagnosis.missed, diagnosis.false):
        assert not (losses.breaks or losses.pieces or len(losses.lost_nodes))


def test_routes_do_not_share_a_stretch() -> None:
    # Two gaps: the shortest route over each.
    proposal = roads([(0, 0), (90, 0)], [(110, 0), (290, 0)], [(310, 0), (400, 0)])
    routes = diagnosed(roads([(0, 0), (400, 0)]), proposal).missed.routes
    spans = sorted(np.sort(route.path[:, 0])[[0, -1]].tolist() for route in routes)
    assert len(spans) == 2
    assert spans[0][0] < 100 < spans[0][1] <= spans[1][0] < 300 < spans[1][1]


def test_diagnosis_of_empty_maps() -> None:
    nothing = diagnosed([], roads([(3, 3)]))
    assert faultless(nothing.missed)
    assert faultless(nothing.false)
    lacking = diagnosed(STREET, [])
    assert (lacking.missed.lost_m, lacking.missed.roads_m) == (100, 100)
    assert len(lacking.missed.lost_nodes) == lacking.missed.nodes == 4
    assert faultless(lacking.false)
    with pytest.raises(ValueError, match="positive"):
        diagnose(STREET, STREET, metres_per_pixel=-1)


coordinates = st.integers(0, 5).map(lambda i: 60.0 * i) | st.floats(0, 300)
lines = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=6)
road_maps = st.lists(lines, max_size=5).map(lambda drawn: roads(*drawn))


@settings(max_examples=40, deadline=None)
@example(
    # Two vertices within a tenth of a pixel, which the scorer takes for one place.
    truth=roads([(0, 0), (0, 120)], [(0, 0), (0, 180), (0.125, 0), (0.140625, 0), (0, 60)]),
    proposal=roads([(0, 0), (0, 60)]),
    seed=0,
)
@given(truth=road_maps, proposal=road_maps, seed=st.integers(0, 99))
def test_diagnosis_of_any_maps(truth: list[RoadRow], proposal: list[RoadRow], seed: int) -> None:
    shuffle = random.Random(seed)
    diagnosis = diagnose(truth, proposal)
    again = diagnose(shuffle.sample(truth, len(truth)), shuffle.sample(proposal, len(proposal)))
    there, back = diagnosis.missed, diagnose(proposal, truth).false
    for other in (again.missed, back):
        assert other.lost_m == pytest.approx(there.lost_m)
        assert other.nodes == there.nodes
        assert other.breaks == there.breaks
        assert [route.way_m for route in other.routes] == [route.way_m for route in there.routes]
    for route in there.routes:
        steps = np.linalg.norm(np.diff(route.path, axis=0), axis=1)
        assert steps.sum() * 0.31 == pytest.approx(route.way_m)
        assert abs(route.other_m - route.way_m) > 0.2 * route.way_m + 8 - 1e-6


# --- pictures of the worst images ----------------------------------------------------------------


def scoring_of(scores: Mapping[str, float | None]) -> Scoring:
    images = {image_id: {"f1": score} for image_id, score in scores.items()}
    return Scoring(Report("f1", {}, {}, images), "f1")


def test_write_misses_takes_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring = scoring_of({"a10": 0.5, "a2": 0.5, "area/b": 0.1, "good": 0.9, "untimed": None})
    drawn = []

    def draw(_: Scoring, image_id: str, *others: object) -> Picture:
        drawn.append(image_id)
        return np.full((3, 4, 3), (255, 0, 0), np.uint8)

    monkeypatch.setattr(overlay, "draw_image", draw)
    written = write_misses(tmp_path / "new", scoring, worst=3)
    assert drawn == ["area/b", "a2", "a10"]
    assert [path.name for path in written] == ["area%2Fb.png", "a2.png", "a10.png"]
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    content = cv2.imread(str(written[0]))
    assert content is not None
    assert content[0, 0].tolist() == [0, 0, 255]
    assert len(write_misses(tmp_path, scoring)) == 4
    assert write_misses(tmp_path, scoring_of({})) == []
    with pytest.raises(SatmapError, match="cannot write"):
        write_misses(written[0], scoring)


def test_pictures_of_long_ids_have_names_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(overlay, "draw_image", lambda *_: picture)
    written = write_misses(tmp_path, scoring_of({"é" * 300 + end: 0.5 for end in "ab"}))
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert len(set(written)) == 2


@needs_fixtures
def test_pictures_of_synthetic_cities(tmp_path: Path) -> None:
    truth = read_roads_csv(FIXTURES / "made_truth.csv")
    proposal = read_roads_csv(FIXTURES / "made_proposal.csv")
    scoring = score_files(FIXTURES / "made_truth.csv", FIXTURES / "made_proposal.csv")
    written = write_misses(tmp_path, scoring, worst=2)
    # The official scores are 0.503 and 0.591.
    assert [path.stem for path in written] == ["AOI_7_Moscow_chip4", "AOI_7_Moscow_chip0"]
    # Chip 4 has one gap of 44 m and a missed roundabout.
    missed = diagnose(truth["AOI_7_Moscow_chip4"], proposal["AOI_7_Moscow_chip4"]).missed
    (gap,) = missed.breaks
    assert gap.xy == pytest.approx((357, 380), abs=5)
    assert missed.lost_m == pytest.approx(129, abs=2)
