"""Seconds to prepare a 1300 x 1300 chip of eight bands for training, and crops a second from it.

    .venv/bin/python benchmarks/preparing.py

The peer does what the reference solution does, with the same libraries: percentiles by sorting,
8-bit GeoTIFFs of RGB and of eight bands, a mask of twelve bands as GeoTIFF; and reads a whole chip
for every crop. Both run in one process on the same made chips, one after the other.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray

from satmap.data.augmentation import Augmentation
from satmap.data.cache import StretchSettings, prepare_chip
from satmap.data.chip import Chip
from satmap.data.city import make_city
from satmap.data.crops import CropDataset
from satmap.data.imagery import MS_BAND_ORDER
from satmap.data.labels import read_road_labels
from satmap.data.spacenet_roads import scan
from satmap.data.targets import TargetSettings, decode_target, rasterize_roads

_CHIPS = 3
_SIZE = 1300
_CROP = 384
_CROPS = 60


def main() -> None:
    """Measure and print the table's rows."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_city(directory, chips=_CHIPS, test_chips=0, size=_SIZE)
        chips = scan([directory / "train"]).chips
        cache = directory / "cache"

        peer = _seconds(lambda: prepare_like_the_reference(chips, directory)) / _CHIPS
        ready = [prepare_chip(c, directory / "warm", *_SETTINGS) for c in chips[:1]]
        ours = _seconds(lambda: ready.extend(prepare_chip(c, cache, *_SETTINGS) for c in chips))
        ours /= _CHIPS
        print(f"preparing, s a chip: peer {peer:.2f}, satmap {ours:.2f}, ratio {peer / ours:.1f}")

        ready = [prepare_chip(c, cache, *_SETTINGS) for c in chips]
        plain = CropDataset(ready, _CROP, 3, _CROPS, None, seed=0)
        varied = CropDataset(ready, _CROP, 3, _CROPS, Augmentation(), seed=0)
        random = np.random.default_rng(0)
        whole = _seconds(lambda: [crop_like_the_reference(directory, c, random) for c in chips * 5])
        peer = 5 * _CHIPS / whole
        for kind, dataset in (("plain", plain), ("augmented", varied)):
            ours = _CROPS / _seconds(partial(_all_of, dataset))
            print(
                f"crops a second, {kind}: peer (plain) {peer:.0f}, satmap {ours:.0f}, "
                f"ratio {ours / peer:.1f}"
            )


_SETTINGS = (StretchSettings(), TargetSettings())


def _all_of(dataset: CropDataset) -> None:
    for index in range(_CROPS):
        dataset[index]


def prepare_like_the_reference(chips: Sequence[Chip], directory: Path) -> None:
    """8-bit RGB, 8-bit eight bands and the mask of every chip, each to a GeoTIFF."""
    for chip in chips:
        _prepare_like_the_reference(chip, directory)


def _prepare_like_the_reference(chip: Chip, directory: Path) -> None:
    with rasterio.open(chip.image.path) as source:
        bands = source.read(MS_BAND_ORDER)
    stretched = np.empty(bands.shape, np.uint8)
    for index, band in enumerate(bands):
        low, high = np.percentile(band[band > 0], [2, 98])
        stretched[index] = np.clip((band - low) / (high - low) * 255, 0, 255)
    georeference = chip.image.georeference
    assert georeference is not None
    assert chip.label is not None
    labels = read_road_labels(chip.label, georeference)
    shape = (chip.image.height, chip.image.width)
    target = rasterize_roads(labels, shape, georeference.metres_per_pixel, TargetSettings())
    _write(directory / f"{chip.image_id}.rgb.tif", stretched[:3])
    _write(directory / f"{chip.image_id}.ms.tif", stretched)
    _write(directory / f"{chip.image_id}.mask.tif", decode_target(target) * np.uint8(255))


def crop_like_the_reference(
    directory: Path, chip: Chip, random: np.random.Generator
) -> NDArray[np.uint8]:
    """One plain crop, cut from image and mask after reading both."""
    parts = []
    row, column = random.integers(0, _SIZE - _CROP, 2)
    for kind in ("rgb", "mask"):
        with rasterio.open(directory / f"{chip.image_id}.{kind}.tif") as source:
            parts.append(source.read()[:, row : row + _CROP, column : column + _CROP])
    return np.concatenate(parts)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint8"
    ) as target:
        target.write(pixels)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
