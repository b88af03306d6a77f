"""From probability maps to a road graph, in one process and without files.

``centre_lines`` (centre_lines.py) computes and traces the skeleton, window by window in large
images. ``_clean`` works in metres: it prunes and drops (clean.py), joins ends (join.py),
places junctions (junctions.py) and simplifies lines (lines.py). ``_graph`` converts back to
pixels and adds speeds (speed.py).
"""

from dataclasses import replace

import cv2
import numpy as np

from satmap.errors import SatmapError
from satmap.rasters.scene import MapSource, ProbabilityMap, strips
from satmap.tasks.roads.settings import JUNCTION, ROAD, SPEED_MAPS, RoadSettings
from satmap.tasks.roads.vectorizer.border import part_at_border
from satmap.tasks.roads.vectorizer.centre_lines import WINDOW_PX, centre_lines
from satmap.tasks.roads.vectorizer.clean import (
    drop_components,
    drop_short_loops,
    drop_unlikely,
    prune_spurs,
)
from satmap.tasks.roads.vectorizer.evidence import Evidence, has_signal
from satmap.tasks.roads.vectorizer.join import JoinRules, extend_to_border, join_ends
from satmap.tasks.roads.vectorizer.junctions import move_merge_points, resolve_junctions
from satmap.tasks.roads.vectorizer.lines import sharpen_bends, simplify
from satmap.tasks.roads.vectorizer.network import Network
from satmap.tasks.roads.vectorizer.speed import road_speeds
from satmap.vectors.road_graph import RoadEdge, RoadGraph, SpeedSource
from satmap.vectors.speeds import MPS_PER_MPH

# Before gaps are closed, spurs are pruned at this share of the limit only: a short one may be the
# remainder of a road with gaps.
_SPROUT = 0.5
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
    network = _clean(centre_lines(maps, settings, window_px), maps, settings)
    return _graph(network, maps, settings)


def _clean(network: Network, maps: MapSource, settings: RoadSettings) -> Network:
    """Prune, join and simplify the centre lines of maps, in metres."""
    scale = np.asarray(maps.metres_per_pixel, np.float64)
    road = maps[ROAD]
    evidence = Evidence(road, scale, settings.low)
    junctions = Evidence(maps[JUNCTION], scale, settings.low) if JUNCTION in maps else None
    # Use a third of the tolerance now and the rest at the end: fewer points make all steps in
    # between cheaper.
    tolerance = max(settings.simplify_m, _STAIR_PX * float(scale.mean()))
    network = simplify(network, tolerance / 3)
    network = drop_unlikely(network, settings.high, evidence)
    network = drop_short_loops(network, np.pi * settings.merge_m)
    width = _width(network, road, float(scale.prod()))
    network = part_at_border(network, width, evidence.size)
    network = prune_spurs(network, settings.spur_m * _SPROUT, width / 2, evidence)
    if junctions is not None and not has_signal(junctions, network, settings.merge_m):
        junctions = None
    rules = JoinRules(settings, evidence, junctions)
    network = extend_to_border(network, rules)
    # Twice, because an end may be extended to a road that the first round has closed.
    for _ in range(2):
        joined = join_ends(network, rules)
        if joined is network:
            break
        network = joined
    network = resolve_junctions(network, width, settings.merge_m, junctions)
    network = move_merge_points(network, width, evidence, junctions)
    network = drop_short_loops(network, np.pi * settings.merge_m)
    network = prune_spurs(network, settings.spur_m, width / 2, evidence)
    network = drop_components(network, settings.component_m, evidence)
    return sharpen_bends(simplify(network, tolerance * 2 / 3), width)


def _width(network: Network, road: ProbabilityMap, pixel_m2: float) -> float:
    """Estimate the typical road width of the image in metres: road area divided by road length."""
    certain = sum(
        cv2.countNonZero(cv2.threshold(road[part.pixels], 127, 255, cv2.THRESH_BINARY)[1])
        for part in strips(road.shape)
    )
    width = certain * pixel_m2 / max(float(network.lengths.sum()), 1.0)
    return float(np.clip(width, *_WIDTHS_M))


def _graph(network: Network, maps: MapSource, settings: RoadSettings) -> RoadGraph:
    """Convert a cleaned network in metres to a graph in pixels with speeds."""
    scale = np.asarray(maps.metres_per_pixel, np.float64)
    limit = np.array(maps.shape[::-1], np.float64)
    # Snap nodes and lines to a grid of 0.1 pixel. The scorer uses the same grid, and equal ends
    # must meet on it.
    nodes, points = (
        np.round(places / scale, 1).clip(0, limit) for places in (network.nodes, network.points)
    )
    distinct = np.append(True, (points[1:] != points[:-1]).any(axis=1))[: len(points)]
    distinct[network.starts] = True
    network = replace(network, nodes=nodes).with_points(points, distinct)
    # A loop of fewer than three distinct points has no area.
    network = network.keep(network.counts >= np.where(network.loops, 4, 2)).compact()
    on_ground = replace(network, nodes=network.nodes * scale, points=network.points * scale)
    speeds, probabilities, widths = road_speeds(
        on_ground, maps, settings.speed_evidence, settings.default_speed_mph * MPS_PER_MPH
    )
    source: SpeedSource = "estimated" if all(name in maps for name in SPEED_MAPS) else "default"
    return RoadGraph(
        network.nodes,
        tuple(
            RoadEdge(
                (start, end),
                line,
                length,
                speed,
                probability,
                width if width == width else None,
                source,
            )
            for (start, end), line, length, speed, probability, width in zip(
                network.ends.tolist(),
                network.lines,
                on_ground.lengths.tolist(),
                speeds.tolist(),
                probabilities.tolist(),
                widths.tolist(),
                strict=True,
            )
        ),
    )
