"""Road graph: nodes in pixels, edges with geometry, length and speed."""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.io.geojson_reader import LON_LAT
from satmap.vectors.buildings import calibration_of
from satmap.vectors.georeference import Georeference, geodataframe, place
from satmap.vectors.speeds import MPS_PER_MPH, class_speed_mph

if TYPE_CHECKING:
    import geopandas
    import networkx


#: Where the speed of a road comes from.
SpeedSource = Literal["estimated", "default"]

# Attributes of an edge in tables and graphs.
_EDGE_FIGURES = (
    "length_m",
    "speed_mps",
    "travel_time_s",
    "width_m",
    "mean_probability",
    "confidence",
)


@dataclass(frozen=True)
class RoadEdge:
    """A road between two nodes.

    Attributes:
        nodes: indices of the start and end node; equal for a loop.
        line: float64 (n >= 2, 2), x = column and y = row in pixels, from the start node to the end.
        length_m: length along ``line``, metres.
        speed_mps: speed, metres per second, > 0.
        mean_probability: mean road probability along the line, 0..1; not calibrated.
        width_m: width of the road area that the network sees, metres; None if unknown. Networks
            that learnt from lines of one width see every road about that wide.
        speed_source: ``estimated`` from speed maps, or ``default`` without them.
        confidence: probability that the road is right
            (:mod:`satmap.evaluation.metrics.right_roads`), 0..1; None if it is not calibrated.
    """

    nodes: tuple[int, int]
    line: NDArray[np.float64]
    length_m: float
    speed_mps: float
    mean_probability: float
    width_m: float | None = None
    speed_source: SpeedSource = "estimated"
    confidence: float | None = None

    @property
    def travel_time_s(self) -> float:
        """Seconds from end to end."""
        return self.length_m / self.speed_mps


@dataclass(frozen=True)
class RoadGraph:
    """The roads of one image as an undirected multigraph: parallel edges and loops are kept.

    Attributes:
        nodes: float64 (n, 2), x = column and y = row in pixels.
        edges: the roads, each between two of ``nodes``.
        georeference: position of the pixels; None if unknown.
    """

    nodes: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    edges: tuple[RoadEdge, ...] = ()
    georeference: Georeference | None = None

    def keep_confident(self, least: float) -> "RoadGraph":
        """Return the graph without roads whose confidence is below ``least`` or not known.

        Nodes without a road are gone. Nodes where two roads are left stay.
        """
        kept = [edge for edge in self.edges if (edge.confidence or 0.0) >= least]
        used = sorted({node for edge in kept for node in edge.nodes})
        number = {node: index for index, node in enumerate(used)}
        edges = tuple(
            replace(edge, nodes=(number[edge.nodes[0]], number[edge.nodes[1]])) for edge in kept
        )
        return replace(self, nodes=self.nodes[used].reshape(-1, 2), edges=edges)

    def to_networkx(self) -> "networkx.MultiGraph[int]":
        """Return the graph as a networkx multigraph.

        Nodes have ``x`` and ``y``. Edges have ``geometry`` (a shapely LineString), ``length_m``,
        ``speed_mps``, ``travel_time_s``, ``width_m``, ``mean_probability`` and ``confidence``.
        Coordinates are in the
        image's reference system, named in ``graph["crs"]``, or in pixels without a georeference.
        """
        import networkx

        graph: networkx.MultiGraph[int] = networkx.MultiGraph(crs=self._crs)
        for number, (x, y) in enumerate(self._placed(self.nodes).tolist()):
            graph.add_node(number, x=x, y=y)
        for edge in self.edges:
            graph.add_edge(*edge.nodes, **self._attributes(edge))
        return graph

    def to_geodataframe(self) -> "geopandas.GeoDataFrame":
        """Return the edges as a GeoDataFrame; needs the extra ``satmap[gis]``.

        Columns: ``u`` and ``v`` (nodes), ``length_m``, ``speed_mps``, ``travel_time_s``,
        ``width_m``, ``mean_probability``, ``confidence`` and ``geometry``, in the image's reference
        system or in pixels.

        Raises:
            SatmapError: geopandas is not installed.
        """
        rows = [
            {"u": edge.nodes[0], "v": edge.nodes[1], **self._attributes(edge)}
            for edge in self.edges
        ]
        columns = ["u", "v", "geometry", *_EDGE_FIGURES]
        return geodataframe(rows, columns, self._crs)

    @property
    def _crs(self) -> str | None:
        return self.georeference.crs if self.georeference else None

    def _placed(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.georeference.to_map(xy) if self.georeference and len(xy) else xy

    def _attributes(self, edge: RoadEdge) -> dict[str, Any]:
        line = shapely.LineString(self._placed(edge.line))
        return {"geometry": line, **{name: getattr(edge, name) for name in _EDGE_FIGURES}}


def line_length_m(line: NDArray[np.float64], metres_per_pixel: tuple[float, float]) -> float:
    """Return the length in metres of a line given in pixels; pixels need not be square."""
    steps = np.diff(line, axis=0) * np.asarray(metres_per_pixel)
    return float(np.hypot(steps[:, 0], steps[:, 1]).sum())


# OpenStreetMap's classes that routers allow cars to use, slowest first. Without motorway: routers
# treat it as one-way, but directions are unknown here. Without track: most routers avoid it.
_CLASSES = ("unclassified", "residential", "tertiary", "secondary", "primary", "trunk")
_CLASS_SPEEDS_MPH = [class_speed_mph(name, lanes=1) for name in _CLASSES]
_CLASS_LIMITS_MPH = [(slow + fast) / 2 for slow, fast in pairwise(_CLASS_SPEEDS_MPH)]


@dataclass(frozen=True)
class ImageRoads:
    """The roads of one image.

    Attributes:
        image_id: id of the image.
        graph: roads in pixels of the image.
    """

    image_id: str
    graph: RoadGraph


def placed_roads(
    roads: ImageRoads, crs: str = LON_LAT
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Return nodes (n, 2) and lines (n, 2) of a graph in coordinates of a reference system.

    Raises:
        SatmapError: as for :func:`satmap.vectors.georeference.place`.
    """
    graph = roads.graph
    # One call for all: each call sets up the projection again.
    parts = [graph.nodes, *(edge.line for edge in graph.edges)]
    placed = place(
        roads.image_id,
        graph.georeference,
        np.concatenate(parts),
        crs,
        things="roads",
        otherwise="Write a CSV, which uses pixels",
    )
    ends = np.cumsum([len(part) for part in parts])
    nodes, *lines = np.split(placed, ends[:-1])
    return nodes, lines


def edge_attributes(
    image_id: str, edge: RoadEdge, first_node: int
) -> dict[str, str | int | float | None]:
    """Return the attributes of an edge in every export.

    A new attribute must also be added to the field list in :mod:`satmap.exports.roads`.

    ============== ===============================================================================
    ``image_id``   the image
    ``u``, ``v``   nodes at the start and end of the line, numbered over the whole file
    ``length_m``   length along the line, metres
    ``travel_time_s``  seconds from end to end: length / speed
    ``speed_kmh``, ``speed_mph``  speed (``tasks/roads/vectorizer/speed.py``)
    ``speed_source``  ``estimated`` by the network, or ``default`` (:class:`RoadEdge`)
    ``width_m``    width of the road area, metres; None if unknown (:class:`RoadEdge`)
    ``mean_probability``  mean road probability along the line, 0..1; not calibrated
    ``confidence`` probability that the road is right, 0..1; None if not calibrated
    ``calibration``  ``calibrated`` or ``uncalibrated``
    ``highway``    OpenStreetMap's class, inferred from the speed by :func:`highway_of`
    ``maxspeed``   OpenStreetMap's speed tag: the speed in whole miles per hour
    ============== ===============================================================================

    Lengths, seconds and probabilities have three decimals, speeds and widths two.
    ``first_node`` is the number of the image's first node in the file.
    """
    mph = edge.speed_mps / MPS_PER_MPH
    return {
        "image_id": image_id,
        "u": first_node + edge.nodes[0],
        "v": first_node + edge.nodes[1],
        "highway": highway_of(mph),
        "maxspeed": f"{max(round(mph), 1)} mph",
        "speed_kmh": round(edge.speed_mps * 3.6, 2),
        "speed_mph": round(mph, 2),
        "speed_source": edge.speed_source,
        "length_m": round(edge.length_m, 3),
        "travel_time_s": round(edge.travel_time_s, 3),
        "width_m": None if edge.width_m is None else round(edge.width_m, 2),
        "mean_probability": round(edge.mean_probability, 3),
        "confidence": None if edge.confidence is None else round(edge.confidence, 3),
        "calibration": calibration_of(edge.confidence),
    }


def highway_of(mph: float) -> str:
    """Return OpenStreetMap's road class for a speed in miles per hour.

    Inverts the challenge's rule for roads of at most two lanes (:mod:`satmap.vectors.speeds`): the
    class with the nearest speed, or the faster of two equally near classes. 20 is ``unclassified``,
    25 ``residential``, 30 ``tertiary``, 35 ``secondary``, 45 ``primary``, 55 and more ``trunk``.
    """
    return _CLASSES[bisect_right(_CLASS_LIMITS_MPH, mph)]
