"""Chips without georeference are joined by their borders."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from repository import SHARED
from satmap.data.chip_borders import Place, describe_borders, join_chips, place_chips
from satmap.data.imagery import RGB, read_info
from satmap.data.neighbours import find_neighbours
from synthetic_images import write_image

SCENE = SHARED / "data/open_cities/train_tier_1/acc/d41d81b/d41d81b.tif"

#: Column and row of a chip in its scene.
Cell = tuple[int, int]


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw a scene of blurred noise of several scales, uint8 (height, width, 3), 60..200."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for scale in (1.5, 4, 12):
        noise = rng.normal(size=total.shape).astype(np.float32)
        total += cv2.GaussianBlur(noise, (0, 0), scale) * scale
    total -= total.min()
    return np.asarray(60 + total * (140 / total.max()), np.uint8)


def cut(image: NDArray[np.uint8], size: int) -> dict[Cell, NDArray[np.uint8]]:
    """Cut a scene into square chips."""
    columns, rows = image.shape[1] // size, image.shape[0] // size
    return {
        (column, row): image[row * size : (row + 1) * size, column * size : (column + 1) * size]
        for row in range(rows)
        for column in range(columns)
    }


def as_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)


def place(chips: Sequence[NDArray[np.uint8]]) -> list[Place | None]:
    return place_chips([describe_borders(chip) for chip in chips])


def count_wrong(cells: Sequence[Cell], places: Sequence[Place | None]) -> int:
    """Count the chips that lie differently from most chips of their mosaic."""
    moves: dict[int, Counter[Cell]] = {}
    for (column, row), found in zip(cells, places, strict=True):
        if found:
            move = column - found.column, row - found.row
            moves.setdefault(found.mosaic, Counter())[move] += 1
    return sum(m.total() - m.most_common(1)[0][1] for m in moves.values())


@pytest.fixture(scope="module")
def real_scene() -> NDArray[np.uint8]:
    """Read a drone scene, 6,144 x 6,144 px."""
    if not SCENE.exists():
        pytest.skip("no real data")
    with rasterio.open(SCENE) as source:
        return np.ascontiguousarray(source.read((1, 2, 3)).transpose(1, 2, 0))


@pytest.mark.parametrize(("scale", "noise"), [(1, 0), (0.5, 4)])
def test_shuffled_chips_of_a_real_scene(
    real_scene: NDArray[np.uint8], scale: float, noise: float
) -> None:
    """1,024 chips of 192 px, and 256 at half the resolution and with noise, as JPEG."""
    rng = np.random.default_rng(0)
    image = real_scene
    if scale != 1:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        noisy = small + rng.normal(0, noise, small.shape)
        image = noisy.clip(0, 255).astype(np.uint8)
    whole = [(cell, as_jpeg(chip, 75)) for cell, chip in cut(image, 192).items()]
    cells, chips = zip(*(whole[index] for index in rng.permutation(len(whole))), strict=True)
    places = place(chips)
    with_content = sum((chip > 8).any(axis=2).mean() > 0.05 for chip in chips)
    assert len(chips) == round(1024 * scale**2)
    assert sum(found is not None for found in places) >= 0.97 * with_content
    assert count_wrong(cells, places) == 0


def test_missing_chips_and_two_scenes() -> None:
    chips = [(cell, chip) for cell, chip in cut(scene(640, 768), 128).items() if cell != (2, 2)]
    others = list(cut(scene(384, 384, seed=1), 128).items())
    order = np.random.default_rng(0).permutation(len(chips) + len(others))
    shuffled = [(index < len(chips), *[*chips, *others][index]) for index in order]
    places = place([chip for _, _, chip in shuffled])
    assert count_wrong([cell for _, cell, _ in shuffled], places) == 0
    mosaics = {
        (first, found and found.mosaic)
        for (first, _, _), found in zip(shuffled, places, strict=True)
    }
    assert len(mosaics) == 2
    assert None not in places
    corners = {(found.column, found.row) for found in places if found and found.mosaic == 0}
    assert (0, 0) in corners


def test_ambiguous_chips_stay_alone() -> None:
    """Repeated patterns, copies, and black and uniform chips do not tell where they belong."""
    chips = cut(scene(256, 256), 128)
    pattern = cut(np.tile(scene(128, 128, seed=2), (3, 3, 1)), 128)
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::9] = 200
    alone = [*pattern.values(), stripes, stripes, np.zeros_like(stripes), stripes * 0 + 90]
    places = place([*chips.values(), *alone])
    assert count_wrong([*chips], places[:4]) == 0
    assert None not in places[:4]
    assert places[4:] == [None] * len(alone)
    # Two copies of a chip are both left out; the others still fit together.
    assert place([*chips.values(), chips[1, 1]])[3:] == [None, None]
    assert place([]) == []


def test_files_are_joined_by_size(tmp_path: Path) -> None:
    """Chips with a georeference keep it, and a broken one does not harm the others."""
    chips = cut(scene(256, 256), 128) | {(5, 5): scene(64, 64, seed=3)}
    infos = []
    for (column, row), chip in chips.items():
        path = tmp_path / f"{column}{row}.tif"
        write_image(path, pixels=chip.transpose(2, 0, 1), georeferenced=False)
        infos.append(read_info(path, RGB))
    infos.append(read_info(write_image(tmp_path / "placed.tif"), RGB))
    joined = join_chips(infos, 0, 100, 0.1)
    assert [found.georeference is None for found in joined] == [False] * 4 + [True, False]
    assert joined[-1].georeference == infos[-1].georeference
    around = find_neighbours(joined, (32, 32))
    assert around[0] == [(1, 128, 0), (2, 0, 128), (3, 128, 128)]
    assert [len(others) for others in around] == [3, 3, 3, 3, 0, 0]
    infos[0].path.write_bytes(infos[0].path.read_bytes()[:-30_000])
    broken = join_chips(infos, 0, 100, 0.1)
    assert broken[0].georeference is None
    assert [len(others) for others in find_neighbours(broken, (32, 32))] == [0, 2, 2, 2, 0, 0]
