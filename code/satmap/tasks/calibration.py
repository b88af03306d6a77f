"""Calibration: from features of a road or building to the probability that it is right.

The model is a logistic regression with a small penalty on its weights. Networks meet places that
the fit has not seen, and there a model must not extrapolate wildly. So each feature is clipped to
the range that the fit has seen, and a place counts as the square root of its number of objects:
large places do not outvote the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from satmap.errors import SatmapError
from satmap.evaluation.metrics.reliability import calibration_error
from satmap.io.text import printable
from satmap.settings import Settings, first_fault

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: File name of the calibration in a directory of weights.
CALIBRATION_FILE = "confidence.json"

# Penalty on the squares of the weights, where the likelihood is a mean over the objects. Places are
# too few to choose it for each fit; a third and three times of it give nearly the same
# (benchmarks/README.md).
_PENALTY = 0.01
# Share of the objects at each end of a feature's range that are clipped.
_CLIPPED = 0.01
# Newton's method ends when no weight changes by more than this, or after so many steps.
_CLOSE, _STEPS = 1e-8, 100
# Features whose standard deviation is below this are constant.
_CONSTANT = 1e-9

_Finite = Annotated[float, Field(allow_inf_nan=False)]


def log_odds(probability: Floats) -> Floats:
    """Return log(p / (1 - p)) of probabilities, which are kept away from 0 and 1."""
    kept = np.clip(probability, 0.01, 0.99)
    return np.asarray(np.log(kept / (1 - kept)))


class Calibration(Settings):
    """Computes the probability that an object is right from its features.

    Attributes:
        format: number of the file's format. Increase it when older versions can no longer read new
            files.
        task: the task whose objects it is for: ``roads``, ``buildings`` or ``instances``.
        features: names of the features, in their order.
        low, high: range that each feature is clipped to.
        mean, scale: each feature is reduced by its mean and divided by its scale.
        weights: weight of each feature.
        intercept: log odds of an object with mean features.
    """

    format: Literal[1] = 1
    task: str
    features: tuple[str, ...]
    low: tuple[_Finite, ...]
    high: tuple[_Finite, ...]
    mean: tuple[_Finite, ...]
    scale: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    weights: tuple[_Finite, ...]
    intercept: _Finite

    @model_validator(mode="after")
    def _one_number_per_feature(self) -> "Calibration":
        for name in ("low", "high", "mean", "scale", "weights"):
            if len(getattr(self, name)) != len(self.features):
                raise ValueError(f"{name} must have one number per feature")
        return self

    def probability(self, features: Floats) -> Floats:
        """Return the probability that objects are right, (n,), from features (n, features)."""
        if not len(features):
            return np.zeros(0)
        inside = np.clip(features, self.low, self.high)
        scaled = (inside - self.mean) / np.array(self.scale)
        odds = scaled @ np.array(self.weights) + self.intercept
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -30, 30))))


@dataclass(frozen=True)
class Labelled:
    """Objects of one image with known truth.

    Attributes:
        place: name of the place that the image is of. Places are left out one by one.
        features: float64 (n, features).
        right: bool (n,).
    """

    place: str
    features: Floats
    right: Bools


@dataclass(frozen=True)
class CalibrationFit:
    """A calibration that was fitted to all objects.

    Attributes:
        calibration: the model.
        count: number of objects.
        right: share of them that is right.
        out_of_fold: float64 (n,), probability of each object by a fit without its place.
        error: expected calibration error of these probabilities.
    """

    calibration: Calibration
    count: int
    right: float
    out_of_fold: Floats
    error: float


def fit_calibration(task: str, names: Sequence[str], objects: Sequence[Labelled]) -> CalibrationFit:
    """Fit a calibration to objects of at least two places; deterministic.

    Raises:
        ValueError: there are fewer than two places with objects, or all objects are right, or all
            wrong.
    """
    objects = [each for each in objects if len(each.right)]
    places = sorted({each.place for each in objects})
    if len(places) < 2:
        raise ValueError(f"a fit needs objects of at least two places, got {len(places)}")
    features = np.concatenate([each.features for each in objects])
    right = np.concatenate([each.right for each in objects])
    place = np.repeat(
        [places.index(each.place) for each in objects], [len(each.right) for each in objects]
    )
    if right.all() or not right.any():
        which = "right" if right.all() else "wrong"
        raise ValueError(f"all {len(right)} objects are {which}, so there is nothing to learn")
    found = np.empty(len(right))
    for number in range(len(places)):
        others = place != number
        if 0 < right[others].sum() < others.sum():
            model = _fit(task, names, features[others], right[others], place[others])
            found[~others] = model.probability(features[~others])
        else:
            found[~others] = right[others].mean()
    return CalibrationFit(
        _fit(task, names, features, right, place),
        len(right),
        float(right.mean()),
        found,
        calibration_error(found, right),
    )


def _shares(place: Ints) -> Floats:
    """Return the weight of each object; a place counts as the square root of its objects."""
    _, number, counts = np.unique(place, return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(counts[number])
    return np.asarray(weights / weights.sum())


def _fit(
    task: str, names: Sequence[str], features: Floats, right: Bools, place: Ints
) -> Calibration:
    """Fit a logistic regression by Newton's method."""
    low, high = np.quantile(features, [_CLIPPED, 1 - _CLIPPED], axis=0)
    shares = _shares(place)
    inside = np.clip(features, low, high)
    mean = shares @ inside
    scale = np.sqrt(shares @ (inside - mean) ** 2)
    scale = np.where(scale > _CONSTANT, scale, 1.0)
    scaled = np.column_stack([(inside - mean) / scale, np.ones(len(right))])
    # The intercept is free.
    ridge = _PENALTY * np.append(np.ones(features.shape[1]), 0.0)
    weights = np.zeros(features.shape[1] + 1)
    for _ in range(_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(scaled @ weights, -30, 30)))
        slope = scaled.T @ (shares * (probability - right)) + ridge * weights
        bend = (scaled.T * (shares * probability * (1 - probability))) @ scaled + np.diag(ridge)
        step = np.linalg.solve(bend + _CONSTANT * np.eye(len(weights)), slope)
        weights -= step
        if np.abs(step).max() < _CLOSE:
            break
    return Calibration(
        task=task,
        features=tuple(names),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(weights[:-1].tolist()),
        intercept=float(weights[-1]),
    )


def read_calibration(path: Path) -> Calibration:
    """Read a calibration from its file.

    Raises:
        SatmapError: the file cannot be read or is not a calibration of this version.
    """
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SatmapError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValidationError as error:
        raise SatmapError(
            f"{path} is not a calibration that this version of satmap can read "
            f"({first_fault(error)}). Fit it again (`satmap confidence`), or move it elsewhere."
        ) from error


def require_calibration(least: float | None, weights: Path, out_of_fold: bool = False) -> None:
    """Check that a least confidence is only asked of networks with a calibration.

    Raises:
        SatmapError: there is none in the directory of weights, or it is not used because it knows
            the truth of images that are predicted out of fold.
    """
    if least is None:
        return
    if out_of_fold:
        raise SatmapError(
            "--least-confidence: out of fold, roads and buildings are uncalibrated. Leave the "
            "option out."
        )
    if not (weights / CALIBRATION_FILE).is_file():
        raise SatmapError(
            f"--least-confidence: the networks in {weights} are uncalibrated; there is no "
            f"{CALIBRATION_FILE}. Fit one with `satmap confidence`, or leave the option out."
        )


def check_calibration(path: Path, task: str, features: Sequence[str]) -> None:
    """Check that a file is a calibration of a task, with these features.

    Raises:
        SatmapError: it is not.
    """
    found = read_calibration(path)
    if found.task != task or found.features != tuple(features):
        raise SatmapError(
            f"{path} is for the task {printable(found.task)} with the features "
            f"{printable(', '.join(found.features), 400)}; the task {task} here has "
            f"{', '.join(features)}. Fit it again (`satmap confidence`), or move it elsewhere."
        )
