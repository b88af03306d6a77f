"""Buildings beside roads: houses with their parcels, shops with their car parks."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from shapely import Polygon, STRtree, points, polygons

from synthcity.network import Edge
from synthcity.plan import Box, District, FloatArray, Plan
from synthcity.spectra import Material
from synthcity.strokes import Building, Fill, Shadow, Stripe, cast_shadow, point_at, rectangle

#: Sidewalk and verge beside the carriageway, metres.
KERB_M = 3.2

_ROOFS = (
    Material.ROOF_GREY, Material.ROOF_BROWN, Material.ROOF_TILE, Material.ROOF_METAL,
    Material.ROOF_WHITE,
)  # fmt: skip
_HOUSE_SHARES = (0.42, 0.24, 0.22, 0.06, 0.06)
_SHOP_SHARES = (0.46, 0.04, 0.03, 0.17, 0.30)

_HOUSED = {"residential", "tertiary", "secondary", "primary"}


@dataclass
class Built:
    """Buildings, and the ground covers, paint and parked cars around them.

    Attributes:
        ground: parcels, drives, car parks, pools, in painting order.
        buildings: houses and shops, in no particular order.
        stripes: lines of parking bays.
        cars: (place, direction) of parked cars.
    """

    ground: list[Fill] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    stripes: list[Stripe] = field(default_factory=list)
    cars: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)

    def add(self, other: "Built") -> None:
        """Append the contents of ``other``."""
        self.ground += other.ground
        self.buildings += other.buildings
        self.stripes += other.stripes
        self.cars += other.cars


@dataclass(frozen=True)
class _House:
    """House candidate: its footprint, and everything to add to the city if it is kept."""

    footprint: FloatArray
    built: Built


def build(
    plan: Plan, edges: list[Edge], sun: tuple[float, float], rng: np.random.Generator
) -> Built:
    """Make all buildings and their surroundings.

    Args:
        plan: the city's plan.
        edges: its roads.
        sun: (x, y), metres of shadow per metre of height.
        rng: random generator for all choices.
    """
    built = Built()
    for cell in plan.cells:
        if cell.district is District.SHOPS:
            built.add(shops(cell.box, plan, sun, rng))
    roads = STRtree([edge.line.buffer(edge.street.width_m / 2 + KERB_M) for edge in edges])
    taken = STRtree(polygons([b.outline for b in built.buildings])) if built.buildings else None
    houses = _houses(plan, edges, sun, rng)
    for house in _without_collisions(houses, roads, taken):
        built.add(house.built)
    return built


def _houses(
    plan: Plan, edges: list[Edge], sun: tuple[float, float], rng: np.random.Generator
) -> list[_House]:
    """Make house candidates along the streets of residential districts."""
    around = plan.bounds
    houses: list[_House] = []
    for edge in edges:
        alley = edge.street.highway == "service"
        if edge.bridge or not (alley or edge.street.highway in _HOUSED):
            continue
        street_roof = rng.choice(len(_ROOFS), p=_HOUSE_SHARES)
        lawn = rng.random()
        for side in (-1, 1):
            distance = rng.uniform(4, 12)
            while distance < edge.line.length - 3:
                frontage = rng.uniform(9, 16) if alley else rng.uniform(14, 21)
                here, along = point_at(edge.line, distance + frontage / 2)
                distance += frontage
                inside = around.x0 < here[0] < around.x1 and around.y0 < here[1] < around.y1
                if not inside or rng.random() < (0.5 if alley else 0.06):
                    continue
                out = np.array((-along[1], along[0])) * side
                kerb = here + out * (edge.street.width_m / 2)
                if alley:
                    houses.append(_garage(kerb, along, out, sun, rng))
                    continue
                roof = _ROOFS[int(rng.choice(len(_ROOFS), p=_HOUSE_SHARES))]
                roof = _ROOFS[int(street_roof)] if rng.random() < 0.4 else roof
                houses.append(_house(kerb, along, out, frontage, roof, lawn, sun, rng))
    return _in_districts(houses, plan)


def _in_districts(houses: list[_House], plan: Plan) -> list[_House]:
    cells = [
        Polygon(plan.warp(cell.box.ring()))
        for cell in plan.cells
        if cell.district in {District.GRID, District.LOOPS}
    ]
    if not houses or not cells:
        return []
    centres = points([house.footprint.mean(axis=0) for house in houses])
    hits = STRtree(cells).query(centres, predicate="within")[0]
    return [houses[i] for i in sorted({int(hit) for hit in hits})]


def _without_collisions(
    houses: list[_House], roads: STRtree, taken: STRtree | None
) -> list[_House]:
    """Drop houses that stand on a road, on a shop or on an earlier house."""
    if not houses:
        return []
    shapes = np.array(polygons([house.footprint for house in houses]))
    bad = set(roads.query(shapes, predicate="intersects")[0].tolist())
    if taken is not None:
        bad |= set(taken.query(shapes, predicate="intersects")[0].tolist())
    rivals = STRtree(shapes).query(shapes, predicate="intersects")
    for i, j in sorted((int(i), int(j)) for i, j in rivals.T if i < j):
        if i not in bad:
            bad.add(j)
    return [house for i, house in enumerate(houses) if i not in bad]


def _house(
    kerb: FloatArray,
    along: FloatArray,
    out: FloatArray,
    frontage: float,
    roof: Material,
    lawn: float,
    sun: tuple[float, float],
    rng: np.random.Generator,
) -> _House:
    """Make a house with a front yard, a drive and sometimes a wing, a pool or a shed."""
    width, depth = min(frontage - 3, rng.uniform(9, 15)), rng.uniform(8, 12)
    setback = KERB_M + rng.uniform(3, 7)
    tone = rng.uniform(0.72, 1.25)
    height = rng.uniform(3.2, 6.5)
    body = rectangle(kerb + out * (setback + depth / 2), along, width, depth)
    built = Built(buildings=[gabled(body, roof, tone, height, sun)])
    end = setback + depth
    shift = along * rng.choice((-1, 1))
    if rng.random() < 0.45:
        reach = rng.uniform(3, 6)
        wing = rectangle(kerb + out * (end + reach / 2 - 1) + shift * width / 4, out, reach + 2,
                         width / 2)  # fmt: skip
        built.buildings.append(gabled(wing, roof, tone, height - 0.4, sun))
    ground = Material.LAWN if rng.random() < 0.25 + 0.65 * lawn else bare_ground(rng)
    parcel = rectangle(kerb + out * (KERB_M + 15), along, frontage, 30)
    built.ground.append(Fill(parcel, ground, rng.uniform(0.82, 1.15)))
    drive(built, kerb, along, out, width, setback, shift, rng)
    yard = kerb + out * (end + rng.uniform(7, 9))
    choice = rng.random()
    if choice < 0.07:
        pool = rectangle(yard, along, rng.uniform(5, 8), rng.uniform(3, 4.5))
        deck = rectangle(yard, along, 10, 6.5)
        built.ground += [Fill(deck, Material.CONCRETE, 1.1), Fill(pool, Material.POOL)]
    elif choice < 0.35:
        shed = rectangle(yard - shift * width / 3, along, rng.uniform(2.5, 4), 3)
        built.buildings.append(flat(shed, Material.ROOF_METAL, rng.uniform(0.6, 1.0), 2.4))
    footprint = rectangle(kerb + out * (setback + depth / 2 + 1), along, width + 2, depth + 3)
    return _House(footprint, built)


def bare_ground(rng: np.random.Generator) -> Material:
    """Draw the ground cover of a garden without a lawn."""
    grounds = (Material.DRY_GRASS, Material.SOIL, Material.GRAVEL)
    return grounds[int(rng.choice(3, p=(0.6, 0.3, 0.1)))]


def drive(
    built: Built,
    kerb: FloatArray,
    along: FloatArray,
    out: FloatArray,
    width: float,
    setback: float,
    shift: FloatArray,
    rng: np.random.Generator,
) -> None:
    """Add a drive from the street to the house, of concrete or asphalt."""
    place = shift * (width / 2 - 2.2)
    surface = Material.CONCRETE if rng.random() < 0.6 else Material.ASPHALT
    strip = rectangle(kerb + out * (setback / 2) + place, out, setback + 1, rng.uniform(2.8, 5))
    built.ground.append(Fill(strip, surface, rng.uniform(0.8, 1.2)))
    if rng.random() < 0.4:
        built.cars.append((kerb + out * (setback - 3) + place, out))


def _garage(
    kerb: FloatArray,
    along: FloatArray,
    out: FloatArray,
    sun: tuple[float, float],
    rng: np.random.Generator,
) -> _House:
    """Make a garage at an alley, with its apron."""
    depth = rng.uniform(5.5, 7)
    centre = kerb + out * (KERB_M + depth / 2 + 0.6)
    body = rectangle(centre, along, rng.uniform(5.5, 7), depth)
    roof = Material.ROOF_GREY if rng.random() < 0.6 else Material.ROOF_BROWN
    apron = rectangle(kerb + out * 2, along, 5.5, 5)
    built = Built(
        ground=[Fill(apron, Material.CONCRETE, rng.uniform(0.8, 1.15))],
        buildings=[gabled(body, roof, rng.uniform(0.7, 1.2), 2.6, sun)],
    )
    return _House(rectangle(centre, along, 7.5, depth + 1), built)


def gabled(
    body: FloatArray, roof: Material, tone: float, height: float, sun: tuple[float, float]
) -> Building:
    """Make a building with a gabled roof over a rectangle (4, 2), darker away from the sun."""
    if np.hypot(*(body[1] - body[0])) > np.hypot(*(body[2] - body[1])):
        body = np.roll(body, -1, axis=0)
    # The short sides are now 0-1 and 2-3: the ridge joins their middles.
    ridge = ((body[0] + body[1]) / 2, (body[2] + body[3]) / 2)
    slopes = []
    for low, high in ((body[1], body[2]), (body[0], body[3])):
        away = (low + high) / 2 - (ridge[0] + ridge[1]) / 2
        cosine = float(away @ sun) / max(1e-6, float(np.hypot(*away) * np.hypot(*sun)))
        part = np.array((low, high, ridge[1], ridge[0]))
        slopes.append(Fill(part, roof, tone * (1 - 0.22 * cosine), lit=True))
    return Building(body, height, tuple(slopes))


def flat(body: FloatArray, roof: Material, tone: float, height: float) -> Building:
    """Make a building with a flat roof over a rectangle (4, 2); large roofs get a lighter rim."""
    centre = body.mean(axis=0)
    faces = [Fill(body, roof, tone, lit=True)]
    if np.ptp(body, axis=0).max() > 12:
        faces[0] = Fill(body, roof, tone * 1.25, lit=True)
        faces.append(Fill(centre + (body - centre) * 0.95, roof, tone, lit=True))
    return Building(body, height, tuple(faces))


def shops(box: Box, plan: Plan, sun: tuple[float, float], rng: np.random.Generator) -> Built:
    """Fill a shopping district with large buildings and car parks between its service lanes."""
    built = Built()
    ys = (box.y0, box.y0 + 0.52 * box.height, box.y1)
    xs = (box.x0, box.x0 + 0.46 * box.width, box.x1) if box.width > 170 else (box.x0, box.x1)
    for x0, x1 in pairwise(xs):
        for y0, y1 in pairwise(ys):
            quarter = Box(x0, y0, x1, y1).shrunk(13, 13)
            if min(quarter.width, quarter.height) > 18:
                built.add(_shop_quarter(quarter, plan, sun, rng))
    return built


def _shop_quarter(
    box: Box, plan: Plan, sun: tuple[float, float], rng: np.random.Generator
) -> Built:
    share = rng.uniform(0.4, 0.6)
    cut = box.y0 + share * box.height
    halves = [Box(box.x0, box.y0, box.x1, cut), Box(box.x0, cut, box.x1, box.y1)]
    lot, house = halves if rng.random() < 0.5 else halves[::-1]
    built = Built(ground=[Fill(plan.warp(box.shrunk(-6, -6).ring()), Material.ASPHALT,
                               rng.uniform(0.75, 1.3))])  # fmt: skip
    built.add(_car_park(lot, plan, rng))
    if rng.random() < 0.35:
        _storage_rows(built, house.shrunk(2, 2), plan, rng)
    else:
        _large_buildings(built, house.shrunk(2, 2), plan, sun, rng)
    return built


def _large_buildings(
    built: Built, box: Box, plan: Plan, sun: tuple[float, float], rng: np.random.Generator
) -> None:
    count = max(1, round(box.width / rng.uniform(28, 60)))
    for i in range(count):
        width = box.width / count - rng.uniform(0, 6)
        depth = box.height * rng.uniform(0.7, 1.0)
        centre = np.array((box.x0 + box.width * (i + 0.5) / count, box.y0 + box.height / 2))
        body = rectangle(centre, np.array((1.0, 0.0)), width, depth)
        roof = _ROOFS[int(rng.choice(len(_ROOFS), p=_SHOP_SHARES))]
        height = rng.uniform(5, 11) if rng.random() < 0.75 else rng.uniform(14, 26)
        block = flat(plan.warp(body), roof, rng.uniform(0.75, 1.2), height)
        above: list[Fill | Shadow] = []
        for _ in range(int(rng.integers(2, 9))):
            place = centre + rng.uniform(-0.42, 0.42, 2) * (width, depth)
            unit = rectangle(place, np.array((1.0, 0.0)), *rng.uniform(1.5, 4.0, 2))
            tone = rng.uniform(0.7, 1.3)
            unit = plan.warp(unit)
            above += [cast_shadow(unit, 1.5, sun), Fill(unit, Material.ROOF_METAL, tone, lit=True)]
        built.buildings.append(Building(block.outline, height, (*block.roof, *above)))


def _storage_rows(built: Built, box: Box, plan: Plan, rng: np.random.Generator) -> None:
    """Add rows of storage units: long grey roofs that look much like streets from above."""
    tone = rng.uniform(0.8, 1.15)
    for y in np.arange(box.y0 + 4, box.y1 - 3, 15.0):
        centre = np.array(((box.x0 + box.x1) / 2, y))
        body = rectangle(centre, np.array((1.0, 0.0)), box.width, 8.0)
        built.buildings.append(flat(plan.warp(body), Material.ROOF_GREY, tone, 3.2))


def _car_park(box: Box, plan: Plan, rng: np.random.Generator) -> Built:
    """Make a car park: rows of bays on both sides of aisles, partly occupied."""
    built = Built()
    busy = rng.uniform(0.2, 0.75)
    for y in np.arange(box.y0 + 4, box.y1 - 4, 16.5):
        for row, facing in ((y, 1.0), (y + 5.2, -1.0)):
            if row + 2.6 > box.y1:
                continue
            for x in np.arange(box.x0 + 3, box.x1 - 3, 2.75):
                ends = np.array(((x, row - 2.5), (x, row + 2.5)))
                built.stripes.append(Stripe(plan.warp(ends), 0.45))
                if rng.random() < busy:
                    bay = np.array(((x + 1.37, row), (x + 1.37, row + facing)))
                    here, ahead = plan.warp(bay)
                    built.cars.append((here, (ahead - here) / np.hypot(*(ahead - here))))
    return built
