"""Suppression, voting on masks, seams and outlines, against slow loops and by hand."""

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satmap.tasks.building_instances.merge import (
    Candidates,
    Instance,
    InstanceDecoder,
    cut_by_window,
    vote,
)
from satmap.tasks.building_instances.settings import MergeSettings
from satmap.vectors.buildings import Building

Box = tuple[float, float, float, float]
Values = NDArray[np.float64]

WHOLE = (0.0, 0.0, 160.0, 100.0)
SETTINGS = MergeSettings()
#: Pixel outlines of all buildings.
EXACT = MergeSettings(least_px=0, hole_px=0, simplify_px=0)

# cv2.warpAffine rounds places to 1/32 of a cell.
ROUNDING = 0.035


def candidates_of(
    boxes: Sequence[Box],
    scores: Sequence[float],
    masks: Sequence[NDArray[np.uint8]] | None = None,
    cut: Sequence[bool] | None = None,
) -> Candidates:
    """Return candidates; their masks are full and they are whole, unless stated."""
    full = np.full((len(boxes), 8, 8), 255, np.uint8)
    return Candidates(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
        full if masks is None else np.stack(masks),
        np.zeros(len(boxes), np.bool_) if cut is None else np.array(cut, np.bool_),
    )


def voted(
    candidates: Candidates,
    weights: Sequence[float] | None = None,
    whole: Box = WHOLE,
    settings: MergeSettings = SETTINGS,
) -> list[Instance]:
    every = np.ones(len(candidates)) if weights is None else np.array(weights, np.float64)
    return vote(candidates, every, whole, settings, settings.least_score)


def iou(one: Box | Values, other: Box | Values) -> float:
    sides = [min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(common / (sum(areas) - common))


def value_at(mask: NDArray[np.uint8], box: Values, x: float, y: float) -> float:
    """Return the probability of a point in a box, bilinear between the centres of the cells."""
    side = len(mask)
    at_x = (x - box[0]) / (box[2] - box[0]) * side - 0.5
    at_y = (y - box[1]) / (box[3] - box[1]) * side - 0.5
    left, top = math.floor(at_x), math.floor(at_y)
    total = 0.0
    for i in (0, 1):
        for j in (0, 1):
            weight = abs(1 - i - (at_y - top)) * abs(1 - j - (at_x - left))
            row, column = np.clip([top + i, left + j], 0, side - 1).tolist()
            total += weight * float(mask[row, column]) / 255
    return total


def slow_vote(
    candidates: Candidates, weights: Sequence[float], whole: Box, settings: MergeSettings
) -> list[tuple[float, dict[tuple[int, int], float]]]:
    """Return the score of each building, and the share of the votes of its pixels (x, y)."""
    boxes, scores = candidates.boxes, candidates.scores
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda k: (candidates.is_cut[k], -scores[k])):
        if all(iou(boxes[index], boxes[other]) <= settings.suppression for other in kept):
            kept.append(index)
    found = []
    for index in sorted(kept, key=lambda k: -scores[k]):
        if scores[index] < settings.least_score:
            continue
        voters = [k for k in range(len(scores)) if iou(boxes[index], boxes[k]) >= settings.voting]
        total = sum(scores[k] * weights[k] for k in voters)
        pixels: dict[tuple[int, int], float] = {}
        for k in voters:
            left, top, right, bottom = boxes[k]
            for y in range(math.floor(top), math.ceil(bottom)):
                for x in range(math.floor(left), math.ceil(right)):
                    inside = left <= x + 0.5 < right and top <= y + 0.5 < bottom
                    shown = whole[0] <= x < whole[2] and whole[1] <= y < whole[3]
                    if inside and shown:
                        share = value_at(candidates.masks[k], boxes[k], x + 0.5, y + 0.5)
                        share *= scores[k] * weights[k] / total
                        pixels[x, y] = pixels.get((x, y), 0) + float(share)
        found.append((float(scores[index]), pixels))
    return found


def pixels_of(instance: Instance) -> dict[tuple[int, int], float]:
    rows, columns = np.indices(instance.probability.shape)
    places = zip(
        (columns + instance.left).ravel().tolist(),
        (rows + instance.top).ravel().tolist(),
        strict=True,
    )
    return dict(zip(places, instance.probability.ravel().tolist(), strict=True))


def crowd(seed: int, groups: int = 5, views: int = 4) -> tuple[Candidates, list[float]]:
    """Return several views of some buildings, with votes."""
    random = np.random.default_rng(seed)
    places = np.concatenate(
        [random.uniform(0, (120, 70), (groups, 2)), random.uniform(8, 25, (groups, 2))], axis=1
    )
    boxes = np.repeat(places, views, axis=0) + random.normal(0, 1.5, (groups * views, 4))
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(3)
    boxes = boxes.clip(0, [160, 100, 160, 100])
    # Probabilities change smoothly within the masks.
    rough = random.uniform(0, 255, (len(boxes), 3, 3))
    masks = np.stack([np.kron(each, np.ones((3, 3))) for each in rough]).astype(np.uint8)
    found = Candidates(boxes, random.permutation(len(boxes)) / len(boxes), masks, boxes[:, 0] < 0)
    return found, random.integers(1, 4, len(boxes)).tolist()


# Suppression and voting


def test_voting_by_hand() -> None:
    left = np.zeros((8, 8), np.uint8)
    left[:, :4] = 255
    full = np.full((8, 8), 255, np.uint8)
    both = candidates_of([(10, 10, 26, 26)] * 2, [0.9, 0.6], [left, full])
    (found,) = voted(both)
    assert (found.box, found.score) == ((10, 10, 26, 26), 0.9)
    # Far from the edge of the first mask: 1 and .6 / 1.5.
    assert found.probability[:, :6] == pytest.approx(1)
    assert found.probability[:, 10:] == pytest.approx(0.4)
    # Twice the votes for the second one: 1.2 / 2.1.
    (found,) = voted(both, [1, 2])
    assert found.probability[:, 10:] == pytest.approx(1.2 / 2.1)
    assert found.score == 0.9


def test_boxes_that_overlap_little_do_not_vote() -> None:
    best = (10.0, 10.0, 30.0, 30.0)
    # Intersections over union with the best one of exactly .5, .45 and exactly .3.
    others = [(10.0, 10.0, 30.0, 20.0), (10.0, 10.0, 30.0, 19.0), (10.0, 24.0, 30.0, 30.0)]
    for other, share, count in zip(others, (0.9 / 1.7, 1, 1), (1, 1, 2), strict=True):
        found = voted(candidates_of([best, other], [0.9, 0.8]))
        assert [each.score for each in found] == [0.9, 0.8][:count]
        low = 0 if other[1] > 10 else 19
        assert found[0].probability[low] == pytest.approx(share)
        assert found[0].probability[0, 0] == pytest.approx(1)


def test_a_suppressed_box_suppresses_no_other() -> None:
    # Each overlaps its neighbour by .6, and the next one by .33.
    chain = [(10.0, 10.0, 30.0, 30.0), (15.0, 10.0, 35.0, 30.0), (20.0, 10.0, 40.0, 30.0)]
    found = voted(candidates_of(chain, [0.9, 0.8, 0.7]), settings=MergeSettings(suppression=0.5))
    assert [each.score for each in found] == [0.9, 0.7]


def test_buildings_below_the_least_score_are_dropped() -> None:
    apart = [(10.0, 10.0, 20.0, 20.0), (40.0, 10.0, 50.0, 20.0), (70.0, 10.0, 80.0, 20.0)]
    found = voted(candidates_of(apart, [0.29, 0.3, 0.8]))
    assert [each.score for each in found] == [0.8, 0.3]
    assert voted(candidates_of(apart, [0.1] * 3)) == []
    # The decoder may be stricter, as thresholds depend on the place.
    strict = MergeSettings(least_score=0.5)
    square = np.ones((9, 9))
    decoded = drawn((10, 10, square, 0.5), (40, 10, square, 0.49), settings=strict)
    assert [each.score for each in decoded] == [0.5]
    # Such candidates vote all the same.
    empty, full = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    (one,) = voted(candidates_of([apart[0]] * 2, [0.6, 0.2], [empty, full]))
    assert one.probability == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes", [{}, {"suppression": 0.6, "voting": 0.2, "least_score": 0.0}, {"voting": 1.0}]
)
def test_voting_against_a_slow_loop(seed: int, changes: dict[str, float]) -> None:
    candidates, weights = crowd(seed)
    chosen = MergeSettings.model_validate(changes)
    whole = (0.0, 0.0, 130.0, 80.0)
    found = voted(candidates, weights, whole, chosen)
    expected = slow_vote(candidates, weights, whole, chosen)
    assert [each.score for each in found] == [score for score, _ in expected]
    assert len(found) > 2
    for each, (_, pixels) in zip(found, expected, strict=True):
        drawn = pixels_of(each)
        assert set(pixels) <= set(drawn)
        wrong = [abs(value - pixels.get(place, 0)) for place, value in drawn.items()]
        assert max(wrong) < ROUNDING


@settings(max_examples=25)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(seed: int, random: st.DrawFn) -> None:
    candidates, weights = crowd(seed, groups=3, views=4)
    candidates = Candidates(
        candidates.boxes,
        candidates.scores,
        candidates.masks,
        np.random.default_rng(seed).random(len(candidates)) < 0.4,
    )
    order = list(range(len(candidates)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = Candidates(
        candidates.boxes[order],
        candidates.scores[order],
        candidates.masks[order],
        candidates.is_cut[order],
    )
    first = voted(candidates, weights)
    second = voted(shuffled, [weights[k] for k in order])
    assert [each.score for each in first] == [each.score for each in second]
    for one, other in zip(first, second, strict=True):
        assert one.box == other.box
        assert np.allclose(one.probability, other.probability, atol=1e-5)


def test_no_candidates() -> None:
    assert voted(candidates_of([], [])) == []
    assert InstanceDecoder(SETTINGS, (100, 160), (1.0, 1.0)).decode([]) == []
    joined = Candidates.join([], 21)
    assert (len(joined), joined.masks.shape) == (0, (0, 21, 21))
    assert voted(joined) == []


def test_masks_end_at_the_edge_of_what_is_shown() -> None:
    beyond = candidates_of([(-6, -4, 10, 12), (150, 90, 170.5, 108)], [0.9, 0.8])
    first, second = voted(beyond)
    assert (first.box, second.box) == ((0, 0, 10, 12), (150, 90, 160, 100))
    assert first.probability == pytest.approx(1)
    # What a map shows around a block counts.
    first, second = voted(beyond, whole=(-20.0, -20.0, 180.0, 120.0))
    assert (first.box, second.box) == ((-6, -4, 10, 12), (150, 90, 170, 108))
    # Boxes outside, or without the centre of a pixel, draw nothing.
    for box in [(160.0, 10.0, 161.0, 30.0), (159.6, 10.0, 160.0, 30.0), (20.6, 10.0, 21.4, 30.0)]:
        for found in voted(candidates_of([box], [0.9])):
            assert found.probability.max() == 0


# Seams

#: Two windows of the image, which overlap from 60 to 100.
LEFT, RIGHT = (0.0, 0.0, 100.0, 100.0), (60.0, 0.0, 160.0, 100.0)


def shown(window: Box, part: Candidates) -> NDArray[np.float64]:
    """Return the window of each candidate."""
    return np.tile(np.array(window, np.float64), (len(part), 1))


def seen(left: Sequence[tuple[Box, float]], right: Sequence[tuple[Box, float]]) -> Candidates:
    """Return the candidates that two windows show, with their scores."""
    parts = []
    for window, found in ((LEFT, left), (RIGHT, right)):
        part = candidates_of([box for box, _ in found], [score for _, score in found])
        cut = cut_by_window(part.boxes, window, WHOLE)
        parts.append(Candidates(part.boxes, part.scores, part.masks, cut, shown(window, part)))
    return Candidates.join(parts, 8)


def test_boxes_at_the_inner_edges_of_windows_are_cut() -> None:
    boxes = np.array(
        [(61.9, 20, 80, 40), (62.1, 20, 80, 40), (80, 20, 98.5, 40), (80, 20, 97, 40),
         (0, 0, 50, 50), (80, 0, 90, 100)], np.float64
    )  # fmt: skip
    assert cut_by_window(boxes, LEFT, WHOLE).tolist() == [False, False, True, False, False, False]
    assert cut_by_window(boxes, RIGHT, WHOLE).tolist() == [True, False, False, False, False, False]
    assert not cut_by_window(boxes, WHOLE, WHOLE).any()
    middle = (40.0, 30.0, 90.0, 80.0)
    sides = np.array([(50, 31, 60, 40), (50, 70, 60, 79), (41, 40, 60, 60), (70, 40, 91, 60),
                      (45, 35, 85, 75)], np.float64)  # fmt: skip
    assert cut_by_window(sides, middle, WHOLE).tolist() == [True, True, True, True, False]
    assert cut_by_window(np.empty((0, 4)), middle, WHOLE).shape == (0,)


def test_whole_candidates_suppress_cut_ones_with_better_scores() -> None:
    found = voted(seen([((50, 20, 90, 60), 0.6)], [((60, 20, 90, 60), 0.95)]))
    assert [(each.box, each.score) for each in found] == [((50, 20, 90, 60), 0.6)]


def test_a_sliver_of_a_whole_building_is_no_building() -> None:
    # The right window shows 10 of its 60 columns.
    found = voted(seen([((10, 20, 70, 60), 0.8)], [((60, 20, 70, 60), 0.7)]))
    assert [(each.box, each.score) for each in found] == [((10, 20, 70, 60), 0.8)]


def test_a_building_is_not_lost_to_a_candidate_that_is_dropped() -> None:
    # The left window sees it well, but not all of it; the right window hardly believes in it.
    found = voted(seen([((70, 20, 100, 60), 0.9)], [((70, 20, 104, 60), 0.1)]))
    assert [each.score for each in found] == [0.9]


@pytest.mark.parametrize("end", [150, 130, 110])
def test_parts_that_both_windows_cut_are_united(end: int) -> None:
    # Intersections over union of .3, .36 and .44: each window sees what the other does not.
    found = voted(seen([((20, 20, 100, 60), 0.7)], [((60, 22, end, 60), 0.9)]))
    assert [(each.box, each.score) for each in found] == [((20, 20, end, 60), 0.9)]
    assert found[0].probability[2:] == pytest.approx(1)
    assert (found[0].probability[:2, 80:] == 0).all()


def test_a_building_across_three_windows_is_united() -> None:
    # Windows of 60 columns from 0, 40 and 80; each neighbour shares a third of a part.
    parts = []
    for start in (0, 40, 80):
        part = candidates_of([(max(start, 5), 20, min(start + 60, 130), 40)], [0.8])
        window = (start, 0, start + 60, 60)
        cut = cut_by_window(part.boxes, window, (0, 0, 140, 60))
        parts.append(Candidates(part.boxes, part.scores, part.masks, cut, shown(window, part)))
    found = voted(Candidates.join(parts, 8), whole=(0.0, 0.0, 140.0, 60.0))
    assert [each.box for each in found] == [(5, 20, 130, 40)]


def test_windows_do_not_vote_on_what_they_do_not_see() -> None:
    # The building is whole in the first of four windows. Its corner is only seen there.
    building = (55, 50, 90, 85)
    windows = [(0, 0, 100, 100), (62, 0, 160, 100), (0, 58, 100, 160), (62, 58, 160, 160)]
    whole = (0.0, 0.0, 160.0, 160.0)
    parts = []
    for window in windows:
        left, top = max(building[0], window[0]), max(building[1], window[1])
        part = candidates_of([(left, top, 90, 85)], [0.8])
        cut = cut_by_window(part.boxes, window, whole)
        parts.append(Candidates(part.boxes, part.scores, part.masks, cut, shown(window, part)))
    found = voted(Candidates.join(parts, 8), whole=whole)
    outlines = InstanceDecoder(EXACT, (160, 160), (1.0, 1.0)).decode(found)
    assert [each.polygon.bounds for each in outlines] == [building]
    assert areas(outlines) == [35 * 35]


def test_different_buildings_at_a_seam_stay_apart() -> None:
    # Side by side in the overlap, one cut by each window, and whole neighbours.
    left = [((30.0, 20.0, 100.0, 50.0), 0.9), ((70.0, 80.0, 90.0, 95.0), 0.6)]
    right = [((60.0, 50.0, 140.0, 78.0), 0.8), ((110.0, 20.0, 140.0, 48.0), 0.7)]
    assert [each.score for each in voted(seen(left, right))] == [0.9, 0.8, 0.7, 0.6]
    # A house whose wall is at the edge of a window, and a building that is cut there.
    left, right = [((40.0, 20.0, 61.0, 50.0), 0.9)], [((61.0, 20.0, 90.0, 50.0), 0.8)]
    assert [each.score for each in voted(seen(left, right))] == [0.9, 0.8]


# Outlines


def drawn(
    *parts: tuple[int, int, NDArray[np.generic], float],
    settings: MergeSettings = EXACT,
    shape: tuple[int, int] = (100, 160),
) -> list[Building]:
    """Decode buildings of a left, top, probability and score."""
    every = [Instance(x, y, value.astype(np.float32), score) for x, y, value, score in parts]
    return InstanceDecoder(settings, shape, (1.0, 1.0)).decode(every)


def areas(found: Sequence[Building]) -> list[float]:
    return [building.polygon.area for building in found]


def test_outlines_follow_the_pixels() -> None:
    shape = np.ones((6, 8)) * 0.9
    shape[:3, :4] = 0.1
    # Given as scores rise; returned as they fall.
    first, second = drawn((10, 20, shape, 0.5), (50, 20, np.ones((4, 4)), 0.8))
    ell = shapely.box(10, 20, 18, 26) - shapely.box(10, 20, 14, 23)
    assert first.polygon.equals(shapely.box(50, 20, 54, 24))
    assert second.polygon.equals(ell)
    assert (first.score, second.score) == (0.8, 0.5)
    assert drawn((10, 10, np.full((9, 9), 0.39), 1.0)) == []
    assert areas(drawn((10, 10, np.full((9, 9), 0.41), 1.0))) == [81]


def test_a_pixel_belongs_to_the_building_with_the_most_votes() -> None:
    one, other = np.full((10, 20), 0.6), np.full((10, 20), 0.5)
    other[:, 5:] = 0.9
    first, second = drawn((10, 10, one, 0.9), (20, 10, other, 0.3))
    assert first.polygon.equals(shapely.box(10, 10, 25, 20))
    assert second.polygon.equals(shapely.box(25, 10, 40, 20))
    # One within another makes a hole.
    first, second = drawn((10, 10, np.full((20, 20), 0.6), 0.9), (15, 15, np.ones((6, 6)), 0.3))
    assert (first.polygon.area, len(first.polygon.interiors)) == (364, 1)
    assert second.polygon.equals(shapely.box(15, 15, 21, 21))


def test_holes_and_small_parts() -> None:
    shape = np.ones((20, 30))
    shape[3:8, 3:8] = 0
    shape[3:6, 12:15] = 0
    shape[12:16, 12:16] = 0
    chosen = MergeSettings(least_px=20, hole_px=16, simplify_px=0)
    (found,) = drawn((10, 10, shape, 1.0), settings=chosen)
    # Of 25, 9 and 16 pixels; the second one is filled.
    assert (found.polygon.area, len(found.polygon.interiors)) == (600 - 25 - 16, 2)
    # A gap at the border of the mask is no hole.
    notched = np.ones((10, 10))
    notched[0:2, 4:6] = 0
    assert areas(drawn((10, 10, notched, 1.0), settings=chosen)) == [96]
    # Of several parts, the largest stays; parts that touch at a corner are two.
    torn = np.zeros((10, 20))
    torn[:5, :5], torn[5:, 5:12] = 1, 1
    assert areas(drawn((10, 10, torn, 1.0), settings=chosen)) == [35]
    for side, count in ((19, 0), (20, 1), (21, 1)):
        assert len(drawn((10, 10, np.ones((1, side)), 1.0), settings=chosen)) == count


def test_buildings_may_extend_beyond_the_image() -> None:
    found = drawn(
        (-8, -4, np.ones((10, 12)), 0.9), (150, 95, np.ones((20, 20)), 0.8),
        (170, 20, np.ones((9, 9)), 0.7), (-20, 20, np.ones((9, 9)), 0.6),
    )  # fmt: skip
    assert [each.polygon.bounds for each in found] == [(-8, -4, 4, 6), (150, 95, 170, 115)]


def overlaps(found: Sequence[Building]) -> float:
    """Return the area that buildings share."""
    shapes = [building.polygon for building in found]
    pairs = [(one, other) for k, one in enumerate(shapes) for other in shapes[:k]]
    return float(sum(one.intersection(other).area for one, other in pairs))


@pytest.mark.parametrize("tolerance", [0, 1])
@pytest.mark.parametrize("slope", [0, 0.13, 0.5, 1])
def test_touching_buildings_share_their_wall(tolerance: float, slope: float) -> None:
    rows, columns = np.indices((40, 60))
    left = columns < 30 + (rows - 20) * slope
    found = drawn(
        (10, 10, left, 0.9), (10, 10, ~left, 0.8),
        settings=MergeSettings(simplify_px=tolerance),
    )  # fmt: skip
    one, other = (building.polygon for building in found)
    assert one.is_valid and other.is_valid
    assert overlaps(found) < 1e-6
    # Nothing is between them.
    both = shapely.union_all([one, other])
    assert len(both.interiors) == 0
    assert both.symmetric_difference(shapely.box(10, 10, 70, 50)).area < 60
    wall = one.intersection(other)
    assert wall.length >= 38 * math.hypot(1, slope)


@pytest.mark.parametrize("tolerance", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_outlines_are_valid_and_do_not_overlap(seed: int, tolerance: float) -> None:
    random = np.random.default_rng(seed)
    parts = []
    for _ in range(12):
        high, wide = random.integers(8, 30, 2).tolist()
        y, x = np.indices((high, wide))
        # Blobs of any direction.
        turned = np.hypot((y - high / 2) / high, (x - wide / 2) / wide + (y / high - 0.5) * 0.3)
        value = np.clip(1.3 - 2 * turned + random.normal(0, 0.05, (high, wide)), 0, 1)
        left, top = random.integers(0, (70, 50)).tolist()
        parts.append((left, top, value, float(random.random())))
    found = drawn(*parts, settings=MergeSettings(simplify_px=tolerance))
    assert len(found) > 5
    assert all(building.polygon.is_valid for building in found)
    assert all(building.polygon.geom_type == "Polygon" for building in found)
    # Outlines of buildings that do not share a wall are simplified one by one.
    assert overlaps(found) < (0.01 * sum(areas(found)) if tolerance else 1e-6)


def test_the_order_of_buildings_does_not_change_their_outlines() -> None:
    values = [np.full((10, 14), share) for share in (0.6, 0.7, 0.8)]
    parts = [(10 + 8 * k, 10 + 3 * k, value, 0.5) for k, value in enumerate(values)]
    expected = [each.polygon.wkb for each in drawn(*parts)]
    assert len(expected) == 3
    for order in ((2, 1, 0), (1, 2, 0)):
        assert [each.polygon.wkb for each in drawn(*(parts[k] for k in order))] == expected


def test_thousands_of_candidates() -> None:
    random = np.random.default_rng(0)
    # 400 houses, seen eight times.
    corners = np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2) * 30.0
    houses = np.concatenate([corners + 4, corners + 24], axis=1)
    boxes = np.tile(houses, (8, 1)) + random.normal(0, 0.5, (3200, 4))
    candidates = candidates_of(
        [tuple(box) for box in boxes.tolist()], random.uniform(0.35, 1, 3200).tolist(),
        [np.full((28, 28), 255, np.uint8)] * 3200,
    )  # fmt: skip
    start = time.perf_counter()
    found = voted(candidates, whole=(0.0, 0.0, 600.0, 600.0))
    outlines = InstanceDecoder(SETTINGS, (600, 600), (1.0, 1.0)).decode(found)
    # It takes a second on a busy core.
    assert time.perf_counter() - start < 15
    assert len(found) == len(outlines) == 400
    centres = shapely.get_coordinates([building.polygon.centroid for building in outlines])
    cells = {tuple(cell) for cell in (centres // 30).tolist()}
    assert len(cells) == 400
    assert np.abs(centres % 30 - 14).max() < 1.5
