"""The Mapping Challenge's layout: JPEGs beside COCO annotations."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthcity.files import refuse_other_city, require_writable, write_jpeg, write_text
from synthcity.footprints import Footprint, coco
from synthcity.spectra import RGB_BANDS
from synthcity.tiles import Tile
from synthcity.verticals import surveyed, vertical_city, verticals

# Share of the pixels, per cent, that a picture may clip at either end.
_CLIPPED_PERCENT = (1.0, 1.5)


def write_coco(directory: Path, chips: int, test_chips: int, seed: int, size: int) -> None:
    """Write training, validation and test images with their annotations.

    Args:
        directory: gets ``train``, ``val``, ``test_images`` and ``test_annotation.json``.
        chips: training images.
        test_chips: images for validation, and as many for the test.
        seed: of everything.
        size: side of an image, pixels.

    Raises:
        CityError: the directory cannot be written to or holds another city.
    """
    (train, green), (rest, rest_green) = surveyed(chips, 2 * test_chips, size, seed)
    # Tiles for validation and for the test lie in one city, beside each other.
    splits = [
        ("train", directory / "train" / "images", directory / "train" / "annotation.json", train),
        ("val", directory / "val" / "images", directory / "val" / "annotation.json",
         rest[:test_chips]),
        ("test", directory / "test_images", directory / "test_annotation.json",
         rest[test_chips:]),
    ]  # fmt: skip
    for _, root, annotations, tiles in splits:
        refuse_other_city(root, {_picture(root, tile) for tile in tiles})
        if tiles:
            require_writable(annotations)
    shots: dict[str, NDArray[np.uint16]] = {}
    truth: dict[str, list[Footprint]] = {}
    for order, (tiles, land) in enumerate(((train, green), (rest, rest_green))):
        if tiles:
            sensor, city = vertical_city(tiles, land, seed, order)
            truth |= city.truth
            for tile, shot in verticals(city, sensor, seed, order):
                shots[tile.name] = np.ascontiguousarray(shot.counts[..., list(RGB_BANDS)])
    stretch = _stretch(shots[tile.name] for tile in train)
    for _, root, annotations, tiles in splits:
        images = []
        for tile in tiles:
            write_jpeg(_picture(root, tile), _eight_bits(shots[tile.name], stretch))
            number = _number(tile)
            images.append((number, _picture(root, tile).name, size, truth[tile.name]))
        if images:
            write_text(annotations, coco(images))


def _number(tile: Tile) -> int:
    return int(tile.name.removeprefix("img"))


def _picture(root: Path, tile: Tile) -> Path:
    return root / f"{_number(tile):012d}.jpg"


def _stretch(pictures: Iterable[NDArray[np.uint16]]) -> NDArray[np.float64]:
    """Counts that become black and white in red, green and blue, float64 (2, 3)."""
    colours = np.concatenate([p.reshape(-1, len(RGB_BANDS)) for p in pictures])
    seen = colours[(colours > 0).all(axis=1)]
    low, high = _CLIPPED_PERCENT
    return np.asarray(np.percentile(seen, (low, 100 - high), axis=0), dtype=np.float64)


def _eight_bits(counts: NDArray[np.uint16], stretch: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = stretch
    grey = 255 * np.clip((counts - low) / np.maximum(1.0, high - low), 0, 1)
    return np.asarray(np.rint(grey), dtype=np.uint8)
