"""Images that show the same ground."""

from pathlib import Path

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray

from satmap.data.overlaps import overlapping_pairs

SIDE = 300


def town(seed: int) -> NDArray[np.uint8]:
    """Return roofs of random brightness on noise, uint8 (h, w, 3)."""
    random = np.random.default_rng(seed)
    image = random.integers(70, 110, (SIDE, SIDE, 3)).astype(np.uint8)
    for x, y, width, height, grey in random.integers((0, 0, 8, 8, 0), (SIDE, SIDE, 30, 30, 250),
                                                     (90, 5)).tolist():  # fmt: skip
        image[y : y + height, x : x + width] = grey
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.8), np.uint8)


def written(path: Path, image: NDArray[np.uint8]) -> Path:
    height, width, bands = image.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": bands}
    with rasterio.open(path, "w", dtype="uint8", **profile) as file:
        file.write(image.transpose(2, 0, 1))
    return path


def test_copies_crops_and_shifts(tmp_path: Path) -> None:
    towns = [town(seed) for seed in range(4)]
    jpeg = cv2.imdecode(cv2.imencode(".jpg", towns[1], [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 1)
    versions = [
        towns[0][100:, 60:],
        np.asarray(jpeg, np.uint8),
        np.ascontiguousarray(np.roll(towns[2], (5, -9), (0, 1))),
        np.asarray(cv2.resize(towns[3], (240, 240), interpolation=cv2.INTER_AREA), np.uint8),
    ]
    images = [*towns, *versions, town(10), np.full((SIDE, SIDE, 3), 90, np.uint8)]
    paths = [written(tmp_path / f"{n}.tif", image) for n, image in enumerate(images)]
    scenes = [str(number) for number in range(len(images))]
    assert overlapping_pairs(paths, scenes) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    # Pieces of one picture need no comparison.
    scenes[4] = "0"
    assert overlapping_pairs(paths, scenes) == [(1, 5), (2, 6), (3, 7)]


def test_edges_of_parts_without_data_are_no_ground(tmp_path: Path) -> None:
    images = [town(seed) for seed in (20, 21)]
    for image in images:
        for step in range(0, SIDE, 12):
            image[step : step + 12, 150 + 7 * (step % 36) // 12 :] = 255
    paths = [written(tmp_path / f"{n}.tif", image) for n, image in enumerate(images)]
    assert overlapping_pairs(paths, ["a", "b"]) == []
    assert overlapping_pairs([], []) == []
