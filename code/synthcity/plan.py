"""Plan of a city: main roads with their heights, districts, and the warp that bends them.

The plan is a rectangular grid of main roads in metres, x eastward and y southward from the
north-west corner of the first chip. A smooth warp then bends everything, so that streets curve and
blocks differ in shape. The ground is flat. Roads on bridges lie ``LEVEL_M`` above it, roads in
tunnels as far below.
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Float32 = NDArray[np.float32]
Rng = np.random.Generator
#: The city extends this far beyond its chips, so that no chip shows its edge, metres.
MARGIN_M = 120.0
#: Height from one level of roads to the next, metres.
LEVEL_M = 5.5
#: Half the width of the strip kept clear for a motorway, and for one with a cloverleaf, metres.
#: Frontage streets run along it. The ramps of all crossing roads fit into it.
CORRIDOR_M, _CLOVER_M = 62.0, 108.0
# Half the width of the strip kept clear for a railway, metres.
_RAIL_M = 14.0
#: Maximum displacement by the warp, metres.
MAX_WARP_M = 34.0
_WAVES = 5


class Overpasses(StrEnum):
    """How many roads cross on different levels.

    ``none``: all roads meet. ``few``: bridges over a motorway, with a diamond interchange.
    ``many``: also cloverleaves, viaducts, tunnels, a railway on bridges, and footbridges.
    """

    NONE = "none"
    FEW = "few"
    MANY = "many"


class District(StrEnum):
    """Land use of a cell between main roads."""

    GRID = "grid"
    LOOPS = "loops"
    SHOPS = "shops"
    FIELDS = "fields"
    PARK = "park"


# Dealt to the cells in shuffled order, so that every city has some of each.
_DECK = (
    District.GRID, District.GRID, District.GRID, District.LOOPS, District.LOOPS,
    District.SHOPS, District.SHOPS, District.FIELDS,
)  # fmt: skip


@dataclass(frozen=True)
class Box:
    """Axis-aligned rectangle in the plan, metres."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        """Extent in x, metres."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Extent in y, metres."""
        return self.y1 - self.y0

    def shrunk(self, x: float, y: float) -> "Box":
        """Return the box reduced by ``x`` and ``y`` metres on either side."""
        return Box(self.x0 + x, self.y0 + y, self.x1 - x, self.y1 - y)

    def overlap(self, other: "Box") -> float:
        """Return the area of the intersection, square metres."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(0.0, width) * max(0.0, height)

    def ring(self, step: float = 10.0) -> FloatArray:
        """Return the outline as points about ``step`` metres apart, float64 (n, 2), not closed."""
        corners = ((self.x0, self.y0), (self.x1, self.y0), (self.x1, self.y1), (self.x0, self.y1))
        sides = [dense(corners[i], corners[(i + 1) % 4], step)[:-1] for i in range(len(corners))]
        return np.concatenate(sides)


@dataclass(frozen=True)
class MainLine:
    """Main road or railway across the whole city along x or y."""

    place: float  # its y or x, metres
    highway: str  # OpenStreetMap's class, or ``rail``
    lanes: int  # number of lanes or tracks
    height: float = 0.0  # its height above ground, metres
    crossing: float = 0.0  # its height where it crosses the motorway, metres
    # distances from the motorway where it leaves ``crossing`` and reaches ``height``
    ramp: tuple[float, float] = (22.0, CORRIDOR_M)

    def heights(self, distance: FloatArray) -> FloatArray:
        """Return its heights at distances from the motorway, metres; the slope is smooth."""
        t = np.clip((self.ramp[1] - np.abs(distance)) / (self.ramp[1] - self.ramp[0]), 0, 1)
        rise = t * t * (3 - 2 * t)
        return np.asarray(self.height + (self.crossing - self.height) * rise, dtype=np.float64)


@dataclass(frozen=True)
class Cell:
    """Rectangle between main roads, with its land use."""

    box: Box  # the land without the strips of motorway and railway
    district: District  # its land use
    # whether the north side and the south side face a motorway
    frontage: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Warp:
    """Smooth displacement: a sum of plane waves."""

    # float64 (n, 5), one row per wave: kx, ky (radians per metre), phase (radians) and the
    # amplitudes in x and y (metres)
    waves: FloatArray

    def __call__(self, points: FloatArray) -> FloatArray:
        """Map plan coordinates to city coordinates, float64 (n, 2), metres."""
        phase = points @ self.waves[:, :2].T + self.waves[:, 2]
        return np.asarray(points + np.sin(phase) @ self.waves[:, 3:], dtype=np.float64)


@dataclass(frozen=True)
class Plan:
    """Main roads and districts of a city."""

    width: float  # extent of the chips in x, metres
    height: float  # extent of the chips in y, metres
    columns: tuple[MainLine, ...]  # north-south roads and the railway
    rows: tuple[MainLine, ...]  # east-west roads, one of which may be the motorway
    interchange: MainLine  # the column that has ramps to the motorway
    clover: bool  # whether the interchange is a cloverleaf, otherwise a diamond
    # (x, y, along x) of the footbridges' middles, metres
    footbridges: tuple[tuple[float, float, bool], ...]
    underpass: float | None  # x of a street in a tunnel under the motorway, metres
    clear: float  # half the width of the motorway's strip at the interchange, metres
    cells: tuple[Cell, ...]  # the land between the roads
    warp: Warp  # map from plan to city coordinates

    @property
    def bounds(self) -> Box:
        """Extent of the chips with the margin."""
        return Box(-MARGIN_M, -MARGIN_M, self.width + MARGIN_M, self.height + MARGIN_M)

    @property
    def motorway(self) -> MainLine | None:
        """The motorway, if there is one."""
        return next((row for row in self.rows if row.highway == "motorway"), None)


def dense(start: tuple[float, float], end: tuple[float, float], step: float = 6.0) -> FloatArray:
    """Return points from ``start`` to ``end`` inclusive, at most ``step`` metres apart."""
    count = max(1, int(np.ceil(np.hypot(end[0] - start[0], end[1] - start[1]) / step)))
    t = np.linspace(0.0, 1.0, count + 1)[:, None]
    return np.asarray(np.array(start) * (1 - t) + np.array(end) * t, dtype=np.float64)


def make_plan(
    width: float,
    height: float,
    green: Box | None,
    rng: Rng,
    overpasses: Overpasses = Overpasses.FEW,
) -> Plan:
    """Make the plan of a city for chips of ``width`` by ``height`` metres.

    ``green`` is a rectangle in a corner of the city to keep free of roads, or None.
    """
    many = overpasses is Overpasses.MANY
    clover, raised = many and bool(rng.random() < 0.5), many and bool(rng.random() < 0.4)
    main_x = _main_place(width, None if green is None else (green.x0, green.x1), rng)
    main_y = _main_place(height, None if green is None else (green.y0, green.y1), rng)
    fixed_x = [main_x] if green is None else [main_x, green.x0, green.x1]
    fixed_y = [main_y] if green is None else [main_y, green.y0, green.y1]

    level = LEVEL_M if raised else 0.0
    over = 0.0 if raised or overpasses is Overpasses.NONE else LEVEL_M
    ramp = (48.0, _CLOVER_M - 2) if clover else (22.0, CORRIDOR_M)
    main = MainLine(main_x, "primary", 4, crossing=over, ramp=ramp)
    motorway = MainLine(main_y, "motorway", 3, level, level)
    if overpasses is Overpasses.NONE:
        motorway = MainLine(main_y, "primary", 4)
    columns = []
    for x in _spread(fixed_x, width, green is not None, rng):
        below = many and not raised and rng.random() < 0.5
        columns.append(main if x == main_x else _arterial(x, rng, -LEVEL_M if below else over))
    rows = [
        motorway if y == main_y else _arterial(y, rng)
        for y in _spread(fixed_y, height, green is not None, rng)
    ]
    footbridges: list[tuple[float, float, bool]] = []
    underpass = None
    if many:
        columns = _with_railway(columns, width, green, level, rng)
        away = float(rng.choice((-1, 1))) * (_CLOVER_M + rng.uniform(30, 60))
        footbridges.append((main_x, main_y + away, True))
        if not raised:
            side = float(rng.choice((-1, 1)))
            aside = rng.uniform(70, 90) * (2 if clover else 1)
            footbridges.append((main_x + side * aside, main_y, False))
            # Beyond the outer ramps of a cloverleaf.
            underpass = main_x - side * (205 if clover else 115)
    reach = _CLOVER_M if clover else CORRIDOR_M
    cells = _cells(columns, rows, Box(0, 0, width, height), green, (main, reach), rng)
    lines = tuple(columns), tuple(rows), main, clover, tuple(footbridges), underpass, reach
    return Plan(width, height, *lines, cells, _draw_warp(rng))


def _main_place(length: float, taken: tuple[float, float] | None, rng: Rng) -> float:
    """Choose the position of a main road: near the middle, clear of the green."""
    if taken is None:
        return float(length * rng.uniform(0.42, 0.58))
    clear = CORRIDOR_M + 45.0
    if taken[0] < length - taken[1]:
        return float(max(taken[1] + clear, length * rng.uniform(0.45, 0.6)))
    return float(min(taken[0] - clear, length * rng.uniform(0.4, 0.55)))


def _spread(fixed: list[float], length: float, green: bool, rng: Rng) -> list[float]:
    """Choose the positions of all main roads, at most about 400 m apart.

    With ``green``, the land between the second and third fixed positions is not divided.
    """
    places = sorted(fixed)
    while places[0] > -MARGIN_M:
        places.insert(0, places[0] - rng.uniform(230, 350))
    while places[-1] < length + MARGIN_M:
        places.append(places[-1] + rng.uniform(230, 350))
    filled = places[:1]
    for low, high in pairwise(places):
        whole = green and (low, high) == (fixed[1], fixed[2])
        parts = 1 if whole else int(np.ceil((high - low) / 390))
        inner = [low + (high - low) * (i + rng.uniform(-0.12, 0.12)) / parts for i in range(parts)]
        filled.extend([*inner[1:], high])
    return [float(place) for place in filled]


def _arterial(place: float, rng: Rng, crossing: float = 0.0) -> MainLine:
    highway, lanes = (("primary", 4), ("secondary", 4), ("secondary", 2), ("tertiary", 2))[
        int(rng.choice(4, p=(0.15, 0.2, 0.3, 0.35)))
    ]
    return MainLine(place, highway, lanes, crossing=crossing)


def _with_railway(
    columns: list[MainLine], width: float, green: Box | None, level: float,
    rng: Rng,
) -> list[MainLine]:  # fmt: skip
    """Put a raised railway between two columns; over a raised motorway it climbs to the next."""
    gaps = [
        (left.place + right.place) / 2
        for left, right in pairwise(columns)
        if right.place - left.place > 170
        and 0 < left.place + right.place < 2 * width
        and (green is None or not green.x0 - 60 < (left.place + right.place) / 2 < green.x1 + 60)
    ]
    if not gaps:
        return columns
    top = LEVEL_M + level
    rail = MainLine(float(rng.choice(gaps)), "rail", 2, LEVEL_M, top, ramp=(60.0, 200.0))
    return sorted([*columns, rail], key=lambda line: line.place)


def _cells(
    columns: list[MainLine],
    rows: list[MainLine],
    view: Box,
    green: Box | None,
    interchange: tuple[MainLine, float],
    rng: Rng,
) -> tuple[Cell, ...]:
    """Assign a land use to each rectangle between main roads; ``green`` becomes the park."""
    drafts: list[tuple[Box, tuple[bool, bool]]] = []
    for top, bottom in pairwise(rows):
        frontage = (top.highway == "motorway", bottom.highway == "motorway")
        for left, right in pairwise(columns):
            clear = interchange[1] if interchange[0] in (left, right) else CORRIDOR_M
            x0, x1 = (
                line.place + way * _RAIL_M * (line.highway == "rail")
                for line, way in ((left, 1), (right, -1))
            )
            y0, y1 = top.place + clear * frontage[0], bottom.place - clear * frontage[1]
            drafts.append((Box(x0, y0, x1, max(y0, y1)), frontage))
    deck: list[District] = []
    cells = []
    for box, frontage in sorted(drafts, key=lambda draft: -draft[0].overlap(view)):
        if green is not None and box.overlap(green) > 0.5 * green.width * green.height:
            district = District.PARK
        else:
            if not deck:
                deck = [_DECK[i] for i in rng.permutation(len(_DECK))]
            district = deck.pop()
        cells.append(Cell(box, district, frontage))
    return tuple(cells)


def _draw_warp(rng: Rng) -> Warp:
    k = 2 * np.pi / rng.uniform(260, 800, _WAVES)
    heading, turn, phase = rng.uniform(0, 2 * np.pi, (3, _WAVES))
    amplitude = MAX_WARP_M / _WAVES * rng.uniform(0.6, 1.0, _WAVES)
    waves = (k * np.cos(heading), k * np.sin(heading), phase,
             amplitude * np.cos(turn), amplitude * np.sin(turn))  # fmt: skip
    return Warp(np.stack(waves, axis=1))
