"""Buildings of the blocks of a map become one list, each once and whole."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio.features
import shapely

from decoded_blocks import decode_blocks
from satmap.rasters.scene import Box
from satmap.tasks.buildings.join_blocks import join_blocks
from satmap.tasks.buildings.result_decoder import BuildingDecoder
from satmap.tasks.buildings.settings import BuildingSettings
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.vectors.buildings import Building
from synthetic_blocks import made_blocks, maps_of_labels

BOXES = [Box(x, y, 100, 100) for y in (0, 100) for x in (0, 100)]


def house(left: float, top: float, right: float, bottom: float, confidence: float = 1) -> Building:
    return Building(shapely.box(left, top, right, bottom), confidence)


def join(*blocks: list[Building]) -> list[tuple[float, ...]]:
    """Return the bounds of the joined buildings; each block's are in pixels of the map."""
    given = [
        (box, [Building(shapely.affinity.translate(b.polygon, -box.left, -box.top), b.score)
               for b in buildings])
        for box, buildings in zip(BOXES, blocks, strict=False)
    ]  # fmt: skip
    found = [each.polygon.bounds for each in join_blocks(given)]
    random.Random(1).shuffle(given)
    assert [each.polygon.bounds for each in join_blocks(given)] == found
    return found


def test_a_building_on_a_seam_is_that_of_the_block_with_most_of_it() -> None:
    a, b = house(90, 10, 130, 30), house(91, 10, 131, 30)
    assert join([a], [b]) == [b.polygon.bounds]
    # In equal parts: the more confident, then the first.
    half, surer = house(80, 10, 120, 30), house(80, 11, 120, 31, 2)
    assert join([half], [surer]) == [surer.polygon.bounds]
    assert join([half], [house(80, 11, 120, 31)]) == [half.polygon.bounds]
    corner = [house(90 + i, 90, 120 + i, 120) for i in range(4)]
    assert len(join(*([c] for c in corner))) == 1


def test_a_building_found_by_one_block_only_is_kept() -> None:
    across = house(90, 10, 130, 30)
    assert join([across], []) == [across.polygon.bounds] == join([], [across])


def test_neighbours_stay_two_buildings() -> None:
    left, right = house(80, 10, 101, 30), house(101, 10, 130, 30)
    assert join([left, right], [left, right]) == [left.polygon.bounds, right.polygon.bounds]
    # Small overlaps are those of two buildings.
    small = house(99, 10, 130, 30)
    assert len(join([house(70, 10, 104, 30)], [small])) == 2


def test_a_part_of_a_building_gives_way_to_the_whole() -> None:
    whole, part = house(60, 10, 140, 30), house(100, 10, 140, 30)
    assert join([whole], [part]) == [part.polygon.bounds] or join([whole], [part]) == [
        whole.polygon.bounds
    ]
    assert not join()
    assert not join([], [], [], [])


def test_buildings_of_others_margins_are_dropped() -> None:
    inside = house(120, 10, 140, 30)
    assert join([inside], [inside]) == [inside.polygon.bounds]
    assert not join([inside], [])


@pytest.mark.parametrize("degrees", [0, 7])
def test_a_hall_longer_than_two_blocks_is_one_building(tmp_path: Path, degrees: float) -> None:
    corners = cv2.boxPoints(((250, 60), (420, 40), degrees)).astype(np.int32)
    # A house beside the hall, and one in its line.
    houses = [shapely.box(200, 1, 216, 9), shapely.box(472, 60, 490, 75)]
    shapes = [shapely.Polygon(corners), *houses]
    labels = rasterio.features.rasterize(
        [(shape, number) for number, shape in enumerate(shapes, 1)], (120, 500), dtype="int32"
    )
    maps = maps_of_labels(labels)
    expected = vectorize_buildings(maps, BuildingSettings())
    blocks = decode_blocks(maps, BuildingDecoder(BuildingSettings()), 100, tmp_path)
    found = join_blocks(blocks)
    assert len(found) == len(expected) == 3
    again = join_blocks(reversed(blocks))
    assert [each.polygon for each in again] == [each.polygon for each in found]
    hall, whole = (max(each, key=lambda b: b.polygon.area) for each in (found, expected))
    shared = hall.polygon.intersection(whole.polygon).area
    assert shared > 0.98 * hall.polygon.union(whole.polygon).area
    assert hall.score == pytest.approx(whole.score, rel=0.01)
    assert hall.mean_probability == pytest.approx(whole.mean_probability, abs=0.01)


def test_confidences_of_united_copies_are_weighted_by_area() -> None:
    # The first block sees as far as 200, the second from 0.
    cut, whole = house(50, 10, 200, 30, 0.2), house(60, 10, 250, 30, 0.8)
    boxes = [Box(0, 0, 100, 100), Box(100, 0, 200, 100)]
    (found,) = join_blocks([(boxes[0], [cut]), (boxes[1], [
        Building(shapely.affinity.translate(whole.polygon, -100), whole.score)])])  # fmt: skip
    assert found.polygon.bounds == (50, 10, 250, 30)
    assert found.score == pytest.approx((150 * 0.2 + 190 * 0.8) / 340)
    assert found.mean_probability is None


@pytest.mark.parametrize(("seed", "side"), [(0, 200)])
def test_a_town_in_blocks_is_the_town_as_a_whole(tmp_path: Path, seed: int, side: int) -> None:
    maps = maps_of_labels(made_blocks(seed, 512, 17.0, (16, 40)).labels)
    settings = BuildingSettings()
    expected = [each.polygon for each in vectorize_buildings(maps, settings)]
    blocks = decode_blocks(maps, BuildingDecoder(settings), side, tmp_path)
    found = [each.polygon for each in join_blocks(blocks)]
    assert len(found) == pytest.approx(len(expected), abs=0.01 * len(expected))
    tree = shapely.STRtree(found)
    same = 0
    for polygon in expected:
        near = [found[index] for index in tree.query(polygon)]
        same += any(p.intersection(polygon).area > 0.9 * p.union(polygon).area for p in near)
    assert same >= 0.99 * len(expected)
    # No building is there twice.
    assert shapely.union_all(found).area > 0.99 * sum(polygon.area for polygon in found)
