"""Targets of buildings as instances: labels of every kind, and the parts of crops."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satmap.data.cache import EncodedLabel, prepare_chip
from satmap.data.crops import CachedChip, Geometry
from satmap.data.layouts.building_challenges import find_building_images
from satmap.errors import SatmapError
from satmap.recipes.schema import StretchSettings
from satmap.tasks.base import default_task
from satmap.tasks.building_instances.task import BuildingInstanceTask, find_parts
from synthetic_chips import Ring, square, write_coco, write_tile

IGNORED = 65535


def instance_task(**changes: object) -> BuildingInstanceTask:
    task = default_task("instances", **changes)
    assert isinstance(task, BuildingInstanceTask)
    return task


def encoded(root: Path, buildings: list[list[Ring]], size: int = 96) -> EncodedLabel:
    """Encode the label of a chip."""
    write_tile(root, 1, buildings, size)
    (chip,) = find_building_images([root]).chips
    return instance_task().encode(chip, np.full((size, size, 3), 90, np.uint8))


def sizes(target: NDArray[np.uint16]) -> dict[int, int]:
    """Return the number of pixels of each number except 0."""
    numbers, counts = np.unique(target[target > 0], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


# Parts


def test_parts_by_hand() -> None:
    target = np.zeros((12, 16), np.uint16)
    target[1:4, 1:5] = 7
    # Another building, which touches it, and a second part of the first, which does not.
    target[4:8, 1:5] = 3
    target[1:3, 8:12] = 7
    # Only by a corner: two parts. A part of three pixels. Ignored pixels, which cut a building.
    target[8:10, 5:7] = 3
    target[11, 13:16] = 9
    target[5:9, 9:15] = 12
    target[5:9, 11:13] = IGNORED
    instances, boxes = find_parts(target, 4)
    assert instances.dtype == np.int32
    assert boxes.dtype == np.float32
    expected = [
        (1, 1, 5, 4), (8, 1, 12, 3), (1, 4, 5, 8), (9, 5, 11, 9), (13, 5, 15, 9), (5, 8, 7, 10)
    ]  # fmt: skip
    assert sorted(map(tuple, boxes.tolist())) == sorted(expected)
    for number, (left, top, right, bottom) in enumerate(boxes.astype(int).tolist(), 1):
        part = instances == number
        assert part[top:bottom, left:right].all()
        assert part.sum() == (bottom - top) * (right - left)
    # The small one is ignored, not ground.
    assert (instances[11, 13:16] == -1).all()
    assert (instances[5:9, 11:13] == -1).all()
    assert (instances == -1).sum() == 3 + 8
    assert (instances == 0).sum() == (target == 0).sum()
    assert len(find_parts(target, 3)[1]) == 7
    assert len(find_parts(target, 9)[1]) == 2


@pytest.mark.parametrize("value", [0, IGNORED])
def test_crops_without_buildings(value: int) -> None:
    instances, boxes = find_parts(np.full((5, 7), value, np.uint16), 4)
    assert boxes.shape == (0, 4)
    assert (instances == (-1 if value else 0)).all()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 3.0, 4.5]))
def test_parts_against_a_flood_fill(seed: int, least: float) -> None:
    random = np.random.default_rng(seed)
    target = random.choice(np.array([0, 0, 1, 1, 2, 65534, IGNORED], np.uint16), (7, 9))
    instances, boxes = find_parts(target, least)
    numbers = set()
    for start in np.ndindex(target.shape):
        value = target[start]
        if value in (0, IGNORED):
            assert instances[start] == (-1 if value else 0)
            continue
        part, waiting = {start}, [start]
        while waiting:
            y, x = waiting.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= near[0] < 7 and 0 <= near[1] < 9
                if inside and near not in part and target[near] == value:
                    part.add(near)
                    waiting.append(near)
        found = {int(instances[place]) for place in part}
        if len(part) < least:
            assert found == {-1}
            continue
        (number,) = found
        rows, columns = zip(*part, strict=True)
        box = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
        assert boxes[number - 1].tolist() == box
        assert (instances == number).sum() == len(part)
        numbers.add(number)
    assert numbers == set(range(1, len(boxes) + 1))


# Labels


def test_buildings_are_numbered_and_keep_holes(tmp_path: Path) -> None:
    yard: list[Ring] = [square(10, 10, 20)[0], square(15, 15, 6)[0]]
    label = encoded(tmp_path, [yard, square(30, 10, 15), square(60, 60, 8)])
    target = label.arrays["target"]
    assert target.dtype == np.uint16
    assert target.shape == (96, 96)
    assert sizes(target) == {1: 400 - 36, 2: 225, 3: 64}
    assert (target[10:25, 30:45] == 2).all()
    assert (target[15:21, 15:21] == 0).all()
    assert (label.count, label.repaired, len(label.payload)) == (3, 0, 3)
    _, boxes = find_parts(target, 4)
    assert sorted(boxes.tolist()) == [[10, 10, 30, 30], [30, 10, 45, 25], [60, 60, 68, 68]]


def test_an_empty_label(tmp_path: Path) -> None:
    label = encoded(tmp_path, [])
    assert (label.count, label.payload) == (0, [])
    assert not label.arrays["target"].any()
    assert find_parts(label.arrays["target"], 4)[1].shape == (0, 4)


def test_buildings_without_an_area_are_dropped(tmp_path: Path) -> None:
    line: list[Ring] = [[(10, 30.5), (30, 30.5), (50, 30.5)]]
    point: list[Ring] = [[(70, 70), (70, 70), (70, 70)]]
    thin = square(20, 80.1, 40, 0.2)
    label = encoded(tmp_path, [line, square(40, 10, 10), point, thin])
    # The last one has an area, but no pixel.
    assert list(sizes(label.arrays["target"]).values()) == [100]
    assert shapely.area(shapely.from_wkb(label.payload)) == pytest.approx([100, 8], rel=1e-3)
    _, boxes = find_parts(label.arrays["target"], 4)
    assert boxes.tolist() == [[40, 10, 50, 20]]


@pytest.mark.parametrize(
    "line", [[(10.0, 10), (30, 30), (50, 50)], [(10, 10.5), (30, 10.5), (50, 10.5 + 1e-7)]]
)
def test_lines_with_a_rounded_area_have_no_pixels(tmp_path: Path, line: Ring) -> None:
    # Longitude and latitude are rounded, so that the area of a line is not exactly 0.
    label = encoded(tmp_path, [[line], square(60, 60, 10)])
    assert list(sizes(label.arrays["target"]).values()) == [100]
    assert find_parts(label.arrays["target"], 4)[1].tolist() == [[60, 60, 70, 70]]


def test_buildings_outside_the_image(tmp_path: Path) -> None:
    cut, beyond = square(86, 40, 30), square(200, 40, 30)
    label = encoded(tmp_path / "a", [cut, beyond, square(-30, -30, 20)])
    assert list(sizes(label.arrays["target"]).values()) == [300]
    assert label.count == 1
    with pytest.raises(SatmapError, match="none of its 2 buildings lies on"):
        encoded(tmp_path / "b", [beyond, square(-30, -30, 20)])


def test_self_intersecting_buildings(tmp_path: Path) -> None:
    # A bow tie of two triangles, and a square whose border runs around twice.
    bow: list[Ring] = [[(10, 10), (40, 40), (40, 10), (10, 40)]]
    twice: list[Ring] = [[*square(60, 60, 20)[0]] * 2]
    label = encoded(tmp_path, [bow, twice])
    first, second = shapely.from_wkb(label.payload)
    assert first.is_valid and second.is_valid
    assert first.area == pytest.approx(450, rel=0.01)
    assert second.area == pytest.approx(400, rel=0.01)
    target = label.arrays["target"]
    assert label.repaired == 2
    assert 420 <= sizes(target)[1] <= 480
    assert sizes(target)[2] == 400
    instances, boxes = find_parts(target, 4)
    # The triangles meet in a point: they are two parts or share a pixel there.
    assert 2 <= len(boxes) <= 3
    assert (instances[60:80, 60:80] > 0).all()


def test_thousands_of_buildings_in_a_tile(tmp_path: Path) -> None:
    squares = [square(4 * x, 4 * y, 3) for y in range(45) for x in range(45)]
    label = encoded(tmp_path, squares, size=180)
    target = label.arrays["target"]
    assert label.count == 2025
    assert sizes(target) == dict.fromkeys(range(1, 2026), 9)
    instances, boxes = find_parts(target, 4)
    assert len(boxes) == 2025
    assert (boxes[:, 2:] - boxes[:, :2] == 3).all()
    assert instances.max() == 2025


def test_more_buildings_than_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satmap.tasks.building_instances.task._IGNORED", 10)
    nine = [square(8 * k, 10, 5) for k in range(9)]
    assert encoded(tmp_path / "a", nine).count == 9
    with pytest.raises(SatmapError, match="10 buildings in one image, but at most 9"):
        encoded(tmp_path / "b", [*nine, square(80, 10, 5)])


def test_pixels_without_data_and_ignored_ones(tmp_path: Path) -> None:
    write_tile(tmp_path, 1, [square(10, 10, 30)])
    (chip,) = find_building_images([tmp_path]).chips
    image = np.full((96, 96, 3), 90, np.uint8)
    image[:, :20] = 0
    target = instance_task().encode(chip, image).arrays["target"]
    assert sizes(target) == {1: 20 * 30}
    assert not target[:, :20].any()
    # The network's input may have half the size.
    half = instance_task().encode(chip, np.full((48, 48, 3), 90, np.uint8))
    assert sizes(half.arrays["target"]) == {1: 15 * 15}
    assert shapely.area(shapely.from_wkb(half.payload)) == pytest.approx([900])


def cached(root: Path, buildings: dict[int, Sequence[Sequence[Ring]]]) -> CachedChip:
    write_coco(root / "coco", buildings)
    (chip,) = find_building_images([root / "coco"]).chips
    return prepare_chip(chip, root / "cache", StretchSettings(), instance_task())


def test_crops_and_batches(tmp_path: Path) -> None:
    chip = cached(tmp_path, {3: [square(10, 10, 30), square(60, 60, 20)]})
    task = instance_task(least_px=10)
    unchanged = Geometry((32, 32))
    sample = task.crop(chip, unchanged, 64, 3)
    assert sample["image"].shape == (3, 64, 64)
    assert sample["instances"].dtype == np.int32
    assert sample["boxes"].dtype == np.float32
    # The second building is cut: 4 x 4 pixels.
    assert sample["boxes"].tolist() == [[10, 10, 40, 40], [60, 60, 64, 64]]
    batch = task.collate([sample, {**sample, "boxes": sample["boxes"][:0]}])
    assert batch["image"].shape == (2, 3, 64, 64)
    assert batch["instances"].shape == (2, 64, 64)
    assert [len(boxes) for boxes in batch["boxes"]] == [2, 0]


def test_coco_annotations_of_every_kind(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", {3: [square(10, 10, 30)], 4: []})
    path = tmp_path / "coco" / "annotation.json"
    content = json.loads(path.read_text())
    # Half outside the image; and of less than one pixel.
    for ring in ([90, 40, 110, 40, 110, 50, 90, 50], [70, 70, 70.4, 70, 70.4, 70.4, 70, 70.4]):
        extra = {"id": len(content["annotations"]), "image_id": 3, "category_id": 100}
        content["annotations"].append({**extra, "segmentation": [ring]})
    path.write_text(json.dumps(content))
    image = np.full((96, 96, 3), 90, np.uint8)
    full, empty = (instance_task().encode(chip, image)
                   for chip in find_building_images([tmp_path / "coco"]).chips)  # fmt: skip
    assert sorted(sizes(full.arrays["target"]).values()) == [60, 900]
    assert (full.count, empty.count) == (3, 0)
    assert not empty.arrays["target"].any()
