import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from pydantic import ValidationError

from satmap.data.imagery import (
    MULTISPECTRAL,
    RGB,
    StretchedImage,
    read_info,
    read_stretched,
    stretch,
)
from satmap.data.layers import find_layers, stretched
from satmap.data.sources import find_sources
from satmap.errors import SatmapError
from satmap.rasters.scene import Box
from satmap.recipes.schema import StretchSettings
from synthetic_images import lon_lat, write_image


def test_stretch_maps_percentiles_of_the_pixels_above_zero() -> None:
    # 100 zeros, which must not count, then 1..1000: the 2nd percentile is 20, the 98th is 980.
    band = np.concatenate([np.zeros(100), np.arange(1, 1001)]).astype(np.uint16)[None]
    result = stretch(band, np.ones(band.shape, bool), 2, 98)[0]
    assert (result[:100] == 0).all()
    assert result[100 + 19] == 0
    assert result[100 + 979] == 255
    assert result[100 + 499] == round((500 - 20) / 960 * 255)


def test_stretch_agrees_with_numpy_percentiles() -> None:
    random = np.random.default_rng(1)
    band = random.gamma(2, 200, (200, 200)).astype(np.uint16) + 1
    result = stretch(band, np.ones(band.shape, bool), 2, 98).astype(float)
    low, high = np.percentile(band, [2, 98])
    expected = np.clip((band - low) / (high - low) * 255, 0, 255)
    assert np.abs(result - expected).max() <= 1


def test_stretch_of_a_flat_and_of_an_empty_band() -> None:
    flat = np.full((4, 4), 7, np.uint8)
    assert stretch(flat, np.ones((4, 4), bool), 2, 98).shape == (4, 4)
    assert not stretch(flat, np.zeros((4, 4), bool), 2, 98).any()


def test_multispectral_channels_begin_with_red_green_blue(tmp_path: Path) -> None:
    # Band k is a ramp; after the stretch only band 5 is recognisable, because it is reversed.
    ramp = np.tile(np.arange(1, 129, dtype=np.uint16), (96, 1))
    pixels = np.stack([ramp[:, ::-1] if band == 5 else ramp for band in range(1, 9)])
    path = write_image(tmp_path / "ms.tif", pixels=pixels)
    image = read_stretched(read_info(path, MULTISPECTRAL), 2, 98)
    assert image.shape == (96, 128, 8)
    assert image[0, 0, 0] == 255
    assert (image[0, 0, 1:] == 1).all()
    first = read_stretched(read_info(path, MULTISPECTRAL), 2, 98, channels=3)
    assert np.array_equal(first, image[..., :3])


def test_dark_pixels_are_not_taken_for_no_data(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(500, 2000, (3, 64, 64)).astype(np.uint16)
    pixels[:, 30] = 1  # a dark road
    pixels[:, :5] = 0
    image = read_stretched(read_info(write_image(tmp_path / "a.tif", pixels=pixels), RGB), 2, 98)
    assert (image[5:].min(axis=2) >= 1).all()
    assert not image[:5].any()


def test_stretch_from_percentile_zero_begins_at_the_least_value() -> None:
    band = np.arange(500, 1001, dtype=np.uint16)[None]
    result = stretch(band, np.ones(band.shape, bool), 0, 100)[0]
    assert (result[0], result[250], result[-1]) == (0, 128, 255)


def test_8_bit_images_without_a_stretch_keep_their_values(tmp_path: Path) -> None:
    settings = StretchSettings.model_validate("none")
    pixels = np.random.default_rng(0).integers(40, 120, (3, 64, 64)).astype(np.uint8)
    pixels[:, :5] = 0
    info = read_info(write_image(tmp_path / "a.tif", pixels=pixels), RGB)
    assert np.array_equal(
        read_stretched(info, settings.low, settings.high), pixels.transpose(1, 2, 0)
    )
    assert np.array_equal(
        StretchedImage(info, settings.low, settings.high)[0:64, 0:64], pixels.transpose(1, 2, 0)
    )
    layers, _ = find_layers(find_sources([tmp_path / "a.tif"]).sources, 3)
    (layer,) = stretched(layers, settings.low, settings.high, {})
    assert np.array_equal(layer.read_stretched(Box(0, 0, 64, 64), {}), pixels)
    with pytest.raises(ValidationError):
        StretchSettings.model_validate("nothing")


def test_unusable_reference_systems(tmp_path: Path) -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    place = Affine(0.5, 0, 664000, 0, -0.5, 4012000)
    path = write_image(tmp_path / "a.tif", crs=local, transform=place)
    with pytest.raises(SatmapError, match=r"a\.tif: unusable reference system"):
        read_info(path, RGB)


def test_no_data_becomes_black(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 2000, (3, 64, 64)).astype(np.uint16)
    pixels[:, :10] = 0
    pixels[:, -10:] = 999
    info = read_info(write_image(tmp_path / "a.tif", pixels=pixels, nodata=999), RGB)
    image = read_stretched(info, 2, 98)
    assert not image[:10].any()
    assert not image[-10:].any()
    assert image[20:40].any(axis=2).mean() > 0.9


def test_alpha_is_a_mask(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (4, 64, 64)).astype(np.uint8)
    pixels[3] = 255
    pixels[3, :, :20] = 0
    info = read_info(
        write_image(tmp_path / "a.tif", pixels=pixels, photometric="RGB", alpha="YES"), RGB
    )
    assert info.bands == 3
    image = read_stretched(info, 2, 98)
    assert not image[:, :20].any()
    assert image[:, 20:].any()


def test_metres_per_pixel_are_true_metres(tmp_path: Path) -> None:
    in_degrees = read_info(write_image(tmp_path / "a.tif"), RGB).georeference
    assert in_degrees is not None
    # cos(36.24 degrees) makes a degree of longitude shorter.
    assert in_degrees.metres_per_pixel == pytest.approx((0.2427, 0.2996), rel=2e-3)
    # UTM zone 11 at the same place; the scale factor there is within 0.1 % of 1.
    utm: dict[str, Any] = {
        "crs": "EPSG:32611",
        "transform": Affine(0.5, 0, 664000, 0, -0.5, 4012000),
    }
    in_metres = read_info(write_image(tmp_path / "b.tif", **utm), RGB).georeference
    assert in_metres is not None
    assert in_metres.metres_per_pixel == pytest.approx((0.5, 0.5), rel=1e-3)
    # Web mercator stretches metres by 1 / cos(latitude) = 1.24.
    mercator: dict[str, Any] = {
        "crs": "EPSG:3857",
        "transform": Affine(0.5, 0, -12820666, 0, -0.5, 4331720),
    }
    stretched = read_info(write_image(tmp_path / "c.tif", **mercator), RGB).georeference
    assert stretched is not None
    assert stretched.metres_per_pixel == pytest.approx((0.404, 0.404), rel=5e-3)


def test_pixels_round_trip_through_lon_lat(tmp_path: Path) -> None:
    georeference = read_info(write_image(tmp_path / "a.tif"), RGB).georeference
    assert georeference is not None
    xy = np.array([[0.0, 0.0], [128.0, 96.0], [13.25, 70.5]])
    there = np.array([lon_lat(*point) for point in xy])
    assert georeference.to_pixels(there) == pytest.approx(xy, abs=1e-5)


def test_without_georeference(tmp_path: Path) -> None:
    assert read_info(write_image(tmp_path / "a.tif", georeferenced=False), RGB).georeference is None


@pytest.mark.parametrize(("bands", "product"), [(2, RGB), (5, RGB), (3, MULTISPECTRAL)])
def test_wrong_band_count(tmp_path: Path, bands: int, product: str) -> None:
    path = write_image(tmp_path / "a.tif", bands=bands)
    with pytest.raises(SatmapError, match=rf"a\.tif: {bands} bands, but a {product} image has"):
        read_info(path, product)


@pytest.mark.parametrize("largest", [1, 2000])
def test_floats_can_be_read_after_the_suggested_scaling(tmp_path: Path, largest: int) -> None:
    values = np.random.default_rng(0).uniform(0.01, 1, (3, 96, 128)) * largest
    values[:, :10] = -9999
    values[:, :, :10] = np.nan
    path = write_image(tmp_path / "a.tif", pixels=values.astype(np.float32), nodata=-9999)
    with pytest.raises(SatmapError, match="float32, but satmap reads uint8 and uint16") as refused:
        read_info(path, RGB)
    assert "1 if values are between 0 and 1" in str(refused.value)
    command = re.search("`gdal_translate (.*)`", str(refused.value).replace("MAX", str(largest)))
    assert command is not None
    scaled = translate(tmp_path, command[1].split())
    info = read_info(scaled, RGB)
    assert info.dtype == "uint16"
    image = read_stretched(info, 0, 100)
    assert not image[:10].any() and not image[:, :10].any()
    valid = image[10:, 10:].transpose(2, 0, 1).astype(float)
    # Values keep order and spread: the stretch to 8 bits is the same as for the floats.
    for band, wanted in zip(valid, values[:, 10:, 10:], strict=True):
        stretched = (wanted - wanted.min()) / np.ptp(wanted) * 255
        assert np.abs(band - stretched.clip(1)).max() <= 1


def translate(directory: Path, arguments: list[str]) -> Path:
    """Emulate ``gdal_translate`` with these arguments, because not every machine has it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-ot")
    parser.add_argument("-scale", nargs=4, type=float)
    parser.add_argument("-a_nodata")
    parser.add_argument("files", nargs=2)
    given = parser.parse_args(arguments)
    low, high, bottom, top = given.scale
    source, target = directory / str(given.files[0]), directory / str(given.files[1])
    with rasterio.open(source) as image:
        ratio = (top - bottom) / (high - low)
        bands = "".join(
            f"""<VRTRasterBand dataType="{given.ot}" band="{band}">
                  <NoDataValue>{given.a_nodata}</NoDataValue>
                  <ComplexSource>
                    <SourceFilename>{source}</SourceFilename>
                    <SourceBand>{band}</SourceBand>
                    <ScaleOffset>{bottom - low * ratio}</ScaleOffset>
                    <ScaleRatio>{ratio}</ScaleRatio>
                  </ComplexSource>
                </VRTRasterBand>"""
            for band in image.indexes
        )
        size = f'rasterXSize="{image.width}" rasterYSize="{image.height}"'
    (directory / "scaled.vrt").write_text(f"<VRTDataset {size}>{bands}</VRTDataset>")
    rasterio.shutil.copy(directory / "scaled.vrt", target, driver="GTiff")
    return target


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.tif", size=(300, 300))
    info = read_info(path, RGB)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(SatmapError, match=r"a\.tif.*may be truncated"):
        read_stretched(info, 2, 98)
    path.write_bytes(b"not a raster at all")
    with pytest.raises(SatmapError, match=r"a\.tif: not a readable raster"):
        read_info(path, RGB)
