"""Selection model: predicts the IoU of a building candidate with the true building.

The model is gradient boosted trees or a random forest (LightGBM), trained on candidates from
out-of-fold probability maps and the true buildings. Probability maps of training images are
overconfident and would teach that every candidate is good. The number of trees comes from
cross-validation over the same folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from satmap.errors import SatmapError
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.tasks.buildings.settings import BUILDING, BuildingSettings
from satmap.tasks.buildings.vectorizer.candidates import (
    FEATURES,
    SCORED_FEATURES,
    Candidates,
    find_candidates,
)
from satmap.tasks.buildings.vectorizer.find_instances import find_instances
from satmap.tasks.buildings.vectorizer.tracing import Floats, Labels, Mask

#: File name of the model in a weights directory.
SELECTION_FILE = "building-selection.txt"

# Largest number of trees, and the step between the numbers tried.
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
# The winner of the Mapping Challenge tried both kinds of models.
_FOREST = {
    "boosting": "rf",
    "num_leaves": 127,
    "min_data_in_leaf": 5,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.632,
}


@dataclass(frozen=True)
class CandidateSample:
    """Building candidates of one image: its validation fold, their features and their IoU.

    The features, (n, 10) or (n, 11), are ``FEATURES`` or ``SCORED_FEATURES``; the IoU, (n,), is the
    highest with a true building.
    """

    fold: int
    features: Floats
    ious: Floats


@dataclass(frozen=True)
class SelectionFit:
    """A model that was fitted to all samples, its number of trees and its cross-validated error.

    ``error`` is the root mean square error on held-out folds. ``spread`` is the same when the mean
    IoU of the other folds is predicted everywhere.
    """

    model: "SelectionModel"
    trees: int
    error: float
    spread: float


class SelectionModel:
    """Predicts the IoU of candidates with their true building."""

    def __init__(self, text: str) -> None:
        """Load a model from LightGBM's text format, also kept in :attr:`text`.

        Raises:
            ValueError: the text is not a model, or the model has other features.
        """
        import lightgbm

        try:
            self._trees = lightgbm.Booster(model_str=text)
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise ValueError(f"not a LightGBM model: {error}") from error
        names = tuple(self._trees.feature_name())
        if names not in (FEATURES, SCORED_FEATURES):
            raise ValueError(
                f"the model's features are {', '.join(names)}, expected {', '.join(FEATURES)}"
            )
        self.has_score = names == SCORED_FEATURES
        self.text = text

    def expected_iou(self, features: Floats) -> Floats:
        """Predict the IoU of candidates, (n,), 0..1, from their features, (n, 10) or (n, 11)."""
        if not len(features):
            return np.zeros(0)
        expected = np.asarray(self._trees.predict(features, num_threads=1), np.float64)
        return np.clip(expected, 0.0, 1.0)


def sample(
    maps: ProbabilityMaps,
    truth: Labels,
    fold: int,
    settings: BuildingSettings,
    found: tuple[Labels, Floats] | None = None,
) -> CandidateSample:
    """Return the candidates of an image as training data for the model.

    The maps come from networks that were not trained on the image; the settings are those of the
    prediction. ``truth`` has the same size: 0 outside, true buildings 1..n. ``found`` are the
    buildings 1..n of a cascade, and the score of each.
    """
    candidates = candidates_of(maps, settings, truth, found)
    return CandidateSample(fold, candidates.features, candidates.ious)


def candidates_of(
    maps: ProbabilityMaps,
    settings: BuildingSettings,
    truth: Labels | None = None,
    found: tuple[Labels, Floats] | None = None,
) -> Candidates:
    """Return the candidates of probability maps in memory, with their IoU if truth is given."""
    height, width = maps.shape
    return find_candidates(
        maps[BUILDING],
        find_instances(maps, settings),
        Box(0, 0, width, height),
        maps.shape,
        settings.least_px,
        truth=truth,
        found=found,
    )


def fit_selection(samples: Sequence[CandidateSample], forest: bool = False) -> SelectionFit:
    """Fit a model to the candidates of validation folds; deterministic.

    ``forest`` fits a random forest instead of boosted trees.

    Raises:
        ValueError: the candidates come from fewer than two folds, which cross-validation of the
            number of trees needs.
    """
    import lightgbm

    features = np.concatenate([s.features for s in samples]) if samples else np.zeros((0, 1))
    ious = np.concatenate([s.ious for s in samples]) if samples else np.zeros(0)
    fold = np.repeat([s.fold for s in samples], [len(s.ious) for s in samples])
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(
            f"a selection model needs candidates from at least two folds, got {len(folds)}"
        )

    parameters = _PARAMETERS | (_FOREST if forest else {})

    names = SCORED_FEATURES[: features.shape[1]]

    def data(rows: Mask) -> lightgbm.Dataset:
        return lightgbm.Dataset(
            features[rows], ious[rows], feature_name=list(names), params=dict(parameters)
        )

    # Sum of squared errors by number of trees; each image is predicted by the other folds' model.
    tried = range(_STEP, _MOST_TREES + 1, _STEP)
    errors = np.zeros(len(tried))
    spread = 0.0
    for held_out in folds:
        out = fold == held_out
        trees = lightgbm.train(parameters, data(~out), num_boost_round=_MOST_TREES)
        spread += float(((ious[out] - ious[~out].mean()) ** 2).sum())
        for place, count in enumerate(tried):
            expected = trees.predict(features[out], num_iteration=count, num_threads=1)
            errors[place] += float(((ious[out] - expected) ** 2).sum())
    best = tried[int(errors.argmin())]
    final = lightgbm.train(parameters, data(np.ones(len(fold), np.bool_)), num_boost_round=best)
    model = SelectionModel(final.model_to_string())
    error = float(np.sqrt(errors.min() / len(ious)))
    return SelectionFit(model, best, error, float(np.sqrt(spread / len(ious))))


def find_selection(weights: Path) -> Path | None:
    """Return the path of the model beside the networks, if there is a valid one.

    Raises:
        SatmapError: as :func:`read_selection`.
    """
    path = weights / SELECTION_FILE
    if not path.exists():
        return None
    read_selection(path)
    return path.resolve()


def read_selection(path: Path) -> SelectionModel:
    """Read a model from the file of its text.

    Raises:
        SatmapError: the file cannot be read, is not a model, or has other features.
    """
    try:
        return SelectionModel(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SatmapError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise SatmapError(f"{path}: {error}. Fit the selection model again.") from error


@lru_cache(maxsize=1)
def read_selection_once(path: Path) -> SelectionModel:
    """Read the model once per worker: reading takes longer than decoding an image."""
    return read_selection(path)
