"""What the confidence of a road is computed from: its probabilities, its shape and its ends.

The features describe what makes a road wrong. A road that is not there has low probabilities. A
road that bridges a gap has a stretch without any. A road that is off the centre line, or that joins
others wrongly, is short, crooked, or ends freely.
"""

from dataclasses import replace

import numpy as np

from satmap.errors import SatmapError
from satmap.rasters.scene import MapSource
from satmap.tasks.calibration import Calibration, log_odds
from satmap.tasks.roads.settings import JUNCTION, ROAD, SPEED_MAPS
from satmap.tasks.roads.vectorizer.evidence import Evidence, samples
from satmap.tasks.roads.vectorizer.network import Floats, Ints, Network
from satmap.vectors.road_graph import RoadGraph

#: Features of every road, in the order of :func:`measure_roads`.
ROAD_FEATURES = (
    "mean", "lowest", "gap", "length", "dead_ends", "at_border", "width", "turning",
    "straightness", "image_mean",
)  # fmt: skip

#: Further features if the networks have maps of junctions and speeds.
JUNCTION_FEATURES = ("junction",)
SPEED_FEATURES = ("speed", "speed_spread")

# Distance between samples along a road, metres. Neighbouring samples are averaged over _WINDOW of
# them to find the weakest stretch.
_STEP_M, _WINDOW = 1.0, 5
# Below this probability a road crosses a gap.
_GAP = 0.3
# Roads this close to the image's edge leave it, pixels.
_AT_BORDER_PX = 1.0
# Distance from a node within which the junction map may show it, metres.
_AROUND_M = 2.0
_USUAL_WIDTH_M = 6.0


def road_features(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the features for networks with these probability maps."""
    junctions = JUNCTION_FEATURES if JUNCTION in names else ()
    speeds = SPEED_FEATURES if set(SPEED_MAPS) <= set(names) else ()
    return (*ROAD_FEATURES, *junctions, *speeds)


def rate_roads(graph: RoadGraph, maps: MapSource, calibration: Calibration) -> RoadGraph:
    """Return the roads of an image with their confidence.

    Raises:
        SatmapError: the calibration needs other probability maps.
    """
    names = road_features(tuple(maps.names))
    if calibration.features != names:
        raise SatmapError(
            f"the confidence was fitted to other probability maps than {', '.join(maps.names)}. "
            "Use the maps of the networks that it was fitted to."
        )
    confidences = calibration.probability(measure_roads(graph, maps)).tolist()
    edges = tuple(
        replace(edge, confidence=confidence)
        for edge, confidence in zip(graph.edges, confidences, strict=True)
    )
    return replace(graph, edges=edges)


def measure_roads(graph: RoadGraph, maps: MapSource) -> Floats:
    """Measure the features of all roads of an image, float64 (roads, features).

    Args:
        graph: the roads, in pixels of the maps.
        maps: the probability maps that they were made of.

    Returns:
        Probabilities as log odds, lengths as logarithms of metres; in the order of
        :func:`road_features`.
    """
    names = road_features(tuple(maps.names))
    count = len(graph.edges)
    if not count:
        return np.empty((0, len(names)))
    scale = np.asarray(maps.metres_per_pixel, np.float64)
    network = Network.of_lines(
        graph.nodes * scale,
        np.array([edge.nodes for edge in graph.edges], np.int64),
        [edge.line * scale for edge in graph.edges],
    )
    road = Evidence(maps[ROAD], scale, 0.0)
    owner, places = samples(network, np.arange(count), _STEP_M, 0.0)
    values = road.at(places)
    first = np.searchsorted(owner, np.arange(count))
    counts = np.bincount(owner, minlength=count)
    mean = np.bincount(owner, values) / counts
    lengths = network.lengths
    height, width = maps.shape
    edge_distance = np.minimum(graph.nodes, [width, height] - graph.nodes).min(axis=1)
    degrees, ends = network.degrees, network.ends
    leaves = (edge_distance <= _AT_BORDER_PX)[ends]
    free = (degrees[ends] == 1) & ~leaves
    turning, chord = _shapes(network)
    widths = np.array([edge.width_m or _USUAL_WIDTH_M for edge in graph.edges])
    features = {
        "mean": log_odds(mean),
        "lowest": log_odds(_lowest_stretch(values, owner, first, counts)),
        "gap": np.log1p(np.bincount(owner, values < _GAP) / counts * lengths),
        "length": np.log(np.maximum(lengths, 1.0)),
        "dead_ends": free.sum(axis=1),
        "at_border": leaves.sum(axis=1),
        "width": np.log(np.maximum(widths, 1.0)),
        "turning": np.log1p(turning),
        "straightness": chord / np.maximum(lengths, 1e-9),
        "image_mean": log_odds(np.full(count, np.average(mean, weights=lengths))),
    }
    if JUNCTION in maps:
        features["junction"] = _junctions(network, Evidence(maps[JUNCTION], scale, 0.0))
    if all(name in maps for name in SPEED_MAPS):
        rows, columns = (places / scale).astype(np.int64).T[::-1]
        bins = maps.at(SPEED_MAPS, rows.clip(0, height - 1), columns.clip(0, width - 1)) / 255
        shares = np.stack([np.bincount(owner, of_map) / counts for of_map in bins])
        total = shares.sum(axis=0)
        features["speed"] = total
        features["speed_spread"] = 1 - shares.max(axis=0) / np.maximum(total, 1e-9)
    return np.stack([np.asarray(features[name], np.float64) for name in names], axis=1)


def _lowest_stretch(values: Floats, owner: Ints, first: Ints, counts: Ints) -> Floats:
    """Return the lowest mean probability of a few metres of each road, (roads,)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    start = np.arange(len(values))
    stop = np.minimum(start + _WINDOW, (first + counts)[owner])
    # The last windows are as long as the others, if the road is.
    start = np.maximum(np.minimum(start, stop - _WINDOW), first[owner])
    return np.minimum.reduceat((total[stop] - total[start]) / (stop - start), first)


def _shapes(network: Network) -> tuple[Floats, Floats]:
    """Return the degrees that each road turns by, and the distance between its ends, (roads,)."""
    steps = np.diff(network.points, axis=0)
    angles = np.arctan2(steps[:, 1], steps[:, 0])
    turns = np.abs((np.diff(angles) + np.pi) % (2 * np.pi) - np.pi)
    # Turn i lies at point i + 1; those at the ends of roads are none.
    inner = np.ones(len(network.points), np.bool_)
    inner[network.starts] = inner[network.stops] = False
    owner = np.repeat(np.arange(len(network.counts)), network.counts)
    turning = np.bincount(
        owner[1:-1], np.where(inner[1:-1], turns, 0.0), minlength=len(network.counts)
    )
    ends = network.nodes[network.ends]
    return np.degrees(turning), np.hypot(*(ends[:, 1] - ends[:, 0]).T)


def _junctions(network: Network, junctions: Evidence) -> Floats:
    """Return how well the junction map shows the junctions at the ends of each road, (roads,).

    It is the lower one of both ends; 1 if no other road meets there.
    """
    offsets = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]) * _AROUND_M
    shown = junctions.at(network.nodes[:, None] + offsets).max(axis=1)
    shown[network.degrees < 3] = 1.0
    return np.asarray(shown[network.ends].min(axis=1))
