"""Export road graphs as GeoJSON, GeoPackage or GraphML.

Every edge has the attributes of :func:`satmap.vectors.road_graph.edge_attributes`. Features follow
the order of the images and of the graphs' edges, and the same roads give the same bytes. All
functions write atomically.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import networkx as nx
import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.exports.gis_files import Layer, new_geopackage, rounded_degrees, write_features
from satmap.io.files import atomic_path
from satmap.vectors.road_graph import ImageRoads, edge_attributes, numbered, roads_in_lon_lat

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


def write_geojson(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write a LineString per road, in longitude and latitude (RFC 7946) with seven decimals.

    Images without roads add nothing. Images are processed one at a time and not kept in memory.

    Raises:
        SatmapError: an image has no usable georeference.
        CannotWriteError: ``path`` cannot be written.
        ValueError: a number of a graph is not finite.
    """
    write_features(
        path,
        (
            (
                edge_attributes(roads.image_id, edge, first_node),
                {"type": "LineString", "coordinates": _rounded(line).tolist()},
            )
            for first_node, roads in numbered(graphs)
            for edge, line in zip(roads.graph.edges, roads_in_lon_lat(roads)[1], strict=True)
        ),
    )


def _rounded(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round vertices; consecutive equal vertices are merged."""
    places = rounded_degrees(line)
    fresh = np.append(True, (np.diff(places, axis=0) != 0).any(axis=1))
    # A LineString needs two positions, even if the road is shorter than a centimetre.
    return places[fresh] if fresh.sum() >= 2 else places[[0, -1]]


def write_geopackage(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write layers of roads and junctions, for QGIS and other GIS.

    Layer ``roads`` has one LineString per edge. Layer ``junctions`` has one Point per node,
    including dead ends, with ``image_id``, the number ``node`` that ``u`` and ``v`` of the roads
    refer to, and ``degree``, the number of road ends there. Coordinates are longitude and latitude
    on WGS 84 (EPSG:4326), even if all images share another system: the coordinates of an image
    then never depend on the other images in the file. Images are processed one at a time and not
    kept in memory.

    Raises:
        SatmapError: an image has no usable georeference.
        CannotWriteError: ``path`` cannot be written.
    """
    with new_geopackage(path, _ROADS, _JUNCTIONS) as temporary:
        for first_node, roads in numbered(graphs):
            nodes, lines = roads_in_lon_lat(roads)
            edges = roads.graph.edges
            _ROADS.write(
                temporary,
                [shapely.LineString(line) for line in lines],
                [edge_attributes(roads.image_id, edge, first_node) for edge in edges],
            )
            ends = np.array([edge.nodes for edge in edges], np.int64).ravel()
            degrees = np.bincount(ends, minlength=len(nodes)).tolist()
            _JUNCTIONS.write(
                temporary,
                shapely.points(nodes).tolist(),
                [
                    {"image_id": roads.image_id, "node": node, "degree": degree}
                    for node, degree in enumerate(degrees, first_node)
                ],
            )


def write_graphml(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write one undirected multigraph, for networkx, igraph, Gephi and tools with OSMnx's names.

    Nodes have ``image_id``, ``x`` = column and ``y`` = row in pixels of their image, and ``lon``
    and ``lat`` in degrees if the image has a usable georeference. Edges also have ``length`` in
    metres (a copy of ``length_m`` under OSMnx's name) and ``geometry``, a WKT LineString in pixels.
    The line runs from node ``u`` to node ``v``, because an undirected graph does not store which
    end comes first. Parallel edges and loops are kept; read the file with
    ``networkx.read_graphml(path, node_type=int, force_multigraph=True)``. networkx needs the whole
    graph in memory.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    whole = nx.MultiGraph()
    for first_node, roads in numbered(graphs):
        _add(whole, roads, first_node)
    with atomic_path(path) as temporary:
        # The output of nx.write_graphml depends on whether lxml is installed.
        nx.write_graphml_xml(whole, temporary)


def _add(whole: nx.MultiGraph, roads: ImageRoads, first_node: int) -> None:
    for node, (x, y) in enumerate(roads.graph.nodes.tolist(), first_node):
        whole.add_node(node, image_id=roads.image_id, x=x, y=y)
    # Without a georeference the nodes have no longitude and latitude.
    with contextlib.suppress(SatmapError):
        for node, (lon, lat) in enumerate(roads_in_lon_lat(roads)[0].tolist(), first_node):
            whole.add_node(node, lon=lon, lat=lat)
    for edge in roads.graph.edges:
        attributes = edge_attributes(roads.image_id, edge, first_node)
        whole.add_edge(
            attributes["u"],
            attributes["v"],
            **attributes,
            length=attributes["length_m"],
            geometry=shapely.LineString(edge.line).wkt,
        )
