"""Reliability, calibration error and risk by coverage, worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satmap.evaluation.metrics.reliability import (
    Rated,
    calibration_error,
    kept_at,
    reliability,
)

CONFIDENCES = np.array([0.05, 0.3, 0.34, 0.9, 0.95, 1.0])
RIGHT = np.array([False, True, False, True, True, False])


def test_the_calibration_error_is_the_weighted_distance_of_the_bins() -> None:
    groups = [("small",), ("small", "b"), ("small", "b"), ("large",), ("large",), ("large",)]
    found = reliability(Rated(CONFIDENCES, RIGHT, groups), ("small", "large"))
    # .3 belongs to the bin that begins there, 1.0 to the last one.
    assert [(b.low, b.high, b.count) for b in found.bins] == [
        (0.0, 0.1, 1), (0.3, 0.4, 2), (0.9, 1.0, 3),
    ]  # fmt: skip
    assert [b.confidence for b in found.bins] == pytest.approx([0.05, 0.32, 0.95])
    assert [b.right for b in found.bins] == pytest.approx([0, 0.5, 2 / 3])
    expected = (1 * 0.05 + 2 * 0.18 + 3 * (0.95 - 2 / 3)) / 6
    assert found.error == pytest.approx(expected) == calibration_error(CONFIDENCES, RIGHT)
    assert (found.count, found.right) == (6, 0.5)
    # Groups by size come in their order, the others after them.
    assert list(found.groups) == ["small", "large", "b"]
    assert found.groups["b"].error == pytest.approx(0.18)
    assert found.groups["large"].right == pytest.approx(2 / 3)


def test_precision_by_coverage() -> None:
    # In order: 1.0 wrong, .95 right, .9 right, .34 wrong, .3 right, .05 wrong.
    figures = {share: kept_at(CONFIDENCES, RIGHT, share) for share in (1 / 6, 1 / 2, 0.8, 1.0)}
    assert figures[1 / 6].precision == 0 and figures[1 / 6].least_confidence == 1.0
    assert figures[1 / 2].precision == pytest.approx(2 / 3)
    # 80 % of six objects are five.
    assert figures[0.8].precision == pytest.approx(3 / 5)
    assert figures[0.8].least_confidence == 0.3
    assert figures[0.8].risk == pytest.approx(2 / 5)
    assert figures[1.0].precision == 0.5


def test_equal_confidences_do_not_depend_on_the_order() -> None:
    same = np.array([0.9, 0.5, 0.5, 0.5, 0.5])
    for right in ([1, 1, 0, 0, 0], [1, 0, 0, 0, 1]):
        kept = kept_at(same, np.array(right, bool), 0.4)
        # One of the four is right.
        assert kept.precision == pytest.approx((1 + 0.25) / 2)


@given(st.integers(0, 10_000))
def test_a_drawn_truth_has_a_small_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidences = rng.random(4000)
    right = rng.random(4000) < confidences
    assert calibration_error(confidences, right) < 0.06
    assert calibration_error(np.sqrt(confidences), right) > 0.08
