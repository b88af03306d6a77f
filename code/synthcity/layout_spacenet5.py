"""SpaceNet 5's layout: 8-band and RGB images, road labels with speeds, the truth as CSV."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from shapely import STRtree

from synthcity.city import City, Land, make_scene
from synthcity.files import CityError, refuse_other_city, require_writable, write_text, write_tiff
from synthcity.labels import CSV_HEADER, ChipRoad, chip_roads, csv_rows, geojson
from synthcity.paint import paint
from synthcity.spectra import MAX_COUNT, RGB_BANDS, Sensor, draw_sensor
from synthcity.survey import Survey, make_surveys

_SMALLEST = 64

# Percentages of pixels clipped to black and to white in the 8-bit image.
_CLIPPED_PERCENT = (1.0, 1.5)


@dataclass(frozen=True)
class _SplitPaths:
    """File paths of one split.

    Attributes:
        root: the area directory, e.g. ``train/AOI_99_Made_Train``.
        prefix: prefix of its file names, e.g. ``SN5_roads_train_AOI_99_Made``.
        name: name of the AOI.
        survey: layout of its chips.
    """

    root: Path
    prefix: str
    name: str
    survey: Survey

    def image(self, kind: str, number: int) -> Path:
        """Return the path of a chip's ``PS-MS`` or ``PS-RGB`` image."""
        return self.root / kind / f"{self.prefix}_{kind}_chip{number}.tif"

    def label(self, number: int) -> Path:
        """Return the path of a chip's labels."""
        kind = "geojson_roads_speed"
        return self.root / kind / f"{self.prefix}_{kind}_chip{number}.geojson"

    def files(self) -> set[Path]:
        """Return the paths of all images and labels."""
        numbers = self.survey.numbers()
        images = {self.image(kind, n) for kind in ("PS-MS", "PS-RGB") for n in numbers}
        return images | {self.label(n) for n in numbers}


def make_city(
    directory: Path,
    *,
    chips: int = 24,
    test_chips: int = 6,
    seed: int = 0,
    size: int = 512,
    name: str = "AOI_99_Made",
) -> None:
    """Write a synthetic city of roads: images with exact labels.

    The output is ``train/{name}_Train`` (PS-MS, PS-RGB, labels, truth CSV),
    ``test/{name}_Test_Public`` (PS-MS, PS-RGB) and ``test_truth.csv``, named as in SpaceNet 5.

    Training chips are windows of one continuous city, numbered from 0. Test chips are windows of
    another city seen by the same sensor, numbered from ``chips``. With 12 chips or more, at least
    one has no road. With 4 or more, the edge of the satellite's swath cuts a corner chip: counts
    beyond it are 0 and roads have no labels. The same arguments give the same pixels and labels.

    Args:
        directory: created if it does not exist.
        chips: number of training chips, at least 1.
        test_chips: number of test chips; 0 writes no test directory and no test truth.
        seed: seed of all random choices, at least 0.
        size: side of a chip, pixels, at least 64.
        name: ``AOI_<number>_<word>``.

    Raises:
        CityError: an argument is out of range, the directory cannot be written to or it holds
            chips of another synthetic city.
    """
    check_arguments(chips, test_chips, seed, size, name)
    train_survey, test_survey = make_surveys(
        chips, test_chips, size, np.random.default_rng((seed, 0))
    )
    train = _SplitPaths(
        directory / "train" / f"{name}_Train", f"SN5_roads_train_{name}", name, train_survey
    )
    test = _SplitPaths(
        directory / "test" / f"{name}_Test_Public",
        f"SN5_roads_test_public_{name}",
        name,
        test_survey,
    )
    splits = [train, test] if test_chips else [train]
    truths = {
        train.root: train.root / f"{train.prefix}_geojson_roads_speed_wkt_weighted_simp.csv",
        test.root: directory / "test_truth.csv",
    }
    for split in splits:
        refuse_other_city(split.root, split.files())
        require_writable(truths[split.root])
    sensor = draw_sensor(np.random.default_rng((seed, 1)))
    brightness = np.zeros((len(RGB_BANDS), MAX_COUNT + 1), dtype=np.int64)
    for order, split in enumerate(splits):
        survey = split.survey
        layout = np.random.default_rng((seed, 2, order))
        land = Land(*survey.extent, survey.green(), sensor.shadow_per_m)
        city = make_scene(land, layout)
        roads = _truth(city, survey)
        _write_truth(split, roads, truths[split.root], labelled=split is train)
        texture = int(layout.integers(2**31))
        for number in survey.numbers():
            counts = _write_multispectral(city, split, number, sensor, texture, (seed, 3, number))
            if split is train:
                brightness += _histograms(counts)
    stretch = _stretch(brightness)
    for split in splits:
        for number in split.survey.numbers():
            _write_rgb(split, number, stretch)


def check_arguments(chips: int, test_chips: int, seed: int, size: int, name: str) -> None:
    """Check the arguments of a city.

    Raises:
        CityError: an argument is out of range.
    """
    for what, value, least in (
        ("chips", chips, 1),
        ("test_chips", test_chips, 0),
        ("seed", seed, 0),
        ("size", size, _SMALLEST),
    ):
        if value < least:
            raise CityError(
                f"cannot make a city with {what} = {value}; give a number of at least {least}."
            )
    if not re.fullmatch(r"AOI_\d+_[A-Za-z0-9]+", name):
        raise CityError(
            f"{name!r} is no name for a synthetic city; give one of three parts like AOI_99_Made."
        )


def _truth(city: City, survey: Survey) -> dict[int, list[ChipRoad]]:
    tree = STRtree([edge.line for edge in city.edges])
    return {number: chip_roads(city.edges, tree, survey, number) for number in survey.numbers()}


def _write_truth(
    split: _SplitPaths, roads: dict[int, list[ChipRoad]], csv: Path, *, labelled: bool
) -> None:
    """Write the truth CSV and, for training data, the label files."""
    rows = [CSV_HEADER]
    for number, found in roads.items():
        rows += csv_rows(f"{split.name}_chip{number}", found)
        if labelled:
            write_text(split.label(number), geojson(found, split.survey.transform(number)))
    write_text(csv, "\n".join(rows) + "\n")


def _write_multispectral(
    city: City,
    split: _SplitPaths,
    number: int,
    sensor: Sensor,
    texture: int,
    noise_seed: tuple[int, int, int],
) -> NDArray[np.uint16]:
    """Paint and write a chip's PS-MS image; return its counts, uint16 (size, size, 8)."""
    survey = split.survey
    counts = paint(
        city.scene,
        survey.window(number),
        survey.grid,
        sensor,
        texture,
        np.random.default_rng(noise_seed),
    )
    counts[~survey.valid(number)] = 0
    write_tiff(split.image("PS-MS", number), counts, survey.transform(number))
    return counts


def _histograms(counts: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return the histograms of red, green and blue, int64 (3, 2048)."""
    return np.stack(
        [np.bincount(counts[..., band].ravel(), minlength=MAX_COUNT + 1) for band in RGB_BANDS]
    )


def _stretch(brightness: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the counts that map to black and to white in red, green and blue, float64 (3, 2).

    All chips of the AOI share one stretch, so that neighbours match.
    """
    limits = []
    for frequency in brightness:
        share = np.cumsum(frequency[1:]) / max(1, int(frequency[1:].sum()))
        low, high = _CLIPPED_PERCENT[0] / 100, 1 - _CLIPPED_PERCENT[1] / 100
        limits.append(1 + np.searchsorted(share, (low, high)))
    return np.array(limits, dtype=np.float64)


def _write_rgb(split: _SplitPaths, number: int, stretch: NDArray[np.float64]) -> None:
    """Write a chip's PS-RGB image, computed from its PS-MS image."""
    with rasterio.open(split.image("PS-MS", number)) as source:
        counts = np.stack([source.read(band + 1) for band in RGB_BANDS], axis=2)
    low, high = stretch[:, 0], stretch[:, 1]
    # Black is 1, because 0 means "no data", as in the counts.
    grey = 1 + 254 * np.clip((counts - low) / np.maximum(1.0, high - low), 0, 1)
    grey[(counts == 0).all(axis=2)] = 0
    picture = np.rint(grey).astype(np.uint8)
    write_tiff(split.image("PS-RGB", number), picture, split.survey.transform(number))
