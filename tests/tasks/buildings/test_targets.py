"""Building targets compared with hand-drawn ones and a slow brute force."""

import math
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satmap.data.cache import prepare_chip
from satmap.data.layouts.building_challenges import find_building_images
from satmap.recipes.schema import StretchSettings
from satmap.tasks.base import default_task
from satmap.tasks.buildings.settings import BuildingTargetSettings
from satmap.tasks.buildings.targets import (
    BODY_BIT,
    BORDER_BIT,
    CONTACT_BIT,
    draw_instances,
    encode_weights,
    pixel_weights,
    rasterize_buildings,
    two_nearest,
    weight_table,
)
from synthetic_chips import square, write_coco, write_tile

SETTINGS = BuildingTargetSettings()


def shapes(*polygons: shapely.Polygon) -> NDArray[np.object_]:
    return np.array(polygons, np.object_)


def bits(target: NDArray[np.uint8], bit: int) -> NDArray[np.bool_]:
    return (target[..., 0] & bit) > 0


def test_bodies_are_exact_and_keep_holes() -> None:
    yard = shapely.Polygon(square(10, 10, 20)[0], square(15, 15, 6))
    # A polygon over the lower half of a pixel row misses the pixel centres.
    low = shapely.box(40, 10, 50, 19.4)
    target = rasterize_buildings(shapes(yard, low), (64, 64), SETTINGS)
    body = bits(target, BODY_BIT)
    assert body[10:30, 10:30].sum() == 400 - 36
    assert not body[15:21, 15:21].any()
    assert body.sum() == 400 - 36 + 10 * 9


def test_borders_lie_inside_and_separate_touching_buildings() -> None:
    duplicates = shapes(shapely.box(10, 10, 20, 20), shapely.box(20, 10, 30, 20))
    border = bits(rasterize_buildings(duplicates, (40, 40), SETTINGS), BORDER_BIT)
    # A ring of 36 pixels in each.
    assert border.sum() == 72
    assert border[10:20, 19:21].all()
    wide = BuildingTargetSettings(border_px=3)
    assert bits(rasterize_buildings(duplicates, (40, 40), wide), BORDER_BIT).sum() == 2 * (100 - 16)
    # The edge of the image is not a border.
    cut = rasterize_buildings(shapes(shapely.box(0, 0, 10, 10)), (40, 40), SETTINGS)
    assert bits(cut, BORDER_BIT).sum() == 10 + 9


def test_contact_is_ground_near_two_buildings() -> None:
    pair = shapes(shapely.box(5, 5, 15, 15), shapely.box(19, 5, 29, 15))
    contact = bits(rasterize_buildings(pair, (40, 40), SETTINGS), CONTACT_BIT)
    # The gap has the columns 15 to 18, 1 to 4 px from one side and 4 to 1 px from the other.
    assert np.flatnonzero(contact[10]).tolist() == [16, 17]
    assert not contact[:, :15].any()
    single = rasterize_buildings(pair[:1], (40, 40), SETTINGS)
    assert not bits(single, CONTACT_BIT).any()


def test_buildings_wholly_at_the_edge_are_left_out() -> None:
    edge, inside = shapely.box(10, 0, 20, 2), shapely.box(25, 0, 35, 3)
    labels = draw_instances(shapes(edge, inside), (40, 40), edge_px=2)
    assert np.unique(labels).tolist() == [0, 2]
    assert np.unique(draw_instances(shapes(edge, inside), (40, 40))).tolist() == [0, 1, 2]


def test_the_smaller_of_overlapping_buildings_is_on_top() -> None:
    for order in (1, -1):
        both = shapes(shapely.box(5, 5, 35, 35), shapely.box(10, 10, 15, 15))[::order]
        labels = draw_instances(both, (40, 40))
        assert (labels == (2 if order == 1 else 1)).sum() == 25


def brute_distances(labels: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two smallest distances to buildings for every pixel."""
    height, width = labels.shape
    found = np.full((2, height, width), np.inf)
    numbers = [n for n in np.unique(labels).tolist() if n]
    for row in range(height):
        for column in range(width):
            distances = sorted(
                np.hypot(*(np.argwhere(labels == n) - (row, column)).T).min() for n in numbers
            )
            for rank, distance in enumerate(distances[:2]):
                found[rank, row, column] = distance
    return found[0], found[1]


@settings(max_examples=25, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 15), st.integers(1, 9), st.integers(1, 9)),
        max_size=4,
    ),
    reach=st.sampled_from([math.inf, 4.0]),
)
def test_distances_against_brute_force(
    boxes: list[tuple[int, int, int, int]], reach: float
) -> None:
    drawn = [shapely.box(x, y, x + w, y + h) for x, y, w, h in boxes]
    labels = draw_instances(np.array(drawn, np.object_), (18, 24))
    for ours, expected in zip(two_nearest(labels, reach), brute_distances(labels), strict=True):
        expected[expected > reach] = math.inf
        assert np.allclose(ours, expected, atol=1e-4)


def test_weights_by_hand() -> None:
    labels = draw_instances(shapes(shapely.box(0, 0, 4, 16), shapely.box(10, 0, 11, 9)), (16, 32))
    near, far = two_nearest(labels)
    weights = pixel_weights(labels, near, far, SETTINGS)
    # Column 6 is 3 px from the one and 4 px from the other.
    assert weights[4, 6] == pytest.approx(1 + 50 * math.exp(-(7**2) / 100), rel=1e-5)
    # On the second: 0 + 7 px, and an area of 9.
    expected = (1 + 50 * math.exp(-(7**2) / 100)) * 128 / 3
    assert weights[4, 10] == pytest.approx(expected, rel=1e-5)
    one = np.where(labels == 1, labels, 0)
    alone = pixel_weights(one, *two_nearest(one), SETTINGS)
    assert alone[4, 6] == pytest.approx(1 + 50 * math.exp(-(6**2) / 100), rel=1e-5)
    # On a single building the distance is 0 and the weight depends only on its size.
    assert alone[4, 2] == pytest.approx(128 / 8, rel=1e-6)
    none = np.zeros_like(labels)
    assert (pixel_weights(none, *two_nearest(none), SETTINGS) == 1).all()
    # Distances beyond the limit do not count.
    cut = pixel_weights(labels, *two_nearest(labels, 60.0), SETTINGS)
    assert np.allclose(cut, weights, rtol=1e-6)


def test_weights_survive_storage_in_a_byte() -> None:
    weights = np.geomspace(0.06, 10_000, 500).astype(np.float32)
    assert np.allclose(weight_table()[encode_weights(weights)], weights, rtol=0.026)
    assert weight_table()[encode_weights(np.ones(1, np.float32))][0] == 1


def test_prepared_chips(tmp_path: Path) -> None:
    write_tile(tmp_path / "sn2", 1, [square(10, 10, 30), square(45, 10, 30)])
    (chip,) = find_building_images([tmp_path / "sn2"]).chips
    cached = prepare_chip(chip, tmp_path / "cache", StretchSettings(), default_task("buildings"))
    image, target = cached.read_channels(3, slice(0, 20), slice(40, 96))
    assert (image.shape, target.shape) == ((3, 20, 56), (20, 56, 2))
    assert bits(target, BODY_BIT).sum() == 10 * 30
    assert shapely.area(cached.payload) == pytest.approx([900, 900])
    assert cached.metres_per_pixel == pytest.approx((0.24, 0.3), abs=0.01)
    # Pixels without data are not buildings.
    write_coco(tmp_path / "coco", {3: [square(24, 24, 48)]})
    (chip,) = find_building_images([tmp_path / "coco"]).chips
    task = default_task("buildings", input_px=64)
    half = prepare_chip(chip, tmp_path / "cache", StretchSettings(), task)
    assert (half.shape, half.size) == ((64, 64, 3), (96, 96))
    image, target = half.read()
    assert bits(target, BODY_BIT).sum() == 32 * 32
    # The image was resized to the same size.
    assert image[20:44, 20:44].mean() > image[:12].mean() + 100
    assert shapely.bounds(half.payload[0]).tolist() == [24, 24, 72, 72]
