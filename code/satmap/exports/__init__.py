"""Roads and buildings in the formats that maps, GIS, routers and graph libraries read."""

from collections.abc import Callable, Iterable
from pathlib import Path

from satmap.errors import SatmapError
from satmap.exports.building_layers import BUILDING_SUFFIXES, export_buildings
from satmap.exports.geojson import write_geojson
from satmap.exports.geopackage import write_geopackage
from satmap.exports.graphml import write_graphml
from satmap.vectors.buildings import ImageBuildings
from satmap.vectors.road_graph import ImageRoads

__all__ = [
    "BUILDING_SUFFIXES",
    "GEOGRAPHIC_SUFFIXES",
    "SUFFIXES",
    "ImageBuildings",
    "ImageRoads",
    "export_buildings",
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

#: Suffixes of the formats of roads, as :func:`write_roads` takes them.
SUFFIXES = tuple(_WRITERS)

#: Those that hold longitude and latitude, and so no image without a georeference.
GEOGRAPHIC_SUFFIXES = (".geojson", ".gpkg")


def write_roads(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write the roads of one or many images in the format that the suffix of ``path`` names.

    Raises:
        SatmapError: another suffix than ``SUFFIXES``, in any case; an image without a georeference
            where the format needs one.
        CannotWriteError: ``path`` cannot be written.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise SatmapError(
            f"{path}: the suffix names the format of road graphs, and '{path.suffix}' is none of "
            f"{', '.join(SUFFIXES)}."
        )
    writer(path, graphs)
