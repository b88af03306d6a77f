"""Data sets in the layouts of SpaceNet 5, 4 and 2 and of the Mapping Challenge.

SpaceNet 5 has roads, seen by the flat painter. The others have buildings, seen by the oblique
renderer: SpaceNet 2 and the Mapping Challenge almost from above, SpaceNet 4 from many view angles.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from shapely import STRtree
from tqdm import tqdm

from synthcity import labels
from synthcity.city import Land, build_city
from synthcity.files import (
    CityError,
    refuse_other_city,
    require_writable,
    write_jpeg,
    write_text,
    write_tiff,
)
from synthcity.oblique import RenderedImage, Site, render_image, through_atmosphere
from synthcity.paint import paint
from synthcity.plan import FloatArray, Overpasses, Rng
from synthcity.spectra import BANDS, MAX_COUNT, RGB_BANDS, Sensor, draw_sensor
from synthcity.strokes import Sun
from synthcity.survey import Block, Tile, make_blocks, move_to_buildings, oblique_block
from synthcity.views import VIEW_ANGLE_COUNT, ViewAngle, make_view_angles

_SMALLEST = 64
# Percentages of pixels clipped to black and to white in an 8-bit image.
_CLIPPED_PERCENT = (1.0, 1.5)
# Minimum width and height of a city of buildings, metres. A few small tiles could otherwise fall
# between the houses. The tiles are moved to the most densely built part of the city.
_TOWN_M = 360.0
# Red, green, blue and near infrared, in SpaceNet 4's order.
_BANDS4 = (*RGB_BANDS, 6)
# Share of the view angles whose swath ends within the city.
_CUT_SHARE = 0.25


class BuildingLayout(StrEnum):
    """Layout of a city of buildings."""

    SPACENET4 = "spacenet4"
    SPACENET2 = "spacenet2"
    COCO = "coco"


#: Default numbers of training and test tiles and default side in pixels of each layout.
DEFAULTS = {
    BuildingLayout.SPACENET4: (4, 1, 900),
    BuildingLayout.SPACENET2: (24, 6, 650),
    BuildingLayout.COCO: (48, 12, 300),
}


def make_city(
    directory: Path,
    *,
    chips: int = 24,
    test_chips: int = 6,
    seed: int = 0,
    size: int = 512,
    name: str = "AOI_99_Made",
    overpasses: str = Overpasses.FEW,
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
        overpasses: how many roads cross on different levels: ``none``, ``few`` or ``many``.

    Raises:
        CityError: an argument is out of range, the directory cannot be written to or it holds
            chips of another synthetic city.
    """
    amount = _check(chips, test_chips, seed, size, name, overpasses)
    train, test = directory / "train" / f"{name}_Train", directory / "test" / f"{name}_Test_Public"
    prefixes = {train: f"SN5_roads_train_{name}", test: f"SN5_roads_test_public_{name}"}
    wkt = train / f"{prefixes[train]}_geojson_roads_speed_wkt_weighted_simp.csv"
    kinds = ("PS-MS", "PS-RGB", "geojson_roads_speed")

    def paths(root: Path, tile: Tile) -> list[Path]:
        names = [f"{prefixes[root]}_{kind}_chip{tile.name}" for kind in kinds]
        endings = ("tif", "tif", "geojson")
        return [root / k / f"{n}.{e}" for k, n, e in zip(kinds, names, endings, strict=True)]

    blocks = make_blocks(chips, test_chips, size, np.random.default_rng((seed, 0)))
    splits = [(train, blocks[0], wkt), (test, blocks[1], directory / "test_truth.csv")]
    _prepare([(root, block.tiles, [truth]) for root, block, truth in splits], paths)
    sensor = draw_sensor(np.random.default_rng((seed, 1)))
    histogram = np.zeros((len(RGB_BANDS), MAX_COUNT + 1), dtype=np.int64)
    for order, (root, block, truth) in enumerate(splits):
        if not block.tiles:
            continue
        land = Land(block.width, block.height, block.green, sensor.shadow_per_m, amount)
        city = build_city(land, np.random.default_rng((seed, 2, order)))
        tree = STRtree([edge.line for edge in city.roads])
        rows = [labels.ROADS_HEADER]
        for tile in block.tiles:
            roads = labels.chip_roads(city.roads, tree, tile)
            rows += labels.road_rows(f"{name}_chip{tile.name}", roads)
            noise = np.random.default_rng((seed, 3, int(tile.name)))
            counts = paint(city.from_above, tile.window, tile.grid, sensor, city.texture, noise)
            counts[~tile.valid] = 0
            image, _, label = paths(root, tile)
            write_tiff(image, counts, tile.transform)
            if root is train:
                write_text(label, labels.road_geojson(roads, tile))
                histogram += _histograms(counts[..., list(RGB_BANDS)])
        write_text(truth, "\n".join(rows) + "\n")
    # All chips of the AOI share one stretch, so that neighbours match.
    stretch = _stretch(histogram)
    for root, block, _ in splits:
        for tile in block.tiles:
            multispectral, picture, _ = paths(root, tile)
            with rasterio.open(multispectral) as source:
                counts = np.stack([source.read(band + 1) for band in RGB_BANDS], axis=2)
            write_tiff(picture, _eight_bits(counts, stretch), tile.transform)


def make_building_city(
    directory: Path,
    layout: BuildingLayout,
    *,
    chips: int | None = None,
    test_chips: int | None = None,
    seed: int = 0,
    size: int | None = None,
    view_angles: int = VIEW_ANGLE_COUNT,
    name: str = "AOI_99_Made",
    overpasses: str = Overpasses.FEW,
) -> None:
    """Write a synthetic city of buildings: images with exact footprints.

    Training and test tiles are windows of two cities under one sun. The same arguments give the
    same pixels and labels. Output by layout:

    - SpaceNet 4: ``train/{collect}/Pan-Sharpen/``, ``train/geojson/spacenet-buildings/`` and
      ``train/summaryData/{collect}_Train.csv``, ``test/{collect}/Pan-Sharpen/``,
      ``test_truth.csv``: every tile from every view angle in four bands, 0.5 m per pixel.
    - SpaceNet 2: ``train/{name}_Train`` with ``MUL-PanSharpen``, ``RGB-PanSharpen``,
      ``geojson/buildings`` and ``summaryData``, ``test/{name}_Test_public`` with images only,
      ``test_truth.csv``: about 0.3 m per pixel, almost at nadir.
    - COCO: ``train`` and ``val`` with ``images`` and ``annotation.json``, ``test_images`` and
      ``test_annotation.json``, with as many images for validation as for tests.

    Arguments and errors are those of :func:`make_city`. The layout's ``DEFAULTS`` replace a None.
    ``view_angles`` is the number of view angles for SpaceNet 4, 1 to 27.
    """
    chips, test_chips, size = (
        usual if given is None else given
        for given, usual in zip((chips, test_chips, size), DEFAULTS[layout], strict=True)
    )
    amount = _check(chips, test_chips, seed, size, name, overpasses)
    rng = np.random.default_rng((seed, 0))
    match layout:
        case BuildingLayout.SPACENET4:
            collects = make_view_angles(view_angles, np.random.default_rng((seed, 4)))
            splits = [oblique_block(chips, size, test=False)]
            splits.append(oblique_block(test_chips, size, test=True))
            _write_spacenet4(directory, splits, seed, size, collects, amount)
        case BuildingLayout.SPACENET2:
            _write_spacenet2(
                directory, make_blocks(chips, test_chips, size, rng), seed, name, amount
            )
        case BuildingLayout.COCO:
            # Validation and test tiles lie side by side in one city.
            blocks = make_blocks(chips, 2 * test_chips, size, rng)
            _write_coco(directory, blocks, test_chips, seed, size, amount)


def _check(
    chips: int, test_chips: int, seed: int, size: int, name: str, overpasses: str
) -> Overpasses:
    counts = (("chips", chips, 1), ("test_chips", test_chips, 0), ("seed", seed, 0))
    for what, value, least in (*counts, ("size", size, _SMALLEST)):
        if value < least:
            raise CityError(
                f"cannot make a city with {what} = {value}; give a number of at least {least}."
            )
    if not re.fullmatch(r"AOI_\d+_[A-Za-z0-9]+", name):
        raise CityError(
            f"{name!r} is no name for a synthetic city; give one of three parts like AOI_99_Made."
        )
    if overpasses not in list(Overpasses):
        raise CityError(f"overpasses = {overpasses!r} is unknown; give none, few or many.")
    return Overpasses(overpasses)


class _Town:
    """City of buildings with its tiles and their truth, and one generator for each image's noise.

    The tiles lie where most buildings stand, unless the city has a green.
    """

    def __init__(self, block: Block, seed: int, order: int, sun: Sun, amount: Overpasses) -> None:
        least = 0.0 if block.green else _TOWN_M
        land = Land(max(block.width, least), max(block.height, least), block.green, sun, amount)
        self.city = build_city(land, np.random.default_rng((seed, 2, order)))
        self.tiles = block.tiles
        if least:
            room = least - block.width, least - block.height
            self.tiles = move_to_buildings(block, self.city.solids, room)
        tree = STRtree([solid.footprint for solid in self.city.solids])
        self.truth = {t.name: labels.tile_footprints(self.city.solids, tree, t) for t in self.tiles}
        self.key = (seed, 3, order)

    def sites(self) -> Iterator[tuple[int, Tile, Site]]:
        """Yield number, tile and painted ground of every tile."""
        for number, tile in enumerate(self.tiles):
            yield number, tile, Site.of(self.city, tile.window, tile.grid)

    def nadir_images(self, sensor: Sensor) -> Iterator[tuple[Tile, RenderedImage]]:
        """Render every tile almost at nadir, in all eight bands."""
        rng = np.random.default_rng(self.key)
        above = ViewAngle(float(rng.uniform(1, 6)), float(rng.uniform(0, 360)), 0.31)
        for number, tile, site in self.sites():
            noise = np.random.default_rng((*self.key, number))
            rendered = render_image(site, above, sensor, tuple(range(BANDS)), noise)
            rendered.counts[~tile.valid] = 0
            yield tile, rendered


def _prepare(
    splits: Sequence[tuple[Path, Sequence[Tile], Sequence[Path]]],
    paths: Callable[[Path, Tile], Sequence[Path]],
) -> None:
    """Fail early if a directory holds another city or the truth of any tiles cannot be written."""
    for root, tiles, truths in splits:
        refuse_other_city(root, {path for tile in tiles for path in paths(root, tile)})
        for truth in truths if tiles else ():
            require_writable(truth)


def _write_csv(path: Path, rows: Sequence[str], more: str = "") -> None:
    write_text(path, "\n".join([labels.BUILDINGS_HEADER + more, *rows]) + "\n")


def _write_spacenet2(
    directory: Path, blocks: Sequence[Block], seed: int, name: str, amount: Overpasses
) -> None:
    train, test = directory / "train" / f"{name}_Train", directory / "test" / f"{name}_Test_public"
    solutions = train / "summaryData" / f"{name}_Train_Building_Solutions.csv"

    def paths(root: Path, tile: Tile) -> list[Path]:
        products = [f"{kind}-PanSharpen" for kind in ("MUL", "RGB")]
        images = [root / p / f"{p}_{name}_img{tile.name}.tif" for p in products]
        return [*images, root / "geojson/buildings" / f"buildings_{name}_img{tile.name}.geojson"]

    splits = [(train, blocks[0], solutions), (test, blocks[1], directory / "test_truth.csv")]
    _prepare([(root, block.tiles, [truth]) for root, block, truth in splits], paths)
    sensor = draw_sensor(np.random.default_rng((seed, 1)))
    for order, (root, block, truth) in enumerate(splits):
        if not block.tiles:
            continue
        town = _Town(block, seed, order, sensor.shadow_per_m, amount)
        rows = []
        for tile, rendered in town.nadir_images(sensor):
            multispectral, rgb, label = paths(root, tile)
            footprints = town.truth[tile.name]
            write_tiff(multispectral, rendered.counts, tile.transform, tile.crs)
            colours = np.ascontiguousarray(rendered.counts[..., list(RGB_BANDS)])
            write_tiff(rgb, colours, tile.transform, tile.crs)
            if root is train:
                write_text(label, labels.building_geojson(footprints))
            rows += labels.building_rows(f"{name}_img{tile.name}", footprints)
        _write_csv(truth, rows)


def _write_coco(
    directory: Path, blocks: Sequence[Block], held_out: int, seed: int, size: int,
    amount: Overpasses,
) -> None:  # fmt: skip
    train, rest = (block.tiles for block in blocks)
    splits = [
        (directory / "train/images", train, directory / "train/annotation.json"),
        (directory / "val/images", rest[:held_out], directory / "val/annotation.json"),
        (directory / "test_images", rest[held_out:], directory / "test_annotation.json"),
    ]

    def paths(root: Path, tile: Tile) -> list[Path]:
        return [root / f"{int(tile.name):012d}.jpg"]

    _prepare([(root, tiles, [truth]) for root, tiles, truth in splits], paths)
    sensor = draw_sensor(np.random.default_rng((seed, 1)))
    shots: dict[str, NDArray[np.uint16]] = {}
    found: dict[str, list[labels.Footprint]] = {}
    for order, block in enumerate(blocks):
        if block.tiles:
            town = _Town(block, seed, order, sensor.shadow_per_m, amount)
            found |= town.truth
            for tile, rendered in town.nadir_images(sensor):
                shots[tile.name] = np.ascontiguousarray(rendered.counts[..., list(RGB_BANDS)])
    stretch = _stretch(np.sum([_histograms(shots[tile.name]) for tile in train], axis=0))
    for root, tiles, truth in splits:
        images = []
        for tile in tiles:
            (path,) = paths(root, tile)
            write_jpeg(path, _eight_bits(shots[tile.name], stretch))
            images.append((int(tile.name), path.name, size, found[tile.name]))
        if images:
            write_text(truth, labels.coco(images))


def _histograms(rgb: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return the histograms of red, green and blue, int64 (3, 2048)."""
    colours = rgb.reshape(-1, len(RGB_BANDS)).T
    return np.stack([np.bincount(colour, minlength=MAX_COUNT + 1) for colour in colours])


def _stretch(histogram: NDArray[np.int64]) -> FloatArray:
    """Return the counts that map to black and to white in red, green and blue, float64 (2, 3)."""
    limits = []
    for frequency in histogram:
        share = np.cumsum(frequency[1:]) / max(1, int(frequency[1:].sum()))
        low, high = _CLIPPED_PERCENT[0] / 100, 1 - _CLIPPED_PERCENT[1] / 100
        limits.append(1 + np.searchsorted(share, (low, high)))
    return np.array(limits, dtype=np.float64).T


def _eight_bits(rgb: NDArray[np.uint16], stretch: FloatArray) -> NDArray[np.uint8]:
    """Stretch counts (h, w, 3). Black is 1, because 0 means "no data", as in the counts."""
    low, high = stretch
    grey = 1 + 254 * np.clip((rgb - low) / np.maximum(1.0, high - low), 0, 1)
    grey[(rgb == 0).all(axis=2)] = 0
    return np.asarray(np.rint(grey), dtype=np.uint8)


def _write_spacenet4(
    directory: Path, blocks: Sequence[Block], seed: int, size: int,
    collects: Sequence[ViewAngle], amount: Overpasses,
) -> None:  # fmt: skip
    train, test_truth = directory / "train", directory / "test_truth.csv"
    summaries = [train / "summaryData" / f"{c.name}_Train.csv" for c in collects]

    def paths(root: Path, tile: Tile) -> list[Path]:
        kind, label = "Pan-Sharpen", "spacenet-buildings"
        images = [root / c.name / kind / f"{kind}_{c.name}_{tile.name}.tif" for c in collects]
        return [*images, root / "geojson" / label / f"{label}_{tile.name}.geojson"]

    splits = [(train, blocks[0], summaries), (directory / "test", blocks[1], [test_truth])]
    _prepare([(root, block.tiles, truths) for root, block, truths in splits], paths)
    rng = np.random.default_rng((seed, 1))
    sensor, sun = draw_sensor(rng), _winter_sun(rng)
    exposures = rng.uniform(0.85, 1.15, VIEW_ANGLE_COUNT)
    swaths = _swaths(len(collects), size, rng)
    for order, (root, block, truths) in enumerate(splits):
        if not block.tiles:
            continue
        town = _Town(block, seed, order, sun, amount)
        rows: list[list[str]] = [[] for _ in collects]
        shown = tqdm(town.sites(), f"{root.name} tiles", len(town.tiles), disable=None)
        for number, tile, site in shown:
            footprints = town.truth[tile.name]
            *images, label = paths(root, tile)
            for i, (collect, path) in enumerate(zip(collects, images, strict=True)):
                air = through_atmosphere(sensor, collect, _BANDS4, float(exposures[i]))
                noise = np.random.default_rng((*town.key, number, i))
                rendered = render_image(site, collect, air, _BANDS4, noise)
                valid = swaths[i] if number == 0 else tile.valid
                rendered.counts[~valid] = 0
                write_tiff(path, rendered.counts, tile.transform, tile.crs)
                unseen = labels.hidden(footprints, rendered.roof, valid)
                rows[i] += labels.building_rows(f"{collect.name}_{tile.name}", footprints, unseen)
            if root is train:
                write_text(label, labels.building_geojson(footprints))
        together = rows if root is train else [[row for of in rows for row in of]]
        for truth, of in zip(truths, together, strict=True):
            _write_csv(truth, of, ",Occluded")


def _winter_sun(rng: Rng) -> Sun:
    """Draw the sun of a December morning in Atlanta."""
    azimuth, elevation = np.radians(rng.uniform(158, 172)), np.radians(rng.uniform(30, 35))
    reach = 1.0 / np.tan(elevation)
    return float(-np.sin(azimuth) * reach), float(np.cos(azimuth) * reach)


def _swaths(collects: int, size: int, rng: Rng) -> list[NDArray[np.bool_]]:
    """Draw the valid pixels of the first tile per view angle; at least one swath ends in it."""
    cut = rng.random(VIEW_ANGLE_COUNT) < _CUT_SHARE
    cut[int(rng.integers(collects))] = True
    legs = rng.uniform(0.25, 0.7, (VIEW_ANGLE_COUNT, 2)) * size
    x, y = np.arange(size)[None, :] + 0.5, np.arange(size)[:, None] + 0.5
    return [x / leg[0] + y / leg[1] >= 1 - 9 * (not ends) for leg, ends in
            zip(legs[:collects], cut, strict=False)]  # fmt: skip
