"""Small generated GeoTIFFs and labels, for tests."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

# Pixel size in degrees: 0.3 m high, 0.24 m wide.
_DEGREES = 2.7e-6
_LONGITUDE, _LATITUDE = -115.17, 36.24


def write_image(
    path: Path,
    *,
    bands: int = 3,
    size: tuple[int, int] = (96, 128),
    dtype: str = "uint8",
    georeferenced: bool = True,
    pixels: NDArray[Any] | None = None,
    **profile: Any,
) -> Path:
    """Write a GeoTIFF of noise, or of ``pixels``; in longitude and latitude by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        top = 255 if dtype == "uint8" else 2000
        pixels = np.random.default_rng(0).integers(1, top, (bands, *size)).astype(dtype)
    if georeferenced:
        place = Affine(_DEGREES, 0, _LONGITUDE, 0, -_DEGREES, _LATITUDE)
        profile = {"crs": "EPSG:4326", "transform": place} | profile
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as target:
        target.write(pixels)
    return path


def write_labels(
    path: Path,
    lines: Iterable[Iterable[tuple[float, float]]],
    properties: dict[str, Any] | None = None,
) -> Path:
    """Write road labels; lines are in pixels of a ``write_image`` image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = [
        {
            "type": "Feature",
            "properties": {"inferred_speed_mph": 25.0} if properties is None else properties,
            "geometry": {
                "type": "LineString",
                "coordinates": [lon_lat(*xy) for xy in line],
            },
        }
        for line in lines
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def lon_lat(x: float, y: float) -> tuple[float, float]:
    """Return longitude and latitude of a pixel of a ``write_image`` image."""
    return _LONGITUDE + x * _DEGREES, _LATITUDE - y * _DEGREES
