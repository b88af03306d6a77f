"""Bridges that could join free ends: end to end, round a hidden corner, end to road.

A short gap between aligned ends needs no evidence (selim_sef), islands of road in it not counted; a
longer one only counts where the mean probability along the bridge speaks for it (cannab;
SAM-Road++), and a free end may be led to a near road ahead of it (ikibardin). All lengths and
places are metres.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from satmap.tasks.roads.vectorizer.border import on_border
from satmap.tasks.roads.vectorizer.evidence import Evidence
from satmap.tasks.roads.vectorizer.junctions import cross
from satmap.tasks.roads.vectorizer.network import Ints, Line, Network, components

# Road that gives a free end's direction, and its tip, which does not: what hides the road frays it.
# The longer look is the truer one, unless the road has just turned a corner.
_LOOK_BACK = 10.0
_SHORT_LOOK = 4.0
_TIP = 2.0
# Between the places along roads to which a free end may be led.
_SPACING = 1.0
# A bridge must save a way round of at least this many times its own length.
_DETOUR = 3.0
# Free ends whose surroundings are looked at together: what lies within reach of each can be
# hundreds of places where planes are noise, and must not all be held at once.
_BLOCK = 1024
# Places on one road that are nearer than this are one junction.
SAME_PLACE = 3.0
# A junction plane shows the beginning of a hidden arm so far from the middle of the road it meets.
_HIDDEN_ARM = 4.0
# So far beside its direction an end may be joined whatever the angle, if forwards at all: over a
# few metres angles mean little.
_SIDEWAYS = 2.0


# Roads, distances along them and places, one each.
_Spots = tuple[Ints, NDArray[np.float64], Line]


@dataclass(frozen=True)
class JoinRules:
    """How far and how freely ends are joined; lengths in metres.

    Attributes:
        gap: open ground from end to end that needs no evidence.
        tee: open ground from an end to a road that needs no evidence.
        edge: reach from an end to the image's edge without evidence.
        bridge: reach of all three with evidence.
        degrees: greatest angle between a road's direction and the bridge.
        probability: mean probability along a bridge that counts as evidence, 0..1.
        least: road that a connected part must have to be led round a corner or to another road;
            the axis of a mere blob points anywhere.
        road: evidence of the road plane.
        junctions: evidence of the junction plane, if it tells anything: a free end is no T-junction
            where it shows none.
    """

    gap: float
    tee: float
    edge: float
    bridge: float
    degrees: float
    probability: float
    least: float
    road: Evidence
    junctions: Evidence | None


@dataclass(frozen=True)
class Ends:
    """Free ends.

    Attributes:
        nodes: node of each, (n,).
        roads: the road that ends there, (n,).
        places: where, (n, 2).
        directions: unit vectors outwards, (n, 2).
        turned: the same of the last few metres alone, (n, 2).
        parts: length of road in the connected part, (n,).
    """

    nodes: Ints
    roads: Ints
    places: Line
    directions: Line
    turned: Line
    parts: NDArray[np.float64]


@dataclass(frozen=True)
class Bridges:
    """Bridges from ``end`` to ``other``, both numbers of free ends, or to a place on a road.

    ``other`` is -1 for a bridge to a road, ``road`` is -1 for a bridge to an end. A bridge bends at
    ``via``, (n, 2), NaN for a straight one.
    """

    end: Ints
    other: Ints
    road: Ints
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
    tips = network.places(roads, np.where(from_start, last, lengths - last))

    def seen_from(look: float) -> Line:
        back = np.minimum(_TIP + look, lengths)
        steps = tips - network.places(roads, np.where(from_start, back, lengths - back))
        unit: Line = steps / np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-9)[:, None]
        return unit

    part = components(len(network.nodes), network.ends)
    totals = np.bincount(part[network.ends[:, 0]], network.lengths, minlength=1).astype(np.float64)
    return Ends(
        nodes,
        roads,
        network.nodes[nodes],
        seen_from(_LOOK_BACK),
        seen_from(_SHORT_LOOK),
        totals[part[nodes]],
    )


def gap_bridges(network: Network, ends: Ends, rules: JoinRules) -> Bridges:
    """Straight bridges between ends that point at each other."""
    return Bridges.together(
        [
            _gap_bridges(network, ends, pairs, rules)
            for pairs in _near_pairs(ends.places, rules.bridge)
        ]
    )


def _gap_bridges(network: Network, ends: Ends, pairs: Ints, rules: JoinRules) -> Bridges:
    first, second = pairs[:, 0], pairs[:, 1]
    step = ends.places[second] - ends.places[first]
    ahead = np.minimum(_ahead(step, ends, first), _ahead(-step, ends, second))
    distance = np.hypot(step[:, 0], step[:, 1])
    same = ends.roads[first] == ends.roads[second]
    allowed = _aligned(distance, ahead, rules.degrees)
    allowed &= ~same | (network.lengths[ends.roads[first]] > _DETOUR * distance)
    kept = np.flatnonzero(allowed)
    none = np.full(len(kept), -1, np.int64)
    bridges = Bridges(
        first[kept], second[kept], none, np.zeros(len(kept)), _straight(len(kept)), ahead[kept]
    )
    starts, stops = ends.places[first[kept]], ends.places[second[kept]]
    return _proven(bridges, starts, stops, np.full(len(kept), rules.gap), rules)


def corner_bridges(network: Network, ends: Ends, rules: JoinRules) -> Bridges:
    """Bridges round hidden corners: the directions of two ends meet at a near place ahead."""
    return Bridges.together(
        [
            _corner_bridges(network, ends, pairs, rules)
            for pairs in _near_pairs(ends.places, rules.gap)
        ]
    )


def _corner_bridges(network: Network, ends: Ends, pairs: Ints, rules: JoinRules) -> Bridges:
    first, second = pairs[:, 0], pairs[:, 1]
    one, other = ends.directions[first], ends.directions[second]
    step = ends.places[second] - ends.places[first]
    turn = cross(one, other)
    bends = np.abs(turn) >= np.sin(np.radians(rules.degrees))
    turn = np.where(bends, turn, 1.0)
    legs = np.stack([cross(step, other) / turn, cross(step, one) / turn], axis=1)
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


def tee_bridges(network: Network, ends: Ends, rules: JoinRules) -> Bridges:
    """The cheapest bridge from each end to a road ahead of it.

    A road can be met any number of times, so no end ever takes its second.
    """
    spots = _places_to_meet(network)
    tree = cKDTree(spots[2])
    able = np.flatnonzero(ends.parts >= rules.least)
    parts = [
        _tee_bridges(network, ends, able[first : first + _BLOCK], spots, tree, rules)
        for first in range(0, max(len(able), 1), _BLOCK)
    ]
    return Bridges.together(parts)


def _tee_bridges(
    network: Network, ends: Ends, able: Ints, spots: _Spots, tree: cKDTree, rules: JoinRules
) -> Bridges:
    near = cKDTree(ends.places[able]).sparse_distance_matrix(
        tree, rules.bridge, output_type="ndarray"
    )
    end = able[near["i"]]
    roads, along, places = (of_spot[near["j"]] for of_spot in spots)
    step = places - ends.places[end]
    ahead = _ahead(step, ends, end)
    distance = np.hypot(step[:, 0], step[:, 1])
    lengths = network.lengths
    own = ends.roads[end]
    root = network.ends[own].sum(axis=1) - ends.nodes[end]
    # The way from the end to the place that exists already, where it is one road or two.
    way = np.full(len(end), np.inf)
    from_start = network.ends[own, 0] == ends.nodes[end]
    way = np.where(roads == own, np.where(from_start, along, lengths[own] - along), way)
    for side, leg in ((0, along), (1, lengths[roads] - along)):
        meets = (roads != own) & (network.ends[roads, side] == root)
        way = np.where(meets, np.minimum(way, lengths[own] + leg), way)
    allowed = _aligned(distance, ahead, rules.degrees) & (way > _DETOUR * distance)
    kept = np.flatnonzero(allowed)
    none = np.full(len(kept), -1, np.int64)
    bridges = Bridges(end[kept], none, roads[kept], along[kept], _straight(len(kept)), ahead[kept])
    # An end that runs straight on into a road is likelier hidden than one that would have to turn.
    free = _aligned(distance, ahead, rules.degrees / 2)[kept]
    if rules.junctions is not None:
        # Beyond the road that is met, whose own junctions cover its width, towards the end.
        back = np.minimum(_HIDDEN_ARM / np.maximum(distance[kept], 1e-9), 1)[:, None]
        free &= rules.junctions.shows_junction(places[kept] - back * step[kept])
    reach = np.where(free, rules.tee, -1.0)
    proven = _proven(bridges, ends.places[end[kept]], places[kept], reach, rules)
    order = np.lexsort((proven.along, proven.road, proven.cost, proven.end))
    first = np.diff(proven.end[order], prepend=-1) > 0
    return proven.chosen(order[first])


def _places_to_meet(network: Network) -> _Spots:
    """Places along all roads to which an end may be led."""
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
    return roads, along, network.places(roads, along)


def _near_pairs(places: Line, reach: float) -> Iterator[Ints]:
    """Pairs of places within reach, (k, 2), the lower number first, in blocks."""
    tree = cKDTree(places)
    if len(places) <= _BLOCK:
        yield tree.query_pairs(reach, output_type="ndarray").astype(np.int64)
        return
    for first in range(0, len(places), _BLOCK):
        near = cKDTree(places[first : first + _BLOCK]).sparse_distance_matrix(
            tree, reach, output_type="ndarray"
        )
        pairs = np.stack([near["i"] + first, near["j"]], axis=1).astype(np.int64)
        yield pairs[pairs[:, 0] < pairs[:, 1]]


def _straight(count: int) -> Line:
    return np.full((count, 2), np.nan)


def _ahead(steps: Line, ends: Ends, number: Ints) -> NDArray[np.float64]:
    """Cosine between steps, (n, 2), and the better of the directions of the ends they leave."""
    length = np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-9)
    far, near = (
        (steps * directions[number]).sum(axis=1) for directions in (ends.directions, ends.turned)
    )
    cosine: NDArray[np.float64] = np.maximum(far, near) / length
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
    bridges: Bridges, starts: Line, stops: Line, reach: NDArray[np.float64], rules: JoinRules
) -> Bridges:
    """The bridges that have evidence, or no more open ground than ``reach``.

    ``cost`` comes in as the cosine.
    """
    step = stops - starts
    distance = np.hypot(step[:, 0], step[:, 1])
    proof, unproven = rules.road.between(starts, stops)
    kept = np.flatnonzero((unproven <= reach) | (proof >= rules.probability))
    # A bridge that bends costs up to five times its length, one without evidence three times one
    # that is road all along.
    cost = (distance * (5 - 4 * bridges.cost) * (1.5 - proof))[kept]
    return replace(bridges.chosen(kept), cost=cost)
