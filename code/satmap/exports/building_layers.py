"""Export buildings as GeoJSON or GeoPackage.

GeoJSON (RFC 7946) allows only longitude and latitude. A GeoPackage keeps the images' reference
system if all images with buildings share one, so that outlines along pixels stay exact and areas
can be measured. Images in several systems, such as two UTM zones, are converted to longitude and
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

_LON_LAT = "EPSG:4326"
_FIELDS = {"image_id": object, "confidence": np.float64, "area_m2": np.float64}

# Decimals of a degree; the last one is about a centimetre.
_DECIMALS = 7


def export_buildings(path: Path, images: Callable[[], Iterable[ImageBuildings]]) -> dict[str, str]:
    """Write the buildings of images atomically; the suffix of ``path`` selects the format.

    Each building becomes a feature with the properties of
    :func:`satmap.vectors.buildings.building_attributes`. Features follow the order of the images
    and their buildings, and the same buildings give the same bytes. Images without buildings add
    nothing.

    Args:
        path: ends in one of the task's ``export_suffixes``, in upper or lower case.
        images: returns an iterator over all images. It is called twice, so that the images need
            not be kept in memory.

    Returns:
        Image id to problem, for images that are left out because they cannot be placed.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    faults: dict[str, str] = {}
    systems: set[str] = set()
    for image in images():
        try:
            buildings_in_lon_lat(image)
        except SatmapError as error:
            faults[image.image_id] = str(error)
            continue
        if image.georeference is not None and image.buildings:
            systems.add(image.georeference.crs)
    placed = (image for image in images() if image.image_id not in faults and image.buildings)
    match path.suffix.lower():
        case ".gpkg":
            _write_geopackage(path, placed, systems.pop() if len(systems) == 1 else None)
        case ".geojson":
            _write_geojson(path, placed)
        case suffix:
            raise ValueError(f"{suffix} is not a format of buildings")
    return faults


def _write_geojson(path: Path, images: Iterable[ImageBuildings]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for image in images:
            polygons = _rounded_to_grid(buildings_in_lon_lat(image))
            for polygon, properties in zip(polygons, building_attributes(image), strict=True):
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
    """Round polygons to seven decimals; outer rings anticlockwise, as the standard requires."""
    # Adding zero turns -0.0 into 0.0, which prints without a sign.
    rounded = shapely.transform(polygons, lambda xy: np.round(xy, _DECIMALS) + 0.0)
    # Polygons thinner than the grid may touch themselves after rounding.
    bad = ~shapely.is_valid(rounded)
    mended = shapely.set_precision(polygons[bad], 10.0**-_DECIMALS)
    rounded[bad] = shapely.transform(mended, lambda xy: np.round(xy, _DECIMALS) + 0.0)
    return shapely.orient_polygons(rounded).tolist()  # type: ignore[no-any-return]


def _write_geopackage(path: Path, images: Iterable[ImageBuildings], system: str | None) -> None:
    """Write layer ``buildings``, one Polygon per building; ``system`` None means WGS 84."""
    layer = Layer("buildings", "Polygon", _FIELDS, system or _LON_LAT)
    with new_geopackage(path, [layer]) as temporary:
        for image in images:
            polygons = in_own_system(image) if system else buildings_in_lon_lat(image)
            append(temporary, layer, polygons.tolist(), building_attributes(image))
