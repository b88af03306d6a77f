"""Mosaics: layers, bands, masks, stretches, blocks, and many rasters on one grid."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags

from satmap.data import layers as rasters
from satmap.data.imagery import MS_BAND_ORDER
from satmap.data.layers import Stretch, find_layers, stretched
from satmap.data.mosaic import Mosaic, Priority, make_mosaics
from satmap.data.sources import find_sources
from satmap.rasters.scene import Box

UTM = "EPSG:32633"
PLACE = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
RANDOM = np.random.default_rng(0)
# Smooth, so that resampling changes it little.
ROWS, COLUMNS = np.mgrid[0:96, 0:120]
PIXELS = np.stack([ROWS + 60, COLUMNS + 50, (ROWS + COLUMNS) // 2 + 40]).astype(np.uint8)


def write(path: Path, pixels: NDArray[Any] = PIXELS, **options: Any) -> Path:
    """Write a GeoTIFF; ``options`` are of the profile, or attributes of the open file."""
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    later = {k: options.pop(k) for k in ("colorinterp",) if k in options}
    colormap, mask = options.pop("colormap", None), options.pop("mask", None)
    profile = {"driver": "GTiff", "crs": UTM, "transform": PLACE} | options
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **profile, **shape) as target,
    ):
        for name, value in later.items():
            setattr(target, name, value)
        if colormap:
            target.write_colormap(1, colormap)
        target.write(pixels)
        if mask is not None:
            target.write_mask(mask)
    return path


def moved(column: float, row: float, size: float = 1) -> Affine:
    return PLACE @ Affine.translation(column, row) @ Affine.scale(size)


def maps_of(
    *paths: Path,
    stretch: tuple[float, float] | None = (0, 255),
    channels: int = 3,
    bands: Sequence[int] | None = None,
    gsd: float | None = None,
    priority: Priority = "finest",
) -> list[Mosaic]:
    layers, faults = find_layers(find_sources(paths).sources, channels, bands)
    assert not faults
    if stretch:
        fixed = Stretch((stretch[0],) * channels, (stretch[1],) * channels)
        layers = [replace(layer, stretch=fixed) for layer in layers]
    else:
        layers = stretched(layers, 0, 100, {})
    return make_mosaics(layers, gsd, priority)


def read(mosaic: Mosaic, box: Box | None = None) -> NDArray[np.uint8]:
    faults: dict[str, str] = {}
    pixels = mosaic.read(box or Box(0, 0, mosaic.width, mosaic.height), faults)
    assert not faults
    return pixels


def whole(path: Path, **options: Any) -> NDArray[np.uint8]:
    (mosaic,) = maps_of(path, **options)
    return read(mosaic)


# --- one grid -------------------------------------------------------------------------------------


def test_quarters_are_read_like_the_whole(tmp_path: Path) -> None:
    one = write(tmp_path / "whole.tif")
    parts = [
        write(tmp_path / f"part{row}-{column}.tif",
              PIXELS[:, row : row + 48, column : column + 60], transform=moved(column, row))
        for row in (0, 48) for column in (0, 60)
    ]  # fmt: skip
    (expected,) = maps_of(one, stretch=None)
    # Their order only matters for the grid's origin, which is the same.
    for order in (parts, parts[::-1]):
        (found,) = maps_of(*order, stretch=None)
        assert len(found.layers) == 1 and found.is_exact
        assert found.layers[0].stretch == expected.layers[0].stretch
        assert (found.width, found.height) == (120, 96)
        assert found.georeference is not None and expected.georeference is not None
        assert found.georeference.transform == expected.georeference.transform
        assert np.array_equal(read(found), read(expected))
        for box in (Box(50, 40, 20, 20), Box(-10, -5, 30, 20), Box(110, 90, 30, 30)):
            assert np.array_equal(read(found, box), read(expected, box))
    assert read(expected, Box(-10, -5, 30, 20))[:5].max() == 0


def test_rounded_georeferences_are_one_grid(tmp_path: Path) -> None:
    left = write(tmp_path / "left.tif", PIXELS[..., :60])
    right = write(tmp_path / "right.tif", PIXELS[..., 60:], transform=moved(60.002, -0.001))
    (found,) = maps_of(left, right)
    assert found.is_exact and np.array_equal(read(found).transpose(2, 0, 1), PIXELS)


@pytest.mark.parametrize("phase", [0, 0.005, 0.125, 0.5])
def test_rounding_does_not_split_a_grid(tmp_path: Path, phase: float) -> None:
    parts = [
        write(tmp_path / f"{place}{sign}.tif", PIXELS[..., place : place + 30],
              transform=moved(place + phase + sign * 1e-6, phase - sign * 1e-6))
        for place in (0, 30, 60, 90) for sign in (-1, 1)
    ]  # fmt: skip
    layers, _ = find_layers(find_sources(parts).sources, 3)
    assert len(layers) == 1
    other = write(tmp_path / "other.tif", transform=moved(phase + 0.02, phase))
    assert len(find_layers(find_sources([*parts, other]).sources, 3)[0]) == 2


def test_a_pixel_is_shown_once_and_the_finest_or_first_wins(tmp_path: Path) -> None:
    coarse = write(tmp_path / "coarse.tif", np.full((3, 48, 60), 50, np.uint8),
                   transform=moved(0, 0, 2))  # fmt: skip
    fine = write(tmp_path / "fine.tif", np.full((3, 96, 60), 200, np.uint8))
    (finest,) = maps_of(coarse, fine)
    (first,) = maps_of(coarse, fine, priority="first")
    # The grid is that of the first, of 1 m.
    assert (first.width, first.height) == (60, 48) == (finest.width, finest.height)
    assert (read(first) == 50).all()
    assert (read(finest)[:, :29] == 200).all() and (read(finest)[:, 31:] == 50).all()
    # Of the same grid the user's first one is shown, whatever the priority.
    again = write(tmp_path / "again.tif", np.full((3, 96, 60), 90, np.uint8))
    for priority in ("finest", "first"):
        (both,) = maps_of(fine, again, priority=priority)
        assert (read(both) == 200).all()


def test_black_of_the_upper_raster_does_not_hide_the_lower(tmp_path: Path) -> None:
    holey = PIXELS.copy()
    holey[:, 20:40, 20:40] = 0
    upper = write(tmp_path / "upper.tif", holey)
    lower = write(tmp_path / "lower.tif", np.full_like(PIXELS, 77))
    (found,) = maps_of(upper, lower)
    assert (read(found)[20:40, 20:40] == 77).all()
    assert np.array_equal(read(found)[:20].transpose(2, 0, 1), PIXELS[:, :20])


# --- other grids ----------------------------------------------------------------------------------


def warped(path: Path, crs: str, transform: Affine, width: int, height: int) -> Path:
    pixels = np.zeros((3, height, width), np.uint8)
    rasterio.warp.reproject(
        PIXELS, pixels, src_transform=PLACE, src_crs=UTM, dst_transform=transform, dst_crs=crs,
        resampling=rasterio.enums.Resampling.cubic,
    )  # fmt: skip
    return write(path, pixels, crs=crs, transform=transform)


# rasterio multiplies transforms by `*`, which affine warns of.
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("kind", ["rotated", "geographic", "other zone"])
def test_images_on_other_grids_show_the_same_ground(tmp_path: Path, kind: str) -> None:
    if kind == "rotated":
        place = moved(60, 48) @ Affine.rotation(30) @ Affine.translation(-100, -100)
        other = warped(tmp_path / "b.tif", UTM, place, 200, 200)
    else:
        crs = "EPSG:4326" if kind == "geographic" else "EPSG:32632"
        transform, width, height = rasterio.warp.calculate_default_transform(
            UTM, crs, 120, 96, *rasterio.transform.array_bounds(96, 120, PLACE)
        )
        other = warped(tmp_path / "b.tif", crs, transform, width, height)
    base = write(tmp_path / "a.tif", np.full((3, 2, 2), 9, np.uint8), transform=moved(118, 94))
    (found,) = maps_of(base, other, priority="first")
    assert found.georeference is not None
    corner = ~found.georeference.transform @ PLACE
    left, top = round(corner.c), round(corner.f)
    shown = read(found, Box(left + 5, top + 5, 110, 86)).transpose(2, 0, 1).astype(int)
    gap = np.abs(shown - PIXELS[:, 5:91, 5:115])
    assert np.median(gap) <= 1 and gap.max() <= 3
    # Alone, an image gets a north-up grid of its own, with its pixel size if that suits.
    (alone,) = maps_of(other, gsd=0.51 if kind == "south up" else None)
    if kind == "south up":
        assert np.array_equal(read(alone).transpose(2, 0, 1), PIXELS)
    assert alone.georeference is not None
    transform = alone.georeference.transform
    assert transform.b == transform.d == 0 and transform.a > 0 > transform.e


# Corner of the file in pixels of the scene, its direction, and the scene's pixels in the file.
@pytest.mark.parametrize(
    ("corner", "turn", "pixels"),
    [
        ((0, 96), Affine.scale(1, -1), PIXELS[:, ::-1]),
        ((120, 0), Affine.scale(-1, 1), PIXELS[:, :, ::-1]),
        ((120, 96), Affine.rotation(180), PIXELS[:, ::-1, ::-1]),
        ((120, 0), Affine(0, -1, 0, 1, 0, 0), np.rot90(PIXELS, 1, (1, 2))),
        ((0, 96), Affine(0, 1, 0, -1, 0, 0), np.rot90(PIXELS, -1, (1, 2))),
        ((0, 0), Affine(0, 1, 0, 1, 0, 0), PIXELS.transpose(0, 2, 1)),
    ],
)
def test_flipped_and_turned_images_keep_their_pixels(
    tmp_path: Path, corner: tuple[int, int], turn: Affine, pixels: NDArray[np.uint8]
) -> None:
    place = moved(*corner) @ turn
    path = write(tmp_path / "a.tif", np.ascontiguousarray(pixels), transform=place)
    (alone,) = maps_of(path)
    assert alone.is_exact and (alone.width, alone.height) == (120, 96)
    assert alone.georeference is not None
    assert alone.georeference.transform.almost_equals(PLACE)
    assert np.array_equal(read(alone).transpose(2, 0, 1), PIXELS)
    part = read(alone, Box(100, 70, 30, 40)).transpose(2, 0, 1)
    assert np.array_equal(part[:, :26, :20], PIXELS[:, 70:, 100:])
    assert not part[:, 26:].any() and not part[:, :, 20:].any()
    # A raster on the same grid but in the usual direction is read as exactly.
    beside = write(tmp_path / "b.tif", PIXELS, transform=moved(120, 0))
    (both,) = maps_of(path, beside)
    assert both.is_exact and (both.width, both.height) == (240, 96)
    assert np.array_equal(read(both).transpose(2, 0, 1), np.tile(PIXELS, 2))


def test_sources_are_resampled_to_the_networks_pixel_size(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    for gsd, width, height in ((0.5, 120, 96), (0.51, 120, 96), (1.0, 60, 48), (0.25, 240, 192)):
        (found,) = maps_of(path, gsd=gsd)
        # Pixels of UTM zone 33 are .04 % smaller on its central meridian.
        assert abs(found.width - width) <= 1 and abs(found.height - height) <= 1
        assert found.is_exact == (gsd < 0.6 and gsd > 0.4)
        middle = read(found)[found.height // 2, found.width // 2].astype(int)
        assert np.abs(middle - PIXELS[:, 48, 60]).max() <= 2
    # Blocks of a resampled map are the same as the whole: no seams.
    (found,) = maps_of(path, gsd=0.8)
    everything = read(found).astype(int)
    for box in found.blocks(25).values():
        assert np.abs(read(found, box) - everything[box.pixels]).max() <= 1


def test_reduced_pixels_stay_where_they_are(tmp_path: Path) -> None:
    """Rasters that begin and end within reduced pixels are not shifted or stretched."""
    path = write(tmp_path / "a.tif")
    (found,) = maps_of(path)
    layer = found.layers[0]
    for box, reduce in (
        (Box(0, 0, 120, 96), 7), (Box(-3, -6, 130, 110), 7), (Box(5, 2, 33, 50), 4),
        (Box(116, 90, 40, 40), 16),
    ):  # fmt: skip
        bands, valid = layer.read(box, {}, reduce)
        # The mean of the raster's pixels in each cell of the reduced grid.
        grown = Box(box.left, box.top, bands.shape[2] * reduce, bands.shape[1] * reduce)
        cells = np.full((3, grown.height, grown.width), np.nan)
        shared = Box(0, 0, 120, 96).overlap(box)
        assert shared is not None
        cells[:, *shared.within(grown)] = PIXELS[:, *shared.pixels]
        cells = cells.reshape(3, bands.shape[1], reduce, bands.shape[2], reduce)
        known = ~np.isnan(cells).all(axis=(0, 2, 4))
        assert np.array_equal(valid, known)
        means = np.nanmean(cells.transpose(0, 1, 3, 2, 4)[:, known], axis=(2, 3))
        assert np.abs(bands[:, known] - means).max() <= 0.51


def test_far_rasters_are_maps_of_their_own(tmp_path: Path) -> None:
    near = write(tmp_path / "a.tif")
    zone = write(tmp_path / "b.tif", crs="EPSG:32755")
    andes = write(tmp_path / "c.tif", crs="EPSG:32718")
    pixels = write(tmp_path / "d.tif", crs=None, transform=Affine.identity())
    maps = maps_of(near, zone, pixels, andes)
    assert [len(found.layers) for found in maps] == [1] * 4
    assert [found.georeference is None for found in maps] == [False, False, False, True]
    # In one reference system, far away but with true pixels, they are one map of few blocks.
    south = write(tmp_path / "e.tif", transform=moved(0, 4_000_000))
    (both,) = maps_of(near, south)
    assert both.height > 4_000_000
    assert list(both.blocks(100).values())[-1].bottom == both.height
    assert len(both.blocks(100)) == 2 + 2


# --- where there is data --------------------------------------------------------------------------


def test_alpha_masks_and_nodata_say_where_there_is_no_data(tmp_path: Path) -> None:
    hole = np.zeros((96, 120), bool)
    hole[10:30, 20:50] = True
    alpha = np.where(hole, 0, 255).astype(np.uint8)
    rgba = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    black = PIXELS.copy()
    black[:, 50:60, 50:60] = 0
    filled = np.where(hole, 7, black).astype(np.uint8)
    paths = {
        "alpha": write(tmp_path / "alpha.tif", np.concatenate([black, alpha[None]]),
                       colorinterp=rgba),
        "mask": write(tmp_path / "mask.tif", black, mask=alpha),
        "nodata": write(tmp_path / "nodata.tif", filled, nodata=7),
    }  # fmt: skip
    for kind, path in paths.items():
        with rasterio.open(path) as file:
            assert MaskFlags.all_valid not in file.mask_flag_enums[0], kind
        shown = whole(path)
        assert (shown.max(axis=2) == 0).sum() == hole.sum() and (shown[hole] == 0).all(), kind
        # Black with data is dark, not empty.
        assert (shown[50:60, 50:60] == 1).all()
    # Nothing says where, so black is none.
    assert (whole(write(tmp_path / "plain.tif", black))[50:60, 50:60] == 0).all()


def test_black_is_dark_in_compressed_images_also_within_other_formats(tmp_path: Path) -> None:
    dark = np.full((3, 64, 64), 90, np.uint8)
    dark[:, :32] = 0
    for name, options in {
        "lossless.tif": {"compress": "deflate"},
        "jpeg.tif": {"compress": "jpeg"},
        "ycbcr.tif": {"compress": "jpeg", "photometric": "ycbcr"},
        "webp.tif": {"compress": "webp"},
        "a.jpg": {"driver": "JPEG"},
    }.items():
        path = write(tmp_path / name, dark, **options)
        mosaic = path.with_suffix(".vrt")
        rasterio.shutil.copy(path, mosaic, driver="VRT")
        # As gdalbuildvrt writes it.
        compression = r"<MDI key=.COMPRESSION.>[^<]*</MDI>"
        mosaic.write_text(re.sub(compression, "", mosaic.read_text()))
        for shown in (whole(path), whole(mosaic)):
            assert (shown[:16] >= 1).all() == (name != "lossless.tif"), name


def test_types_and_bands(tmp_path: Path) -> None:
    for dtype, factor in (("uint16", 10), ("int16", -10), ("float32", 0.001)):
        values = (PIXELS.astype(float) * factor).astype(dtype)
        shown = whole(write(tmp_path / f"{dtype}.tif", values), stretch=None).astype(int)
        # A stretch from the lowest to the highest value of each band.
        expected = values.astype(float) - values.min(axis=(1, 2), keepdims=True)
        expected *= 255 / expected.max(axis=(1, 2), keepdims=True)
        assert np.abs(shown.transpose(2, 0, 1) - expected).max() <= 1.01, dtype
    nan = PIXELS.astype(np.float32)
    nan[0, :10], nan[1, 10:20], nan[2, 20:30] = np.nan, np.inf, -np.inf
    shown = whole(write(tmp_path / "nan.tif", nan), stretch=None)
    assert shown[:30].max() == 0 and shown[30:].min() >= 1

    eight = RANDOM.integers(1, 255, (8, 9, 9)).astype(np.uint8)
    path = write(tmp_path / "eight.tif", eight)
    worldview = [band - 1 for band in MS_BAND_ORDER]
    assert np.array_equal(whole(path, channels=8).transpose(2, 0, 1), eight[worldview])
    assert np.array_equal(whole(path).transpose(2, 0, 1), eight[[4, 2, 1]])
    named = write(tmp_path / "named.tif", eight, photometric="RGB")
    assert np.array_equal(whole(named, channels=8).transpose(2, 0, 1), eight)
    chosen = whole(path, bands=(7, 3, 2)).transpose(2, 0, 1)
    assert np.array_equal(chosen, eight[[6, 2, 1]])
    assert np.array_equal(whole(path, bands=(5, 5, 2)).transpose(2, 0, 1), eight[[4, 4, 1]])
    grey = whole(write(tmp_path / "grey.tif", eight[:1])).transpose(2, 0, 1)
    assert np.array_equal(grey, eight[[0, 0, 0]])
    bgr = (ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    four = write(tmp_path / "four.tif", eight[:4], colorinterp=bgr, photometric="MINISBLACK")
    assert np.array_equal(whole(four).transpose(2, 0, 1), eight[[3, 2, 1]])
    assert np.array_equal(whole(four, channels=4).transpose(2, 0, 1), eight[[3, 2, 1, 0]])
    colours = {1: (10, 20, 30, 255), 2: (40, 50, 60, 255), 3: (1, 2, 3, 0)}
    indices = RANDOM.integers(1, 4, (1, 9, 9)).astype(np.uint8)
    palette = whole(write(tmp_path / "palette.png", indices, driver="PNG", colormap=colours))
    for index, colour in colours.items():
        expected_colour = colour[:3] if colour[3] else (0, 0, 0)
        assert (palette[indices[0] == index] == expected_colour).all()


def test_too_few_bands_are_a_fault_of_that_raster(tmp_path: Path) -> None:
    two = write(tmp_path / "two.tif", PIXELS[:2])
    three = write(tmp_path / "three.tif")
    sources = find_sources([two, three]).sources
    layers, faults = find_layers(sources, 3, None)
    assert len(layers) == 1 and "2 bands, but the networks need 3" in faults[str(two)]
    layers, faults = find_layers(sources, 3, (1, 2, 4))
    assert not layers and "bands 1, 2, 4 do not fit" in faults[str(three)]
    assert "bands 1, 2 do not fit" in find_layers(sources, 3, (1, 2))[1][str(three)]


# --- stretch --------------------------------------------------------------------------------------


def test_a_stretch_comes_from_a_bounded_sample_of_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = RANDOM.integers(100, 1000, (3, 512, 512)).astype(np.uint16)
    values[:, :, :50] = 0
    (exact,) = maps_of(write(tmp_path / "a.tif", values), stretch=None)
    assert exact.layers[0].stretch == Stretch((100,) * 3, (999,) * 3)
    monkeypatch.setattr(rasters, "_SAMPLE_PX", 1 << 16)
    layer = exact.layers[0]
    boxes = layer._sample_boxes()
    assert len(boxes) == 64 and sum(box.width * box.height for box in boxes) <= 1 << 16
    (found,) = stretched([layer], 2, 98, {})
    sampled = found.stretch
    assert sampled is not None
    assert np.allclose(sampled.low, 118, atol=15) and np.allclose(sampled.high, 981, atol=15)
    # Many small rasters are sampled, not all read.
    many = replace(layer, sources=layer.sources * 5000,
                   boxes=tuple(Box(32 * i, 0, 32, 32) for i in range(5000)))  # fmt: skip
    assert len(many._sample_boxes()) <= 64


def test_constant_and_empty_images_have_a_stretch(tmp_path: Path) -> None:
    for value in (0, 7):
        path = write(tmp_path / f"{value}.tif", np.full((3, 9, 9), value, np.uint8))
        shown = whole(path, stretch=None)
        assert (shown.max() == 0) == (value == 0)
    path = write(tmp_path / "nan.tif", np.full((3, 9, 9), np.nan, np.float32))
    assert whole(path, stretch=None).max() == 0


# --- blocks and damage ----------------------------------------------------------------------------


def test_blocks_cover_all_rasters_once_and_nothing_else(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{x}-{y}.tif", PIXELS[:, :30, :40], transform=moved(x, y))
             for x, y in ((0, 0), (40, 0), (500, 37), (1_000_000, 30))]  # fmt: skip
    (found,) = maps_of(*paths)
    blocks = found.blocks(64)
    count = np.zeros((100, 700), int)
    corners = [(0, 0), (500, 37), (1_000_000, 30)]
    assert {region for region, _, _ in blocks} == {0, 1, 2}
    corners.sort(key=lambda corner: corner[1])
    for (region, row, column), box in blocks.items():
        left, top = corners[region]
        assert Box(left + column * 64, top + row * 64, 64, 64).overlap(box) == box
        if box.left < 700:
            count[box.pixels] += 1
    assert count.max() == 1
    assert (count[:30, :80] == 1).all() and (count[37:67, 500:540] == 1).all()
    assert count.sum() == 30 * 80 + 30 * 40
    assert len(blocks) == 2 + 1 + 1
    assert found.covered(Box(-9, -9, 20, 20)) == Box(0, 0, 11, 11)
    assert found.covered(Box(200, 0, 20, 20)) is None


def test_a_raster_that_is_damaged_in_part_is_left_out_there(tmp_path: Path) -> None:
    noise = RANDOM.integers(1, 255, (3, 512, 512)).astype(np.uint8)
    good = write(tmp_path / "good.tif", noise)
    bad = write(tmp_path / "bad.tif", noise, transform=moved(512, 0), tiled=True,
                blockxsize=128, blockysize=128)  # fmt: skip
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    (found,) = maps_of(good, bad)
    faults: dict[str, str] = {}
    pixels = found.read(Box(0, 0, 1024, 512), faults)
    assert np.array_equal(pixels[:, :512].transpose(2, 0, 1), noise) and not pixels[:, 512:].any()
    ((name, reason),) = faults.items()
    assert name == str(bad) and "Check that the file is complete" in reason and name not in reason
    faults.clear()
    assert found.read(Box(512, 0, 100, 100), faults).any() and not faults
    bad.unlink()
    found.read(Box(500, 0, 100, 100), faults)
    assert [*faults] == [str(bad)]
