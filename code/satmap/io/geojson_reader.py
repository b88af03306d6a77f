"""Read GeoJSON files of the challenges and their participants.

The ``crs`` member is used: the current standard has dropped it, but old labels need it. A malformed
member is ignored. Without it, coordinates are longitude and latitude.
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

# Parts of PROJ strings and of WKT that name files, which PROJ opens for transformations.
_CRS_FILES = (
    r'(?:\b(?:nadgrids|geoidgrids|grids|file|init)\s*=\s*(?!@null(?:[\s"]|$))|\bparameterfile\b)'
)

#: Names, WKT and PROJ strings of coordinate reference systems. Given anything else, GDAL could read
#: a file or contact a server.
CRS_NAME = re.compile(
    rf"(?!.*{_CRS_FILES})"
    r"(?:(?:urn:(?:ogc|x-ogc):def:crs:|EPSG:|OGC:)[\w.:-]+|[A-Z_]+\s*\[.*\]\s*|\+proj=.*)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class GeoLine:
    """Line of a feature: ``xy`` is float64 (n >= 2, 2), x and y or longitude and latitude.

    Successive points differ.
    """

    xy: NDArray[np.float64]
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class Surface:
    """Polygon of a feature, with its holes, in the file's coordinates."""

    polygon: shapely.Polygon
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class FeatureCollection:
    """Content of a GeoJSON file; points are ignored and multi-part geometries split.

    Attributes:
        crs: coordinate reference system of all coordinates, in a form that rasterio accepts.
        geometries: number of features with a geometry of any kind.
    """

    crs: str
    lines: tuple[GeoLine, ...]
    surfaces: tuple[Surface, ...]
    geometries: int


def read_geojson(path: Path) -> FeatureCollection:
    """Read a feature collection; third coordinates are dropped.

    Raises:
        SatmapError: the file is not GeoJSON, or has coordinates that cannot be longitude and
            latitude.
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
    # Deeply nested brackets exhaust the parser's stack (RecursionError).
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
                raise TypeError("its properties are not an object")
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
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise SatmapError(f"{path}: feature {number} is malformed ({what}).") from error
    return FeatureCollection(crs, tuple(lines), tuple(surfaces), geometries)


def project(xy: NDArray[np.float64], source: str, target: str) -> NDArray[np.float64]:
    """Transform coordinates (n, 2), x or longitude first, to another reference system.

    Raises:
        ValueError: the coordinates cannot be projected.
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
        if not CRS_NAME.fullmatch(name):
            return LON_LAT
        # GeoJSON writes longitude first, regardless of the authority's axis order.
        if name.endswith((":CRS84", ":4326")):
            return LON_LAT
        # Within an environment GDAL does not report unknown names on stderr.
        with rasterio.Env():
            return str(CRS.from_user_input(name))
    except (TypeError, KeyError, CRSError):
        return LON_LAT


def _parts(geometry: Any) -> Iterator[tuple[str, Any]]:
    """Yield the kind (LineString or Polygon) and the coordinates of each part of a geometry."""
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
            raise ValueError(f"unknown GeoJSON geometry {kind!r:.40}")


def _clean(coordinates: Any, crs: str) -> NDArray[np.float64]:
    """Return float64 (n, 2), finite and plausible, without repeated successive points."""
    if coordinates == []:
        return np.empty((0, 2))
    xy = np.array([point[:2] for point in coordinates], np.float64)
    if len(xy) and xy.shape[1:] != (2,):
        raise ValueError("coordinates are not a list of x and y")
    if not np.isfinite(xy).all():
        raise ValueError("a coordinate is not a finite number")
    outside = np.abs(xy) > (180.0, 90.0) if crs == LON_LAT and len(xy) else np.empty((0, 2))
    if outside.any():
        x, y = xy[outside.any(axis=1).argmax()].tolist()
        raise ValueError(
            f"({x:.1f}, {y:.1f}) is not a longitude and latitude; add the 'crs' "
            "member to the file or reproject it to EPSG:4326"
        )
    keep = np.ones(len(xy), bool)
    keep[1:] = (xy[1:] != xy[:-1]).any(axis=1)
    return xy[keep]
