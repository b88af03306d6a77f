"""Buildings in the formats that maps and GIS read: GeoJSON and GeoPackage.

GeoJSON (RFC 7946) knows only longitude and latitude. A GeoPackage keeps the reference system of the
images where all with buildings share one, so that what was drawn along pixels stays exact and areas
can be measured in it; images of several systems, such as two UTM zones, come in longitude and
latitude.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.exports.gis_layers import Layer, append, new_geopackage
from satmap.io.files import atomic_path
from satmap.vectors.buildings import (
    ImageBuildings,
    building_attributes,
    buildings_in_lon_lat,
    in_own_system,
)

#: Suffixes of the formats, as :func:`export_buildings` takes them.
BUILDING_SUFFIXES = (".geojson", ".gpkg")

_LON_LAT = "EPSG:4326"
_FIELDS = {"image_id": object, "confidence": np.float64, "area_m2": np.float64}

# A centimetre.
_DECIMALS = 7


def export_buildings(path: Path, images: Callable[[], Iterable[ImageBuildings]]) -> dict[str, str]:
    """Write the buildings of images in the format that the suffix of ``path`` names, atomically.

    A feature a building, in the order of the images and their buildings, with the properties of
    :func:`satmap.vectors.buildings.building_attributes`. The same buildings give the same
    bytes. An image without buildings leaves no trace.

    Args:
        path: ends in one of ``BUILDING_SUFFIXES``, in any case.
        images: gives them all from the first, one after another; called twice, none is kept.

    Returns:
        What is wrong with images that could not be placed, and are left out.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in BUILDING_SUFFIXES:
        raise ValueError(f"{path} is none of {', '.join(BUILDING_SUFFIXES)}")
    faults: dict[str, str] = {}
    systems: set[str] = set()
    for found in images():
        try:
            buildings_in_lon_lat(found)
        except SatmapError as error:
            faults[found.image_id] = str(error)
            continue
        if found.georeference is not None and found.buildings:
            systems.add(found.georeference.crs)
    placed = (found for found in images() if found.image_id not in faults and found.buildings)
    if suffix == ".geojson":
        _write_geojson(path, placed)
    else:
        _write_geopackage(path, placed, systems.pop() if len(systems) == 1 else None)
    return faults


def _write_geojson(path: Path, images: Iterable[ImageBuildings]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for found in images:
            polygons = _rounded_to_grid(buildings_in_lon_lat(found))
            for polygon, properties in zip(polygons, building_attributes(found), strict=True):
                feature = {
                    "type": "Feature",
                    "properties": properties,
                    "geometry": shapely.geometry.mapping(polygon),
                }
                line = json.dumps(
                    feature, ensure_ascii=False, allow_nan=False, separators=(",", ":")
                )
                file.write(separator + line)
                separator = ",\n"
        file.write("\n]}\n")


def _rounded_to_grid(polygons: NDArray[np.object_]) -> list[shapely.Geometry]:
    """Polygons with seven decimals, outer rings anticlockwise as the standard wants them."""
    # Adding zero turns -0.0, which would print its sign, into 0.0.
    rounded = shapely.transform(polygons, lambda xy: np.round(xy, _DECIMALS) + 0.0)
    # What is thinner than the grid may touch itself on it.
    bad = ~shapely.is_valid(rounded)
    mended = shapely.set_precision(polygons[bad], 10.0**-_DECIMALS)
    rounded[bad] = shapely.transform(mended, lambda xy: np.round(xy, _DECIMALS) + 0.0)
    return shapely.orient_polygons(rounded).tolist()  # type: ignore[no-any-return]


def _write_geopackage(path: Path, images: Iterable[ImageBuildings], system: str | None) -> None:
    """Layer ``buildings``: a Polygon a building, in a reference system or, with None, WGS 84."""
    layer = Layer("buildings", "Polygon", _FIELDS, system or _LON_LAT)
    with new_geopackage(path, [layer]) as temporary:
        for found in images:
            polygons = in_own_system(found) if system else buildings_in_lon_lat(found)
            append(temporary, layer, polygons.tolist(), building_attributes(found))
