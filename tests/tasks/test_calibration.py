"""The calibration: its fit, its file, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from satmap.errors import SatmapError
from satmap.evaluation.metrics.reliability import calibration_error
from satmap.tasks.calibration import (
    CALIBRATION_FILE,
    Calibration,
    CalibrationFit,
    Labelled,
    check_calibration,
    fit_calibration,
    read_calibration,
    require_calibration,
)

NAMES = ("strength", "noise", "constant")


def drawn(place: str, seed: int, count: int = 600, shift: float = 0.0) -> Labelled:
    """Return objects whose log odds of being right are 2 x strength - 1."""
    rng = np.random.default_rng(seed)
    strength, noise = rng.normal(shift, 1, count), rng.normal(0, 1, count)
    right = rng.random(count) < 1 / (1 + np.exp(1 - 2 * strength))
    return Labelled(place, np.stack([strength, noise, np.ones(count)], axis=1), right)


@pytest.fixture(scope="module")
def fit() -> CalibrationFit:
    return fit_calibration("roads", NAMES, [drawn("a", 1), drawn("b", 2), drawn("c", 3, 60)])


def test_a_fit_finds_the_probabilities_of_unseen_places(fit: CalibrationFit) -> None:
    assert (fit.count, len(fit.out_of_fold)) == (1260, 1260)
    assert fit.error < 0.06
    unseen = drawn("d", 9, 3000, shift=0.7)
    found = fit.calibration.probability(unseen.features)
    assert calibration_error(found, unseen.right) < 0.05
    assert ((found > 0) & (found < 1)).all()
    strong, weak = fit.calibration.probability(np.array([[1.0, 0, 1], [-1.0, 0, 1]]))
    assert strong == pytest.approx(1 / (1 + np.exp(-1)), abs=0.08)
    assert weak == pytest.approx(1 / (1 + np.exp(3)), abs=0.05)
    assert fit.calibration.probability(np.zeros((0, 3))).shape == (0,)


def test_features_beyond_those_of_the_fit_change_nothing(fit: CalibrationFit) -> None:
    far, farther = fit.calibration.probability(np.array([[5.0, 0, 1], [500.0, 0, 7]]))
    assert far == farther < 1


def test_a_fit_is_reproducible_and_its_file_is_json(fit: CalibrationFit, tmp_path: Path) -> None:
    again = fit_calibration("roads", NAMES, [drawn("a", 1), drawn("b", 2), drawn("c", 3, 60)])
    assert again.calibration == fit.calibration
    path = tmp_path / CALIBRATION_FILE
    path.write_text(fit.calibration.model_dump_json())
    read = read_calibration(path)
    assert read == fit.calibration and read.format == 1
    features = drawn("d", 5).features
    np.testing.assert_array_equal(read.probability(features), fit.calibration.probability(features))
    check_calibration(path, "roads", NAMES)
    with pytest.raises(SatmapError, match=r"is for the task roads .* the task buildings here has"):
        check_calibration(path, "buildings", NAMES)
    with pytest.raises(SatmapError, match="Fit it again"):
        check_calibration(path, "roads", NAMES[:2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format"),
        ({"weights": [1.0]}, "one number per feature"),
        ({"intercept": float("nan")}, "intercept"),
        ({"scale": [1.0, 0.0, 1.0]}, "scale"),
        ({"pickle": "x"}, "pickle"),
    ],
)
def test_damaged_files_are_refused(
    fit: CalibrationFit, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    path = tmp_path / CALIBRATION_FILE
    path.write_text(json.dumps(fit.calibration.model_dump() | change))
    with pytest.raises(SatmapError, match=reason):
        read_calibration(path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(SatmapError, match="is not a calibration"):
        read_calibration(path)
    with pytest.raises(SatmapError, match="cannot be read"):
        read_calibration(tmp_path / "none.json")


def test_too_little_to_learn_from() -> None:
    with pytest.raises(ValueError, match="at least two places, got 1"):
        fit_calibration("roads", NAMES, [drawn("a", 1), drawn("a", 2)])
    one = drawn("a", 1)
    wrong = [Labelled(p, one.features, np.zeros(len(one.right), bool)) for p in "ab"]
    with pytest.raises(ValueError, match="all 1200 objects are wrong"):
        fit_calibration("roads", NAMES, wrong)


def test_a_place_where_all_is_wrong_does_not_stop_a_fit() -> None:
    empty = Labelled("b", drawn("b", 2).features, np.zeros(600, bool))
    found = fit_calibration("roads", NAMES, [drawn("a", 1), empty])
    assert isinstance(found.calibration, Calibration)
    # Without the other place, nothing tells right from wrong.
    assert (found.out_of_fold[:600] == 0).all()


def test_a_least_confidence_needs_a_calibration(tmp_path: Path) -> None:
    require_calibration(None, tmp_path)
    with pytest.raises(SatmapError, match="are uncalibrated; there is no"):
        require_calibration(0.5, tmp_path)
    (tmp_path / CALIBRATION_FILE).write_text("{}")
    require_calibration(0.5, tmp_path)
    with pytest.raises(SatmapError, match="out of fold"):
        require_calibration(0.5, tmp_path, out_of_fold=True)
