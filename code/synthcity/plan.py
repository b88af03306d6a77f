"""Plan of a city: main roads, districts, and the warp that bends them.

The plan is a rectangular grid of main roads in metres, x eastward and y southward from the
north-west corner of the first chip. A smooth warp then bends everything, so that streets curve and
blocks differ in shape.
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: The city extends this far beyond its chips, so that no chip shows its edge, metres.
MARGIN_M = 120.0

#: Half the width of the strip kept clear for a motorway, metres. Frontage streets run along it.
CORRIDOR_M = 52.0

#: Maximum displacement by the warp, metres.
MAX_WARP_M = 34.0

_WAVES = 5


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

    def ring(self, step: float = 10.0) -> FloatArray:
        """Return the outline as points about ``step`` metres apart, float64 (n, 2), not closed."""
        corners = ((self.x0, self.y0), (self.x1, self.y0), (self.x1, self.y1), (self.x0, self.y1))
        sides = [dense(corners[i], corners[(i + 1) % 4], step)[:-1] for i in range(len(corners))]
        return np.concatenate(sides)


@dataclass(frozen=True)
class MainLine:
    """Main road across the whole city along x or y."""

    place: float
    highway: str
    lanes: int


@dataclass(frozen=True)
class Cell:
    """Rectangle between main roads, with its land use.

    Attributes:
        box: the land without a motorway's strip.
        district: its land use.
        frontage: whether the north side and the south side face a motorway.
    """

    box: Box
    district: District
    frontage: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Warp:
    """Smooth displacement: a sum of plane waves.

    Attributes:
        waves: float64 (n, 5), one row per wave: kx, ky (radians per metre), phase (radians) and
            the amplitudes in x and y (metres).
    """

    waves: FloatArray

    def __call__(self, points: FloatArray) -> FloatArray:
        """Map plan coordinates to city coordinates, float64 (n, 2), metres."""
        phase = points @ self.waves[:, :2].T + self.waves[:, 2]
        return np.asarray(points + np.sin(phase) @ self.waves[:, 3:], dtype=np.float64)


@dataclass(frozen=True)
class Plan:
    """Main roads and districts of a city.

    Attributes:
        width: extent of the chips in x, metres.
        height: extent of the chips in y, metres.
        columns: north-south roads.
        rows: east-west roads; the row with highway ``motorway`` passes under the columns.
        interchange: x of the column that has ramps to the motorway, metres.
        cells: the land between the roads.
        warp: map from plan to city coordinates.
    """

    width: float
    height: float
    columns: tuple[MainLine, ...]
    rows: tuple[MainLine, ...]
    interchange: float
    cells: tuple[Cell, ...]
    warp: Warp

    @property
    def bounds(self) -> Box:
        """Extent of the chips with the margin."""
        return Box(-MARGIN_M, -MARGIN_M, self.width + MARGIN_M, self.height + MARGIN_M)


def dense(start: tuple[float, float], end: tuple[float, float], step: float = 6.0) -> FloatArray:
    """Return points from ``start`` to ``end`` inclusive, at most ``step`` metres apart."""
    count = max(1, int(np.ceil(np.hypot(end[0] - start[0], end[1] - start[1]) / step)))
    t = np.linspace(0.0, 1.0, count + 1)[:, None]
    return np.asarray(np.array(start) * (1 - t) + np.array(end) * t, dtype=np.float64)


def make_plan(width: float, height: float, green: Box | None, rng: np.random.Generator) -> Plan:
    """Make the plan of a city.

    Args:
        width: extent of the chips in x, metres.
        height: extent of the chips in y, metres.
        green: a rectangle in a corner of the city to keep free of roads, or None.
        rng: random generator for all choices.
    """
    main_column = _main_place(width, None if green is None else (green.x0, green.x1), rng)
    motorway = _main_place(height, None if green is None else (green.y0, green.y1), rng)
    fixed_columns = [main_column] if green is None else [main_column, green.x0, green.x1]
    fixed_rows = [motorway] if green is None else [motorway, green.y0, green.y1]
    columns = tuple(
        MainLine(x, "primary", 4) if x == main_column else _arterial(x, rng)
        for x in _spread(fixed_columns, width, green is not None, rng)
    )
    rows = tuple(
        MainLine(y, "motorway", 3) if y == motorway else _arterial(y, rng)
        for y in _spread(fixed_rows, height, green is not None, rng)
    )
    cells = _cells(columns, rows, Box(0, 0, width, height), green, rng)
    return Plan(width, height, columns, rows, main_column, cells, _draw_warp(rng))


def _main_place(
    length: float, taken: tuple[float, float] | None, rng: np.random.Generator
) -> float:
    """Choose the position of a main road: near the middle, clear of the green."""
    if taken is None:
        return float(length * rng.uniform(0.42, 0.58))
    clear = CORRIDOR_M + 45.0
    if taken[0] < length - taken[1]:
        return float(max(taken[1] + clear, length * rng.uniform(0.45, 0.6)))
    return float(min(taken[0] - clear, length * rng.uniform(0.4, 0.55)))


def _spread(
    fixed: list[float], length: float, green: bool, rng: np.random.Generator
) -> list[float]:
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


def _arterial(place: float, rng: np.random.Generator) -> MainLine:
    highway, lanes = (("primary", 4), ("secondary", 4), ("secondary", 2), ("tertiary", 2))[
        int(rng.choice(4, p=(0.15, 0.2, 0.3, 0.35)))
    ]
    return MainLine(place, highway, lanes)


def _cells(
    columns: tuple[MainLine, ...],
    rows: tuple[MainLine, ...],
    view: Box,
    green: Box | None,
    rng: np.random.Generator,
) -> tuple[Cell, ...]:
    """Assign a land use to each rectangle between main roads; ``green`` becomes the park."""
    drafts: list[tuple[Box, tuple[bool, bool]]] = []
    for top, bottom in pairwise(rows):
        frontage = (top.highway == "motorway", bottom.highway == "motorway")
        y0 = top.place + CORRIDOR_M * frontage[0]
        y1 = bottom.place - CORRIDOR_M * frontage[1]
        drafts += [
            (Box(left.place, y0, right.place, y1), frontage) for left, right in pairwise(columns)
        ]
    deck: list[District] = []
    cells = []
    for box, frontage in sorted(drafts, key=lambda draft: -_overlap(draft[0], view)):
        if green is not None and _overlap(box, green) > 0.5 * green.width * green.height:
            district = District.PARK
        else:
            if not deck:
                deck = [_DECK[i] for i in rng.permutation(len(_DECK))]
            district = deck.pop()
        cells.append(Cell(box, district, frontage))
    return tuple(cells)


def _overlap(a: Box, b: Box) -> float:
    """Return the area of the intersection, square metres."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)


def _draw_warp(rng: np.random.Generator) -> Warp:
    length = rng.uniform(260, 800, _WAVES)
    heading = rng.uniform(0, 2 * np.pi, _WAVES)
    turn = rng.uniform(0, 2 * np.pi, _WAVES)
    amplitude = MAX_WARP_M / _WAVES * rng.uniform(0.6, 1.0, _WAVES)
    k = 2 * np.pi / length
    return Warp(
        np.stack(
            [
                k * np.cos(heading),
                k * np.sin(heading),
                rng.uniform(0, 2 * np.pi, _WAVES),
                amplitude * np.cos(turn),
                amplitude * np.sin(turn),
            ],
            axis=1,
        )
    )
