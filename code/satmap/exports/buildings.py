"""Export buildings for GIS and OpenStreetMap editors.

Buildings have the attributes of :func:`satmap.vectors.buildings.building_attributes`. They follow
the order of the images and their buildings, except in FlatGeobuf, which sorts by place.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import shapely

from satmap.errors import SatmapError
from satmap.exports import OSM_SUFFIXES
from satmap.exports.gis_files import (
    DECIMALS,
    GisLayer,
    rounded_degrees,
    write_features,
    write_layers,
)
from satmap.exports.osm_files import OsmData, confidence_tags, write_osm
from satmap.exports.styles import BUILDINGS
from satmap.io.geojson_reader import LON_LAT
from satmap.vectors.buildings import (
    ImageBuildings,
    Polygons,
    building_attributes,
    placed_buildings,
)
from satmap.vectors.georeference import common_system

_LAYER = GisLayer(
    "buildings",
    "Polygon",
    {"image_id": object}
    | dict.fromkeys(("mean_probability", "expected_iou", "confidence"), np.float64)
    | {"calibration": object, "area_m2": np.float64},
    BUILDINGS,
)


def export_buildings(
    path: Path, images: Callable[[], Iterable[ImageBuildings]], crs: str | None = None
) -> dict[str, str]:
    """Write the buildings of images atomically; the suffix of ``path`` selects the format.

    The same buildings give the same bytes. Images without buildings add nothing.

    Args:
        path: ends in one of ``BUILDING_SUFFIXES``, in upper or lower case.
        images: returns an iterator over all images. It is called twice, so that the images need
            not be kept in memory.
        crs: reference system of the file, LON_LAT or WKT; None for that of the images if those with
            buildings share a projected one, else longitude and latitude. GeoJSON and OpenStreetMap
            files are always in longitude and latitude.

    Returns:
        Image id to problem, for images that are left out because they cannot be placed.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    problems: dict[str, str] = {}
    match path.suffix.lower():
        case ".geojson":
            write_features(
                path,
                (
                    (properties, shapely.geometry.mapping(polygon))
                    for image, polygons in _placed(images(), LON_LAT, problems)
                    for polygon, properties in zip(
                        _rounded_to_grid(polygons), building_attributes(image), strict=True
                    )
                ),
            )
        case suffix if suffix in OSM_SUFFIXES:
            data = OsmData()
            for image, polygons in _placed(images(), LON_LAT, problems):
                outlines = _rounded_to_grid(polygons)
                for polygon, building in zip(outlines, image.buildings, strict=True):
                    tags = {"building": "yes"} | confidence_tags(building.confidence)
                    data.add_area(polygon, tags)
            write_osm(path, data)
        case _:
            system = crs or common_system((i.georeference, len(i.buildings)) for i in images())
            placed = _placed(images(), system, problems)
            features = (
                [(polygons.tolist(), building_attributes(image))] for image, polygons in placed
            )
            write_layers(path, [_LAYER], features, system)
    return problems


def _placed(
    images: Iterable[ImageBuildings], crs: str, problems: dict[str, str]
) -> Iterator[tuple[ImageBuildings, Polygons]]:
    """Yield the images that can be placed; problems with the others are noted by image id."""
    for image in images:
        try:
            polygons = placed_buildings(image, crs)
        except SatmapError as error:
            problems[image.image_id] = str(error)
            continue
        if image.buildings:
            yield image, polygons


def _rounded_to_grid(polygons: Polygons) -> list[shapely.Geometry]:
    """Round polygons to seven decimals; outer rings anticlockwise, as the standard requires."""
    rounded = shapely.transform(polygons, rounded_degrees)
    # Polygons thinner than the grid may touch themselves after rounding.
    bad = ~shapely.is_valid(rounded)
    mended = shapely.set_precision(polygons[bad], 10.0**-DECIMALS)
    rounded[bad] = shapely.transform(mended, rounded_degrees)
    return shapely.orient_polygons(rounded).tolist()  # type: ignore[no-any-return]
