"""Road network: streets drawn in the plan, bent by the warp and cut where they meet.

Every street has a height at every point. Two streets meet where they cross at the same height;
otherwise one passes over the other and they share no vertex. So only ramps join two levels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from shapely import LineString, Point, STRtree, get_coordinates, line_locate_point, points

from synthcity.plan import (
    LEVEL_M,
    MARGIN_M,
    Box,
    Cell,
    District,
    FloatArray,
    MainLine,
    Overpasses,
    Plan,
    Rng,
    dense,
    make_plan,
)

#: Distance from the middle of a motorway to the middle of one carriageway, metres.
CARRIAGEWAY_M = 9.2
# Distances from the interchange at which the ramps of a diamond and the outer ramps of a cloverleaf
# leave the motorway and reach the crossing road; radius of a cloverleaf's loops. Metres.
_DIAMOND_M, _OUTER_M, _LOOP_M = (150.0, 44.0), (185.0, 92.0), 24.0
_LANE_M = {"motorway": 3.7, "primary": 3.4, "secondary": 3.3, "tertiary": 3.2}
_SHOULDER_M = {"motorway": 4.6, "primary": 1.8, "secondary": 2.0, "tertiary": 2.2}
_PLAIN_WIDTH_M = {"motorway_link": 6.0, "residential": 8.4, "unclassified": 6.2,
                  "service": 4.6, "track": 3.2, "rail": 8.6, "footway": 2.6}  # fmt: skip
#: Metres per second in one mile per hour.
MPS_PER_MPH = 0.44704
# SpaceNet 5's rule: class -> mph with at most two lanes, mph with three or more.
_SPEEDS_MPH = {"motorway": (55.0, 65.0), "motorway_link": (55.0, 65.0), "primary": (45.0, 55.0),
               "secondary": (35.0, 45.0), "tertiary": (30.0, 35.0), "residential": (25.0, 30.0),
               "unclassified": (20.0, 20.0), "service": (20.0, 20.0),
               "track": (20.0, 20.0)}  # fmt: skip
_UNPAVED_FACTOR = 0.75
# Ends and crossings closer than this, in plan and in height, share one node, metres.
_SNAP_M, _SAME_HEIGHT_M = 1.5, 1.0
# Streets are cut where they leave the ground and half way between two levels, metres.
_CUT_HEIGHTS_M = (0.05, -0.05, 0.5 * LEVEL_M, 1.5 * LEVEL_M, -0.5 * LEVEL_M)
# Tolerance for simplifying edges, metres. Images and labels use the simplified edges.
_SIMPLIFY_M = 0.08


@dataclass(frozen=True)
class Street:
    """Street before it is cut at its crossings."""

    line: FloatArray  # float64 (n, 3), x and y in the plan and height above ground, metres
    highway: str  # OpenStreetMap's class, or ``rail``
    lanes: int  # total number of lanes
    width_m: float  # width of the carriageway, metres
    paved: bool = True  # true for asphalt, false for earth and gravel
    thinned: bool = False  # whether pieces may be left out to make dead ends and irregular blocks

    @property
    def is_road(self) -> bool:
        """Whether cars use it; railways and footbridges have no labels and no nodes."""
        return self.highway in _SPEEDS_MPH


def main_streets(plan: Plan) -> list[Street]:
    """Make the main roads, the motorway's carriageways and ramps, and the railway."""
    around, motorway = plan.bounds, plan.motorway
    streets = []
    for column in plan.columns:
        if around.x0 < column.place < around.x1:
            line = dense((column.place, around.y0), (column.place, around.y1))
            distance = line[:, 1] - (motorway.place if motorway else np.inf)
            streets.append(_street(line, column.heights(distance), column.highway, column.lanes))
    for row in plan.rows:
        if not around.y0 < row.place < around.y1:
            continue
        for aside in (-CARRIAGEWAY_M, CARRIAGEWAY_M) if row is motorway else (0.0,):
            line = dense((around.x0, row.place + aside), (around.x1, row.place + aside))
            streets.append(_street(line, row.height, row.highway, row.lanes))
    if motorway and around.y0 < motorway.place < around.y1:
        streets += _ramps(plan, motorway.place, motorway.height)
        if plan.underpass is not None:
            below = MainLine(plan.underpass, "tertiary", 2, crossing=-LEVEL_M)
            line = dense((0.0, -plan.clear), (0.0, plan.clear))
            heights = below.heights(line[:, 1])
            line += np.array((plan.underpass, motorway.place))
            streets.append(_street(line, heights, below.highway, below.lanes))
    return streets


def _street(
    line: FloatArray, height: FloatArray | float, highway: str, lanes: int, *, paved: bool = True,
    thinned: bool = False,
) -> Street:  # fmt: skip
    width = _PLAIN_WIDTH_M.get(highway, 0.0)
    if not width:
        width = lanes * _LANE_M[highway] + _SHOULDER_M[highway]
    heights = np.broadcast_to(height, len(line))
    return Street(np.column_stack([line, heights]), highway, lanes, width, paved, thinned)


def _plain(line: FloatArray, highway: str, *, paved: bool = True, thinned: bool = False) -> Street:
    """Make a minor street: two lanes if residential, one otherwise."""
    lanes = 2 if highway in {"residential", "unclassified"} else 1
    return _street(line, 0.0, highway, lanes, paved=paved, thinned=thinned)


def _ramps(plan: Plan, y: float, height: float) -> list[Street]:
    """Make a diamond or a cloverleaf: ramps between the motorway and the column across it."""
    start, end = _OUTER_M if plan.clover else _DIAMOND_M
    # A Bezier curve, parallel to the carriageway at its start and nearly perpendicular to the
    # crossing road at its end.
    t = np.linspace(0, 1, 26)[:, None]
    control = ((start, CARRIAGEWAY_M), (start * 0.6, CARRIAGEWAY_M + 2), (start * 0.3, end - 4),
               (0.0, end))  # fmt: skip
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    lines = [sum((w * np.array(c) for w, c in zip(weights, control, strict=True)), np.zeros(2))]
    if plan.clover:
        # A loop leaves the motorway behind the crossing and turns by three quarters of a circle.
        turn = np.linspace(-np.pi / 2, np.pi, 28)[:, None]
        middle = np.array((6 + _LOOP_M, CARRIAGEWAY_M + 6 + _LOOP_M))
        arc = middle + _LOOP_M * np.hstack([np.cos(turn), np.sin(turn)])
        ends = np.array(((arc[0, 0] - 16, CARRIAGEWAY_M), (0.0, arc[-1, 1] - 16)))
        lines.append(np.array([ends[0], *arc, ends[1]]))
    ramps = []
    for line in lines:
        along = np.append(0, np.cumsum(np.hypot(*np.diff(line, axis=0).T)))
        share = np.clip((along / along[-1] - 0.12) / 0.7, 0, 1)
        top = float(plan.interchange.heights(line[-1:, 1])[0])
        heights = height + (top - height) * share * share * (3 - 2 * share)
        for way in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            place = np.array((plan.interchange.place, y)) + line * way
            ramps.append(_street(place, heights, "motorway_link", 1))
    return ramps


def _footbridge(place: tuple[float, float, bool]) -> Street:
    """Make a footbridge with stairs at both ends, along x or along y."""
    half = 13.0 if place[2] else 24.0
    way = dense((-half - 12, 0.0), (half + 12, 0.0), 3.0)
    heights = 1.3 * LEVEL_M * np.clip((half + 12 - np.abs(way[:, 0])) / 12, 0, 1)
    return _street(np.array(place[:2]) + _swap(way, not place[2]), heights, "footway", 1)


def district_streets(cell: Cell, rng: Rng) -> list[Street]:
    """Make the streets of a cell in plan coordinates, with frontage streets along a motorway."""
    box = cell.box
    streets = []
    if box.height > 20:
        for faces, y in zip(cell.frontage, (box.y0, box.y1), strict=True):
            if faces:
                streets.append(_plain(dense((box.x0, y), (box.x1, y)), "residential"))
    if min(box.width, box.height) < (60 if cell.district is District.FIELDS else 90):
        return streets
    makers = {District.GRID: _grid, District.LOOPS: _loops, District.FIELDS: _tracks}
    if cell.district in makers:
        return streets + makers[cell.district](box, rng)
    lanes = shop_lanes(box) if cell.district is District.SHOPS else []
    return streets + [_plain(line, "service") for line in lanes]


def _swap(line: FloatArray, flip: bool) -> FloatArray:
    return line[:, ::-1].copy() if flip else line


def _grid(box: Box, rng: Rng) -> list[Street]:
    """Make a grid of streets, sometimes with alleys behind the houses."""
    flip = bool(rng.random() < 0.5)
    if flip:
        box = Box(box.y0, box.x0, box.y1, box.x1)
    streets = []

    def add(start: tuple[float, float], end: tuple[float, float], swing: float, kind: str) -> None:
        line = _swap(_wavy(start, end, swing, rng), flip)
        streets.append(_plain(line, kind, thinned=kind == "residential"))

    count = max(1, round(box.height / rng.uniform(60, 78)))
    places = [box.y0 + box.height * i / count for i in range(count + 1)]
    for y in places[1:-1]:
        add((box.x0, y), (box.x1, y), rng.uniform(0, 4), "residential")
    crossings = max(1, round(box.width / rng.uniform(100, 160)))
    for i in range(1, crossings):
        x = box.x0 + box.width * (i + rng.uniform(-0.15, 0.15)) / crossings
        add((x, box.y0), (x, box.y1), rng.uniform(0, 5), "residential")
    if rng.random() < 0.4:
        for low, high in pairwise(places):
            if high - low > 62:
                y = (low + high) / 2
                add((box.x0, y), (box.x1, y), 1.0, "service")
    return streets


def _loops(box: Box, rng: Rng) -> list[Street]:
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


def _tracks(box: Box, rng: Rng) -> list[Street]:
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
    start: tuple[float, float], end: tuple[float, float], amplitude: float, rng: Rng
) -> FloatArray:
    """Return a line between two points that swings sideways by up to ``amplitude`` metres."""
    line = dense(start, end)
    along = np.array(end) - np.array(start)
    normal = np.array((-along[1], along[0])) / np.hypot(along[0], along[1])
    t = np.linspace(0, 1, len(line))
    swing = np.sin(np.pi * t) * np.sin(2 * np.pi * rng.uniform(0.5, 1.6) * t + rng.uniform(0, 6.3))
    return np.asarray(line + amplitude * swing[:, None] * normal, dtype=np.float64)


@dataclass(frozen=True)
class Edge:
    """Part of a street between two nodes: the true road."""

    line: LineString  # the centre line that is painted and labelled, city metres
    heights: FloatArray  # float64 (n,), height of each vertex of ``line`` above ground, metres
    street: Street  # the street that it is cut from, whose line is in plan coordinates
    number: int  # index of the street
    loose: tuple[bool, bool]  # whether its start and its end are dead ends

    @cached_property
    def layer(self) -> int:
        """OpenStreetMap's layer: above 0 on a bridge, below 0 in a tunnel."""
        return round(float(self.heights.mean()) / LEVEL_M)

    @cached_property
    def deck(self) -> int:
        """Number of the raised surface that it is painted on; 0 for the ground, 1 for banks."""
        return 0 if self.heights.max() < 0.1 else 1 + self.layer

    @cached_property
    def level(self) -> bool:
        """Whether it lies on the ground, neither raised nor lowered."""
        return bool(np.abs(self.heights).max() < 0.1)

    @property
    def speed_mph(self) -> float:
        """Speed by class, lanes and surface, mph."""
        speed = _SPEEDS_MPH[self.street.highway][self.street.lanes >= 3]
        return speed * (1.0 if self.street.paved else _UNPAVED_FACTOR)

    def height_at(self, distance: FloatArray | float) -> FloatArray:
        """Return its heights at distances from its start, metres."""
        xy = get_coordinates(self.line)
        way = np.append(0, np.cumsum(np.hypot(*np.diff(xy, axis=0).T)))
        return np.asarray(np.interp(distance, way, self.heights))

    def touches(self, width: float, height: float) -> bool:
        """Return whether it reaches into a city of that size or the margin around it."""
        x0, y0, x1, y1 = self.line.bounds
        beyond = x1 < -MARGIN_M or x0 > width + MARGIN_M or y1 < -MARGIN_M
        return not (beyond or y0 > height + MARGIN_M)


def make_roads(
    width: float, height: float, rng: Rng, overpasses: Overpasses = Overpasses.FEW
) -> list[Edge]:
    """Make only the roads of a city without a green; see :func:`synthcity.plan.make_plan`."""
    edges = make_edges(make_plan(width, height, None, rng, overpasses), rng)
    return [edge for edge in edges if edge.street.is_road]


def make_edges(plan: Plan, rng: Rng) -> list[Edge]:
    """Make all roads, railways and footbridges, cut at their crossings, in city metres."""
    streets = main_streets(plan)
    for cell in plan.cells:
        streets += district_streets(cell, rng)
    streets += [
        f for f in map(_footbridge, plan.footbridges) if all(_clears(f, s) for s in streets)
    ]
    return _cut(streets, [plan.warp(street.line[:, :2]) for street in streets], rng)


def _clears(bridge: Street, street: Street) -> bool:
    """Return whether a footbridge keeps off a street or passes well over it."""
    line, way = LineString(bridge.line[:, :2]), LineString(street.line[:, :2])
    if line.distance(way) > street.width_m / 2 + 3:
        return True
    over = get_coordinates(line.intersection(way))
    heights = [np.interp([of.project(Point(place)) for place in over],
                         of.project(points(of.coords)), z) for of, z in
               ((line, bridge.line[:, 2]), (way, street.line[:, 2]))]  # fmt: skip
    return len(over) > 0 and bool((heights[0] - heights[1] > 4.5).all())


class _Nodes:
    """Nodes where streets meet; nearby ones are merged."""

    def __init__(self) -> None:
        self.places: list[tuple[float, float, float]] = []

    def at(self, xy: tuple[float, float], z: float) -> int:
        """Return the index of the node near a place, after adding one if there is none."""
        if self.places:
            gap = np.abs(np.array(self.places) - (*xy, z))
            distance = np.hypot(gap[:, 0], gap[:, 1]) + 1e9 * (gap[:, 2] > _SAME_HEIGHT_M)
            nearest = int(np.argmin(distance))
            if distance[nearest] < _SNAP_M:
                return nearest
        self.places.append((*xy, z))
        return len(self.places) - 1


def _cut(streets: list[Street], warped: list[FloatArray], rng: Rng) -> list[Edge]:
    """Cut every street at its nodes; ``warped`` holds the bent lines in the same order."""
    nodes = _Nodes()
    lines = [LineString(xy) for xy in warped]
    ways = [np.append(0, np.cumsum(np.hypot(*np.diff(xy, axis=0).T))) for xy in warped]

    def height(number: int, distance: float) -> float:
        return float(np.interp(distance, ways[number], streets[number].line[:, 2]))

    on_street: list[set[int]] = []
    for xy, street in zip(warped, streets, strict=True):
        ends = np.column_stack([xy, street.line[:, 2]])[[0, -1]].tolist()
        on_street.append({nodes.at((x, y), z) for x, y, z in ends})
    pairs = STRtree(lines).query(lines, predicate="dwithin", distance=_SNAP_M)
    for i, j in sorted((int(i), int(j)) for i, j in pairs.T if i < j):
        if not (streets[i].is_road and streets[j].is_road):
            continue
        for place in _meetings(lines[i], lines[j]):
            here, there = (height(k, lines[k].project(Point(place))) for k in (i, j))
            if abs(here - there) < _SAME_HEIGHT_M:
                node = nodes.at(place, here)
                on_street[i].add(node)
                on_street[j].add(node)
    drafts: list[tuple[LineString, FloatArray, int, int, int]] = []
    straight: set[frozenset[int]] = set()
    for number, (street, line, way) in enumerate(zip(streets, lines, ways, strict=True)):
        known = sorted(on_street[number])
        ends = np.array([nodes.places[n][:2] for n in known])
        order = sorted(zip(line_locate_point(line, points(ends)).tolist(), known, strict=True))
        for distance in _height_cuts(way, street.line[:, 2]):
            if min(abs(distance - other) for other, _ in order) > 3:
                at = line.interpolate(distance)
                order.append((distance, nodes.at((at.x, at.y), height(number, distance))))
        for (low, a), (high, b) in pairwise(sorted(order)):
            inner = slice(*np.searchsorted(way, (low + 1, high - 1)))
            path = [nodes.places[a][:2], *warped[number][inner], nodes.places[b][:2]]
            z = np.interp([low, *way[inner], high], way, street.line[:, 2])
            edge = LineString(path)
            if np.ptp(z) == 0:
                edge = edge.simplify(_SIMPLIFY_M)
                z = np.full(len(edge.coords), z[0])
            spared = street.thinned and edge.length > 30 and rng.random() < 0.08
            # Two straight edges between the same nodes are one street.
            duplicate = len(edge.coords) == 2 and frozenset((a, b)) in straight
            if len(edge.coords) == 2:
                straight.add(frozenset((a, b)))
            if not spared and not duplicate:
                drafts.append((edge, z, number, a, b))
    degree = np.bincount([n for draft in drafts for n in draft[3:]], minlength=len(nodes.places))
    return [
        Edge(line, z, streets[number], number, (bool(degree[a] == 1), bool(degree[b] == 1)))
        for line, z, number, a, b in drafts
    ]


def _height_cuts(way: FloatArray, heights: FloatArray) -> Iterable[float]:
    """Yield the distances at which a street leaves the ground or passes half a level."""
    for limit in _CUT_HEIGHTS_M if heights.any() else ():
        for i in np.flatnonzero(np.diff(heights > limit)):
            share = (limit - heights[i]) / (heights[i + 1] - heights[i])
            yield float(way[i] + share * (way[i + 1] - way[i]))


def _meetings(a: LineString, b: LineString) -> list[tuple[float, float]]:
    """Return the points where two lines cross or one ends on the other."""
    places = [(float(x), float(y)) for x, y in get_coordinates(a.intersection(b))]
    for one, other in ((a, b), (b, a)):
        for end in (one.coords[0], one.coords[-1]):
            if other.distance(Point(end)) < _SNAP_M:
                places += [(float(end[0]), float(end[1]))]
    return places
