"""From probability planes to a road graph, in one process and without files.

smooth, threshold and thin (skeleton.py); trace (trace.py); from there on in metres: prune spurs,
merge junctions, join ends, drop small parts, simplify (clean.py, join.py); back to pixels; speeds
(speed.py). The thresholds follow selim_sef's SpaceNet 5 solution, given in metres instead of pixels
of 0.3 m.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from satmap.errors import SatmapError
from satmap.planes import ROAD, Planes
from satmap.roads.bridges import Evidence, JoinRules
from satmap.roads.clean import (
    drop_components,
    drop_short_loops,
    merge_junctions,
    prune_spurs,
    simplify,
)
from satmap.roads.graph import RoadEdge, RoadGraph, line_length_m
from satmap.roads.join import extend_to_border, join_ends
from satmap.roads.skeleton import road_mask, thin
from satmap.roads.speed import fill_speeds, line_confidence, line_speed
from satmap.roads.trace import Line, Network, compact, trace
from satmap.settings import Settings
from satmap.speeds import MPS_PER_MPH

# So far inside the image's edge the skeleton of a road that leaves it is bent.
_BEND_M = 1.0
# Samples along a bridge, and metres left out at both its ends, where the roads' own flanks reach.
_BRIDGE_SAMPLES = 16
_BRIDGE_MARGIN_M = 3.0


class RoadSettings(Settings):
    """What the road vectoriser can be told; lengths in metres, areas in square metres.

    Attributes:
        smooth_m: standard deviation of the Gaussian blur of the road plane.
        high: probability of certain road, 0..1.
        low: probability from which a pixel is road where no certain road is near, 0..1.
        apart_m: how near that is.
        object_m2: smaller objects are dropped.
        hole_m2: smaller holes are filled.
        border_m: the plane goes on so far beyond the image's edge while thinning.
        spur_m: shorter dead ends are pruned.
        merge_m: junctions linked by less road become one.
        component_m: connected parts of less road are dropped (a sixth where they leave the
            image).
        simplify_m: tolerance of Douglas-Peucker.
        gap_m: aligned free ends so near are joined without evidence.
        tee_m: a free end so near to a road or the image's edge ahead is led to it without evidence.
        bridge_m: reach of both with evidence.
        bridge_degrees: greatest angle between a road and a bridge.
        bridge_probability: mean road probability along a bridge that counts as evidence, 0..1.
        speed_evidence: least sum over the speed bins of the mean probability along a road, 0..1.
        default_speed_mph: speed where the planes know none, miles an hour.
    """

    smooth_m: float = Field(0.4, ge=0)
    high: float = Field(0.6, gt=0, le=1)
    low: float = Field(0.3, gt=0, le=1)
    apart_m: float = Field(2.0, ge=0)
    object_m2: float = Field(27.0, ge=0)
    hole_m2: float = Field(27.0, ge=0)
    border_m: float = Field(4.0, ge=0)
    spur_m: float = Field(6.0, ge=0)
    merge_m: float = Field(4.0, ge=0)
    component_m: float = Field(36.0, ge=0)
    simplify_m: float = Field(0.6, ge=0)
    gap_m: float = Field(15.0, ge=0)
    tee_m: float = Field(11.0, ge=0)
    bridge_m: float = Field(33.0, ge=0)
    bridge_degrees: float = Field(30.0, ge=0, le=90)
    bridge_probability: float = Field(0.15, ge=0, le=1)
    speed_evidence: float = Field(0.05, gt=0, le=1)
    default_speed_mph: float = Field(25.0, gt=0)


def vectorize(planes: Planes, settings: RoadSettings | None = None) -> RoadGraph:
    """Road graph of one image.

    Args:
        planes: at least the ``road`` plane; with all speed planes roads get their speeds, else the
            default.
        settings: thresholds; the defaults if None.

    Returns:
        The graph, in pixels of the planes; a pixel's centre is at (column + 0.5, row + 0.5) and no
        line leaves [0, width] x [0, height].

    Raises:
        SatmapError: the planes have no ``road``.
    """
    settings = settings or RoadSettings()
    if ROAD not in planes:
        raise SatmapError(
            f"the planes {', '.join(planes.names)} have no '{ROAD}'; the road vectoriser needs it."
        )
    scale = np.asarray(planes.metres_per_pixel, np.float64)
    road = planes[ROAD]
    size = np.array([road.shape[1], road.shape[0]], np.float64) * scale
    network = clean(centre_lines(road, scale, settings), road, scale, settings)
    return _graph(network, planes, size, settings)


def centre_lines(road: NDArray[np.uint8], scale: Line, settings: RoadSettings) -> Network:
    """The road plane's centre lines as they come from the skeleton, in metres.

    Args:
        road: (height, width), 0..255.
        scale: metres a pixel along x and y, (2,).
        settings: thresholds.
    """
    x_m, y_m = scale.tolist()
    pixel_m2 = x_m * y_m
    margin = np.ceil(settings.border_m / scale).astype(int)
    x, y = margin.tolist()
    padded = np.pad(road, ((y, y), (x, x)), mode="edge")
    mask = road_mask(
        _smooth(padded, scale, settings.smooth_m),
        settings.low,
        settings.high,
        (settings.apart_m / x_m, settings.apart_m / y_m),
        settings.object_m2 / pixel_m2,
        settings.hole_m2 / pixel_m2,
    )
    network = trace(thin(mask))
    limit = np.array([road.shape[1], road.shape[0]], np.float64)
    return _cropped(network, margin.astype(np.float64), limit, scale)


def _cropped(network: Network, margin: Line, limit: Line, scale: Line) -> Network:
    """A network in pixels of the padded plane, cropped to the image, in metres.

    Far beyond the image's edge a road that leaves aslant runs at right angles to the edge, through
    the middle of its last row; on the way there the skeleton is bent. So the road goes straight
    from where it is whole to that middle. Whatever else was traced beyond the edge falls onto it.
    """
    inset = _BEND_M / scale
    dead = network.degrees[network.ends] == 1
    lines = []
    for (dead_start, dead_end), line in zip(dead, network.lines, strict=True):
        line = line - margin
        outside: NDArray[np.bool_] = np.any((line < 0) | (line > limit), axis=1)
        whole = np.flatnonzero(((line > inset) & (line < limit - inset)).all(axis=1))
        keep = np.ones(len(line), np.bool_)
        if len(whole) and dead_start and outside[0]:
            keep[1 : whole[0]] = False
        if len(whole) and dead_end and outside[-1]:
            keep[whole[-1] + 1 : -1] = False
        lines.append(line[keep].clip(0, limit) * scale)
    return Network((network.nodes - margin).clip(0, limit) * scale, network.ends, tuple(lines))


def clean(
    network: Network, road: NDArray[np.uint8], scale: Line, settings: RoadSettings
) -> Network:
    """The centre lines pruned, joined and simplified, in metres; arguments as above."""
    size = np.array([road.shape[1], road.shape[0]], np.float64) * scale
    rules = JoinRules(
        settings.gap_m,
        settings.tee_m,
        settings.bridge_m,
        settings.bridge_degrees,
        settings.bridge_probability,
        settings.component_m,
    )
    evidence = _bridge_evidence(road, scale)
    # A third of the tolerance now, the rest at the end: a staircase of pixels is longer than its
    # road, and few points make every step from here on cheap.
    network = simplify(network, settings.simplify_m / 3)
    network = drop_short_loops(network, np.pi * settings.merge_m)
    network = prune_spurs(network, settings.spur_m, size)
    network = merge_junctions(network, settings.merge_m)
    network = extend_to_border(network, size, settings.tee_m, settings.component_m)
    # Twice: an end may be led to a road that the first round has closed.
    for _ in range(2):
        network = join_ends(network, size, rules, evidence)
    network = merge_junctions(network, settings.merge_m)
    network = drop_short_loops(network, np.pi * settings.merge_m)
    network = prune_spurs(network, settings.spur_m, size)
    network = drop_components(network, settings.component_m, size)
    return simplify(network, settings.simplify_m * 2 / 3)


def _smooth(road: NDArray[np.uint8], scale: Line, sigma_m: float) -> NDArray[np.uint8]:
    if sigma_m == 0:
        return road
    sigma_x, sigma_y = (sigma_m / scale).tolist()
    return np.asarray(
        cv2.GaussianBlur(road, (0, 0), sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE),
        np.uint8,
    )


def _bridge_evidence(road: NDArray[np.uint8], scale: Line) -> Evidence:
    height, width = road.shape

    def evidence(starts: Line, stops: Line) -> NDArray[np.float64]:
        length = np.maximum(np.hypot(*(stops - starts).T), 1e-9)
        margin = np.minimum(_BRIDGE_MARGIN_M / length, 0.4)[:, None]
        share = margin + (1 - 2 * margin) * np.linspace(0, 1, _BRIDGE_SAMPLES)
        places = starts[:, None] + share[..., None] * (stops - starts)[:, None]
        columns = (places[..., 0] / scale[0]).astype(np.intp).clip(0, width - 1)
        rows = (places[..., 1] / scale[1]).astype(np.intp).clip(0, height - 1)
        mean: NDArray[np.float64] = road[rows, columns].mean(axis=1) / 255
        return mean

    return evidence


def _graph(network: Network, planes: Planes, size: Line, settings: RoadSettings) -> RoadGraph:
    # One rounding for nodes and lines: it keeps them equal and drops what the scaling left behind.
    scale = np.asarray(planes.metres_per_pixel, np.float64)
    nodes = _pixels(network.nodes, scale, size)
    lines, ends = [], []
    for pair, line in zip(network.ends, network.lines, strict=True):
        points = _pixels(line, scale, size)
        distinct = np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))
        if distinct.sum() >= 2:
            lines.append(points[distinct])
            ends.append(pair)
    network = compact(nodes, np.array(ends, np.int64).reshape(-1, 2), tuple(lines))
    lengths = [line_length_m(line, planes.metres_per_pixel) for line in network.lines]
    speeds = fill_speeds(
        [line_speed(planes, line, settings.speed_evidence) for line in network.lines],
        lengths,
        settings.default_speed_mph * MPS_PER_MPH,
    )
    edges = tuple(
        RoadEdge(
            nodes=(start, end),
            line=line,
            length_m=length,
            speed_mps=speed,
            confidence=line_confidence(planes, line),
        )
        for (start, end), line, length, speed in zip(
            network.ends.tolist(), network.lines, lengths, speeds, strict=True
        )
    )
    return RoadGraph(network.nodes, edges)


def _pixels(places: Line, scale: Line, size: Line) -> Line:
    """Metres to pixels, on a grid of 0.1 pixel: the scorer's own, on which equal ends must meet."""
    return np.round(places / scale, 1).clip(0, size / scale)
