"""Road labels: GeoJSON of SpaceNet 3 and 5 as lines in pixels with speeds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from satmap.data.georeference import LON_LAT, Georeference
from satmap.errors import SatmapError
from satmap.speeds import MPS_PER_MPH, label_speed_mph


@dataclass(frozen=True)
class RoadLabel:
    """One labelled road.

    Attributes:
        line: float64 (n >= 2, 2), x = column and y = row in pixels; may leave the image.
        speed_mph: > 0.
    """

    line: NDArray[np.float64]
    speed_mph: float

    @property
    def speed_mps(self) -> float:
        """Speed, metres a second."""
        return self.speed_mph * MPS_PER_MPH


def read_road_labels(path: Path, georeference: Georeference) -> list[RoadLabel]:
    """Read the roads of one image.

    Multi-part lines are taken apart, a third coordinate is dropped, points and polygons are passed
    over. The file's ``crs`` member is honoured; without one, or with one that cannot be understood,
    coordinates are longitude and latitude.

    Raises:
        SatmapError: not GeoJSON, or coordinates that cannot be longitude and latitude.
    """
    try:
        document = json.loads(path.read_bytes())
        document = {"features": []} if document is None else document
        features = document["features"]
        if not isinstance(features, list):
            raise TypeError("'features' is not a list")
    except OSError as error:
        raise SatmapError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SatmapError(
            f"{path}: not a GeoJSON feature collection ({error}). Fetch or export it again."
        ) from error
    crs = _crs_of(document)
    labels = []
    for number, feature in enumerate(features):
        try:
            properties = feature.get("properties") or {}
            for coordinates in _lines_of(feature.get("geometry")):
                xy = _clean(coordinates)
                if len(xy) >= 2:
                    _require_plausible(xy, crs)
                    line = georeference.to_pixels(xy, crs)
                    labels.append(RoadLabel(line, label_speed_mph(properties)))
        except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise SatmapError(f"{path}: feature {number} is malformed ({what}).") from error
    if not labels and any(feature.get("geometry") for feature in features):
        raise SatmapError(
            f"{path}: none of its {len(features)} features is a line. Check that these are roads."
        )
    return labels


def clip_to_image(label: RoadLabel, width: int, height: int) -> list[RoadLabel]:
    """The parts of a road that lie on the image."""
    inside = shapely.intersection(shapely.LineString(label.line), shapely.box(0, 0, width, height))
    parts = shapely.get_parts(inside)
    return [
        RoadLabel(shapely.get_coordinates(part), label.speed_mph)
        for part in shapely.get_parts(shapely.line_merge(shapely.multilinestrings(
            [part for part in parts if part.geom_type == "LineString"]
        )))
        if part.length > 0
    ]  # fmt: skip


def _crs_of(document: dict[str, Any]) -> str:
    member = document.get("crs")
    try:
        name = str(member["properties"]["name"])  # type: ignore[index]
        # GeoJSON writes longitude first whatever the authority's order of axes.
        return LON_LAT if name.endswith((":CRS84", ":4326")) else str(CRS.from_user_input(name))
    except (TypeError, KeyError, CRSError):
        return LON_LAT


def _lines_of(geometry: Any) -> Iterator[Any]:
    if geometry is None:
        return
    match geometry["type"]:
        case "LineString":
            yield geometry["coordinates"]
        case "MultiLineString":
            yield from geometry["coordinates"]
        case "GeometryCollection":
            for member in geometry["geometries"]:
                yield from _lines_of(member)


def _clean(coordinates: Any) -> NDArray[np.float64]:
    """Two finite columns without successive twins."""
    xy = np.array([point[:2] for point in coordinates], np.float64)
    if len(xy) and xy.shape[1:] != (2,):
        raise ValueError("coordinates are not a list of x and y")
    if not np.isfinite(xy).all():
        raise ValueError("a coordinate is not a finite number")
    keep = np.ones(len(xy), bool)
    keep[1:] = (xy[1:] != xy[:-1]).any(axis=1)
    return xy[keep]


def _require_plausible(xy: NDArray[np.float64], crs: str) -> None:
    if crs == LON_LAT and (np.abs(xy) > (180.0, 90.0)).any():
        raise ValueError(
            f"({xy[0, 0]:.1f}, {xy[0, 1]:.1f}) is no longitude and latitude; add the file's 'crs' "
            "member or reproject it to EPSG:4326"
        )
