"""The road network of a made city: its streets, bent by the warp and cut where they meet.

Roads on different levels (a motorway under the streets that bridge it) cross without meeting.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from shapely import LineString, Point, STRtree, get_coordinates

from synthcity.plan import Plan
from synthcity.streets import GROUND, SUNK, Street, district_streets, main_streets

#: Metres a second in a mile an hour.
MPS_PER_MPH = 0.44704

# SpaceNet 5's rule. Class -> mph with at most two lanes, with three or more.
_SPEEDS_MPH = {
    "motorway": (55.0, 65.0),
    "motorway_link": (55.0, 65.0),
    "primary": (45.0, 55.0),
    "secondary": (35.0, 45.0),
    "tertiary": (30.0, 35.0),
    "residential": (25.0, 30.0),
    "unclassified": (20.0, 20.0),
    "service": (20.0, 20.0),
    "track": (20.0, 20.0),
}
_UNPAVED_FACTOR = 0.75

# Streets that end or cross this near to each other meet in one node, metres.
_SNAP_M = 1.5

# Edges are simplified by this before anybody sees them: drawing and labels share the result.
_SIMPLIFY_M = 0.08


@dataclass(frozen=True)
class Edge:
    """A street between two nodes, and the truth of it.

    Attributes:
        line: the centre line that is painted and labelled, metres.
        street: the street it is cut from, with that one's line still in the plan.
        number: index of the street, the same for all its edges.
        bridge: it crosses above a motorway.
        loose: whether its start and its end are dead ends.
    """

    line: LineString
    street: Street
    number: int
    bridge: bool
    loose: tuple[bool, bool]

    @property
    def speed_mph(self) -> float:
        """Speed by class, lanes and surface, miles an hour."""
        slow, fast = _SPEEDS_MPH[self.street.highway]
        speed = fast if self.street.lanes >= 3 else slow
        return speed * (1.0 if self.street.paved else _UNPAVED_FACTOR)


def make_edges(plan: Plan, rng: np.random.Generator) -> list[Edge]:
    """All roads of the city, cut at their crossings, in city metres."""
    streets = main_streets(plan)
    for cell in plan.cells:
        streets += district_streets(cell, rng)
    return _cut(streets, [LineString(plan.warp(street.line)) for street in streets], rng)


class _Nodes:
    """Places where streets meet; near ones are the same."""

    def __init__(self) -> None:
        self.places: list[tuple[float, float]] = []

    def at(self, x: float, y: float) -> int:
        """Index of the node at a place, a new one if none is near."""
        if self.places:
            gap = np.hypot(*(np.array(self.places) - (x, y)).T)
            nearest = int(np.argmin(gap))
            if gap[nearest] < _SNAP_M:
                return nearest
        self.places.append((x, y))
        return len(self.places) - 1


def _cut(streets: list[Street], lines: list[LineString], rng: np.random.Generator) -> list[Edge]:
    """Cut every street, whose bent line is at the same place of ``lines``, at its nodes."""
    nodes = _Nodes()
    on_street = [[nodes.at(*line.coords[0]), nodes.at(*line.coords[-1])] for line in lines]
    pairs = STRtree(lines).query(lines, predicate="dwithin", distance=_SNAP_M)
    for i, j in sorted((int(i), int(j)) for i, j in pairs.T if i < j):
        if streets[i].levels & streets[j].levels:
            for x, y in _meetings(lines[i], lines[j]):
                node = nodes.at(x, y)
                on_street[i].append(node)
                on_street[j].append(node)
    drafts = []
    straight: set[frozenset[int]] = set()
    for number, (street, line) in enumerate(zip(streets, lines, strict=True)):
        order = sorted((line.project(Point(nodes.places[n])), n) for n in set(on_street[number]))
        for (low, a), (high, b) in pairwise(order):
            piece = [p for p in line.coords if low + 1 < line.project(Point(p)) < high - 1]
            edge = LineString([nodes.places[a], *piece, nodes.places[b]]).simplify(_SIMPLIFY_M)
            spared = street.thinned and edge.length > 30 and rng.random() < 0.08
            # Two streets that run side by side within the snap are one.
            duplicate = len(edge.coords) == 2 and frozenset((a, b)) in straight
            if len(edge.coords) == 2:
                straight.add(frozenset((a, b)))
            if not spared and not duplicate:
                drafts.append((edge, number, a, b))
    return _finish(drafts, streets, len(nodes.places))


def _meetings(a: LineString, b: LineString) -> list[tuple[float, float]]:
    """Where two lines cross or one ends on the other."""
    places = [(float(x), float(y)) for x, y in get_coordinates(a.intersection(b))]
    for one, other in ((a, b), (b, a)):
        for end in (one.coords[0], one.coords[-1]):
            if other.distance(Point(end)) < _SNAP_M:
                places += [(float(end[0]), float(end[1]))]
    return places


def _finish(
    drafts: list[tuple[LineString, int, int, int]], streets: list[Street], nodes: int
) -> list[Edge]:
    """Edges with their bridges and dead ends told."""
    degree = np.bincount([n for draft in drafts for n in draft[2:]], minlength=nodes)
    sunk = [draft[0] for draft in drafts if streets[draft[1]].levels == {SUNK}]
    tree = STRtree(sunk)
    return [
        Edge(
            line=line,
            street=streets[number],
            number=number,
            bridge=(
                streets[number].levels == {GROUND}
                and len(tree.query(line, predicate="crosses")) > 0
            ),
            loose=(bool(degree[a] == 1), bool(degree[b] == 1)),
        )
        for line, number, a, b in drafts
    ]
