"""Bridges that could join free ends: end to end, round a hidden corner, end to road.

A short gap between aligned ends needs no evidence (selim_sef), a longer one only counts where the
mean probability along the bridge speaks for it (cannab; SAM-Road++), and a free end may be led to
a near road ahead of it (ikibardin). All lengths and places are metres.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from satmap.roads.trace import Line, Network, components, on_border

# Mean road probability, 0..1, along straight bridges from (n, 2) to (n, 2) in metres.
Evidence = Callable[[Line, Line], NDArray[np.float64]]

# Road that gives a free end's direction, and its tip, which does not: what hides the road frays it.
_LOOK_BACK = 10.0
_TIP = 2.0
# Between the places along roads to which a free end may be led.
_SPACING = 1.0
# A bridge must save a way round of at least this many times its own length.
_DETOUR = 3.0
# Places on one road that are nearer than this are one junction.
SAME_PLACE = 3.0
# So far beside its direction an end may be joined whatever the angle, if forwards at all: over a
# few metres angles mean little.
_SIDEWAYS = 2.0


@dataclass(frozen=True)
class JoinRules:
    """How far and how freely ends are joined; lengths in metres.

    Attributes:
        gap: reach from end to end without evidence.
        tee: reach from an end to a road without evidence.
        bridge: reach of both with evidence.
        degrees: greatest angle between a road's direction and the bridge.
        probability: mean probability along a bridge that counts as evidence, 0..1.
        least: road that a connected part must have to be led round a corner or to another road;
            the axis of a mere blob points anywhere.
    """

    gap: float
    tee: float
    bridge: float
    degrees: float
    probability: float
    least: float


@dataclass(frozen=True)
class Ends:
    """Free ends.

    Attributes:
        nodes: node of each, (n,).
        roads: the road that ends there, (n,).
        places: where, (n, 2).
        directions: unit vectors outwards, (n, 2).
        parts: length of road in the connected part, (n,).
    """

    nodes: NDArray[np.int64]
    roads: NDArray[np.int64]
    places: Line
    directions: Line
    parts: NDArray[np.float64]


@dataclass(frozen=True)
class Bridges:
    """Bridges from ``end`` to ``other``, both numbers of free ends, or to a place on a road.

    ``other`` is -1 for a bridge to a road, ``road`` is -1 for a bridge to an end. A bridge bends at
    ``via``, (n, 2), NaN for a straight one.
    """

    end: NDArray[np.int64]
    other: NDArray[np.int64]
    road: NDArray[np.int64]
    along: NDArray[np.float64]
    via: Line
    cost: NDArray[np.float64]

    def chosen(self, rows: NDArray[np.intp]) -> "Bridges":
        """Some of the bridges, by number."""
        return Bridges(*(getattr(self, part.name)[rows] for part in fields(self)))

    @classmethod
    def together(cls, parts: list["Bridges"]) -> "Bridges":
        """All bridges of several lots."""
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(cls)
            )
        )


def free_ends(network: Network, size: Line) -> Ends:
    """The network's dead ends, but for those where a road leaves the image.

    Args:
        network: the network.
        size: width and height of the image, (2,).
    """
    free = (network.degrees == 1) & ~on_border(network.nodes, size)
    roads, sides = np.nonzero(free[network.ends])
    nodes = network.ends[roads, sides]
    lengths = network.lengths[roads]
    from_start = sides == 0
    last = np.minimum(_TIP, lengths / 4)
    back = np.minimum(_TIP + _LOOK_BACK, lengths)
    origins = _places(network, roads, np.where(from_start, back, lengths - back))
    tips = _places(network, roads, np.where(from_start, last, lengths - last))
    directions = tips - origins
    directions /= np.maximum(np.hypot(directions[:, 0], directions[:, 1]), 1e-9)[:, None]
    _, part = components(len(network.nodes), network.ends)
    of_road = part[network.ends[:, 0]]
    totals = np.bincount(of_road, network.lengths, minlength=1).astype(np.float64)
    return Ends(nodes, roads, network.nodes[nodes], directions, totals[part[nodes]])


def _places(network: Network, roads: NDArray[np.int64], along: NDArray[np.float64]) -> Line:
    """Places on roads at distances from their starts, (n, 2)."""
    used, number = np.unique(roads, return_inverse=True)
    shapes = np.array([shapely.linestrings(network.lines[road]) for road in used], object)
    points = shapely.line_interpolate_point(shapes[number], along)
    places: Line = shapely.get_coordinates(points)
    return places


def gap_bridges(network: Network, ends: Ends, rules: JoinRules, evidence: Evidence) -> Bridges:
    """Straight bridges between ends that point at each other."""
    pairs = cKDTree(ends.places).query_pairs(rules.bridge, output_type="ndarray").astype(np.int64)
    first, second = pairs[:, 0], pairs[:, 1]
    step = ends.places[second] - ends.places[first]
    ahead = _ahead(step, ends.directions[first])
    ahead = np.minimum(ahead, _ahead(-step, ends.directions[second]))
    distance = np.hypot(step[:, 0], step[:, 1])
    same = ends.roads[first] == ends.roads[second]
    allowed = _aligned(distance, ahead, rules.degrees)
    allowed &= ~same | (network.lengths[ends.roads[first]] > _DETOUR * distance)
    kept = np.flatnonzero(allowed)
    none = np.full(len(kept), -1, np.int64)
    bridges = Bridges(
        first[kept], second[kept], none, np.zeros(len(kept)), _straight(len(kept)), ahead[kept]
    )
    places = ends.places[first[kept]], ends.places[second[kept]]
    return _proven(bridges, places, rules.gap, rules.probability, evidence)


def corner_bridges(network: Network, ends: Ends, rules: JoinRules) -> Bridges:
    """Bridges round hidden corners: the directions of two ends meet at a near place ahead."""
    pairs = cKDTree(ends.places).query_pairs(rules.gap, output_type="ndarray").astype(np.int64)
    first, second = pairs[:, 0], pairs[:, 1]
    one, other = ends.directions[first], ends.directions[second]
    step = ends.places[second] - ends.places[first]
    turn = _cross(one, other)
    bends = np.abs(turn) >= np.sin(np.radians(rules.degrees))
    turn = np.where(bends, turn, 1.0)
    legs = np.stack([_cross(step, other) / turn, _cross(step, one) / turn], axis=1)
    way = legs.sum(axis=1)
    lengths = network.lengths[ends.roads[pairs]]
    allowed = bends & (legs > 0).all(axis=1) & (way <= rules.gap)
    allowed &= (ends.parts[pairs] >= rules.least).all(axis=1)
    allowed &= (ends.roads[first] != ends.roads[second]) | (lengths[:, 0] > _DETOUR * way)
    via = ends.places[first] + legs[:, :1] * one
    none = np.full(len(pairs), -1, np.int64)
    # Twice its length: a straight bridge or a T-junction as near is more likely.
    corners = Bridges(first, second, none, np.zeros(len(pairs)), via, 2 * way)
    return corners.chosen(np.flatnonzero(allowed))


def tee_bridges(network: Network, ends: Ends, rules: JoinRules, evidence: Evidence) -> Bridges:
    """Bridges from ends to roads ahead of them."""
    lengths = network.lengths
    counts = np.ceil(lengths / _SPACING).astype(np.int64) + 1
    roads = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(roads)) - np.repeat(np.cumsum(counts) - counts, counts)
    along = number / np.maximum(counts[roads] - 1, 1) * lengths[roads]
    # A place close to a junction is the junction; one close to a dead end is no road to meet.
    to_end = lengths[roads] - along
    dead = network.degrees[network.ends[roads]] == 1
    usable = ~((along < _LOOK_BACK) & dead[:, 0] | (to_end < _LOOK_BACK) & dead[:, 1])
    at_start, at_end = along < SAME_PLACE, to_end < SAME_PLACE
    along = np.where(at_start, 0.0, np.where(at_end, lengths[roads], along))
    roads, along = roads[usable], along[usable]
    places = _places(network, roads, along)

    able = np.flatnonzero(ends.parts >= rules.least)
    near = cKDTree(ends.places[able]).sparse_distance_matrix(
        cKDTree(places), rules.bridge, output_type="ndarray"
    )
    end, spot = able[near["i"]], near["j"].astype(np.int64)
    step = places[spot] - ends.places[end]
    ahead = _ahead(step, ends.directions[end])
    distance = np.hypot(step[:, 0], step[:, 1])
    own = ends.roads[end]
    root = network.ends[own].sum(axis=1) - ends.nodes[end]
    target, at = roads[spot], along[spot]
    # The way from the end to the place that exists already, where it is one road or two.
    way = np.full(len(end), np.inf)
    from_start = network.ends[own, 0] == ends.nodes[end]
    way = np.where(target == own, np.where(from_start, at, lengths[own] - at), way)
    for side, leg in ((0, at), (1, lengths[target] - at)):
        meets = (target != own) & (network.ends[target, side] == root)
        way = np.where(meets, np.minimum(way, lengths[own] + leg), way)
    allowed = _aligned(distance, ahead, rules.degrees) & (way > _DETOUR * distance)
    kept = np.flatnonzero(allowed)
    none = np.full(len(kept), -1, np.int64)
    bridges = Bridges(end[kept], none, target[kept], at[kept], _straight(len(kept)), ahead[kept])
    ways = ends.places[end[kept]], places[spot[kept]]
    return _proven(bridges, ways, rules.tee, rules.probability, evidence)


def _straight(count: int) -> Line:
    return np.full((count, 2), np.nan)


def _cross(first: Line, second: Line) -> NDArray[np.float64]:
    product: NDArray[np.float64] = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    return product


def _ahead(steps: Line, directions: Line) -> NDArray[np.float64]:
    """Cosine between steps and directions, both (n, 2)."""
    length = np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-9)
    cosine: NDArray[np.float64] = (steps * directions).sum(axis=1) / length
    return cosine


def _aligned(
    distance: NDArray[np.float64], ahead: NDArray[np.float64], degrees: float
) -> NDArray[np.bool_]:
    sideways = distance * np.sqrt(np.clip(1 - ahead**2, 0, 1))
    aligned: NDArray[np.bool_] = (ahead >= np.cos(np.radians(degrees))) | (
        (ahead > 0) & (sideways <= _SIDEWAYS)
    )
    return aligned


def _proven(
    bridges: Bridges,
    places: tuple[Line, Line],
    reach: float,
    probability: float,
    evidence: Evidence,
) -> Bridges:
    """The bridges that are short enough or have evidence; ``cost`` comes in as the cosine."""
    step = places[1] - places[0]
    distance = np.hypot(step[:, 0], step[:, 1])
    proof = evidence(*places)
    kept = np.flatnonzero((distance <= reach) | (proof >= probability))
    # A bridge that bends costs up to five times its length, one without evidence three times one
    # that is road all along.
    cost = (distance * (5 - 4 * bridges.cost) * (1.5 - proof))[kept]
    return replace(bridges.chosen(kept), cost=cost)
