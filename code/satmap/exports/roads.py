"""Export road graphs as GeoJSON, GeoPackage or GraphML.

Every edge has the attributes of :func:`satmap.vectors.road_graph.edge_attributes`. Edges follow the
order of the images and of the graphs. Nodes are numbered over all images.
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
from satmap.vectors.road_graph import ImageRoads, edge_attributes, roads_in_lon_lat

# First node, image, and nodes and lines in longitude and latitude.
_Placed = Iterator[tuple[int, ImageRoads, NDArray[np.float64], list[NDArray[np.float64]]]]

_FIGURES = ("speed_mps", "length_m", "travel_time_s", "confidence")
_ROADS = Layer(
    "roads",
    "LineString",
    {"image_id": object, "u": np.int64, "v": np.int64, "highway": object, "maxspeed": object}
    | dict.fromkeys(_FIGURES, np.float64),
)
_JUNCTIONS = Layer("junctions", "Point", {"image_id": object, "node": np.int64, "degree": np.int64})


def export_roads(path: Path, graphs: Iterable[ImageRoads]) -> dict[str, str]:
    """Write the roads of all images that the format of ``path`` supports, atomically.

    The same roads give the same bytes.

    Args:
        path: its suffix, in upper or lower case, selects the format: one of the task's
            ``export_suffixes``.
        graphs: roads of one or many images, which are read one at a time. Only GraphML keeps them
            in memory.

    Returns:
        Image id to problem, for images that are left out: GeoJSON and GeoPackage need a
        georeference.

    Raises:
        CannotWriteError: the file cannot be written.
        ValueError: a number of a graph is not finite.
    """
    problems: dict[str, str] = {}
    match path.suffix.lower():
        case ".graphml":
            _write_graphml(path, graphs)
        case ".gpkg":
            _write_geopackage(path, _placed(graphs, problems))
        case ".geojson":
            _write_geojson(path, _placed(graphs, problems))
        case suffix:
            raise ValueError(f"{suffix} is not a format of road graphs")
    return problems


def _placed(graphs: Iterable[ImageRoads], problems: dict[str, str]) -> _Placed:
    """Yield the images that can be placed; problems with the others are noted by image id."""
    first_node = 0
    for roads in graphs:
        try:
            nodes, lines = roads_in_lon_lat(roads)
        except SatmapError as error:
            problems[roads.image_id] = str(error)
            continue
        yield first_node, roads, nodes, lines
        first_node += len(nodes)


def _write_geojson(path: Path, placed: _Placed) -> None:
    """Write a LineString per road, in longitude and latitude (RFC 7946) with seven decimals."""
    write_features(
        path,
        (
            (
                edge_attributes(roads.image_id, edge, first_node),
                {"type": "LineString", "coordinates": _rounded(line).tolist()},
            )
            for first_node, roads, _, lines in placed
            for edge, line in zip(roads.graph.edges, lines, strict=True)
        ),
    )


def _rounded(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round vertices; consecutive equal vertices are merged."""
    places = rounded_degrees(line)
    fresh = np.append(True, (np.diff(places, axis=0) != 0).any(axis=1))
    # A LineString needs two positions, even if the road is shorter than a centimetre.
    return places[fresh] if fresh.sum() >= 2 else places[[0, -1]]


def _write_geopackage(path: Path, placed: _Placed) -> None:
    """Write layers of roads and junctions, for QGIS and other GIS.

    Layer ``roads`` has one LineString per edge. Layer ``junctions`` has one Point per node,
    including dead ends, with ``image_id``, the number ``node`` that ``u`` and ``v`` of the roads
    refer to, and ``degree``, the number of road ends there. Coordinates are longitude and latitude
    on WGS 84 (EPSG:4326), even if all images share another system: the coordinates of an image
    then never depend on the other images in the file.
    """
    with new_geopackage(path, _ROADS, _JUNCTIONS) as temporary:
        for first_node, roads, nodes, lines in placed:
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


def _write_graphml(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write one undirected multigraph, for networkx, igraph, Gephi and tools with OSMnx's names.

    Nodes have ``image_id``, ``x`` = column and ``y`` = row in pixels of their image, and ``lon``
    and ``lat`` in degrees if the image has a usable georeference. Edges also have ``length`` in
    metres (a copy of ``length_m`` under OSMnx's name) and ``geometry``, a WKT LineString in pixels.
    The line runs from node ``u`` to node ``v``, because an undirected graph does not store which
    end comes first. Parallel edges and loops are kept; read the file with
    ``networkx.read_graphml(path, node_type=int, force_multigraph=True)``.
    """
    whole = nx.MultiGraph()
    for roads in graphs:
        first_node = len(whole)
        for node, (x, y) in enumerate(roads.graph.nodes.tolist(), first_node):
            whole.add_node(node, image_id=roads.image_id, x=x, y=y)
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
    with atomic_path(path) as temporary:
        # The output of nx.write_graphml depends on whether lxml is installed.
        nx.write_graphml_xml(whole, temporary)
