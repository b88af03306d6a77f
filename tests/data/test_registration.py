"""Offsets between labels and images or probability maps."""

import cv2
import numpy as np
import pytest
import rasterio
import shapely
from numpy.typing import NDArray

from repository import SHARED
from satmap.data.own_labels import read_own_shapes
from satmap.data.registration import best_shift, measure_offset, shift_scores
from satmap.vectors.georeference import georeference_of

SIDE, PIXEL_M = 240, 0.5
# Pixels by which the labels lie too far to the right and too low.
SHIFT = np.array([5.0, -3.0])


def houses(seed: int) -> NDArray[np.object_]:
    random = np.random.default_rng(seed)
    corners = random.integers(10, SIDE - 60, (12, 2))
    sizes = random.integers(14, 34, (12, 2))
    boxes: NDArray[np.object_] = shapely.box(*corners.T, *(corners + sizes).T)
    return boxes


def roads(seed: int) -> NDArray[np.object_]:
    x, y, z = np.random.default_rng(seed).integers(40, SIDE - 40, 3).tolist()
    lines = [[(x, 0), (x, SIDE)], [(0, y), (SIDE, y)], [(0, z), (z, 0)]]
    return np.array([shapely.LineString(line) for line in lines], np.object_)


def drawn(areas: NDArray[np.object_]) -> NDArray[np.uint8]:
    mask: NDArray[np.uint8] = rasterio.features.rasterize(areas.tolist(), (SIDE, SIDE))
    return mask


def picture(areas: NDArray[np.object_], seed: int) -> NDArray[np.uint8]:
    """Return noise with brighter objects, uint8 (h, w, 3)."""
    noise = np.random.default_rng(seed).integers(60, 120, (SIDE, SIDE, 3))
    noise[drawn(areas) > 0] += 60
    return np.asarray(cv2.GaussianBlur(noise.astype(np.uint8), (0, 0), 1.0), np.uint8)


def probabilities(areas: NDArray[np.object_], seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).random((SIDE, SIDE), np.float32)
    smooth = cv2.GaussianBlur(0.7 * drawn(areas) + 0.3 * noise, (0, 0), 2.0)
    return np.asarray(smooth, np.float32)


def moved(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    shifted: NDArray[np.object_] = shapely.transform(shapes, lambda xy: xy + SHIFT)
    return shifted


@pytest.mark.parametrize("metres", [PIXEL_M, None])
@pytest.mark.parametrize("target", [picture, probabilities])
@pytest.mark.parametrize("labels", [houses, roads])
def test_shifted_labels(labels, target, metres: float | None) -> None:  # type: ignore[no-untyped-def]
    chips = []
    for seed in range(6):
        shapes = labels(seed)
        areas = shapely.buffer(shapes, 7) if labels is roads else shapes
        chips.append((target(areas, seed), moved(shapes)))
    offset = measure_offset(chips, metres)
    assert offset is not None
    assert offset.is_certain
    assert (offset.right, offset.down) == pytest.approx(SHIFT, abs=0.5)
    assert offset.error < 1


def test_labels_of_other_images_have_no_offset() -> None:
    chips = [(picture(houses(seed), seed), houses(seed + 100)) for seed in range(8)]
    offset = measure_offset(chips, PIXEL_M)
    assert offset is not None
    assert not offset.is_certain


def test_what_cannot_be_measured() -> None:
    none = np.empty(0, np.object_)
    image = picture(houses(0), 0)
    assert shift_scores(image, none, PIXEL_M) is None
    assert shift_scores(np.zeros_like(image), houses(0), PIXEL_M) is None
    assert shift_scores(image[:30], houses(0), PIXEL_M) is None
    assert measure_offset([(image, none)], PIXEL_M) is None
    # One chip is too few to be certain of.
    one = shift_scores(image, houses(0), PIXEL_M)
    assert one is not None
    assert not best_shift([one], PIXEL_M).is_certain


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data")
@pytest.mark.parametrize(("area", "is_off"), [("area2", False), ("area5", True)])
def test_areas_of_open_cities(area: str, is_off: bool) -> None:
    # Of one area the labels are off by a metre or two.
    chips = []
    for path in sorted((SHARED / "data/buildings_open_cities/train_tier_1" / area).glob("*/*.tif")):
        labels = path.parents[1] / f"{path.stem}-labels/{path.stem}.geojson"
        with rasterio.open(path) as file:
            image = file.read().transpose(1, 2, 0)
            place = georeference_of(file.crs, file.transform, file.width, file.height)
            assert place is not None
            shapes, _ = read_own_shapes([labels], "polygons").near(place, file.width, file.height)
        chips.append((image, shapely.make_valid(shapes)))
        metres = float(np.mean(place.metres_per_pixel))
    offset = measure_offset(chips, metres)
    assert offset is not None
    assert offset.is_certain
    assert (np.hypot(offset.right, offset.down) * metres > 0.6) == is_off
