"""Buildings from probability maps: instances and outlines."""

import cv2
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from shapely.affinity import rotate, translate

from repository import SHARED
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.buildings.settings import BORDER, BUILDING, CONTACT, BuildingSettings
from satmap.tasks.buildings.vectorizer.find_instances import find_instances
from satmap.tasks.buildings.vectorizer.polygons import exact_polygons, simplify_outlines
from satmap.tasks.buildings.vectorizer.tracing import connected_groups
from vegas_buildings import vegas_truth

VEGAS = SHARED / "data/buildings_sn2/AOI_2_Vegas_Train"
SCALE = (0.3, 0.3)
ALL = BuildingSettings(least_px=0, seed_px=0)

Mask = NDArray[np.uint8]


def maps_of(body: Mask, **others: Mask) -> ProbabilityMaps:
    return ProbabilityMaps((BUILDING, *others), np.stack([body, *others.values()]), SCALE)


def rectangles(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (100, 120)) -> Mask:
    """Return a mask of boxes (x, y, width, height)."""
    mask = np.zeros(shape, np.uint8)
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = 255
    return mask


def of_labels(labels: NDArray[np.int32]) -> ProbabilityMaps:
    """Return exact body and border maps; border pixels touch another building or background."""
    values = labels.astype(np.float32)
    square = np.ones((3, 3), np.uint8)
    border = (labels > 0) & (cv2.dilate(values, square) != cv2.erode(values, square))
    return maps_of((labels > 0) * np.uint8(255), **{BORDER: border * np.uint8(255)})


def test_buildings_are_numbered_by_first_pixel() -> None:
    mask = rectangles((60, 5, 20, 20), (10, 10, 20, 20), (10, 50, 20, 20))
    labels = find_instances(maps_of(mask), BuildingSettings())
    assert labels.dtype == np.int32
    assert [labels[6, 70], labels[15, 15], labels[60, 15], labels[0, 0]] == [1, 2, 3, 0]


@pytest.mark.parametrize("seam", [BORDER, CONTACT])
def test_a_seam_separates_touching_buildings(seam: str) -> None:
    body = rectangles((10, 10, 40, 40), (50, 20, 40, 40))
    line = rectangles((49, 20, 2, 30))
    labels = find_instances(maps_of(body, **{seam: line}), BuildingSettings())
    # Every pixel of the body belongs to one of the two.
    assert ((labels > 0) == (body > 0)).all()
    np.testing.assert_allclose(np.bincount(labels.ravel())[1:], [1600, 1600], atol=30)
    assert len(np.unique(find_instances(maps_of(body), BuildingSettings()))) == 2


def test_a_large_building_with_an_uncertain_middle_stays_whole() -> None:
    body = rectangles((10, 10, 80, 60))
    # Uncertain: below the seed threshold, and slightly below the roof.
    body[:, 48:52] = np.minimum(body[:, 48:52], 170)
    labels = find_instances(maps_of(body), BuildingSettings(seed=0.7, split=0.6))
    assert set(np.unique(labels)) == {0, 1}
    assert set(np.unique(find_instances(maps_of(body), BuildingSettings(split=0.9)))) == {0, 1, 2}


def test_small_and_uncertain_buildings_are_dropped_and_small_holes_filled() -> None:
    body = rectangles((5, 5, 9, 9), (30, 5, 20, 20), (70, 5, 20, 20))
    body[70 - 60 : 13, 38:41] = 0
    body[5:25, 70:90] = 100
    labels = find_instances(maps_of(body), BuildingSettings(least_px=100, certain=0.5))
    assert set(np.unique(labels)) == {0, 1}
    assert (labels[5:25, 30:50] == 1).all()
    hollow = find_instances(maps_of(body), BuildingSettings(hole_px=5))
    assert (hollow[10:13, 38:41] == 0).all()


def test_outlines_are_exact_with_holes() -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[2:12, 3:13] = 1
    labels[5:8, 6:9] = 0
    labels[15:18, 20:25] = 3
    first, second, third = exact_polygons(labels)
    assert second is None
    assert first.equals(shapely.box(3, 2, 13, 12) - shapely.box(6, 5, 9, 8))
    assert third.equals(shapely.box(20, 15, 25, 18))
    assert len(exact_polygons(np.zeros((5, 5), np.int32))) == 0


@pytest.mark.parametrize("side", [6, 10, 20, 60])
@pytest.mark.parametrize("degrees", [0, 17, 45, 80])
def test_simplified_outlines_keep_area_and_position(side: int, degrees: int) -> None:
    square = rotate(shapely.box(0, 0, side, side), degrees)
    shape = translate(square, 30, 30)
    drawn = rasterio.features.rasterize([(shape, 1)], out_shape=(120, 120), dtype="int32")
    exact = exact_polygons(drawn)
    (simple,) = simplify_outlines(exact, 1.0)
    assert simple.is_valid
    assert simple.area == pytest.approx(exact[0].area, rel=0.01)
    overlap = simple.intersection(exact[0]).area
    assert overlap >= 0.95 * simple.union(exact[0]).area
    assert len(simple.exterior.coords) <= len(exact[0].exterior.coords)
    if side >= 60:
        assert len(simple.exterior.coords) <= 14
    assert simplify_outlines(exact, 0)[0].equals(exact[0])


def test_touching_buildings_of_synthetic_blocks_stay_separate() -> None:
    rng = np.random.default_rng(4)
    labels = np.zeros((600, 600), np.int32)
    number, pairs = 0, []
    for top in range(10, 560, 45):
        left = 10
        previous = 0
        while left < 540:
            width, height = rng.integers(14, 40, 2)
            number += 1
            labels[top : top + height, left : left + width] = number
            if previous:
                pairs.append((previous, number))
            previous = number
            left += width
    found = find_instances(of_labels(labels), ALL)
    main = [int(np.bincount(found[labels == k]).argmax()) for k in range(1, number + 1)]
    apart = [main[a - 1] != main[b - 1] for a, b in pairs]
    assert len(apart) > 100
    assert np.mean(apart) >= 0.98


@pytest.mark.skipif(not VEGAS.is_dir(), reason="no shared data here")
def test_vegas_labels_round_trip() -> None:
    found, ious = 0, []
    for truth, shape in vegas_truth(VEGAS):
        if not truth:
            continue
        numbered = [(polygon, number + 1) for number, polygon in enumerate(truth)]
        labels = rasterio.features.rasterize(numbered, out_shape=shape, dtype="int32")
        outlines = simplify_outlines(exact_polygons(find_instances(of_labels(labels), ALL)), 1.0)
        overlaps = shapely.area(shapely.intersection(np.array(truth)[:, None], outlines))
        areas = shapely.area(truth)[:, None] + shapely.area(outlines) - overlaps
        best = (overlaps / areas).max(axis=1)
        found += len(outlines) - len(truth)
        ious += best.tolist()
    assert found == 0
    assert min(ious) >= 0.5
    assert np.mean(ious) >= 0.97


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="low is above"):
        BuildingSettings(low=0.6)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 120), st.integers(0, 120))
def test_groups_are_those_of_scipy(seed: int, count: int, number: int) -> None:
    pairs = np.random.default_rng(seed).integers(0, count, (2, number))
    graph = sparse.coo_array((np.ones(number), tuple(pairs)), shape=(count, count))
    expected = connected_components(graph, directed=False)[1]
    found = connected_groups(pairs, count)
    assert found.dtype == np.int32
    assert found.tolist() == expected.tolist()
