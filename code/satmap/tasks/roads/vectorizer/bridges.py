"""Find bridges that could join free ends: end to end, around a hidden corner, end to road.

A short gap between aligned ends needs no evidence (selim_sef); stretches of road inside it do not
count towards its length. A longer gap is only bridged if the mean probability along the bridge
supports it (cannab; SAM-Road++). A free end may be extended to a near road ahead of it (ikibardin).
All lengths and places are in metres.
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

# Length of road that determines the direction of a free end, and of the tip that is ignored because
# occlusion frays it. The long look-back is more accurate, unless the road has just turned a corner.
_LOOK_BACK = 10.0
_SHORT_LOOK_BACK = 4.0
_TIP = 2.0
# Spacing of the places along roads that a free end may be extended to.
_SPACING = 1.0
# A bridge must replace an existing way at least this many times its own length.
_DETOUR = 3.0
# Number of free ends that are processed together. On noisy maps each has hundreds of places within
# reach, which must not all be in memory at once.
_BLOCK = 1024
# Places on one road closer than this become one junction.
SAME_PLACE = 3.0
# The junction map shows the start of a hidden arm this far from the centre line of the road it
# meets.
_HIDDEN_ARM = 4.0
# An end may be joined at any forward angle if the target is at most this far to its side: over a
# few metres angles mean little.
_SIDEWAYS = 2.0


# Road numbers, distances along the roads, and places, one each.
_Spots = tuple[Ints, NDArray[np.float64], Line]


@dataclass(frozen=True)
class JoinRules:
    """Limits for joining ends; lengths in metres.

    Attributes:
        gap: longest open ground between two ends that needs no evidence.
        tee: longest open ground between an end and a road that needs no evidence.
        edge: longest distance from an end to the image's edge that needs no evidence.
        bridge: longest bridge of all three kinds with evidence.
        degrees: largest angle between a road's direction and the bridge.
        probability: mean probability along a bridge that counts as evidence, 0..1.
        least: length of road that a connected component needs for bridges around a corner, to a
            road or to the border; the direction of a mere blob is arbitrary.
        road: evidence of the road map.
        junctions: evidence of the junction map if it is informative. A free end makes no T-junction
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
        nodes: node of each end, (n,).
        roads: road that ends there, (n,).
        places: coordinates, (n, 2).
        directions: unit vectors outwards, (n, 2).
        turned: unit vectors outwards, measured over the last few metres only, (n, 2).
        parts: length of road in the connected component, (n,).
    """

    nodes: Ints
    roads: Ints
    places: Line
    directions: Line
    turned: Line
    parts: NDArray[np.float64]


@dataclass(frozen=True)
class Bridges:
    """Bridges from free end ``end`` to free end ``other``, or to a place on a road.

    ``other`` is -1 for a bridge to a road, ``road`` is -1 for a bridge to an end. ``along`` is the
    distance along ``road``. A bridge bends at ``via``, (n, 2), NaN for a straight one.
    """

    end: Ints
    other: Ints
    road: Ints
    along: NDArray[np.float64]
    via: Line
    cost: NDArray[np.float64]

    def chosen(self, rows: NDArray[np.intp]) -> "Bridges":
        """Select bridges by number."""
        return Bridges(*(getattr(self, part.name)[rows] for part in fields(self)))

    @classmethod
    def together(cls, parts: list["Bridges"]) -> "Bridges":
        """Concatenate several sets of bridges."""
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(cls)
            )
        )


def free_ends(network: Network, size: Line) -> Ends:
    """Return the network's dead ends, except where a road leaves the image.

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

    def direction(look_back: float) -> Line:
        back = np.minimum(_TIP + look_back, lengths)
        steps = tips - network.places(roads, np.where(from_start, back, lengths - back))
        unit: Line = steps / np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-9)[:, None]
        return unit

    part = components(len(network.nodes), network.ends)
    totals = np.bincount(part[network.ends[:, 0]], network.lengths, minlength=1).astype(np.float64)
    return Ends(
        nodes,
        roads,
        network.nodes[nodes],
        direction(_LOOK_BACK),
        direction(_SHORT_LOOK_BACK),
        totals[part[nodes]],
    )


def gap_bridges(network: Network, ends: Ends, rules: JoinRules) -> Bridges:
    """Return straight bridges between ends that point at each other."""
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
    """Return bridges around hidden corners, where the directions of two ends intersect ahead."""
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
    # Twice its length, because a straight bridge or a T-junction at the same distance is more
    # likely.
    corners = Bridges(first, second, none, np.zeros(len(pairs)), via, 2 * way)
    return corners.chosen(np.flatnonzero(allowed))


def tee_bridges(network: Network, ends: Ends, rules: JoinRules) -> Bridges:
    """Return the cheapest bridge from each end to a road ahead of it.

    One bridge per end is enough: a road can be met any number of times, so the cheapest bridge is
    never taken by another end.
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
    # Length of the existing way from the end to the place, over one road or two.
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
    # An end that points straight at a road is more likely to meet it than one that would have to
    # turn.
    free = _aligned(distance, ahead, rules.degrees / 2)[kept]
    if rules.junctions is not None:
        # Look on the end's side of the road that is met, beyond the junctions within that road's
        # width.
        back = np.minimum(_HIDDEN_ARM / np.maximum(distance[kept], 1e-9), 1)[:, None]
        free &= rules.junctions.shows_junction(places[kept] - back * step[kept])
    reach = np.where(free, rules.tee, -1.0)
    proven = _proven(bridges, ends.places[end[kept]], places[kept], reach, rules)
    order = np.lexsort((proven.along, proven.road, proven.cost, proven.end))
    first = np.diff(proven.end[order], prepend=-1) > 0
    return proven.chosen(order[first])


def _places_to_meet(network: Network) -> _Spots:
    """Return places along all roads that an end may be extended to."""
    lengths = network.lengths
    counts = np.ceil(lengths / _SPACING).astype(np.int64) + 1
    roads = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(roads)) - np.repeat(np.cumsum(counts) - counts, counts)
    along = number / np.maximum(counts[roads] - 1, 1) * lengths[roads]
    # Places close to a junction snap to it. Places close to a dead end cannot be met.
    to_end = lengths[roads] - along
    dead = network.degrees[network.ends[roads]] == 1
    usable = ~((along < _LOOK_BACK) & dead[:, 0] | (to_end < _LOOK_BACK) & dead[:, 1])
    at_start, at_end = along < SAME_PLACE, to_end < SAME_PLACE
    along = np.where(at_start, 0.0, np.where(at_end, lengths[roads], along))
    roads, along = roads[usable], along[usable]
    return roads, along, network.places(roads, along)


def _near_pairs(places: Line, reach: float) -> Iterator[Ints]:
    """Yield pairs of places within reach, (k, 2), lower number first, in blocks."""
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
    """Return the cosine between steps, (n, 2), and the better direction of the ends they leave."""
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
    """Keep the bridges that have evidence, or at most ``reach`` of open ground.

    On input, ``cost`` holds the cosine between bridge and road; on output, the cost.
    """
    step = stops - starts
    distance = np.hypot(step[:, 0], step[:, 1])
    proof, unproven = rules.road.between(starts, stops)
    kept = np.flatnonzero((unproven <= reach) | (proof >= rules.probability))
    # A bridge that bends costs up to five times its length. A bridge without evidence costs three
    # times as much as one that is road all along.
    cost = (distance * (5 - 4 * bridges.cost) * (1.5 - proof))[kept]
    return replace(bridges.chosen(kept), cost=cost)
