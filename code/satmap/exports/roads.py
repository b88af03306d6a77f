"""Export road graphs for GIS, OpenStreetMap editors, routers and graph libraries.

Every edge has the attributes of :func:`satmap.vectors.road_graph.edge_attributes`. Edges follow the
order of the images and of the graphs, except in FlatGeobuf, which sorts by place. Nodes are
numbered over all images.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.exports import OSM_SUFFIXES
from satmap.exports.gis_files import GisLayer, rounded_degrees, write_features, write_layers
from satmap.exports.osm_files import OsmData, confidence_tags, write_osm
from satmap.exports.styles import ROADS_BY_SPEED
from satmap.io.files import atomic_path
from satmap.io.geojson_reader import LON_LAT
from satmap.vectors.georeference import common_system
from satmap.vectors.road_graph import ImageRoads, RoadGraph, edge_attributes, placed_roads

Points = NDArray[np.float64]

# First node, image, and its nodes and lines in the file's reference system.
_Placed = Iterator[tuple[int, ImageRoads, Points, list[Points]]]

_ROADS = GisLayer(
    "roads",
    "LineString",
    {"image_id": object, "u": np.int64, "v": np.int64, "highway": object, "maxspeed": object}
    | dict.fromkeys(("speed_kmh", "speed_mph"), np.float64)
    | {"speed_source": object}
    | dict.fromkeys(
        ("length_m", "travel_time_s", "width_m", "mean_probability", "confidence"), np.float64
    )
    | {"calibration": object},
    ROADS_BY_SPEED,
)
_JUNCTIONS = GisLayer(
    "junctions", "Point", {"image_id": object, "node": np.int64, "degree": np.int64}
)

# Length of a bridge beyond each side of the road below, and width of a road with unknown width,
# metres. Roads that meet within _SAME_PLACE_M of an end do not cross.
_BEYOND_M, _USUAL_WIDTH_M, _SAME_PLACE_M = 5.0, 6.0, 1.0
_CHECK_BRIDGE = "roads cross here without a junction; which of them is on top is a guess"


def export_roads(
    path: Path, graphs: Callable[[], Iterable[ImageRoads]], crs: str | None = None
) -> dict[str, str]:
    """Write the roads of all images that can be placed, atomically.

    The same roads give the same bytes.

    Args:
        path: its suffix, in upper or lower case, selects the format: one of ``ROAD_SUFFIXES``.
        graphs: returns an iterator over the roads of all images, which are read one at a time. It
            is called twice.
        crs: reference system of the file, LON_LAT or WKT; None for that of the images if those with
            roads share a projected one, else longitude and latitude. GeoJSON, GraphML and
            OpenStreetMap files are always in longitude and latitude.

    Returns:
        Image id to problem, for images that are left out because they have no usable georeference.

    Raises:
        CannotWriteError: the file cannot be written.
        ValueError: a number of a graph is not finite.
    """
    problems: dict[str, str] = {}
    match path.suffix.lower():
        case ".geojson":
            _write_geojson(path, _placed(graphs(), LON_LAT, problems))
        case ".graphml":
            if all(roads.graph.georeference is None for roads in graphs()):
                _write_graphml(path, _in_pixels(graphs()), None)
            else:
                _write_graphml(path, _placed(graphs(), LON_LAT, problems), "EPSG:4326")
        case suffix if suffix in OSM_SUFFIXES:
            write_osm(path, _osm_data(_placed(graphs(), LON_LAT, problems)))
        case _:
            system = crs or common_system(
                (roads.graph.georeference, len(roads.graph.edges)) for roads in graphs()
            )
            features = map(_features, _placed(graphs(), system, problems))
            write_layers(path, [_ROADS, _JUNCTIONS], features, system)
    return problems


def _placed(graphs: Iterable[ImageRoads], crs: str, problems: dict[str, str]) -> _Placed:
    """Yield the images that can be placed; problems with the others are noted by image id."""
    first_node = 0
    for roads in graphs:
        try:
            nodes, lines = placed_roads(roads, crs)
        except SatmapError as error:
            problems[roads.image_id] = str(error)
            continue
        yield first_node, roads, nodes, lines
        first_node += len(nodes)


def _in_pixels(graphs: Iterable[ImageRoads]) -> _Placed:
    first_node = 0
    for roads in graphs:
        yield first_node, roads, roads.graph.nodes, [edge.line for edge in roads.graph.edges]
        first_node += len(roads.graph.nodes)


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


def _rounded(line: Points) -> Points:
    """Round vertices; consecutive equal vertices are merged."""
    places = rounded_degrees(line)
    fresh = np.append(True, (np.diff(places, axis=0) != 0).any(axis=1))
    # A LineString needs two positions, even if the road is shorter than a centimetre.
    return places[fresh] if fresh.sum() >= 2 else places[[0, -1]]


def _features(
    image: tuple[int, ImageRoads, Points, list[Points]],
) -> list[tuple[list[shapely.Geometry], list[dict[str, object]]]]:
    """Return the features of an image for the layers of roads and junctions.

    Layer ``roads`` has one LineString per edge. Layer ``junctions`` has one Point per node,
    including dead ends, with ``image_id``, the number ``node`` that ``u`` and ``v`` of the roads
    refer to, and ``degree``, the number of road ends there.
    """
    first_node, roads, nodes, lines = image
    edges = roads.graph.edges
    ends = np.array([edge.nodes for edge in edges], np.int64).ravel()
    degrees = np.bincount(ends, minlength=len(nodes)).tolist()
    return [
        (
            [shapely.LineString(line) for line in lines],
            [dict(edge_attributes(roads.image_id, edge, first_node)) for edge in edges],
        ),
        (
            shapely.points(nodes).tolist(),
            [
                {"image_id": roads.image_id, "node": node, "degree": degree}
                for node, degree in enumerate(degrees, first_node)
            ],
        ),
    ]


def _write_graphml(path: Path, placed: _Placed, crs: str | None) -> None:
    """Write one directed multigraph as OSMnx does, which ``osmnx.load_graphml`` reads.

    All attributes are text. Directions of travel are unknown, so every road is there both ways,
    with the same ``osmid``; ``reversed`` marks the way against its line. Nodes have ``x`` and
    ``y``: longitude and latitude, or pixels (x = column, y = row) and no ``crs`` in the graph if no
    image has a georeference. OSMnx's ``length``, ``speed_kph`` and ``travel_time`` repeat
    ``length_m``, ``speed_kmh`` and ``travel_time_s``.
    """
    # networkx builds the whole document in memory, and takes a minute for 100,000 roads.
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n'
        )
        for place, names in _GRAPHML_KEYS.items():
            for name in names:
                key = f'id="{place}-{name}" for="{place}" attr.name="{name}" attr.type="string"'
                file.write(f"<key {key}/>\n")
        about = {"created_with": "satmap", "simplified": "True"} | ({"crs": crs} if crs else {})
        file.write(f'<graph edgedefault="directed">{_graphml_data("graph", about)}\n')
        osmid = 0
        for first_node, roads, nodes, lines in placed:
            file.writelines(_graphml_nodes(first_node, roads, nodes))
            keys: dict[tuple[object, object], int] = {}
            for edge, line in zip(roads.graph.edges, lines, strict=True):
                osmid += 1
                known = edge_attributes(roads.image_id, edge, first_node)
                u, v = known.pop("u"), known.pop("v")
                attributes = known | {
                    "osmid": osmid, "oneway": False, "length": known["length_m"],
                    "speed_kph": known["speed_kmh"], "travel_time": known["travel_time_s"],
                }  # fmt: skip
                for start, end, points, is_back in ((u, v, line, False), (v, u, line[::-1], True)):
                    geometry = shapely.LineString(rounded_degrees(points)).wkt
                    more: dict[str, object] = {"reversed": is_back, "geometry": geometry}
                    number = keys[start, end] = keys.get((start, end), -1) + 1
                    file.write(
                        f'<edge source="{start}" target="{end}" id="{number}">'
                        f"{_graphml_data('edge', {**attributes, **more})}</edge>\n"
                    )
        file.write("</graph>\n</graphml>\n")


_GRAPHML_KEYS = {
    "graph": ("created_with", "simplified", "crs"),
    "node": ("x", "y", "street_count", "image_id"),
    "edge": (
        "osmid", "oneway", "reversed", "length", "speed_kph", "travel_time", "geometry",
        "image_id", "highway", "maxspeed", "speed_kmh", "speed_mph", "speed_source", "length_m",
        "travel_time_s", "width_m", "mean_probability", "confidence", "calibration",
    ),
}  # fmt: skip


def _graphml_nodes(first_node: int, roads: ImageRoads, nodes: Points) -> Iterator[str]:
    ends = np.array([edge.nodes for edge in roads.graph.edges], np.int64).ravel()
    degrees = np.bincount(ends, minlength=len(nodes)).tolist()
    places = rounded_degrees(nodes).tolist()
    for node, ((x, y), degree) in enumerate(zip(places, degrees, strict=True), first_node):
        known = {"x": x, "y": y, "street_count": degree, "image_id": roads.image_id}
        yield f'<node id="{node}">{_graphml_data("node", known)}</node>\n'


def _graphml_data(place: str, attributes: Mapping[str, object]) -> str:
    return "".join(
        f'<data key="{place}-{name}">{escape(str(value))}</data>'
        for name, value in attributes.items()
        if value is not None
    )


def _osm_data(placed: _Placed) -> OsmData:
    """Return a way per road; roads share a node at junctions.

    Roads that cross without a junction get a bridge. The network does not see which one is on top:
    it is the faster one, or else the longer one, and a ``fixme`` asks to check.
    """
    data = OsmData()
    for _, roads, nodes, lines in placed:
        numbers = data.add_nodes(nodes)
        bridges = _bridges(roads.graph)
        for index, (edge, line) in enumerate(zip(roads.graph.edges, lines, strict=True)):
            known = edge_attributes(roads.image_id, edge, 0)
            tags = {
                "highway": str(known["highway"]), "maxspeed": str(known["maxspeed"]),
                "source:maxspeed": edge.speed_source,
            }  # fmt: skip
            tags |= confidence_tags(edge.confidence)
            if edge.width_m is not None:
                tags |= {"width": f"{edge.width_m:.1f}", "source:width": "estimated"}
            start, end = (numbers[node] for node in edge.nodes)
            pieces = _cut(line, *bridges[index]) if index in bridges else [(line, False, True)]
            for piece, is_bridge, is_last in pieces:
                stop = end if is_last else data.add_nodes(piece[-1:])[0]
                bridge = {"bridge": "yes", "layer": "1", "fixme": _CHECK_BRIDGE}
                data.add_line(piece, start, stop, tags | bridge if is_bridge else tags)
                start = stop
    return data


def _bridges(graph: RoadGraph) -> dict[int, tuple[Points, list[tuple[float, float]]]]:
    """Find where roads cross without a junction.

    Returns:
        For each road on top: the distance of each vertex from its start, and the start and end of
        each bridge, metres, in order and apart.
    """
    edges = graph.edges
    scale = np.array(graph.georeference.metres_per_pixel if graph.georeference else (1.0, 1.0))
    lines = np.array([shapely.LineString(edge.line * scale) for edge in edges], object)
    if not len(lines):
        return {}
    spans: dict[int, list[tuple[float, float]]] = {}
    pairs = shapely.STRtree(lines).query(lines, predicate="crosses").T.tolist()
    for one, other in sorted((a, b) for a, b in pairs if a < b):
        for point in shapely.get_parts(lines[one].intersection(lines[other])).tolist():
            if point.geom_type != "Point" or any(
                not _SAME_PLACE_M < lines[i].project(point) < lines[i].length - _SAME_PLACE_M
                for i in (one, other)
            ):
                continue
            top, below = sorted(
                (one, other), key=lambda i: (-edges[i].speed_mps, -edges[i].length_m, i)
            )
            reach = (edges[below].width_m or _USUAL_WIDTH_M) / 2 + _BEYOND_M
            at = lines[top].project(point)
            spans.setdefault(top, []).append((at - reach, at + reach))
    found = {}
    for index, own in spans.items():
        apart: list[tuple[float, float]] = []
        for first, last in sorted(own):
            if apart and first <= apart[-1][1]:
                first, last = apart[-1][0], max(last, apart.pop()[1])
            apart.append((first, last))
        steps = np.diff(shapely.get_coordinates(lines[index]), axis=0)
        found[index] = np.append(0.0, np.cumsum(np.hypot(*steps.T))), apart
    return found


def _cut(
    line: Points, along: Points, bridges: Sequence[tuple[float, float]]
) -> Iterator[tuple[Points, bool, bool]]:
    """Cut a line at both ends of its bridges; yield pieces, and whether each is a bridge, the last.

    ``along`` and ``bridges`` are those of :func:`_bridges`.
    """
    cuts = np.array([cut for bridge in bridges for cut in bridge if 0 < cut < along[-1]])
    places = np.stack([np.interp(cuts, along, line[:, axis]) for axis in (0, 1)], axis=1)
    way = np.concatenate([along, cuts])
    order = np.argsort(way, kind="stable")
    points, way = np.concatenate([line, places])[order], way[order]
    stops = [0, *np.flatnonzero(order >= len(line)).tolist(), len(points) - 1]
    for first, last in pairwise(stops):
        middle = (way[first] + way[last]) / 2
        is_bridge = any(start <= middle <= end for start, end in bridges)
        yield points[first : last + 1], is_bridge, last == stops[-1]
