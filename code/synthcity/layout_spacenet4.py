"""SpaceNet 4's layout: every tile from many view angles, one label file per tile."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from synthcity.city import image_rng, make_split, write_csv
from synthcity.files import refuse_other_city, require_writable, write_text, write_tiff
from synthcity.footprints import csv_rows, geojson, hidden
from synthcity.oblique import render_image, through_atmosphere
from synthcity.spectra import RGB_BANDS, draw_sensor
from synthcity.survey import Tile, oblique_tiles
from synthcity.views import VIEW_ANGLE_COUNT, ViewAngle

# Red, green, blue and near infrared, in SpaceNet 4's order.
_BANDS = (*RGB_BANDS, 6)

# Share of the view angles whose swath ends within the city.
_CUT_SHARE = 0.25


def write_spacenet4(
    directory: Path,
    chips: int,
    test_chips: int,
    seed: int,
    size: int,
    collects: Sequence[ViewAngle],
) -> None:
    """Write every tile from every view angle, with labels and truth.

    Args:
        directory: output directory of ``train``, ``test`` and ``test_truth.csv``.
        chips: number of training tiles.
        test_chips: number of test tiles.
        seed: seed of all random choices.
        size: side of a tile, pixels.
        collects: the view angles.

    Raises:
        CityError: the directory cannot be written to or holds another city.
    """
    roots = {"train": directory / "train", "test": directory / "test"}
    tiles = {
        "train": oblique_tiles(chips, size, test=False),
        "test": oblique_tiles(test_chips, size, test=True),
    }
    truths = [_summary_path(roots["train"], collect) for collect in collects]
    test_truth = directory / "test_truth.csv"
    for split, root in roots.items():
        expected = {_image_path(root, c, tile) for c in collects for tile in tiles[split]}
        expected |= {_label_path(root, tile) for tile in tiles[split]}
        refuse_other_city(root, expected)
    for path in (*truths, *([test_truth] if test_chips else [])):
        require_writable(path)
    rng = np.random.default_rng((seed, 1))
    sensor, sun = draw_sensor(rng), _winter_sun(rng)
    exposures = rng.uniform(0.85, 1.15, VIEW_ANGLE_COUNT)
    swaths = _swaths(collects, size, rng)
    for order, split in enumerate(("train", "test")):
        if not tiles[split]:
            continue
        city = make_split(tiles[split], None, sun, (seed, 2, order))
        rows: dict[str, list[str]] = {collect.name: [] for collect in collects}
        shown = tqdm(city.sites(), f"{split} tiles", len(city.tiles), disable=None)
        for number, (tile, site) in enumerate(shown):
            footprints = city.truth[tile.name]
            for i, collect in enumerate(collects):
                air = through_atmosphere(sensor, collect, _BANDS, float(exposures[i]))
                rendered = render_image(
                    site, collect, air, _BANDS, image_rng(seed, order, number, i)
                )
                valid = swaths[i] if number == 0 else tile.valid
                rendered.counts[~valid] = 0
                path = _image_path(roots[split], collect, tile)
                write_tiff(path, rendered.counts, tile.transform, tile.crs)
                unseen = hidden(footprints, rendered.roof, valid)
                image_id = f"{collect.name}_{tile.name}"
                rows[collect.name] += csv_rows(image_id, footprints, unseen)
            if split == "train":
                write_text(_label_path(roots[split], tile), geojson(footprints))
        if split == "train":
            for collect in collects:
                write_csv(_summary_path(roots[split], collect), rows[collect.name], ",Occluded")
        else:
            write_csv(test_truth, [row for of in rows.values() for row in of], ",Occluded")


def _image_path(root: Path, collect: ViewAngle, tile: Tile) -> Path:
    kind = "Pan-Sharpen"
    return root / collect.name / kind / f"{kind}_{collect.name}_{tile.name}.tif"


def _label_path(root: Path, tile: Tile) -> Path:
    kind = "spacenet-buildings"
    return root / "geojson" / kind / f"{kind}_{tile.name}.geojson"


def _summary_path(root: Path, collect: ViewAngle) -> Path:
    return root / "summaryData" / f"{collect.name}_Train.csv"


def _winter_sun(rng: np.random.Generator) -> tuple[float, float]:
    """Draw the shadow vector, metres per metre of height, of a December morning in Atlanta."""
    azimuth, elevation = np.radians(rng.uniform(158, 172)), np.radians(rng.uniform(30, 35))
    reach = 1.0 / np.tan(elevation)
    return float(-np.sin(azimuth) * reach), float(np.cos(azimuth) * reach)


def _swaths(
    collects: Sequence[ViewAngle], size: int, rng: np.random.Generator
) -> list[NDArray[np.bool_]]:
    """Draw the valid pixels of the first tile per view angle; at least one swath ends in it."""
    cut = rng.random(VIEW_ANGLE_COUNT) < _CUT_SHARE
    cut[int(rng.integers(len(collects)))] = True
    legs = rng.uniform(0.25, 0.7, (VIEW_ANGLE_COUNT, 2)) * size
    x, y = np.arange(size)[None, :] + 0.5, np.arange(size)[:, None] + 0.5
    whole = np.ones((size, size), dtype=bool)
    return [
        np.asarray(x / legs[i, 0] + y / legs[i, 1] >= 1) if cut[i] else whole
        for i in range(len(collects))
    ]
