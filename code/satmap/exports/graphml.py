"""Export road graphs as GraphML, for networkx, igraph, Gephi and tools that use OSMnx's names."""

from collections.abc import Iterable
from pathlib import Path

import networkx as nx
import shapely

from satmap.errors import SatmapError
from satmap.io.files import atomic_path
from satmap.vectors.road_graph import ImageRoads, edge_attributes, numbered, roads_in_lon_lat


def write_graphml(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write the roads of one or many images as one undirected multigraph, atomically.

    Nodes have ``image_id``, ``x`` = column and ``y`` = row in pixels of their image, and ``lon``
    and ``lat`` in degrees if the image has a usable georeference. Edges have the attributes of
    :func:`satmap.vectors.road_graph.edge_attributes`, ``length`` in metres (a copy of ``length_m``
    under OSMnx's name) and ``geometry``, a WKT LineString in pixels. The line runs from node ``u``
    to node ``v``, because an undirected graph does not store which end comes first. Parallel edges
    and loops are kept; read the file with
    ``networkx.read_graphml(path, node_type=int, force_multigraph=True)``.

    The same roads give the same bytes. networkx needs the whole graph in memory.

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
    try:
        lon_lat = roads_in_lon_lat(roads).nodes.tolist()
    except SatmapError:
        lon_lat = None
    for index, (x, y) in enumerate(roads.graph.nodes.tolist()):
        whole.add_node(first_node + index, image_id=roads.image_id, x=x, y=y)
        if lon_lat:
            lon, lat = lon_lat[index]
            whole.add_node(first_node + index, lon=lon, lat=lat)
    for edge in roads.graph.edges:
        attributes = edge_attributes(roads.image_id, edge, first_node)
        whole.add_edge(
            attributes["u"],
            attributes["v"],
            **attributes,
            length=attributes["length_m"],
            geometry=shapely.LineString(edge.line).wkt,
        )
