"""Shared fixtures: a small made city, and GeoTIFFs and labels made to measure."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray

from satmap.data.city import make_city

# Two test processes on two cores.
torch.set_num_threads(1)

#: Pixel size in degrees of the images below: 0.3 m high, 0.24 m wide.
DEGREES = 2.7e-6
LONGITUDE, LATITUDE = -115.17, 36.24

WriteImage = Callable[..., Path]
WriteLabels = Callable[..., Path]


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made city of six small training chips and two test chips; not to be changed."""
    directory = tmp_path_factory.mktemp("city")
    make_city(directory, chips=6, test_chips=2, size=160, seed=3)
    return directory


@pytest.fixture
def write_image() -> WriteImage:
    """Writes a GeoTIFF of noise, in longitude and latitude unless told otherwise."""

    def write(
        path: Path,
        *,
        bands: int = 3,
        size: tuple[int, int] = (96, 128),
        dtype: str = "uint8",
        georeferenced: bool = True,
        pixels: NDArray[Any] | None = None,
        **profile: Any,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            top = 255 if dtype == "uint8" else 2000
            pixels = np.random.default_rng(0).integers(1, top, (bands, *size)).astype(dtype)
        if georeferenced:
            place = Affine(DEGREES, 0, LONGITUDE, 0, -DEGREES, LATITUDE)
            profile = {"crs": "EPSG:4326", "transform": place} | profile
        count, height, width = pixels.shape
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width,
            dtype=pixels.dtype, **profile,
        ) as target:  # fmt: skip
            target.write(pixels)
        return path

    return write


@pytest.fixture
def write_labels() -> WriteLabels:
    """Writes road labels; lines are given in pixels of an image of ``write_image``."""

    def write(
        path: Path,
        lines: Iterable[Iterable[tuple[float, float]]],
        properties: dict[str, Any] | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        features = [
            {
                "type": "Feature",
                "properties": {"inferred_speed_mph": 25.0} if properties is None else properties,
                "geometry": {"type": "LineString", "coordinates": [lon_lat(*xy) for xy in line]},
            }
            for line in lines
        ]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return path

    return write


def lon_lat(x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude of a pixel of an image of ``write_image``."""
    return LONGITUDE + x * DEGREES, LATITUDE - y * DEGREES
