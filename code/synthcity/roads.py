"""Road surfaces: sidewalks, asphalt with repairs, markings and cars; rails and trains."""

import numpy as np
from shapely import LineString
from shapely.ops import substring

from synthcity.decks import cutting_strokes
from synthcity.network import Edge
from synthcity.plan import FloatArray, Rng
from synthcity.spectra import Material
from synthcity.strokes import (
    Fill,
    Stripe,
    Stroke,
    Sun,
    across,
    cast_shadow,
    outline,
    point_at,
    rectangle,
    ribbon,
)

# Painting order: later classes cover earlier ones where they meet.
_RANK = ("footway", "rail", "track", "unclassified", "service", "residential", "motorway_link",
         "motorway", "tertiary", "secondary", "primary")  # fmt: skip
_WITH_SIDEWALK = {"residential", "tertiary", "secondary", "primary"}
_MARKED = {"motorway", "tertiary", "secondary", "primary"}
# Moving cars per 100 m of a lane.
_TRAFFIC = {"motorway": 1.6, "motorway_link": 0.8, "primary": 1.3, "secondary": 1.0,
            "tertiary": 0.8, "residential": 0.3, "service": 0.2}  # fmt: skip
_CARS = (Material.CAR_WHITE, Material.CAR_DARK, Material.CAR_SILVER, Material.CAR_RED,
         Material.CAR_BLUE)  # fmt: skip
_CAR_SHARES = (0.3, 0.3, 0.22, 0.09, 0.09)
_BULB_M = 8.5
# Distance between the end of markings and a junction, metres.
_CLEAR_M = 9.0


def road_strokes(edges: list[Edge], sun: Sun, rng: Rng) -> list[list[Stroke]]:
    """Make the strokes of all visible roads: those on the ground, then those of each deck."""
    tones = rng.uniform(0.72, 1.3, 1 + max((edge.number for edge in edges), default=0))
    concrete = rng.random(len(tones)) < 0.3
    seen = [edge for edge in edges if edge.layer >= 0]
    ranked = sorted(seen, key=lambda edge: _RANK.index(edge.street.highway))
    surfaces: list[list[Stroke]] = []
    for deck in range(1 + max((edge.deck for edge in ranked), default=0)):
        here = [edge for edge in ranked if edge.deck == deck]
        strokes = [] if deck else _sidewalks([edge for edge in here if edge.level], rng)
        details: list[Stroke] = []
        for edge in here:
            tone = float(tones[edge.number])
            # Repairs lie under the markings. Both are painted after all roads, so none covers them.
            details += [*_repairs(edge, tone, rng), *_markings(edge, rng)]
            details += _traffic(edge, sun, rng)
            if not deck and not edge.level:
                below, over = cutting_strokes(edge, sun)
                strokes += below
                details += over
            pale = bool(concrete[edge.number]) and edge.street.highway == "service"
            strokes += _surface(edge, tone, pale, rng)
        surfaces.append(strokes + details)
    return surfaces


def car(place: FloatArray, along: FloatArray, sun: Sun, rng: Rng) -> list[Stroke]:
    """Make a car or van with its windscreen and shadow."""
    large = rng.random() < 0.12
    length, width, height = (6.5, 2.2, 2.4) if large else (rng.uniform(4, 4.9), 1.85, 1.4)
    body = rectangle(place, along, length, width)
    paint = _CARS[int(rng.choice(len(_CARS), p=_CAR_SHARES))]
    screen = rectangle(place + along * 0.18 * length, along, 0.8, 0.85 * width)
    return [
        cast_shadow(body, height, sun),
        Fill(body, paint, rng.uniform(0.8, 1.2), lit=True),
        Fill(screen, Material.GLASS, lit=True),
    ]


def _sidewalks(edges: list[Edge], rng: Rng) -> list[Stroke]:
    """Make sidewalks, verges and kerbs, layer by layer over all streets."""
    sides = [edge for edge in edges if edge.street.highway in _WITH_SIDEWALK]
    verge = {edge.number: rng.random() < 0.6 for edge in sides}
    grass = {edge.number: rng.random() < 0.6 for edge in sides}
    strokes: list[Stroke] = []
    for edge in sides:
        width = edge.street.width_m + (6.2 if verge[edge.number] else 3.4)
        strokes.append(Fill(ribbon(edge.line, width), Material.CONCRETE, rng.uniform(0.9, 1.1)))
    for edge in sides:
        if verge[edge.number]:
            plant = Material.LAWN if grass[edge.number] else Material.DRY_GRASS
            strokes.append(Fill(ribbon(edge.line, edge.street.width_m + 3.2), plant))
    strokes += [
        Fill(ribbon(edge.line, edge.street.width_m + 0.5), Material.CONCRETE, 1.05)
        for edge in sides
    ]
    return strokes


def _surface(edge: Edge, tone: float, pale: bool, rng: Rng) -> list[Stroke]:
    """Make the carriageway of an edge, with the bulb of a cul-de-sac."""
    street, lit = edge.street, edge.deck > 0
    flat = not edge.level and street.highway != "motorway_link"
    strip = ribbon(edge.line, street.width_m, flat=flat)
    if street.highway == "rail":
        return [Fill(ribbon(edge.line, street.width_m, flat=True), Material.GRAVEL, 0.8, lit)]
    if street.highway == "footway":
        return [Fill(strip, Material.CONCRETE, 1.0 + 0.2 * (tone - 1), lit)]
    if not street.paved:
        rut = ribbon(edge.line, 0.8)
        if street.highway == "track":
            return [Fill(strip, Material.DIRT_ROAD), Fill(rut, Material.DRY_GRASS)]
        return [Fill(strip, Material.GRAVEL if tone > 1 else Material.DIRT_ROAD, 1.05)]
    material = Material.CONCRETE if pale else Material.ASPHALT
    # Some pieces between two junctions were resurfaced separately.
    tone *= rng.uniform(0.75, 1.25) if rng.random() < 0.15 else 1.0
    strokes: list[Stroke] = [Fill(strip, material, tone, lit)]
    if street.highway == "residential":
        for loose, end in zip(edge.loose, (0, -1), strict=True):
            if loose:
                bulb = LineString([edge.line.coords[end]] * 2).buffer(_BULB_M)
                strokes.append(Fill(outline(bulb), material, tone))
    if street.highway in _MARKED:
        lanes = [ribbon(lane, 1.5, flat=True) for lane in _lanes(edge, 0.5)]
        strokes += [Fill(lane, material, tone * 0.92, lit) for lane in lanes]
    return strokes


def _lanes(edge: Edge, shift: float) -> list[LineString]:
    """Return lines along the lanes: their middles for shift 0.5, their boundaries for 1.0."""
    lanes = edge.street.lanes
    pitch = (edge.street.width_m - 1.0) / lanes
    inner = lanes if shift < 1 else lanes - 1
    lines = []
    for i in range(inner):
        aside = (i + shift - lanes / 2) * pitch
        line = edge.line.offset_curve(aside) if aside else edge.line
        if line.geom_type == "LineString" and line.length > 1:
            lines.append(line)
    return lines


def _repairs(edge: Edge, tone: float, rng: Rng) -> list[Stroke]:
    """Make rectangles of newer or older asphalt within the carriageway."""
    if not edge.street.paved or edge.street.highway in {"rail", "footway"}:
        return []
    strokes: list[Stroke] = []
    for _ in range(int(rng.poisson(edge.line.length / 40))):
        here, along = point_at(edge.line, rng.uniform(0, edge.line.length))
        width = rng.uniform(0.8, 0.45 * edge.street.width_m)
        aside = rng.uniform(-0.5, 0.5) * (edge.street.width_m - width)
        centre = here + across(along) * aside
        length = rng.uniform(2, 10)
        patch = rectangle(centre, along, length, width)
        strokes.append(Fill(patch, Material.ASPHALT, tone * rng.uniform(0.72, 1.25), edge.deck > 0))
    return strokes


def _markings(edge: Edge, rng: Rng) -> list[Stroke]:
    """Make the lane lines, edge lines, stop bars and zebra crossings of a road class, or rails."""
    street = edge.street
    if street.highway == "rail":
        rails = (-2.82, -1.38, 1.38, 2.82)
        return [Stripe(_xy(edge.line.offset_curve(rail)), 0.45) for rail in rails]
    if street.highway not in _MARKED or edge.line.length < 24:
        return []
    motorway = street.highway == "motorway"
    clear = 0.0 if motorway or not edge.level else _CLEAR_M
    worn = rng.uniform(0.35, 0.75)
    strokes: list[Stroke] = []
    for i, line in enumerate(_lanes(edge, 1.0)):
        whole = substring(line, clear, line.length - clear)
        if not motorway and 2 * (i + 1) == street.lanes:
            strokes.append(Stripe(_xy(whole), worn, yellow=True))
        else:
            # Dashes of 3 m with gaps of 9 m.
            starts = np.arange(0, whole.length - 3, 12.0)
            strokes += [Stripe(_xy(substring(whole, start, start + 3)), worn) for start in starts]
    if motorway or street.highway == "primary":
        for aside in (-street.width_m / 2 + 0.6, street.width_m / 2 - 0.6):
            line = edge.line.offset_curve(aside)
            strokes.append(Stripe(_xy(substring(line, clear, line.length - clear)), 0.6 * worn))
    if not motorway and edge.level and rng.random() < 0.6:
        for loose, distance in zip(edge.loose, (clear, edge.line.length - clear), strict=True):
            here, along = point_at(edge.line, distance)
            for aside in () if loose else np.arange(0.6, street.width_m - 0.5, 1.1):
                bar = here + across(along) * (aside - street.width_m / 2)
                strokes.append(Stripe(np.array((bar - along * 1.3, bar + along * 1.3)), worn))
    return strokes


def _traffic(edge: Edge, sun: Sun, rng: Rng) -> list[Stroke]:
    """Make cars in the lanes of an edge, and at the kerbs of residential streets; or a train."""
    street = edge.street
    strokes: list[Stroke] = []
    if street.highway == "rail":
        return _train(edge, sun, rng) if rng.random() < 0.35 else []
    rate = _TRAFFIC.get(street.highway, 0.0) * street.lanes * edge.line.length / 100
    pitch = (street.width_m - 1.0) / street.lanes
    for _ in range(int(rng.poisson(rate))):
        here, along = point_at(edge.line, rng.uniform(0, edge.line.length))
        lane = (int(rng.integers(street.lanes)) + 0.5 - street.lanes / 2) * pitch
        strokes += car(here + across(along) * lane, along if lane >= 0 else -along, sun, rng)
    if street.highway == "residential" and edge.line.length > 25:
        for distance in np.arange(10, edge.line.length - 10, 6.5):
            if rng.random() < 0.16:
                here, along = point_at(edge.line, distance)
                side = float(rng.choice((-1, 1))) * (street.width_m / 2 - 1.1)
                strokes += car(here + across(along) * side, along, sun, rng)
    return strokes


def _train(edge: Edge, sun: Sun, rng: Rng) -> list[Stroke]:
    """Make a train of three to six cars on one of two tracks."""
    track, tone = float(rng.choice((-2.1, 2.1))), rng.uniform(0.6, 1.1)
    start = rng.uniform(0, max(1.0, edge.line.length - 80))
    strokes: list[Stroke] = []
    for distance in start + 12 + 25 * np.arange(int(rng.integers(3, 7))):
        if distance + 12 < edge.line.length:
            here, along = point_at(edge.line, distance)
            body = rectangle(here + across(along) * track, along, 24.0, 2.9)
            strokes += [cast_shadow(body, 3.8, sun), Fill(body, Material.ROOF_METAL, tone, True)]
    return strokes


def _xy(line: LineString) -> FloatArray:
    return np.asarray(line.coords, dtype=np.float64)
