"""From probability maps to a road graph, in one process and without files.

``centre_lines`` (centre_lines.py) computes and traces the skeleton, window by window in large
images. ``clean_network`` works in metres: it prunes and drops (clean.py), joins ends (join.py),
places junctions (junctions.py) and simplifies lines (lines.py). ``road_graph`` converts back to
pixels and adds speeds (speed.py).
"""

import cv2
import numpy as np

from satmap.errors import SatmapError
from satmap.rasters.scene import MapSource, ProbabilityMap, strips
from satmap.tasks.roads.settings import JUNCTION, ROAD, RoadSettings
from satmap.tasks.roads.vectorizer.border import part_at_border
from satmap.tasks.roads.vectorizer.bridges import JoinRules
from satmap.tasks.roads.vectorizer.centre_lines import WINDOW_PX, centre_lines
from satmap.tasks.roads.vectorizer.clean import (
    drop_components,
    drop_short_loops,
    drop_unlikely,
    prune_spurs,
)
from satmap.tasks.roads.vectorizer.evidence import Evidence, has_signal
from satmap.tasks.roads.vectorizer.join import extend_to_border, join_ends
from satmap.tasks.roads.vectorizer.junctions import resolve_junctions
from satmap.tasks.roads.vectorizer.lines import sharpen_bends, simplify
from satmap.tasks.roads.vectorizer.merges import move_merge_points
from satmap.tasks.roads.vectorizer.network import Line, Network
from satmap.tasks.roads.vectorizer.speed import road_speeds
from satmap.vectors.road_graph import RoadEdge, RoadGraph
from satmap.vectors.speeds import MPS_PER_MPH

__all__ = ["RoadSettings", "centre_lines", "clean_network", "road_graph", "vectorize_roads"]

# Before gaps are closed, spurs are pruned at this share of the limit only: a short one may be the
# remainder of a road with gaps.
_SPROUT = 0.5
# A doubtful spur must be this many times as long as a certain one.
_DOUBTFUL_SPUR = 4.0
# Smallest simplification tolerance in pixels: slanting lines of large pixels are staircases.
_STAIR_PX = 1.5
# Limits of the estimated road width.
_WIDTHS_M = (2.0, 8.0)


def vectorize_roads(
    maps: MapSource, settings: RoadSettings | None = None, *, window_px: int = WINDOW_PX
) -> RoadGraph:
    """Return the road graph of one image, or of a scene too large for memory.

    Args:
        maps: at least the ``road`` map. With all speed maps, roads get their speeds, otherwise the
            default speed. If the ``junction`` map recognises the image's T-junctions, roads that
            cross where it shows no junction pass each other.
        settings: thresholds; the defaults if None.
        window_px: larger images are processed on the pixel level in windows of at most this size.

    Returns:
        The graph in pixels of the maps. The centre of a pixel is at (column + 0.5, row + 0.5), and
        no line leaves [0, width] x [0, height].

    Raises:
        SatmapError: there is no ``road`` map.
    """
    settings = settings or RoadSettings()
    if ROAD not in maps:
        raise SatmapError(
            f"the probability maps {', '.join(maps.names)} have no '{ROAD}'; the road vectoriser "
            "needs it."
        )
    network = clean_network(centre_lines(maps, settings, window_px), maps, settings)
    return road_graph(network, maps, settings)


def clean_network(network: Network, maps: MapSource, settings: RoadSettings) -> Network:
    """Prune, join and simplify centre lines, in metres.

    Args:
        network: centre lines of the maps, metres.
        maps: evidence for the centre lines.
        settings: thresholds.
    """
    scale = np.asarray(maps.metres_per_pixel, np.float64)
    road = maps[ROAD]
    size = np.array([maps.shape[1], maps.shape[0]], np.float64) * scale
    evidence = Evidence(road, scale, settings.low)
    junctions = Evidence(maps[JUNCTION], scale, settings.low) if JUNCTION in maps else None
    # Use a third of the tolerance now and the rest at the end: fewer points make all steps in
    # between cheaper.
    tolerance = max(settings.simplify_m, _STAIR_PX * float(scale.mean()))
    network = simplify(network, tolerance / 3)
    network = drop_unlikely(network, settings.high, evidence)
    network = drop_short_loops(network, np.pi * settings.merge_m)
    width = _width(network, road, float(scale.prod()))
    network = part_at_border(network, width, size)
    spur, doubtful = settings.spur_m, settings.spur_m * _DOUBTFUL_SPUR
    network = prune_spurs(network, (spur * _SPROUT, doubtful * _SPROUT), width / 2, size, evidence)
    if junctions is not None and not has_signal(junctions, network, settings.merge_m):
        junctions = None
    rules = JoinRules(
        gap=settings.gap_m,
        tee=settings.tee_m,
        edge=settings.edge_m,
        bridge=settings.bridge_m,
        degrees=settings.bridge_degrees,
        probability=settings.bridge_probability,
        least=settings.component_m,
        road=evidence,
        junctions=junctions,
    )
    network = extend_to_border(network, size, rules)
    # Twice, because an end may be extended to a road that the first round has closed.
    for _ in range(2):
        joined = join_ends(network, size, rules)
        if joined is network:
            break
        network = joined
    network = resolve_junctions(network, width, settings.merge_m, junctions)
    network = move_merge_points(network, width, evidence, junctions)
    network = drop_short_loops(network, np.pi * settings.merge_m)
    network = prune_spurs(network, (spur, doubtful), width / 2, size, evidence)
    network = drop_components(network, settings.component_m, size, evidence)
    return sharpen_bends(simplify(network, tolerance * 2 / 3), width)


def _width(network: Network, road: ProbabilityMap, pixel_m2: float) -> float:
    """Estimate the typical road width of the image in metres: road area divided by road length."""
    certain = sum(
        cv2.countNonZero(cv2.threshold(road[part.pixels], 127, 255, cv2.THRESH_BINARY)[1])
        for part in strips(road.shape)
    )
    area = certain * pixel_m2
    low, high = _WIDTHS_M
    return min(max(area / max(float(network.lengths.sum()), 1.0), low), high)


def road_graph(network: Network, maps: MapSource, settings: RoadSettings) -> RoadGraph:
    """Convert a cleaned network in metres to a graph in pixels with speeds.

    Args:
        network: the network.
        maps: maps that speeds and confidence are read from.
        settings: evidence threshold and default of the speeds.
    """
    scale = np.asarray(maps.metres_per_pixel, np.float64)
    height, width = maps.shape
    limit = np.array([width, height], np.float64)

    # Snap nodes and lines to a grid of 0.1 pixel. The scorer uses the same grid, and equal ends
    # must meet on it.
    def snapped(places: Line) -> Line:
        return np.round(places / scale, 1).clip(0, limit)

    points = snapped(network.points)
    distinct = np.ones(len(points), np.bool_)
    distinct[1:] = (points[1:] != points[:-1]).any(axis=1)
    distinct[network.starts] = True
    counts = (
        np.add.reduceat(distinct.astype(np.int64), network.starts)
        if len(network.counts)
        else network.counts
    )
    network = Network(snapped(network.nodes), network.ends, points[distinct], counts)
    # A loop of fewer than three distinct points has no area.
    loops = network.ends[:, 0] == network.ends[:, 1]
    network = network.keep(counts >= np.where(loops, 4, 2)).compact()
    on_ground = Network(network.nodes * scale, network.ends, network.points * scale, network.counts)
    speeds, confidence = road_speeds(
        on_ground, maps, settings.speed_evidence, settings.default_speed_mph * MPS_PER_MPH
    )
    edges = tuple(
        RoadEdge((start, end), line, length, speed, sure)
        for (start, end), line, length, speed, sure in zip(
            network.ends.tolist(),
            network.lines,
            on_ground.lengths.tolist(),
            speeds.tolist(),
            confidence.tolist(),
            strict=True,
        )
    )
    return RoadGraph(network.nodes, edges)
