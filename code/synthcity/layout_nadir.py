"""Near-nadir images of buildings in the layouts of SpaceNet 2 and the Mapping Challenge.

SpaceNet 2 has eight-band and RGB GeoTIFFs, a label file per image and the truth as CSV; the Mapping
Challenge has JPEGs and COCO annotations. Pixels are about 0.3 m.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthcity.city import Split, image_rng, make_split, write_csv
from synthcity.files import refuse_other_city, require_writable, write_jpeg, write_text, write_tiff
from synthcity.footprints import Footprint, coco, csv_rows, geojson
from synthcity.oblique import RenderedImage, render_image
from synthcity.plan import Box
from synthcity.spectra import BANDS, RGB_BANDS, Sensor, draw_sensor
from synthcity.survey import Tile, make_surveys, survey_tiles
from synthcity.views import ViewAngle

_ALL = tuple(range(BANDS))

# Percentages of pixels clipped to black and to white in an 8-bit image.
_CLIPPED_PERCENT = (1.0, 1.5)


def survey_splits(
    chips: int, test_chips: int, size: int, seed: int
) -> list[tuple[list[Tile], Box | None]]:
    """Return the tiles of the training and the test city, each with the land to keep road-free."""
    surveys = make_surveys(chips, test_chips, size, np.random.default_rng((seed, 0)))
    return [(survey_tiles(survey), survey.green() if survey.chips else None)
            for survey in surveys]  # fmt: skip


def make_nadir_split(
    tiles: list[Tile], green: Box | None, seed: int, order: int
) -> tuple[Sensor, Split]:
    """Make the sensor and the training (order 0) or test (order 1) split."""
    sensor = draw_sensor(np.random.default_rng((seed, 1)))
    return sensor, make_split(tiles, green, sensor.shadow_per_m, (seed, 2, order))


def render_tiles(
    city: Split, sensor: Sensor, seed: int, order: int
) -> Iterator[tuple[Tile, RenderedImage]]:
    """Render every tile almost at nadir, in all eight bands."""
    rng = image_rng(seed, order)
    above = ViewAngle(float(rng.uniform(1, 6)), float(rng.uniform(0, 360)), 0.31)
    for number, (tile, site) in enumerate(city.sites()):
        rendered = render_image(site, above, sensor, _ALL, image_rng(seed, order, number))
        rendered.counts[~tile.valid] = 0
        yield tile, rendered


def write_spacenet2(
    directory: Path, chips: int, test_chips: int, seed: int, size: int, name: str
) -> None:
    """Write SpaceNet 2's layout: training images with labels, test images and their truth.

    Args:
        directory: output directory of ``train``, ``test`` and ``test_truth.csv``.
        chips: number of training images.
        test_chips: number of test images.
        seed: seed of all random choices.
        size: side of an image, pixels.
        name: the AOI.

    Raises:
        CityError: the directory cannot be written to or holds another city.
    """
    splits = survey_splits(chips, test_chips, size, seed)
    train, test = directory / "train" / f"{name}_Train", directory / "test" / f"{name}_Test_public"
    truths = [
        train / "summaryData" / f"{name}_Train_Building_Solutions.csv",
        directory / "test_truth.csv",
    ]
    for (tiles, _), root, truth in zip(splits, (train, test), truths, strict=True):
        expected = {
            _image_path(root, kind, name, tile) for kind in ("MUL", "RGB") for tile in tiles
        }
        expected |= {_label_path(root, name, tile) for tile in tiles}
        refuse_other_city(root, expected)
        if tiles:
            require_writable(truth)
    for order, ((tiles, green), root, truth) in enumerate(
        zip(splits, (train, test), truths, strict=True)
    ):
        if not tiles:
            continue
        rows = []
        sensor, city = make_nadir_split(tiles, green, seed, order)
        for tile, rendered in render_tiles(city, sensor, seed, order):
            counts = rendered.counts
            write_tiff(_image_path(root, "MUL", name, tile), counts, tile.transform, tile.crs)
            rgb = np.ascontiguousarray(counts[..., list(RGB_BANDS)])
            write_tiff(_image_path(root, "RGB", name, tile), rgb, tile.transform, tile.crs)
            footprints = city.truth[tile.name]
            if root == train:
                write_text(_label_path(root, name, tile), geojson(footprints))
            rows += csv_rows(f"{name}_{tile.name}", footprints)
        write_csv(truth, rows)


def _image_path(root: Path, kind: str, name: str, tile: Tile) -> Path:
    product = f"{kind}-PanSharpen"
    return root / product / f"{product}_{name}_{tile.name}.tif"


def _label_path(root: Path, name: str, tile: Tile) -> Path:
    return root / "geojson" / "buildings" / f"buildings_{name}_{tile.name}.geojson"


def write_coco(directory: Path, chips: int, test_chips: int, seed: int, size: int) -> None:
    """Write the Mapping Challenge's layout: images with COCO annotations.

    Args:
        directory: output directory of ``train``, ``val``, ``test_images`` and
            ``test_annotation.json``.
        chips: number of training images.
        test_chips: number of validation images; there are as many test images.
        seed: seed of all random choices.
        size: side of an image, pixels.

    Raises:
        CityError: the directory cannot be written to or holds another city.
    """
    (train, green), (rest, rest_green) = survey_splits(chips, 2 * test_chips, size, seed)
    # Validation and test tiles lie side by side in one city.
    splits = [
        ("train", directory / "train" / "images", directory / "train" / "annotation.json", train),
        ("val", directory / "val" / "images", directory / "val" / "annotation.json",
         rest[:test_chips]),
        ("test", directory / "test_images", directory / "test_annotation.json",
         rest[test_chips:]),
    ]  # fmt: skip
    for _, root, annotations, tiles in splits:
        refuse_other_city(root, {_picture_path(root, tile) for tile in tiles})
        if tiles:
            require_writable(annotations)
    shots: dict[str, NDArray[np.uint16]] = {}
    truth: dict[str, list[Footprint]] = {}
    for order, (tiles, land) in enumerate(((train, green), (rest, rest_green))):
        if tiles:
            sensor, city = make_nadir_split(tiles, land, seed, order)
            truth |= city.truth
            for tile, rendered in render_tiles(city, sensor, seed, order):
                shots[tile.name] = np.ascontiguousarray(rendered.counts[..., list(RGB_BANDS)])
    stretch = _stretch(shots[tile.name] for tile in train)
    for _, root, annotations, tiles in splits:
        images = []
        for tile in tiles:
            write_jpeg(_picture_path(root, tile), _eight_bits(shots[tile.name], stretch))
            number = _image_number(tile)
            images.append((number, _picture_path(root, tile).name, size, truth[tile.name]))
        if images:
            write_text(annotations, coco(images))


def _image_number(tile: Tile) -> int:
    return int(tile.name.removeprefix("img"))


def _picture_path(root: Path, tile: Tile) -> Path:
    return root / f"{_image_number(tile):012d}.jpg"


def _stretch(pictures: Iterable[NDArray[np.uint16]]) -> NDArray[np.float64]:
    """Return the counts that map to black and to white in red, green and blue, float64 (2, 3)."""
    colours = np.concatenate([p.reshape(-1, len(RGB_BANDS)) for p in pictures])
    seen = colours[(colours > 0).all(axis=1)]
    low, high = _CLIPPED_PERCENT
    return np.asarray(np.percentile(seen, (low, 100 - high), axis=0), dtype=np.float64)


def _eight_bits(counts: NDArray[np.uint16], stretch: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = stretch
    grey = 255 * np.clip((counts - low) / np.maximum(1.0, high - low), 0, 1)
    return np.asarray(np.rint(grey), dtype=np.uint8)
