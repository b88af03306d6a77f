"""Where on the Earth the pixels of an image lie, as the formats of maps need it."""

import numpy as np
from numpy.typing import NDArray

from satmap.data.georeference import Georeference
from satmap.errors import SatmapError
from satmap.geojson import LON_LAT, project

Floats = NDArray[np.float64]


def lon_lat_of(
    image_id: str,
    georeference: Georeference | None,
    pixels: Floats,
    *,
    things: str,
    otherwise: str,
) -> Floats:
    """Pixels of an image in degrees of longitude and latitude on WGS 84.

    Args:
        image_id: the image.
        georeference: where it lies.
        pixels: float64 (n, 2), x and y.
        things: what they are of, for messages.
        otherwise: what to write instead, without a full stop.

    Raises:
        SatmapError: the image has no georeference, or one that does not lead to longitudes and
            latitudes on one side of the 180th meridian.
    """
    placed = georeference_or_fault(image_id, georeference, otherwise)
    try:
        lon_lat = project(placed.to_map(pixels), placed.crs, LON_LAT)
    except ValueError as error:
        raise SatmapError(f"{image_id}: its {things} {error}.") from error
    if len(lon_lat) and ((np.abs(lon_lat) > (180, 90)).any() or np.ptp(lon_lat[:, 0]) > 180):
        raise SatmapError(
            f"{image_id} lies across the 180th meridian or beyond a pole, where lines in "
            f"longitude and latitude would run around the Earth. {otherwise}."
        )
    return lon_lat


def georeference_or_fault(
    image_id: str, georeference: Georeference | None, otherwise: str
) -> Georeference:
    """The georeference, if there is one.

    Raises:
        SatmapError: there is none.
    """
    if georeference is None:
        raise SatmapError(
            f"{image_id} has no georeference, which GeoJSON and GeoPackage need. {otherwise}; or "
            "give the image its georeference, for example with `rio edit-info --crs EPSG:4326 "
            "--transform ... IMAGE`."
        )
    return georeference
