"""Measure preparation of 1300 x 1300 eight-band chips for training, and crops per second from them.

    PYTHONPATH=code:tests .venv/bin/python benchmarks/preparing.py

The peer does what the reference solution does, with the same libraries: percentiles by sorting,
8-bit GeoTIFFs of RGB and of eight bands, and a twelve-band mask as GeoTIFF. It reads a whole chip
for every crop. Both run in one process on the same synthetic chips, one after the other. Crops are
then also read in batches through a data loader with two worker processes, as in training on several
cores. All variants take turns. Without workers, CPU time is measured, which other processes do not
disturb.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from round_trips import decode_target
from satmap.data.cache import prepare_chip
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.imagery import MS_BAND_ORDER
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.recipes.schema import Augmentation, StretchSettings
from satmap.tasks.base import default_task
from satmap.tasks.roads.labels import read_road_labels
from satmap.tasks.roads.settings import TargetSettings
from satmap.tasks.roads.targets import rasterize_roads
from satmap.training.loading import CropDataset
from synthcity import make_city

_CHIPS = 3
_SIZE = 1300
_CROP = 384
_PASSES = 32
_TURNS = 4
_TURN_S = 1.5
_PREFETCH = 2
_BATCH = 8
_WORKERS = 2
_STRETCH, _TASK = StretchSettings(), default_task("roads")


def main() -> None:
    """Measure and print the rows of the table."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_city(directory, chips=_CHIPS, test_chips=0, size=_SIZE)
        chips = scan_roads([directory / "train"]).chips
        cache = directory / "cache"

        peer = _seconds(lambda: prepare_like_the_reference(chips, directory)) / _CHIPS
        _prepared(chips[:1], directory / "warm")
        ours = _seconds(lambda: _prepared(chips, cache)) / _CHIPS
        print(f"preparing, s per chip: peer {peer:.2f}, satmap {ours:.2f}, ratio {peer / ours:.1f}")

        ready = _prepared(chips, cache)
        plain = CropDataset(ready, _CROP, 3, _PASSES, None, 0, _TASK)
        varied = CropDataset(ready, _CROP, 3, _PASSES, Augmentation(), 0, _TASK)
        kinds = {"peer": PeerDataset(directory, chips), "plain": plain, "augmented": varied}
        for workers in (0, _WORKERS):
            rates = _crops_a_second(kinds, workers)
            for kind in ("plain", "augmented"):
                print(
                    f"crops per second, {kind}, {workers} workers: "
                    f"peer (plain) {rates['peer']:.0f}, satmap {rates[kind]:.0f}, "
                    f"ratio {rates[kind] / rates['peer']:.1f}"
                )


def _prepared(chips: Sequence[Chip], cache: Path) -> list[CachedChip]:
    return [prepare_chip(chip, cache, _STRETCH, _TASK) for chip in chips]


class PeerDataset(Dataset[NDArray[np.uint8]]):
    """Dataset of plain crops, read in the reference's way."""

    def __init__(self, directory: Path, chips: Sequence[Chip]) -> None:
        self.directory = directory
        self.chips = chips

    def __len__(self) -> int:
        return _PASSES * len(self.chips)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        random = np.random.default_rng(index)
        return crop_like_the_reference(self.directory, self.chips[index % len(self.chips)], random)


def _crops_a_second(kinds: Mapping[str, Dataset[Any]], workers: int) -> dict[str, float]:
    """Return crops per second of each dataset.

    Without ``workers``, items are read directly and CPU time is measured; otherwise a data loader
    reads batches.
    """
    clock = time.perf_counter if workers else time.process_time
    streams = {kind: _stream(dataset, workers) for kind, dataset in kinds.items()}
    crops, seconds = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    for _ in range(_TURNS):
        for kind, stream in streams.items():
            # Skip crops that are already buffered, and one-time setup.
            for _ in range(2 * _PREFETCH * workers or 1):
                next(stream)
            started, ends = clock(), time.perf_counter() + _TURN_S
            while time.perf_counter() < ends:
                crops[kind] += next(stream)
            seconds[kind] += clock() - started
    return {kind: crops[kind] / seconds[kind] for kind in kinds}


def _stream(dataset: Dataset[Any], workers: int) -> Iterator[int]:
    """Read crops endlessly; yield the number of crops of each read."""
    count = len(dataset)  # type: ignore[arg-type]
    loader: DataLoader[Any] | None = None
    if workers:
        loader = DataLoader(
            dataset,
            _BATCH,
            num_workers=workers,
            prefetch_factor=_PREFETCH,
            persistent_workers=True,
        )
    while True:
        if loader is not None:
            for _ in loader:
                yield _BATCH
        else:
            for index in range(count):
                dataset[index]
                yield 1


def prepare_like_the_reference(chips: Sequence[Chip], directory: Path) -> None:
    """Write 8-bit RGB, 8-bit eight bands and the mask of every chip, each as a GeoTIFF."""
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
    """Return one plain crop, cut from image and mask after reading both."""
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
