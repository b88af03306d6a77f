"""Candidates, their overlaps, and the model that rates them."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satmap.data.chip import Chip
from satmap.data.chip_label import CHIP_LABEL_SUFFIX, ChipLabel
from satmap.data.imagery import RGB, ImageInfo
from satmap.errors import SatmapError
from satmap.rasters.map_files import write_maps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.tasks.base import default_task
from satmap.tasks.buildings.selection import (
    SELECTION_FILE,
    CandidateSample,
    SelectionModel,
    fit_selection,
    read_selection,
    sample,
)
from satmap.tasks.buildings.settings import BUILDING, BuildingSettings
from satmap.tasks.buildings.task import BuildingTask
from satmap.tasks.buildings.vectorizer.candidates import (
    FEATURES,
    SAME_IOU,
    THRESHOLDS,
    find_candidates,
    layer_labels,
    non_maximum_suppression,
)
from satmap.tasks.buildings.vectorizer.find_instances import find_instances
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tasks.confidence_fit import _Image, _sample
from synthetic_blocks import made_blocks, maps_of_labels

CHOSEN = BuildingSettings(least_px=10, seed_px=3)


def made(seed: int, size: int = 160) -> tuple[ProbabilityMaps, NDArray[np.int32]]:
    blocks = made_blocks(seed, size, 17 * seed, (10, 30))
    return maps_of_labels(blocks.labels, 1.5, 0.2, seed), blocks.labels


def test_ignored_pixels_of_own_chips_have_no_candidates(tmp_path: Path) -> None:
    body = np.zeros((1, 64, 64), np.uint8)
    body[0, 10:30, 5:25] = body[0, 10:30, 40:60] = 220
    write_maps(tmp_path / "a.tif", ProbabilityMaps((BUILDING,), body, (1, 1)), None)
    label = tmp_path / f"a{CHIP_LABEL_SUFFIX}"
    info = ImageInfo(tmp_path / "a.jpg", RGB, 64, 64, 3, "uint8", None, is_stretched=True)
    chip = Chip("a", "a", "", {RGB: info}, label)
    task = default_task("buildings")
    assert isinstance(task, BuildingTask)
    houses = np.array([shapely.box(5, 10, 25, 30)], np.object_)
    ious = {}
    for name, ignored in (("none", slice(0, 0)), ("right", slice(32, 64))):
        where = np.zeros((64, 64), bool)
        where[:, ignored] = True
        ChipLabel(houses, where, None, None).write(label)
        ious[name] = _sample(_Image(chip, 0, "", tmp_path / "a.tif"), task).ious
    # The building on the right has no label: it is wrong, or not known.
    assert ious["right"].min() > 0.9
    assert len(ious["none"]) == 2 * len(ious["right"])
    assert (ious["none"] == 0).sum() == len(ious["right"])


def test_features_of_a_building() -> None:
    body = np.zeros((40, 60), np.uint8)
    body[10:20, 30:50] = 128
    body[12, 40] = 230
    body[19, 49] = 0
    instances = find_instances(ProbabilityMaps((BUILDING,), body[None], (1, 1)), CHOSEN)
    found = find_candidates(body, instances, Box(100, 200, 60, 40), (1000, 500), 10)
    # The watershed's candidate and those of thresholds .05 to .5; only one pixel lies above.
    assert found.layer.tolist() == [0, *range(10, 0, -1)]
    row = dict(zip(FEATURES, found.features[-1].tolist(), strict=True))
    assert row["threshold"] == THRESHOLDS[0]
    assert row["area"] == 199
    assert row["mean"] == pytest.approx((198 * 128 + 230) / 199 / 255)
    assert row["most"] == pytest.approx(230 / 255)
    assert (row["box_aspect"], row["box_area"]) == (0.5, 200)
    assert row["box_fill"] == pytest.approx(199 / 200)
    # Distances in an image of 500 x 1000: 130 left, 350 right, 210 above, 780 below.
    assert (row["nearest_border"], row["farthest_border"]) == (130, 780)
    assert row["contour"] == 60


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 1000))
def test_overlaps_and_ious_are_those_of_the_masks(seed: int) -> None:
    maps, truth = made(seed, 70)
    body = maps[BUILDING]
    instances = find_instances(maps, CHOSEN)
    found = find_candidates(body, instances, Box(0, 0, 70, 70), (70, 70), 10, truth=truth)
    labels = [instances, *(layer_labels(body, n + 1) for n in range(len(THRESHOLDS)))]
    masks = np.array(
        [labels[a] == b for a, b in zip(found.layer.tolist(), found.label.tolist(), strict=True)]
    ).reshape(-1, 70 * 70)
    area = masks.sum(axis=1)
    shared = masks.astype(np.int64) @ masks.T
    ious = shared / np.maximum(area[:, None] + area - shared, 1)
    expected = {(a, b) for a, b in np.argwhere(ious >= SAME_IOU).tolist() if a < b}
    assert {(min(p), max(p)) for p in found.rivals.T.tolist()} == expected
    true = np.array([truth.ravel() == n for n in range(1, int(truth.max()) + 1)])
    common = masks.astype(np.int64) @ true.T
    best = (common / (area[:, None] + true.sum(axis=1) - common)).max(axis=1)
    np.testing.assert_allclose(found.ious, best)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_survivors_are_greedy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, 12) / 5
    rivals = rng.integers(0, 12, (2, rng.integers(0, 20)))
    rivals = rivals[:, rivals[0] != rivals[1]]
    pairs = {frozenset(pair) for pair in rivals.T.tolist()}
    kept: list[int] = []
    for candidate in sorted(range(12), key=lambda n: (-scores[n], n)):
        if not any(frozenset((candidate, other)) in pairs for other in kept):
            kept.append(candidate)
    assert non_maximum_suppression(scores, rivals).tolist() == sorted(kept)


@pytest.fixture(scope="module")
def samples() -> list[CandidateSample]:
    return [sample(*made(seed), seed % 2, CHOSEN) for seed in range(4)]


@pytest.fixture(scope="module")
def model(samples: list[CandidateSample]) -> SelectionModel:
    return fit_selection(samples).model


def test_a_fit_separates_good_from_bad_candidates_and_is_reproducible(
    samples: list[CandidateSample], model: SelectionModel
) -> None:
    again = fit_selection(samples)
    assert again.model.text == model.text
    assert again.error < 0.7 * again.spread
    maps, truth = made(9)
    unseen = sample(maps, truth, 0, CHOSEN)
    expected = model.expected_iou(unseen.features)
    assert np.corrcoef(expected, unseen.ious)[0, 1] > 0.7
    assert model.expected_iou(np.zeros((0, len(FEATURES)))).shape == (0,)
    with pytest.raises(ValueError, match="at least two folds"):
        fit_selection(samples[:1])


def test_a_random_forest_is_another_model_of_the_same_kind(
    samples: list[CandidateSample], model: SelectionModel
) -> None:
    forest = fit_selection(samples, forest=True)
    assert forest.error < 0.7 * forest.spread
    assert forest.model.text == fit_selection(samples, forest=True).model.text != model.text
    unseen = sample(*made(9), 0, CHOSEN)
    expected = SelectionModel(forest.model.text).expected_iou(unseen.features)
    assert np.corrcoef(expected, unseen.ious)[0, 1] > 0.7
    assert ((expected >= 0) & (expected <= 1)).all()


def test_a_model_selects_the_same_candidates_for_any_windows(model: SelectionModel) -> None:
    maps, _ = made(12)
    at_once = vectorize_buildings(maps, CHOSEN, model)
    assert len(at_once) > 20
    assert all(0 <= building.score <= 1 for building in at_once)
    in_windows = vectorize_buildings(maps, CHOSEN, model, window=64)
    assert [b.polygon.wkb for b in in_windows] == [b.polygon.wkb for b in at_once]
    assert [b.score for b in in_windows] == [b.score for b in at_once]


def test_each_kind_of_confidence_has_its_own_threshold(model: SelectionModel) -> None:
    maps, _ = made(12)
    everything = vectorize_buildings(maps, CHOSEN.model_copy(update={"least_iou": 0.0}), model)
    sure = vectorize_buildings(maps, CHOSEN, model)
    expected = [b.polygon.wkb for b in everything if b.score >= 0.3]
    assert [b.polygon.wkb for b in sure] == expected
    assert 0 < len(sure) < len(everything)
    # The threshold of one kind of confidence does not affect the other.
    high = {"least_confidence": 100.0}
    with_model = vectorize_buildings(maps, CHOSEN.model_copy(update=high), model)
    assert [b.polygon.wkb for b in with_model] == expected
    plain = vectorize_buildings(maps, CHOSEN)
    assert (
        len(vectorize_buildings(maps, CHOSEN.model_copy(update={"least_iou": 1.0})))
        == len(plain)
        > 0
    )
    assert vectorize_buildings(maps, CHOSEN.model_copy(update=high)) == []


def test_files_round_trip_and_others_are_refused(tmp_path: Path, model: SelectionModel) -> None:
    path = tmp_path / SELECTION_FILE
    path.write_text(model.text)
    features = np.random.default_rng(0).random((5, len(FEATURES)))
    expected = model.expected_iou(features)
    np.testing.assert_array_equal(read_selection(path).expected_iou(features), expected)
    path.write_text("no model")
    with pytest.raises(SatmapError, match="not a LightGBM model"):
        read_selection(path)
    path.write_text(model.text.replace("box_fill", "box_full"))
    with pytest.raises(SatmapError, match="box_full"):
        read_selection(path)
    with pytest.raises(SatmapError, match="cannot be read"):
        read_selection(tmp_path / "none.txt")
