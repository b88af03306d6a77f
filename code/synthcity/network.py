"""Road network: streets drawn in the plan, bent by the warp and cut where they meet.

Roads on different levels, such as a motorway and the bridges over it, cross without meeting.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from shapely import LineString, Point, STRtree, get_coordinates

from synthcity.plan import (
    CORRIDOR_M,
    Box,
    Cell,
    District,
    FloatArray,
    MainLine,
    Plan,
    dense,
)

#: Distance from the middle of a motorway to the middle of one carriageway, metres.
CARRIAGEWAY_M = 9.2

#: Levels of the streets and of the motorway under them.
GROUND, SUNK = 0, 1

# Distances from the crossing at which ramps leave the motorway and reach the road above, metres.
_RAMP_START_M, _RAMP_END_M = 150.0, 33.0

_LANE_M = {"motorway": 3.7, "primary": 3.4, "secondary": 3.3, "tertiary": 3.2}

_SHOULDER_M = {"motorway": 4.6, "primary": 1.8, "secondary": 2.0, "tertiary": 2.2}

_PLAIN_WIDTH_M = {"motorway_link": 6.0, "residential": 8.4, "unclassified": 6.2,
                  "service": 4.6, "track": 3.2}  # fmt: skip

#: Metres per second in one mile per hour.
MPS_PER_MPH = 0.44704

# SpaceNet 5's rule: class -> mph with at most two lanes, mph with three or more.
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

# Ends and crossings closer than this share one node, metres.
_SNAP_M = 1.5

# Tolerance for simplifying edges, metres. Images and labels use the simplified edges.
_SIMPLIFY_M = 0.08


@dataclass(frozen=True)
class Street:
    """Street before it is cut at its crossings.

    Attributes:
        line: float64 (n, 2), metres in the plan.
        highway: OpenStreetMap's class.
        lanes: total number of lanes.
        width_m: width of the carriageway, metres.
        paved: true for asphalt, false for earth and gravel.
        levels: its levels; streets meet only if they share one.
        thinned: whether pieces may be left out to make dead ends and irregular blocks.
    """

    line: FloatArray
    highway: str
    lanes: int
    width_m: float
    paved: bool = True
    levels: frozenset[int] = frozenset({GROUND})
    thinned: bool = False


def main_streets(plan: Plan) -> list[Street]:
    """Make the main roads, the motorway's two carriageways and its ramps, in plan coordinates."""
    around = plan.bounds
    streets = [
        _street(dense((column.place, around.y0), (column.place, around.y1)), column)
        for column in plan.columns
        if around.x0 < column.place < around.x1
    ]
    for row in plan.rows:
        if not around.y0 < row.place < around.y1:
            continue
        if row.highway != "motorway":
            line = dense((around.x0, row.place), (around.x1, row.place))
            streets.append(_street(line, row))
            continue
        for side in (-CARRIAGEWAY_M, CARRIAGEWAY_M):
            line = dense((around.x0, row.place + side), (around.x1, row.place + side))
            streets.append(_street(line, row, frozenset({SUNK})))
        streets += _ramps(plan.interchange, row.place)
    return streets


def _street(
    line: FloatArray, main: MainLine, levels: frozenset[int] = frozenset({GROUND})
) -> Street:
    width = main.lanes * _LANE_M[main.highway] + _SHOULDER_M[main.highway]
    return Street(line, main.highway, main.lanes, width, levels=levels)


def _plain(line: FloatArray, highway: str, *, paved: bool = True, thinned: bool = False) -> Street:
    """Make a minor street: two lanes if residential, one otherwise."""
    lanes = 2 if highway in {"residential", "unclassified"} else 1
    return Street(line, highway, lanes, _PLAIN_WIDTH_M[highway], paved, thinned=thinned)


def _ramps(x: float, y: float) -> list[Street]:
    """Make a diamond interchange: four ramps between a motorway and the road above it."""
    ramps = []
    for east in (-1, 1):
        for south in (-1, 1):
            t = np.linspace(0, 1, 26)[:, None]
            # A Bezier curve, parallel to the carriageway at its start and nearly perpendicular to
            # the road above at its end.
            control = np.array(
                [
                    (_RAMP_START_M, CARRIAGEWAY_M),
                    (_RAMP_START_M * 0.55, CARRIAGEWAY_M + 2),
                    (_RAMP_START_M * 0.4, _RAMP_END_M + 3),
                    (0.0, _RAMP_END_M),
                ]
            )
            curve = (
                (1 - t) ** 3 * control[0]
                + 3 * t * (1 - t) ** 2 * control[1]
                + 3 * t**2 * (1 - t) * control[2]
                + t**3 * control[3]
            )
            line = np.array((x, y)) + curve * np.array((east, south))
            width = _PLAIN_WIDTH_M["motorway_link"]
            ramps.append(Street(line, "motorway_link", 1, width, levels=frozenset({GROUND, SUNK})))
    return ramps


def district_streets(cell: Cell, rng: np.random.Generator) -> list[Street]:
    """Make the streets of a cell in plan coordinates, with frontage streets along a motorway."""
    box = cell.box
    streets = []
    if box.height > 20:
        for faces, y in zip(cell.frontage, (box.y0, box.y1), strict=True):
            if faces:
                line = dense((box.x0, y), (box.x1, y))
                streets.append(_plain(line, "residential"))
    if min(box.width, box.height) < (60 if cell.district is District.FIELDS else 90):
        return streets
    match cell.district:
        case District.GRID:
            streets += _grid(box, rng)
        case District.LOOPS:
            streets += _loops(box, rng)
        case District.SHOPS:
            streets += [_plain(line, "service") for line in shop_lanes(box)]
        case District.FIELDS:
            streets += _tracks(box, rng)
        case District.PARK:
            pass
    return streets


def _swap(line: FloatArray, flip: bool) -> FloatArray:
    return line[:, ::-1].copy() if flip else line


def _grid(box: Box, rng: np.random.Generator) -> list[Street]:
    """Make a grid of streets, sometimes with alleys behind the houses."""
    flip = bool(rng.random() < 0.5)
    if flip:
        box = Box(box.y0, box.x0, box.y1, box.x1)
    count = max(1, round(box.height / rng.uniform(60, 78)))
    places = [box.y0 + box.height * i / count for i in range(count + 1)]
    streets = []
    for y in places[1:-1]:
        line = _wavy((box.x0, y), (box.x1, y), rng.uniform(0, 4), rng)
        streets.append(_plain(_swap(line, flip), "residential", thinned=True))
    crossings = max(1, round(box.width / rng.uniform(100, 160)))
    for i in range(1, crossings):
        x = box.x0 + box.width * (i + rng.uniform(-0.15, 0.15)) / crossings
        line = _wavy((x, box.y0), (x, box.y1), rng.uniform(0, 5), rng)
        streets.append(_plain(_swap(line, flip), "residential", thinned=True))
    if rng.random() < 0.4:
        for low, high in pairwise(places):
            if high - low > 62:
                y = (low + high) / 2
                line = _wavy((box.x0, y), (box.x1, y), 1.0, rng)
                streets.append(_plain(_swap(line, flip), "service"))
    return streets


def _loops(box: Box, rng: np.random.Generator) -> list[Street]:
    """Make a winding collector road with cul-de-sacs on both sides."""
    y = box.y0 + box.height * rng.uniform(0.42, 0.58)
    line = _wavy((box.x0, y), (box.x1, y), 0.1 * min(box.height, 160), rng)
    collector = LineString(line)
    streets = [_plain(line, "residential")]
    x = box.x0 + rng.uniform(45, 60)
    side = int(rng.choice((-1, 1)))
    while x < box.x1 - 40:
        across = LineString([(x, box.y0), (x, box.y1)]).intersection(collector)
        start = (float(across.x), float(across.y))
        room = (start[1] - box.y0) if side < 0 else (box.y1 - start[1])
        end = (x + rng.uniform(-18, 18), start[1] + side * (room - rng.uniform(26, 36)))
        if room > 62:
            streets.append(_plain(_wavy(start, end, rng.uniform(1, 6), rng), "residential"))
        side = -side
        x += rng.uniform(34, 52)
    return streets


def shop_lanes(box: Box) -> list[FloatArray]:
    """Return the service lanes of a shopping district in the plan, float64 (n, 2), metres."""
    y = box.y0 + 0.52 * box.height
    lanes = [dense((box.x0, y), (box.x1, y))]
    if box.width > 170:
        x = box.x0 + 0.46 * box.width
        lanes.append(dense((x, box.y0), (x, box.y1)))
    return lanes


def _tracks(box: Box, rng: np.random.Generator) -> list[Street]:
    """Make unpaved roads: a lane across the fields and a track to a dead end."""
    y = box.y0 + box.height * rng.uniform(0.35, 0.65)
    line = _wavy((box.x0, y), (box.x1, y), 0.06 * min(box.height, 250), rng)
    start = line[int(len(line) * rng.uniform(0.35, 0.65))]
    side = float(rng.choice((-1, 1)))
    room = (y - box.y0) if side < 0 else (box.y1 - y)
    end = (start[0] + rng.uniform(-30, 30), start[1] + side * 0.7 * room)
    return [
        _plain(line, "unclassified", paved=False),
        _plain(_wavy((start[0], start[1]), end, 5.0, rng), "track", paved=False),
    ]


def _wavy(
    start: tuple[float, float],
    end: tuple[float, float],
    amplitude: float,
    rng: np.random.Generator,
) -> FloatArray:
    """Return a line between two points that swings sideways by up to ``amplitude`` metres."""
    line = dense(start, end)
    along = np.array(end) - np.array(start)
    normal = np.array((-along[1], along[0])) / np.hypot(along[0], along[1])
    t = np.linspace(0, 1, len(line))
    swing = np.sin(np.pi * t) * np.sin(2 * np.pi * rng.uniform(0.5, 1.6) * t + rng.uniform(0, 6.3))
    return np.asarray(line + amplitude * swing[:, None] * normal, dtype=np.float64)


def corridor(plan: Plan) -> FloatArray | None:
    """Return the outline of the motorway's corridor, float64 (n, 2), or None without a motorway."""
    for row in plan.rows:
        if row.highway == "motorway":
            around = plan.bounds
            strip = Box(around.x0, row.place - CORRIDOR_M, around.x1, row.place + CORRIDOR_M)
            return plan.warp(strip.ring())
    return None


@dataclass(frozen=True)
class Edge:
    """Part of a street between two nodes: the true road.

    Attributes:
        line: the centre line that is painted and labelled, city metres.
        street: the street that it is cut from, whose line is in plan coordinates.
        number: index of the street.
        bridge: whether it crosses above a motorway.
        loose: whether its start and its end are dead ends.
    """

    line: LineString
    street: Street
    number: int
    bridge: bool
    loose: tuple[bool, bool]

    @property
    def speed_mph(self) -> float:
        """Speed by class, lanes and surface, mph."""
        slow, fast = _SPEEDS_MPH[self.street.highway]
        speed = fast if self.street.lanes >= 3 else slow
        return speed * (1.0 if self.street.paved else _UNPAVED_FACTOR)


def make_edges(plan: Plan, rng: np.random.Generator) -> list[Edge]:
    """Make all roads of the city, cut at their crossings, in city metres."""
    streets = main_streets(plan)
    for cell in plan.cells:
        streets += district_streets(cell, rng)
    return _cut(streets, [LineString(plan.warp(street.line)) for street in streets], rng)


class _Nodes:
    """Nodes where streets meet; nearby ones are merged."""

    def __init__(self) -> None:
        self.places: list[tuple[float, float]] = []

    def at(self, x: float, y: float) -> int:
        """Return the index of the node near (x, y), after adding one if there is none."""
        if self.places:
            gap = np.hypot(*(np.array(self.places) - (x, y)).T)
            nearest = int(np.argmin(gap))
            if gap[nearest] < _SNAP_M:
                return nearest
        self.places.append((x, y))
        return len(self.places) - 1


def _cut(streets: list[Street], lines: list[LineString], rng: np.random.Generator) -> list[Edge]:
    """Cut every street at its nodes; ``lines`` holds the warped lines in the same order."""
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
            # Two straight edges between the same nodes are one street.
            duplicate = len(edge.coords) == 2 and frozenset((a, b)) in straight
            if len(edge.coords) == 2:
                straight.add(frozenset((a, b)))
            if not spared and not duplicate:
                drafts.append((edge, number, a, b))
    return _finish(drafts, streets, len(nodes.places))


def _meetings(a: LineString, b: LineString) -> list[tuple[float, float]]:
    """Return the points where two lines cross or one ends on the other."""
    places = [(float(x), float(y)) for x, y in get_coordinates(a.intersection(b))]
    for one, other in ((a, b), (b, a)):
        for end in (one.coords[0], one.coords[-1]):
            if other.distance(Point(end)) < _SNAP_M:
                places += [(float(end[0]), float(end[1]))]
    return places


def _finish(
    drafts: list[tuple[LineString, int, int, int]], streets: list[Street], nodes: int
) -> list[Edge]:
    """Make edges and mark bridges and dead ends."""
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
