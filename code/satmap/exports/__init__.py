"""Export roads and buildings for maps, GIS, routers and graph libraries."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from satmap.errors import SatmapError
from satmap.exports.building_layers import BUILDING_SUFFIXES, export_buildings
from satmap.exports.geojson import write_geojson
from satmap.exports.geopackage import write_geopackage
from satmap.exports.graphml import write_graphml
from satmap.vectors.buildings import ImageBuildings
from satmap.vectors.road_graph import ImageRoads, roads_in_lon_lat

__all__ = [
    "BUILDING_SUFFIXES",
    "GEOGRAPHIC_SUFFIXES",
    "ROAD_SUFFIXES",
    "ImageBuildings",
    "ImageRoads",
    "export_buildings",
    "export_roads",
    "write_geojson",
    "write_geopackage",
    "write_graphml",
    "write_roads",
]

_WRITERS: dict[str, Callable[[Path, Iterable[ImageRoads]], None]] = {
    ".geojson": write_geojson,
    ".gpkg": write_geopackage,
    ".graphml": write_graphml,
}

#: Suffixes that :func:`write_roads` accepts.
ROAD_SUFFIXES = tuple(_WRITERS)

#: Formats in longitude and latitude, which need georeferenced images.
GEOGRAPHIC_SUFFIXES = (".geojson", ".gpkg")


def write_roads(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write the roads of one or many images; the suffix of ``path`` selects the format.

    Raises:
        SatmapError: the suffix (in upper or lower case) is not in ``ROAD_SUFFIXES``, or an image
            lacks a georeference that the format needs.
        CannotWriteError: ``path`` cannot be written.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise SatmapError(
            f"{path}: the suffix selects the format of road graphs, and '{path.suffix}' is none of "
            f"{', '.join(ROAD_SUFFIXES)}."
        )
    writer(path, graphs)


def export_roads(path: Path, graphs: Iterable[ImageRoads]) -> dict[str, str]:
    """Write the roads of all images that the format of ``path`` supports.

    Returns:
        Image id to problem, for images that are left out: GeoJSON and GeoPackage need a
        georeference.

    Raises:
        CannotWriteError: the file cannot be written.
    """
    problems: dict[str, str] = {}

    def usable() -> Iterator[ImageRoads]:
        for roads in graphs:
            try:
                roads_in_lon_lat(roads)
            except SatmapError as error:
                problems[roads.image_id] = str(error)
                continue
            yield roads

    geographic = path.suffix.lower() in GEOGRAPHIC_SUFFIXES
    write_roads(path, usable() if geographic else graphs)
    return problems
