"""Large scenes: the graph does not depend on the windows, and memory stays small."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from degraded_masks import METRES_PER_PIXEL, degraded_mask
from satmap.rasters import scene as scenes
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, PackedMap, Scene, strips
from satmap.tasks.roads.settings import JUNCTION, ROAD, ROAD_MAPS, RoadSettings
from satmap.tasks.roads.vectorizer.centre_lines import centre_lines
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadGraph

Mask = NDArray[np.uint8]


def maps_of(mask: Mask) -> ProbabilityMaps:
    return ProbabilityMaps((ROAD,), mask[None], (METRES_PER_PIXEL, METRES_PER_PIXEL))


def assert_same(one: RoadGraph, other: RoadGraph) -> None:
    np.testing.assert_array_equal(one.nodes, other.nodes)
    assert len(one.edges) == len(other.edges)
    for edge, duplicate in zip(one.edges, other.edges, strict=True):
        np.testing.assert_array_equal(edge.line, duplicate.line)
        assert (edge.nodes, edge.length_m) == (duplicate.nodes, duplicate.length_m)
        assert (edge.speed_mps, edge.mean_probability) == (
            duplicate.speed_mps,
            duplicate.mean_probability,
        )


def drawn(lines: Sequence[Sequence[tuple[float, float]]], size: int = 1000) -> Mask:
    mask = np.zeros((size, size), np.uint8)
    for line in lines:
        cv2.polylines(mask, [np.array(line, np.int32)], False, 255, 13)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), 2), np.uint8)


def wide() -> Mask:
    """Return squares and a ring with far-reaching thinning, on and beside seams of 500 pixels."""
    mask = drawn([[(0, 300), (999, 300)], [(500, 0), (500, 999)]])
    cv2.circle(mask, (500, 650), 210, 255, -1)
    cv2.circle(mask, (500, 300), 120, 255, 9)
    return mask


def trifles() -> Mask:
    """Return specks and pinholes of sizes around the limits for dropping and filling."""
    rng = np.random.default_rng(5)
    mask = drawn([[(0, y), (999, y + 60)] for y in range(100, 900, 160)])
    for value in (255, 0):
        for x, y in rng.integers(0, 1000, (900, 2)).tolist():
            axes = rng.integers(1, 9, 2).tolist()
            cv2.ellipse(mask, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, value, -1)
    return mask


def labyrinth() -> Mask:
    noise = cv2.GaussianBlur(np.random.default_rng(1).random((700, 900)), (0, 0), 2)
    return np.where(noise > 0.5, 255, 0).astype(np.uint8)


MASKS: dict[str, Callable[[], Mask]] = {
    # Along a seam of 500 pixels and across it, obliquely and at right angles; a ring over four.
    "seams": lambda: drawn(
        [
            [(0, 500), (999, 500)], [(498, 0), (503, 999)], [(0, 0), (999, 999)],
            [(0, 700), (999, 640)], [(800, 0), (790, 999)],
            [(400, 400), (600, 400), (600, 600), (400, 600), (400, 400)],
        ]
    ),
    "rings": lambda: drawn(
        [
            [(300, 480), (700, 480), (700, 520), (300, 520), (300, 480)],
            [(100, 100), (450, 100), (450, 450), (100, 450), (100, 100)],
            [(800, 800), (900, 800), (900, 900), (800, 900), (800, 800)],
        ]
    ),
    "border": lambda: drawn([[(2, 0), (2, 999)], [(0, 996), (999, 996)], [(0, 990), (60, 999)]]),
    "wide": wide,
    "trifles": trifles,
    "labyrinth": labyrinth,
    "grid": lambda: degraded_mask(4).road,
    "city": lambda: degraded_mask(1003).road,
    "nothing": lambda: np.zeros((700, 700), np.uint8),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_the_graph_does_not_depend_on_the_windows(name: str) -> None:
    maps = maps_of(MASKS[name]())
    whole = vectorize_roads(maps)
    assert (len(whole.edges) > 0) == (name != "nothing")
    # The border adds 13 pixels on either side, so seams of even windows lie in the middle.
    for window in (613, 520, 290):
        assert_same(vectorize_roads(maps, window_px=window), whole)


def test_windows_of_pixels_that_are_wider_than_high() -> None:
    maps = ProbabilityMaps((ROAD,), degraded_mask(1001).road[None], (0.24, 0.3))
    assert_same(vectorize_roads(maps, window_px=400), vectorize_roads(maps))


def test_centre_lines_have_no_ends_at_seams() -> None:
    maps = maps_of(drawn([[(0, 350), (999, 420)]]))
    network = centre_lines(maps, RoadSettings(), 200)
    assert len(network.counts) == 1
    assert sorted(network.degrees.tolist()) == [1, 1]


def scene_of(maps: ProbabilityMaps, read: list[Box] | None = None) -> Scene:
    def reading(name: str, box: Box) -> Mask:
        if read is not None:
            read.append(box)
        return maps[name][box.pixels]

    return Scene(maps.names, maps.shape, maps.metres_per_pixel, reading)


@pytest.mark.parametrize("open_bytes", [0, 600_000])
def test_a_scene_equals_its_maps(monkeypatch: pytest.MonkeyPatch, open_bytes: int) -> None:
    monkeypatch.setattr(scenes, "_OPEN_BYTES", open_bytes)
    road = degraded_mask(1005).road
    values = np.zeros((len(ROAD_MAPS), *road.shape), np.uint8)
    values[ROAD_MAPS.index(ROAD)] = road
    values[4], values[7] = road // 2, road[:, ::-1]
    values[ROAD_MAPS.index(JUNCTION)] = cv2.GaussianBlur(road, (0, 0), 9)
    maps = ProbabilityMaps(ROAD_MAPS, values, (METRES_PER_PIXEL, METRES_PER_PIXEL))
    whole = vectorize_roads(maps)
    assert len({edge.speed_mps for edge in whole.edges}) > 10
    assert_same(vectorize_roads(scene_of(maps), window_px=500), whole)


def test_a_scene_is_read_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "_STRIP", 1024)
    read: list[Box] = []
    maps = maps_of(degraded_mask(1000, 1600).road)
    assert_same(vectorize_roads(scene_of(maps, read), window_px=500), vectorize_roads(maps))
    assert max(box.width for box in read) == 1024
    assert max(box.height for box in read) == 512
    # Once for the road network and once for the confidence of its roads.
    assert len(read) <= 2 * len(strips(maps.shape))


def test_small_scenes() -> None:
    for size in (1, 7, 700):
        maps = maps_of(np.full((size, size), 255, np.uint8))
        assert_same(vectorize_roads(scene_of(maps)), vectorize_roads(maps))


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 1200),
    width=st.integers(1, 1200),
    open_bytes=st.sampled_from([0, 300_000, 1 << 30]),
    seed=st.integers(0, 99),
)
def test_a_packed_map_equals_its_map(height: int, width: int, open_bytes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (height, width)).astype(np.uint8)
    values[rng.integers(0, height) :, : rng.integers(1, width + 1)] = 0
    packed = PackedMap(height, width, open_bytes)
    for strip in strips(values.shape):
        packed.fill(strip, values[strip.pixels])
    assert packed.shape == values.shape
    rows, columns = rng.integers(0, height, (3, 50)), rng.integers(0, width, (3, 50))
    np.testing.assert_array_equal(packed[rows, columns], values[rows, columns])
    top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
    part = Box(left, top, int(rng.integers(1, width - left + 1)), height - top).pixels
    np.testing.assert_array_equal(packed[part], values[part])
