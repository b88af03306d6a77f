"""SpaceNet 2's layout: eight bands and three, a label file an image, the truth as CSV."""

from pathlib import Path

import numpy as np

from synthcity.files import refuse_other_city, require_writable, write_text, write_tiff
from synthcity.footprints import csv_rows, geojson
from synthcity.halves import write_csv
from synthcity.spectra import RGB_BANDS
from synthcity.tiles import Tile
from synthcity.verticals import surveyed, vertical_city, verticals


def write_spacenet2(
    directory: Path, chips: int, test_chips: int, seed: int, size: int, name: str
) -> None:
    """Write training images with labels and truth, test images, and their truth beside them.

    Args:
        directory: gets ``train``, ``test`` and ``test_truth.csv``.
        chips: training images.
        test_chips: test images.
        seed: of everything.
        size: side of an image, pixels.
        name: the AOI.

    Raises:
        CityError: the directory cannot be written to or holds another city.
    """
    halves = surveyed(chips, test_chips, size, seed)
    train, test = directory / "train" / f"{name}_Train", directory / "test" / f"{name}_Test_public"
    truths = [
        train / "summaryData" / f"{name}_Train_Building_Solutions.csv",
        directory / "test_truth.csv",
    ]
    for (tiles, _), root, truth in zip(halves, (train, test), truths, strict=True):
        ours = {_vertical(root, kind, name, tile) for kind in ("MUL", "RGB") for tile in tiles}
        ours |= {_vertical_label(root, name, tile) for tile in tiles}
        refuse_other_city(root, ours)
        if tiles:
            require_writable(truth)
    for order, ((tiles, green), root, truth) in enumerate(
        zip(halves, (train, test), truths, strict=True)
    ):
        if not tiles:
            continue
        rows = []
        sensor, city = vertical_city(tiles, green, seed, order)
        for tile, shot in verticals(city, sensor, seed, order):
            counts = shot.counts
            write_tiff(_vertical(root, "MUL", name, tile), counts, tile.transform, tile.crs)
            rgb = np.ascontiguousarray(counts[..., list(RGB_BANDS)])
            write_tiff(_vertical(root, "RGB", name, tile), rgb, tile.transform, tile.crs)
            footprints = city.truth[tile.name]
            if root == train:
                write_text(_vertical_label(root, name, tile), geojson(footprints))
            rows += csv_rows(f"{name}_{tile.name}", footprints)
        write_csv(truth, rows)


def _vertical(root: Path, kind: str, name: str, tile: Tile) -> Path:
    product = f"{kind}-PanSharpen"
    return root / product / f"{product}_{name}_{tile.name}.tif"


def _vertical_label(root: Path, name: str, tile: Tile) -> Path:
    return root / "geojson" / "buildings" / f"buildings_{name}_{tile.name}.geojson"
