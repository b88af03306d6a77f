"""GeoJSON as the challenges and their participants write it: features with their coordinates.

The ``crs`` member, which the standard has dropped and old labels need, is honoured; a malformed one
is passed over. Without it coordinates are longitude and latitude.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.warp
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe

#: Longitude and latitude on WGS 84, in that order.
LON_LAT = "OGC:CRS84"

_MALFORMED = (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError)

# Names, WKT and PROJ strings of reference systems. Of anything else, GDAL would read a file or
# fetch an address.
_CRS_NAME = re.compile(
    r"(?:urn:(?:ogc|x-ogc):def:crs:|EPSG:|OGC:)[\w.:-]+|[A-Z_]+\s*\[.*\]\s*|\+proj=.*",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class GeoLine:
    """A line of a feature.

    Attributes:
        xy: float64 (n >= 2, 2), x and y or longitude and latitude, without successive twins.
        properties: those of its feature.
    """

    xy: NDArray[np.float64]
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class Surface:
    """A polygon of a feature, holes included.

    Attributes:
        polygon: in the file's coordinates.
        properties: those of its feature.
    """

    polygon: shapely.Polygon
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class FeatureCollection:
    """What a GeoJSON file holds; points are passed over.

    Attributes:
        crs: reference system of all coordinates, as rasterio takes it.
        lines: all lines, multi-part ones taken apart.
        surfaces: all polygons, multi-part ones taken apart.
        geometries: how many features have a geometry of any kind.
    """

    crs: str
    lines: tuple[GeoLine, ...]
    surfaces: tuple[Surface, ...]
    geometries: int


def read_geojson(path: Path) -> FeatureCollection:
    """Read a feature collection; third coordinates are dropped.

    Raises:
        SatmapError: not GeoJSON, or coordinates that cannot be longitude and latitude.
    """
    refuse_pipe(path)
    try:
        document = json.loads(path.read_bytes())
        document = {"features": []} if document is None else document
        features = document["features"]
        if not isinstance(features, list):
            raise TypeError("'features' is not a list")
    except OSError as error:
        raise SatmapError(f"{path}: cannot be read ({error.strerror or error}).") from error
    # Brackets nested without end exhaust the parser's stack.
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise SatmapError(
            f"{path}: not a GeoJSON feature collection ({error}). Fetch or export it again."
        ) from error
    crs = _crs_of(document)
    lines, surfaces, geometries = [], [], 0
    for number, feature in enumerate(features):
        try:
            properties = feature.get("properties") or {}
            if not isinstance(properties, dict):
                raise TypeError("its properties are no object")
            geometries += bool(feature.get("geometry"))
            for kind, coordinates in _parts(feature.get("geometry")):
                if kind == "LineString":
                    xy = _clean(coordinates, crs)
                    if len(xy) >= 2:
                        lines.append(GeoLine(xy, properties))
                else:
                    rings = [_clean(ring, crs) for ring in coordinates]
                    if rings and len(rings[0]) >= 3:
                        holes = [ring for ring in rings[1:] if len(ring) >= 3]
                        surfaces.append(Surface(shapely.Polygon(rings[0], holes), properties))
        except _MALFORMED as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise SatmapError(f"{path}: feature {number} is malformed ({what}).") from error
    return FeatureCollection(crs, tuple(lines), tuple(surfaces), geometries)


def project(xy: NDArray[np.float64], source: str, target: str) -> NDArray[np.float64]:
    """Coordinates (n, 2) of one reference system in another, x or longitude first.

    Raises:
        ValueError: they cannot be brought there.
    """
    if not len(xy):
        return xy
    try:
        projected = rasterio.warp.transform(source, target, xy[:, 0], xy[:, 1])
    # GDAL's own errors have no public base class.
    except Exception as error:
        raise ValueError(f"cannot be projected from {source:.60} ({error})") from error
    columns: NDArray[np.float64] = np.column_stack(projected[:2])
    if not np.isfinite(columns).all():
        raise ValueError(f"cannot be projected from {source:.60}")
    return columns


def _crs_of(document: dict[str, Any]) -> str:
    member = document.get("crs")
    try:
        name = str(member["properties"]["name"])  # type: ignore[index]
        if not _CRS_NAME.fullmatch(name):
            return LON_LAT
        # GeoJSON writes longitude first whatever the authority's order of axes.
        if name.endswith((":CRS84", ":4326")):
            return LON_LAT
        # Within an environment GDAL says nothing on stderr of a name that it does not know.
        with rasterio.Env():
            return str(CRS.from_user_input(name))
    except (TypeError, KeyError, CRSError):
        return LON_LAT


def _parts(geometry: Any) -> Iterator[tuple[str, Any]]:
    """Kind (LineString or Polygon) and coordinates of each part of a geometry."""
    if geometry is None:
        return
    kind = geometry["type"]
    match kind:
        case "LineString" | "Polygon":
            yield kind, geometry["coordinates"]
        case "MultiLineString" | "MultiPolygon":
            for part in geometry["coordinates"]:
                yield kind.removeprefix("Multi"), part
        case "GeometryCollection":
            for member in geometry["geometries"]:
                yield from _parts(member)
        case "Point" | "MultiPoint":
            return
        case _:
            raise ValueError(f"no GeoJSON geometry is called {kind!r:.40}")


def _clean(coordinates: Any, crs: str) -> NDArray[np.float64]:
    """Two finite, plausible columns without successive twins; none of an empty geometry."""
    if coordinates == []:
        return np.empty((0, 2))
    xy = np.array([point[:2] for point in coordinates], np.float64)
    if len(xy) and xy.shape[1:] != (2,):
        raise ValueError("coordinates are not a list of x and y")
    if not np.isfinite(xy).all():
        raise ValueError("a coordinate is not a finite number")
    if crs == LON_LAT and len(xy) and (np.abs(xy) > (180.0, 90.0)).any():
        raise ValueError(
            f"({xy[0, 0]:.1f}, {xy[0, 1]:.1f}) is no longitude and latitude; add the file's 'crs' "
            "member or reproject it to EPSG:4326"
        )
    keep = np.ones(len(xy), bool)
    keep[1:] = (xy[1:] != xy[:-1]).any(axis=1)
    return xy[keep]
