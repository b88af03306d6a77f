"""Join free ends by the cheapest bridges, and extend them to the image's border.

Occlusions (trees, shadows, bridges) leave gaps in roads, and an interrupted route costs far more
APLS than one missing piece. A bridge joins two ends, joins two ends around a hidden corner, or
leads from an end to a road.

A short gap between aligned ends needs no evidence (selim_sef); stretches of road inside it do not
count towards its length. A longer gap is only bridged if the mean probability along the bridge
supports it (cannab; SAM-Road++). A free end may be extended to a near road ahead of it (ikibardin).
All lengths and places are in metres.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from satmap.tasks.roads.settings import RoadSettings
from satmap.tasks.roads.vectorizer.border import on_border
from satmap.tasks.roads.vectorizer.evidence import Evidence
from satmap.tasks.roads.vectorizer.lines import cut_lines
from satmap.tasks.roads.vectorizer.network import (
    Bools,
    Floats,
    Ints,
    Network,
    cross,
    members,
    norm,
    unit,
)

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
_SAME_PLACE = 3.0
# The junction map shows the start of a hidden arm this far from the centre line of the road it
# meets.
_HIDDEN_ARM = 4.0
# An end may be joined at any forward angle if the target is at most this far to its side: over a
# few metres angles mean little.
_SIDEWAYS = 2.0

# A bridge from free end ``end`` to free end ``other`` (-1 for none), or to the place at distance
# ``along`` on ``road`` (-1 for none). It bends at ``via``, NaN if it is straight.
_BRIDGE = np.dtype("i8, i8, i8, f8, 2f8, f8")
_BRIDGE.names = ("end", "other", "road", "along", "via", "cost")
_Bridges = NDArray[np.void]


class JoinRules(NamedTuple):
    """Limits for joining ends.

    Attributes:
        settings: limits of reach, angle and evidence. A connected component with less road than
            ``component_m`` gets no bridge around a corner, to a road or to the border: the
            direction of a mere blob is arbitrary.
        road: evidence of the road map.
        junctions: evidence of the junction map if it is informative. A free end makes no T-junction
            where that map shows none.
    """

    settings: RoadSettings
    road: Evidence
    junctions: Evidence | None


class _Link(NamedTuple):
    """A bridge to build between two nodes, through the places ``via``."""

    start: int
    end: int
    via: tuple[Floats, ...] = ()


@dataclass(frozen=True)
class _Ends:
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
    places: Floats
    directions: Floats
    turned: Floats
    parts: Floats


def join_ends(network: Network, rules: JoinRules) -> Network:
    """Close gaps and T-junctions, cheapest first; each free end is used once."""
    ends = _free_ends(network, rules.road.size)
    if not len(ends.nodes):
        return network
    bridges = np.concatenate(
        [
            *_gap_bridges(network, ends, rules),
            *_corner_bridges(network, ends, rules),
            *_tee_bridges(network, ends, rules),
        ]
    )
    used: set[int] = set()
    links: list[_Link] = []
    hits: list[tuple[int, int, float]] = []
    order = [bridges[name] for name in ("along", "road", "other", "end", "cost")]
    for source, target, road, along, via, _ in bridges[np.lexsort(order)].tolist():
        if source in used or target in used:
            continue
        used.add(source)
        node = int(ends.nodes[source])
        if target >= 0:
            used.add(target)
            bend = () if np.isnan(via[0]) else (np.asarray(via),)
            links.append(_Link(node, int(ends.nodes[target]), bend))
        else:
            hits.append((node, road, along))
    return _build(network, links, hits) if links or hits else network


def extend_to_border(network: Network, rules: JoinRules) -> Network:
    """Extend free ends to the border that they point at."""
    settings, size = rules.settings, rules.road.size
    ends = _free_ends(network, size)
    direction = ends.directions
    limit = np.where(direction > 0, size, 0.0)
    travel = np.full(limit.shape, np.inf)
    np.divide(limit - ends.places, direction, out=travel, where=direction != 0)
    axis = travel.argmin(axis=1)
    way = travel.min(axis=1, initial=np.inf)
    reached = np.flatnonzero((ends.parts >= settings.component_m) & (way <= settings.bridge_m))
    stops = ends.places[reached] + way[reached, None] * direction[reached]
    proof, _ = rules.road.between(ends.places[reached], stops)
    shown = (proof >= settings.bridge_probability) | (way[reached] <= settings.edge_m)
    nodes, lines = network.nodes.copy(), network.lines
    for end, place in zip(reached[shown].tolist(), stops[shown].clip(0, size), strict=True):
        # Sums are rounded, but the place must be exactly on the border.
        place[axis[end]] = limit[end, axis[end]]
        node, road = ends.nodes[end], ends.roads[end]
        nodes[node] = place
        at_start = network.ends[road, 0] == node
        parts = [place[None], lines[road]] if at_start else [lines[road], place[None]]
        lines[road] = np.concatenate(parts)
    return Network.of_lines(nodes, network.ends, lines)


def _free_ends(network: Network, size: Floats) -> _Ends:
    """Return the network's dead ends, except where a road leaves the image."""
    free = (network.degrees == 1) & ~on_border(network.nodes, size)
    roads, sides = np.nonzero(free[network.ends])
    nodes = network.ends[roads, sides]
    lengths = network.lengths[roads]

    def inside(distance: Floats) -> Floats:
        return network.places(roads, np.where(sides == 0, distance, lengths - distance))

    tips = inside(np.minimum(_TIP, lengths / 4))
    directions, turned = (
        unit(tips - inside(np.minimum(_TIP + look_back, lengths)))
        for look_back in (_LOOK_BACK, _SHORT_LOOK_BACK)
    )
    totals = np.bincount(network.components, network.lengths).astype(np.float64)
    parts = totals[network.components[roads]]
    return _Ends(nodes, roads, network.nodes[nodes], directions, turned, parts)


def _bridges(end: Ints, cost: Floats, **others: Any) -> _Bridges:
    bridges = np.empty(len(end), _BRIDGE)
    columns = {"other": -1, "road": -1, "along": 0, "via": np.nan, **others}
    for name, values in {"end": end, "cost": cost, **columns}.items():
        bridges[name] = values
    return bridges


def _gap_bridges(network: Network, ends: _Ends, rules: JoinRules) -> Iterator[_Bridges]:
    """Yield straight bridges between ends that point at each other."""
    settings = rules.settings
    for first, second in _pairs(ends.places, settings.bridge_m):
        step = ends.places[second] - ends.places[first]
        ahead = np.minimum(_ahead(step, ends, first), _ahead(-step, ends, second))
        allowed = _aligned(norm(step), ahead, settings.bridge_degrees)
        allowed &= _no_detour(network, ends, first, second, norm(step))
        first, second = first[allowed], second[allowed]
        bridges = _bridges(first, ahead[allowed], other=second)
        yield _proven(bridges, ends.places[first], ends.places[second], settings.gap_m, rules)


def _corner_bridges(network: Network, ends: _Ends, rules: JoinRules) -> Iterator[_Bridges]:
    """Yield bridges around hidden corners, where the directions of two ends intersect ahead."""
    settings = rules.settings
    for first, second in _pairs(ends.places, settings.gap_m):
        one, other = ends.directions[first], ends.directions[second]
        step = ends.places[second] - ends.places[first]
        turn = cross(one, other)
        bends = np.abs(turn) >= np.sin(np.radians(settings.bridge_degrees))
        turn = np.where(bends, turn, 1.0)
        legs = np.stack([cross(step, other) / turn, cross(step, one) / turn], axis=1)
        way = legs.sum(axis=1)
        allowed = bends & (legs > 0).all(axis=1) & (way <= settings.gap_m)
        allowed &= np.minimum(ends.parts[first], ends.parts[second]) >= settings.component_m
        allowed &= _no_detour(network, ends, first, second, way)
        via = ends.places[first] + legs[:, :1] * one
        # Twice its length, because a straight bridge or a T-junction at the same distance is more
        # likely.
        yield _bridges(first, 2 * way, other=second, via=via)[allowed]


def _tee_bridges(network: Network, ends: _Ends, rules: JoinRules) -> Iterator[_Bridges]:
    """Yield the cheapest bridge from each end to a road ahead of it.

    One bridge per end is enough: several bridges can meet the same road, so the cheapest bridge is
    never taken by another end.
    """
    settings = rules.settings
    all_roads, all_along = _places_to_meet(network)
    all_places = network.places(all_roads, all_along)
    able = np.flatnonzero(ends.parts >= settings.component_m)
    for end, spot in _near(ends.places[able], all_places, settings.bridge_m):
        end, roads, along, places = able[end], all_roads[spot], all_along[spot], all_places[spot]
        step = places - ends.places[end]
        ahead, distance = _ahead(step, ends, end), norm(step)
        lengths, own = network.lengths, ends.roads[end]
        root = network.ends[own].sum(axis=1) - ends.nodes[end]
        # Length of the existing way from the end to the place, over one road or two.
        from_start = network.ends[own, 0] == ends.nodes[end]
        way = np.where(from_start, along, lengths[own] - along)
        way = np.where(roads == own, way, np.inf)
        for side, leg in ((0, along), (1, lengths[roads] - along)):
            meets = (roads != own) & (network.ends[roads, side] == root)
            way = np.where(meets, np.minimum(way, lengths[own] + leg), way)
        kept = _aligned(distance, ahead, settings.bridge_degrees) & (way > _DETOUR * distance)
        end, roads, along, places = end[kept], roads[kept], along[kept], places[kept]
        step, ahead, distance = step[kept], ahead[kept], distance[kept]
        # An end that points straight at a road is more likely to meet it than one that would have
        # to turn.
        free = _aligned(distance, ahead, settings.bridge_degrees / 2)
        if rules.junctions is not None:
            # Look a few metres before the road that is met: nearer to its centre line, the map may
            # show other junctions of that road.
            back = np.minimum(_HIDDEN_ARM / np.maximum(distance, 1e-9), 1)[:, None]
            free &= rules.junctions.shows_junction(places - back * step)
        reach = np.where(free, settings.tee_m, -1.0)
        bridges = _bridges(end, ahead, road=roads, along=along)
        bridges = _proven(bridges, ends.places[end], places, reach, rules)
        bridges = bridges[np.lexsort([bridges[name] for name in ("along", "road", "cost", "end")])]
        yield bridges[np.diff(bridges["end"], prepend=-1) > 0]


def _places_to_meet(network: Network) -> tuple[Ints, Floats]:
    """Return roads, and distances along them, of places that an end may be extended to."""
    counts = np.ceil(network.lengths / _SPACING).astype(np.int64) + 1
    roads, number = members(counts)
    lengths = network.lengths[roads]
    along = number / np.maximum(counts[roads] - 1, 1) * lengths
    # Places close to a junction snap to it. Places close to a dead end cannot be met.
    to_end = lengths - along
    dead = network.degrees[network.ends[roads]] == 1
    usable = ~((along < _LOOK_BACK) & dead[:, 0] | (to_end < _LOOK_BACK) & dead[:, 1])
    at_start, at_end = along < _SAME_PLACE, to_end < _SAME_PLACE
    along = np.where(at_start, 0.0, np.where(at_end, lengths, along))
    return roads[usable], along[usable]


def _near(places: Floats, others: Floats, reach: float) -> Iterator[tuple[Ints, Ints]]:
    """Yield the numbers of places, and of other places within reach of them, in blocks."""
    tree = cKDTree(others)
    for first in range(0, max(len(places), 1), _BLOCK):
        block = cKDTree(places[first : first + _BLOCK])
        near = block.sparse_distance_matrix(tree, reach, output_type="ndarray")
        yield near["i"].astype(np.int64) + first, near["j"].astype(np.int64)


def _pairs(places: Floats, reach: float) -> Iterator[tuple[Ints, Ints]]:
    """Yield the numbers of two places within reach, the lower number first, in blocks."""
    for first, second in _near(places, places, reach):
        once = first < second
        yield first[once], second[once]


def _ahead(steps: Floats, ends: _Ends, number: Ints) -> Floats:
    """Return the cosine of the angle between each step, (n, 2), and the end where it starts.

    Each end has two directions; the one closer to the step is used.
    """
    far, near = (
        (steps * directions[number]).sum(axis=1) for directions in (ends.directions, ends.turned)
    )
    return np.asarray(np.maximum(far, near) / np.maximum(norm(steps), 1e-9))


def _aligned(distance: Floats, ahead: Floats, degrees: float) -> Bools:
    sideways = distance * np.sqrt(np.clip(1 - ahead**2, 0, 1))
    straight = ahead >= np.cos(np.radians(degrees))
    return np.asarray(straight | ((ahead > 0) & (sideways <= _SIDEWAYS)))


def _no_detour(network: Network, ends: _Ends, first: Ints, second: Ints, way: Floats) -> Bools:
    """Return whether two ends are on different roads, or on one much longer than ``way``."""
    roads = ends.roads[first]
    different = roads != ends.roads[second]
    return np.asarray(different | (network.lengths[roads] > _DETOUR * way))


def _proven(
    bridges: _Bridges, starts: Floats, stops: Floats, reach: float | Floats, rules: JoinRules
) -> _Bridges:
    """Keep the bridges that have evidence, or at most ``reach`` of open ground.

    On input, ``cost`` holds the cosine between bridge and road; on output, the cost.
    """
    proof, unproven = rules.road.between(starts, stops)
    # A bridge that bends costs up to five times its length. A bridge without evidence costs three
    # times as much as one that is road all along.
    bridges["cost"] = norm(stops - starts) * (5 - 4 * bridges["cost"]) * (1.5 - proof)
    return bridges[(unproven <= reach) | (proof >= rules.settings.bridge_probability)]


def _crossed(links: list[_Link], nodes: list[list[float]]) -> list[_Link]:
    """Lead links that cross each other through a common node, which is appended to ``nodes``.

    A hidden crossing leaves four free ends. Each link crosses at most one other.
    """
    straight = [number for number, link in enumerate(links) if not link.via]
    ends = np.array([(links[number].start, links[number].end) for number in straight])
    lines = shapely.linestrings(np.array(nodes)[ends.reshape(-1, 2).astype(np.int64)])
    pairs = shapely.STRtree(lines).query(lines, predicate="crosses").T
    used: set[int] = set()
    parts: list[_Link] = []
    for one, other in pairs.tolist():
        if one < other and not used & {one, other}:
            used |= {one, other}
            place = lines[one].intersection(lines[other])
            for number in (one, other):
                link = links[straight[number]]
                parts += [_Link(link.start, len(nodes)), _Link(len(nodes), link.end)]
            nodes.append([place.x, place.y])
    gone = {straight[number] for number in used}
    return [link for number, link in enumerate(links) if number not in gone] + parts


def _build(network: Network, links: list[_Link], hits: list[tuple[int, int, float]]) -> Network:
    """Add links between ends, and ``hits``: node of an end, road, and distance along the road."""
    nodes, ends, lines = network.nodes.tolist(), network.ends.tolist(), network.lines
    by_road: dict[int, list[tuple[float, int]]] = {}
    for node, road, along in hits:
        by_road.setdefault(road, []).append((along, node))
    for road, sources in sorted(by_road.items()):
        (start, end), length = network.ends[road].tolist(), float(network.lengths[road])
        first = len(nodes)
        cuts: list[float] = []
        for along, source in sorted(sources):
            if along <= 0 or along >= length:
                links.append(_Link(source, start if along <= 0 else end))
                continue
            if not cuts or along - cuts[-1] >= _SAME_PLACE:
                cuts.append(along)
            links.append(_Link(source, first + len(cuts) - 1))
        lines[road], *pieces = cut_lines(lines[road], np.array(cuts))
        lines += pieces
        nodes += [piece[0].tolist() for piece in pieces]
        ends[road], *more = map(list, pairwise([start, *range(first, len(nodes)), end]))
        ends += more
    links = _crossed(links, nodes)
    place = np.array(nodes)
    lines.extend(np.stack([place[link.start], *link.via, place[link.end]]) for link in links)
    ends.extend([link.start, link.end] for link in links)
    return Network.of_lines(place, np.array(ends, np.int64), lines).dissolve()
