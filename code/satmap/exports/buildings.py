"""Export buildings as GeoJSON or GeoPackage.

GeoJSON (RFC 7946) allows only longitude and latitude. A GeoPackage keeps the images' reference
system if all images with buildings share one, so that outlines along pixels stay exact and areas
can be measured. Images in several systems, such as two UTM zones, are converted to longitude and
latitude.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely

from satmap.errors import SatmapError
from satmap.exports.gis_files import (
    DECIMALS,
    Layer,
    new_geopackage,
    rounded_degrees,
    write_features,
)
from satmap.vectors.buildings import (
    ImageBuildings,
    Polygons,
    building_attributes,
    buildings_in_lon_lat,
)

_LAYER = Layer(
    "buildings",
    "Polygon",
    {"image_id": object, "confidence": np.float64, "area_m2": np.float64},
)


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
            shared = len(systems) == 1
            layer = replace(_LAYER, crs=systems.pop()) if shared else _LAYER
            with new_geopackage(path, layer) as temporary:
                for image in placed:
                    if shared and image.georeference is not None:
                        polygons = shapely.transform(image.polygons, image.georeference.to_map)
                    else:
                        polygons = buildings_in_lon_lat(image)
                    layer.write(temporary, polygons.tolist(), building_attributes(image))
        case ".geojson":
            write_features(
                path,
                (
                    (properties, shapely.geometry.mapping(polygon))
                    for image in placed
                    for polygon, properties in zip(
                        _rounded_to_grid(buildings_in_lon_lat(image)),
                        building_attributes(image),
                        strict=True,
                    )
                ),
            )
        case suffix:
            raise ValueError(f"{suffix} is not a format of buildings")
    return faults


def _rounded_to_grid(polygons: Polygons) -> list[shapely.Geometry]:
    """Round polygons to seven decimals; outer rings anticlockwise, as the standard requires."""
    rounded = shapely.transform(polygons, rounded_degrees)
    # Polygons thinner than the grid may touch themselves after rounding.
    bad = ~shapely.is_valid(rounded)
    mended = shapely.set_precision(polygons[bad], 10.0**-DECIMALS)
    rounded[bad] = shapely.transform(mended, rounded_degrees)
    return shapely.orient_polygons(rounded).tolist()  # type: ignore[no-any-return]
