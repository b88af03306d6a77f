"""How good a candidate for a building is: what intersection over union it may expect.

Gradient boosted trees (LightGBM) learn it from candidates on planes that networks have predicted of
images they were not trained with, beside the true buildings: planes of training images are surer
than those of new ones will be, and would teach that every candidate is good. How many trees there
are is found by cross-validation over the same folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.io.files import write_text
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.tasks.buildings.settings import BUILDING, BuildingSettings
from satmap.tasks.buildings.vectorizer.candidates import FEATURES, Candidates, find_candidates
from satmap.tasks.buildings.vectorizer.instances import find_instances

Floats = NDArray[np.float64]

# So many trees at most; numbers of them that are tried.
_MOST_TREES, _STEP = 400, 20
_PARAMETERS = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}


@dataclass(frozen=True)
class CandidateSample:
    """The candidates of one image of a validation fold.

    Attributes:
        fold: the fold that the image belongs to.
        features: float64 (n, 10), see ``FEATURES``.
        ious: float64 (n,), the best with a true building.
    """

    fold: int
    features: Floats
    ious: Floats


@dataclass(frozen=True)
class ConfidenceFitResult:
    """A model and what it is worth.

    Attributes:
        model: fitted to all samples.
        trees: how many it has.
        error: root mean square error on folds that were held out, by as many trees.
        spread: the same if the mean of the other folds were expected everywhere.
    """

    model: "ConfidenceModel"
    trees: int
    error: float
    spread: float


class ConfidenceModel:
    """Expects an intersection over union of a candidate."""

    def __init__(self, text: str) -> None:
        """Read a model.

        Args:
            text: LightGBM's own text format, as :attr:`text` gives it.

        Raises:
            ValueError: it is none, or one for other features.
        """
        import lightgbm

        try:
            self._trees = lightgbm.Booster(model_str=text)
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise ValueError(f"no model of LightGBM: {error}") from error
        names = tuple(self._trees.feature_name())
        if names != FEATURES:
            raise ValueError(f"a model for {', '.join(names)}, not for {', '.join(FEATURES)}")
        self.text = text

    def expected_iou(self, features: Floats) -> Floats:
        """For candidates (n, 10) what to expect, (n,), 0..1."""
        if not len(features):
            return np.zeros(0)
        expected = np.asarray(self._trees.predict(features, num_threads=1), np.float64)
        return np.clip(expected, 0.0, 1.0)


def sample(
    maps: ProbabilityMaps, truth: NDArray[np.int32], fold: int, settings: BuildingSettings
) -> CandidateSample:
    """The candidates of an image, to learn from.

    Args:
        maps: predicted only by networks that were not trained with the image.
        truth: int32 (height, width), 0 outside, true buildings 1..n.
        fold: that the image belongs to.
        settings: as buildings will be found.
    """
    if truth.shape != maps.shape:
        raise ValueError(f"truth of {truth.shape} for planes of {maps.shape}")
    found = candidates_of(maps, settings, truth)
    return CandidateSample(fold, found.features, found.ious)


def candidates_of(
    maps: ProbabilityMaps, settings: BuildingSettings, truth: NDArray[np.int32] | None = None
) -> Candidates:
    """The candidates of planes in memory."""
    height, width = maps.shape
    return find_candidates(
        maps[BUILDING],
        find_instances(maps, settings),
        Box(0, 0, width, height),
        maps.shape,
        settings.least_px,
        truth=truth,
    )


def fit_confidence(samples: Sequence[CandidateSample]) -> ConfidenceFitResult:
    """Fit a model to the candidates of validation folds; the same samples give the same model.

    Args:
        samples: of at least two folds, else nothing says how many trees are too many.

    Raises:
        ValueError: fewer folds, or no candidates in one.
    """
    import lightgbm

    features = np.concatenate([s.features for s in samples]) if samples else np.zeros((0, 1))
    ious = np.concatenate([s.ious for s in samples]) if samples else np.zeros(0)
    fold = np.repeat([s.fold for s in samples], [len(s.ious) for s in samples])
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(f"a confidence model takes candidates of two folds, not of {len(folds)}")

    def data(rows: NDArray[np.bool_]) -> lightgbm.Dataset:
        return lightgbm.Dataset(
            features[rows], ious[rows], feature_name=list(FEATURES), params=dict(_PARAMETERS)
        )

    # Squared errors by number of trees, of each image by the model of the other folds.
    errors = np.zeros(_MOST_TREES)
    spread = 0.0
    for held_out in folds:
        out = fold == held_out
        trees = lightgbm.train(_PARAMETERS, data(~out), num_boost_round=_MOST_TREES)
        spread += float(((ious[out] - ious[~out].mean()) ** 2).sum())
        for count in range(_STEP, _MOST_TREES + 1, _STEP):
            expected = trees.predict(features[out], num_iteration=count, num_threads=1)
            errors[count - 1] += float(((ious[out] - expected) ** 2).sum())
    tried = np.arange(_STEP, _MOST_TREES + 1, _STEP)
    best = int(tried[errors[tried - 1].argmin()])
    final = lightgbm.train(_PARAMETERS, data(np.ones(len(fold), np.bool_)), num_boost_round=best)
    model = ConfidenceModel(final.model_to_string())
    error = float(np.sqrt(errors[best - 1] / len(ious)))
    return ConfidenceFitResult(model, best, error, float(np.sqrt(spread / len(ious))))


#: Its name in a directory of weights.
CONFIDENCE_FILE = "building-confidence.txt"


def write_confidence(path: Path, model: ConfidenceModel) -> None:
    """Write a model atomically; the same model gives the same bytes.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    write_text(path, model.text)


def read_confidence(path: Path) -> ConfidenceModel:
    """Read what :func:`write_confidence` wrote.

    Raises:
        SatmapError: it cannot be read, is no model, or one for other features.
    """
    try:
        return ConfidenceModel(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SatmapError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise SatmapError(f"{path}: {error}. Fit the confidence model anew.") from error
