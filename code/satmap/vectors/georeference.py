"""Georeferences: the reference system of an image and the true size of its pixels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.crs
import rasterio.errors
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.io.geojson_reader import CRS_NAME, LON_LAT, project

if TYPE_CHECKING:
    import geopandas

# Distance over which the pixel size is measured: long enough to be exact in float64.
_PROBE_PIXELS = 100.0

# Roads are not visible in larger pixels, and no sensor has smaller ones.
_SMALLEST_PIXEL_M, _LARGEST_PIXEL_M = 1e-3, 100.0


@dataclass(frozen=True)
class Georeference:
    """Position of a raster on the Earth.

    Attributes:
        crs: reference system as WKT.
        transform: pixel (column, row) to coordinates of ``crs``; (0, 0) is the outer corner of the
            first pixel.
        metres_per_pixel: true size of a pixel at the image's centre, along x and along y.
    """

    crs: str
    transform: Affine
    metres_per_pixel: tuple[float, float]

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance: side of a square with the area of a pixel, metres."""
        return math.sqrt(math.prod(self.metres_per_pixel))

    def to_pixels(self, xy: NDArray[np.float64], crs: str = LON_LAT) -> NDArray[np.float64]:
        """Convert coordinates (n, 2) of ``crs`` to pixel x and y, float64 (n, 2).

        Raises:
            ValueError: the coordinates cannot be converted to the image's system.
        """
        return _apply(~self.transform, project(xy, crs, self.crs)) if len(xy) else xy

    def to_map(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert pixel x and y (n, 2) to coordinates of the image's system, float64 (n, 2)."""
        return _apply(self.transform, pixels)


def georeference_of(
    crs: rasterio.crs.CRS | None, transform: Affine, width: int, height: int
) -> Georeference | None:
    """Return the georeference of an open raster, or None if it has none.

    Raises:
        SatmapError: the reference system cannot be converted to longitude and latitude, or the
            pixel size is implausible.
    """
    if crs is None or transform.is_identity:
        return None
    try:
        if transform.is_degenerate:
            raise ValueError("its transform maps all pixels onto a line")
        size = _metres_per_pixel(crs, transform, width, height)
        return Georeference(crs.to_wkt(), transform, size)
    # GDAL's own errors, which local and geocentric systems raise, have no public base class.
    except Exception as error:
        raise SatmapError(
            f"unusable reference system ({error}); assign the right one, for example with "
            "`rio edit-info --crs EPSG:4326 IMAGE`."
        ) from error


def _metres_per_pixel(
    crs: rasterio.crs.CRS, transform: Affine, width: int, height: int
) -> tuple[float, float]:
    column, row, step = width / 2, height / 2, _PROBE_PIXELS
    corners = np.array([(column, row), (column + step, row), (column, row + step)])
    x, y = _apply(transform, corners).T
    longitude, latitude = (np.asarray(axis) for axis in rasterio.warp.transform(crs, LON_LAT, x, y))
    if not (np.isfinite(longitude).all() and (np.abs(latitude) < 90).all()):
        raise ValueError("the image lies outside the area where it is defined")
    per_longitude, per_latitude = metres_per_degree(float(latitude[0]))
    # A broken header can hold any number; infinite sizes are rejected below.
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.hypot(
            (longitude[1:] - longitude[0]) * per_longitude,
            (latitude[1:] - latitude[0]) * per_latitude,
        )
    size = distance / step
    if not ((size >= _SMALLEST_PIXEL_M) & (size <= _LARGEST_PIXEL_M)).all():
        sizes = " x ".join(f"{length:.3g}" for length in size)
        raise ValueError(f"its pixels would be {sizes} m")
    return float(size[0]), float(size[1])


def _apply(transform: Affine, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a transform to points (n, 2)."""
    matrix = np.array(transform[:6]).reshape(2, 3)
    mapped: NDArray[np.float64] = xy @ matrix[:, :2].T + matrix[:, 2]
    return mapped


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Return the metres per degree of longitude and of latitude on the WGS 84 ellipsoid."""
    semi_major, eccentricity2 = 6378137.0, 6.69437999014e-3
    sine = math.sin(math.radians(latitude))
    curvature = 1 - eccentricity2 * sine * sine
    normal = semi_major / math.sqrt(curvature)
    meridian = semi_major * (1 - eccentricity2) / curvature**1.5
    radian = math.pi / 180
    return normal * math.cos(math.radians(latitude)) * radian, meridian * radian


def reference_system(text: str) -> str:
    """Return a reference system that a user named, such as ``EPSG:32631``; WGS 84 as LON_LAT.

    Raises:
        ValueError: it is not the name, WKT or PROJ text of a system on the ground.
    """
    if not CRS_NAME.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a reference system such as EPSG:32631")
    try:
        # Within an environment GDAL does not report unknown names on stderr.
        with rasterio.Env():
            crs = rasterio.crs.CRS.from_user_input(text.strip())
            if not (crs.is_geographic or crs.is_projected):
                raise ValueError("it has no place on the ground")
            return LON_LAT if crs.to_epsg() == 4326 else str(crs.to_wkt())
    except (ValueError, rasterio.errors.CRSError) as error:
        raise ValueError(f"{text!r} is not a usable reference system ({error})") from error


def common_system(images: Iterable[tuple[Georeference | None, int]]) -> str:
    """Return the reference system of images if all share one projected system, else LON_LAT.

    ``images`` are their georeferences and numbers of objects. Images without objects count only if
    no image has any.
    """
    placed = [(each.crs, count) for each, count in images if each is not None]
    systems = {crs for crs, count in placed if count} or {crs for crs, _ in placed}
    if len(systems) != 1:
        return LON_LAT
    (system,) = systems
    return system if rasterio.crs.CRS.from_user_input(system).is_projected else LON_LAT


def place(
    image_id: str,
    georeference: Georeference | None,
    pixels: NDArray[np.float64],
    crs: str,
    *,
    things: str,
    otherwise: str,
) -> NDArray[np.float64]:
    """Convert pixels (n, 2) of an image to coordinates of a reference system.

    Messages name ``things``, such as ``roads``, and advise to write another format: ``otherwise``,
    without a full stop.

    Args:
        image_id: names the image in messages.
        georeference: of the image.
        pixels: float64 (n, 2), x and y.
        crs: LON_LAT or WKT.
        things: what is placed, in the plural.
        otherwise: the advice.

    Raises:
        SatmapError: the image has no usable georeference, or ``crs`` is in degrees and the image
            lies across the 180th meridian or beyond a pole.
    """
    if georeference is None:
        raise SatmapError(
            f"{image_id} has no georeference, which all formats of maps need. {otherwise}; or "
            "give the image its georeference, for example with `rio edit-info --crs EPSG:4326 "
            "--transform ... IMAGE`."
        )
    placed = georeference.to_map(pixels)
    try:
        if crs != georeference.crs:
            placed = project(placed, georeference.crs, crs)
    except ValueError as error:
        raise SatmapError(f"{image_id}: its {things} {error}.") from error
    if crs != LON_LAT and rasterio.crs.CRS.from_user_input(crs).is_projected:
        return placed
    if len(placed) and ((np.abs(placed) > (180, 90)).any() or np.ptp(placed[:, 0]) > 180):
        raise SatmapError(
            f"{image_id} lies across the 180th meridian or beyond a pole, where lines in "
            f"longitude and latitude would run around the Earth. {otherwise}."
        )
    return placed


def georeference_as_json(georeference: Georeference | None) -> list[Any] | None:
    """Return a georeference as JSON values."""
    if georeference is None:
        return None
    return [georeference.crs, georeference.transform[:6], georeference.metres_per_pixel]


def georeference_from_json(content: list[Any] | None) -> Georeference | None:
    """Read a georeference back, exactly.

    Raises:
        ValueError, TypeError: the content is not a georeference.
    """
    if content is None:
        return None
    crs, transform, (x, y) = content
    return Georeference(crs, Affine(*transform), (x, y))


def geodataframe(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], crs: str | None
) -> "geopandas.GeoDataFrame":
    """Return a table with geometries in column ``geometry``; without ``crs`` they are in pixels.

    Raises:
        SatmapError: geopandas is not installed.
    """
    try:
        import geopandas
    except ImportError as error:
        raise SatmapError(
            "to_geodataframe needs geopandas, which is not installed: pip install 'satmap[gis]'."
        ) from error
    return geopandas.GeoDataFrame(list(rows), columns=list(columns), geometry="geometry", crs=crs)
