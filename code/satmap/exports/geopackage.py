"""Export road graphs as GeoPackage, for QGIS and other GIS: layers of roads and junctions.

Coordinates are longitude and latitude on WGS 84 (EPSG:4326), even if all images share another
system. The coordinates of an image then never depend on the other images in the file.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from satmap.exports.gis_layers import Layer, append, new_geopackage
from satmap.vectors.road_graph import (
    ImageRoads,
    edge_attributes,
    numbered,
    roads_in_lon_lat,
)

_ROADS = Layer(
    "roads",
    "LineString",
    {
        "image_id": object,
        "u": np.int64,
        "v": np.int64,
        "highway": object,
        "maxspeed": object,
        "speed_mps": np.float64,
        "length_m": np.float64,
        "travel_time_s": np.float64,
        "confidence": np.float64,
    },
)
_JUNCTIONS = Layer("junctions", "Point", {"image_id": object, "node": np.int64, "degree": np.int64})


def write_geopackage(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write the roads of one or many images atomically; the same roads give the same bytes.

    Layer ``roads`` has one LineString per edge, with the attributes of
    :func:`satmap.vectors.road_graph.edge_attributes`. Layer ``junctions`` has one Point per node,
    including dead ends, with ``image_id``, the number ``node`` that ``u`` and ``v`` of the roads
    refer to, and ``degree``, the number of road ends there. Images are processed one at a time and
    not kept in memory.

    Raises:
        SatmapError: an image has no usable georeference.
        CannotWriteError: ``path`` cannot be written.
    """
    with new_geopackage(path, (_ROADS, _JUNCTIONS)) as temporary:
        for first_node, roads in numbered(graphs):
            lon_lat = roads_in_lon_lat(roads)
            append(
                temporary,
                _ROADS,
                [shapely.LineString(line) for line in lon_lat.lines],
                [edge_attributes(roads.image_id, edge, first_node) for edge in roads.graph.edges],
            )
            append(
                temporary,
                _JUNCTIONS,
                shapely.points(lon_lat.nodes).tolist(),
                _junction_rows(roads, first_node),
            )


def _junction_rows(roads: ImageRoads, first_node: int) -> list[dict[str, Any]]:
    ends = np.array([edge.nodes for edge in roads.graph.edges], np.int64).ravel()
    degrees = np.bincount(ends, minlength=len(roads.graph.nodes)).tolist()
    return [
        {"image_id": roads.image_id, "node": first_node + index, "degree": degree}
        for index, degree in enumerate(degrees)
    ]
