"""Export roads and buildings for maps, GIS, routers and graph libraries."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from satmap.errors import SatmapError
from satmap.exports.building_layers import export_buildings
from satmap.exports.geojson import write_geojson
from satmap.exports.geopackage import write_geopackage
from satmap.exports.graphml import write_graphml
from satmap.vectors.road_graph import ImageRoads, roads_in_lon_lat

__all__ = ["export_buildings", "export_roads"]


def export_roads(path: Path, graphs: Iterable[ImageRoads]) -> dict[str, str]:
    """Write the roads of all images that the format of ``path`` supports.

    Args:
        path: its suffix, in upper or lower case, selects the format: one of the task's
            ``export_suffixes``.
        graphs: roads of one or many images, which are read one at a time.

    Returns:
        Image id to problem, for images that are left out: GeoJSON and GeoPackage need a
        georeference.

    Raises:
        CannotWriteError: the file cannot be written.
    """
    problems: dict[str, str] = {}

    def placed() -> Iterator[ImageRoads]:
        for roads in graphs:
            try:
                roads_in_lon_lat(roads)
            except SatmapError as error:
                problems[roads.image_id] = str(error)
                continue
            yield roads

    match path.suffix.lower():
        case ".graphml":
            write_graphml(path, graphs)
        case ".gpkg":
            write_geopackage(path, placed())
        case ".geojson":
            write_geojson(path, placed())
        case suffix:
            raise ValueError(f"{suffix} is not a format of road graphs")
    return problems
