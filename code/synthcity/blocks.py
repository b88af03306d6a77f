"""Large buildings: towers, slabs, perimeter blocks with courtyards, shopping halls."""

from itertools import pairwise

import numpy as np
from shapely import LineString, Polygon, intersection, points, polygonize, unary_union

from synthcity.lots import WALLS, Lot, block_cladding, frame, metal_cladding
from synthcity.plan import Box, FloatArray, Plan, Rng
from synthcity.solids import Cladding, Solid, flat_block, merged
from synthcity.spectra import Material
from synthcity.strokes import (
    CROWN_VARIANTS,
    Crown,
    Fill,
    Stripe,
    across,
    outline,
    point_at,
    rectangle,
)

_EAST = np.array((1.0, 0.0))
# Roofs of halls, and their frequencies.
_HALL_ROOFS = (Material.ROOF_GREY, Material.ROOF_BROWN, Material.ROOF_TILE, Material.ROOF_METAL,
               Material.ROOF_WHITE)  # fmt: skip
_HALL_SHARES = (0.46, 0.04, 0.03, 0.17, 0.30)


def block_lots(block: Polygon, central: bool, ground: list[Fill], rng: Rng) -> list[Lot]:
    """Fill a block with towers, slabs or a perimeter building round a courtyard.

    The block is the land between streets without sidewalks; a ``central`` one is built most
    densely. Its paving is appended to ``ground``.
    """
    lot = block.buffer(-rng.uniform(0.5, 3.0), join_style="mitre").simplify(0.8)
    if not isinstance(lot, Polygon) or lot.area < 300:
        return []
    paving = Material.CONCRETE if rng.random() < 0.5 else Material.ASPHALT
    ground.append(Fill(outline(block), paving, rng.uniform(0.8, 1.1)))
    choice = rng.random()
    if central and choice < 0.3:
        return _towers(lot, rng)
    if choice < 0.8:
        return _perimeter(lot, central, rng)
    return _slabs(lot, central, rng)


def _perimeter(lot: Polygon, central: bool, rng: Rng) -> list[Lot]:
    """Build along the rim of a block: one building round a courtyard, or adjoining units."""
    depth = rng.uniform(10, 14)
    court = lot.buffer(-depth, join_style="mitre")
    if not isinstance(court, Polygon) or court.area < 120 or lot.interiors:
        return _slabs(lot, central, rng)
    height = rng.uniform(10, 22) + 8 * central
    shape = Polygon(lot.exterior, [court.exterior.coords])
    yard = Material.LAWN if rng.random() < 0.6 else Material.CONCRETE
    made = Lot(ground=[Fill(outline(court), yard, rng.uniform(0.85, 1.1))])
    if yard is Material.LAWN:
        made.crowns += _court_trees(court, rng)
    if rng.random() < 0.45 and lot.area < 9000:
        made.solids.append(_block_solid(shape, height, block_cladding(rng), rng))
    else:
        for unit in _cut(shape, lot, depth, rng):
            if rng.random() > 0.07:
                level = max(7.0, height + rng.normal(0, 2.5))
                made.solids.append(_block_solid(unit, level, block_cladding(rng), rng))
    return [made] if made.solids else []


def _cut(shape: Polygon, lot: Polygon, depth: float, rng: Rng) -> list[Polygon]:
    """Cut a perimeter building into units with shared walls."""
    ring, cuts, distance = LineString(lot.exterior.coords), [], rng.uniform(0, 10)
    while distance < ring.length - 8:
        here, along = point_at(ring, distance)
        # Long enough to cross the whole rim, even at a bend.
        reach = across(along) * 1.6 * depth
        cuts.append(LineString([here - reach, here + reach]))
        distance += rng.uniform(11, 26)
    parts = polygonize([unary_union([shape.boundary, *cuts])]).geoms
    inside = [part for part in parts if shape.contains(part.representative_point())]
    return [part for part in inside if part.area > 45]


def _court_trees(court: Polygon, rng: Rng) -> list[Crown]:
    room = court.buffer(-4.0)
    if room.is_empty:
        return []
    x0, y0, x1, y1 = room.bounds
    places = rng.uniform((x0, y0), (x1, y1), (int(court.area / 90), 2))
    return [
        Crown(x, y, rng.uniform(1.8, 3.4), int(rng.integers(CROWN_VARIANTS)), Material.TREE)
        for x, y in places.tolist()
        if room.contains(points(x, y))
    ]


def _slabs(lot: Polygon, central: bool, rng: Rng) -> list[Lot]:
    """Place parallel slab blocks on a lot, some with a wing."""
    centre, along, length, width = frame(lot)
    depth, pitch = rng.uniform(11, 15), rng.uniform(27, 36)
    normal = across(along)
    cladding = block_cladding(rng)
    lots = []
    for offset in np.arange(-width / 2 + depth / 2 + 1, width / 2 - depth / 2, pitch):
        start = -length / 2 + rng.uniform(0, 6)
        while start < length / 2 - 18:
            extent = min(length / 2 - start, rng.uniform(24, 60))
            middle = centre + normal * offset + along * (start + extent / 2)
            start += extent + rng.uniform(5, 14)
            shape = Polygon(rectangle(middle, along, extent, depth))
            if rng.random() < 0.4:
                end = middle + along * (extent - depth) / 2 * rng.choice((-1, 1))
                wing = rectangle(end + normal * depth * 0.9, along, depth, depth * 1.6)
                shape = shape.union(Polygon(wing))
            shape = intersection(shape, lot.buffer(0.01))
            if isinstance(shape, Polygon) and shape.area > 150:
                height = rng.uniform(9, 18) + 8 * central
                lots.append(Lot([_block_solid(shape, height, cladding, rng)]))
    return lots


def _towers(lot: Polygon, rng: Rng) -> list[Lot]:
    """Place one to three towers on a lot."""
    centre, along, length, _ = frame(lot)
    count = int(rng.integers(1, 4)) if length > 70 else 1
    lots = []
    for i in range(count):
        middle = centre + along * (length * ((i + 0.5) / count - 0.5))
        shape = Polygon(rectangle(middle, along, *rng.uniform(18, 32, 2)))
        if not lot.buffer(0.5).contains(shape):
            shape = intersection(shape, lot)
        if isinstance(shape, Polygon) and shape.area > 200:
            glazing = 0.85 if rng.random() < 0.4 else 0.5
            cladding = block_cladding(rng, bay_m=rng.uniform(1.8, 3.4), glazing=glazing)
            lots.append(Lot([_block_solid(shape, rng.uniform(32, 78), cladding, rng)]))
    return lots


def _block_solid(shape: Polygon, height: float, cladding: Cladding, rng: Rng) -> Solid:
    """Make a flat-roofed building with lift houses and cooling units on its roof."""
    room = shape.buffer(-2.5)
    parts = [flat_block(shape, height, cladding)]
    if not room.is_empty and shape.area > 180:
        _, along, *_ = frame(shape)
        x0, y0, x1, y1 = room.bounds
        for place in rng.uniform((x0, y0), (x1, y1), (int(min(14, 2 + shape.area / 150)), 2)):
            unit = Polygon(rectangle(place, along, *rng.uniform(1.5, 4.5, 2)))
            if room.contains(unit):
                top, metal = height + rng.uniform(1.2, 3.0), metal_cladding(rng)
                parts.append(flat_block(unit, top, metal, base=height, parapet=False))
    return merged(shape, parts)


def shops(box: Box, plan: Plan, rng: Rng) -> tuple[Lot, list[Lot]]:
    """Fill a shopping district between its service lanes: car parks, and large buildings."""
    parking, halls = Lot(), []
    ys = (box.y0, box.y0 + 0.52 * box.height, box.y1)
    xs = (box.x0, box.x0 + 0.46 * box.width, box.x1) if box.width > 170 else (box.x0, box.x1)
    for x0, x1 in pairwise(xs):
        for y0, y1 in pairwise(ys):
            quarter = Box(x0, y0, x1, y1).shrunk(13, 13)
            if min(quarter.width, quarter.height) > 18:
                halls += _shop_quarter(quarter, plan, parking, rng)
    return parking, halls


def _shop_quarter(box: Box, plan: Plan, parking: Lot, rng: Rng) -> list[Lot]:
    cut = box.y0 + rng.uniform(0.4, 0.6) * box.height
    halves = [Box(box.x0, box.y0, box.x1, cut), Box(box.x0, cut, box.x1, box.y1)]
    lot, house = halves if rng.random() < 0.5 else halves[::-1]
    asphalt = plan.warp(box.shrunk(-6, -6).ring())
    parking.ground.append(Fill(asphalt, Material.ASPHALT, rng.uniform(0.75, 1.3)))
    _car_park(parking, lot, plan, rng)
    house = house.shrunk(2, 2)
    if rng.random() < 0.35:
        return _storage_rows(house, plan, rng)
    count = max(1, round(house.width / rng.uniform(28, 60)))
    pitch, halls = house.width / count, []
    for i in range(count):
        centre = np.array((house.x0 + pitch * (i + 0.5), house.y0 + house.height / 2))
        size = pitch - rng.uniform(0, 6), house.height * rng.uniform(0.7, 1.0)
        halls.append(_hall(plan.warp(rectangle(centre, _EAST, *size)), rng))
    return halls


def _hall(body: FloatArray, rng: Rng) -> Lot:
    """Make a hall; some have a courtyard or a corner cut out."""
    shape = Polygon(body)
    centre, along, length, width = frame(shape)
    choice = rng.random()
    if width > 26 and choice < 0.2:
        yard = rectangle(centre, along, length * rng.uniform(0.25, 0.5), width * 0.35)
        shape = shape.difference(Polygon(yard))
    elif width > 26 and choice < 0.6:
        corner = centre + along * length / 2 * rng.choice((-1, 0, 1)) + across(along) * width / 2
        cut = rectangle(corner, along, length * rng.uniform(0.4, 0.9), width * 0.9)
        rest = shape.difference(Polygon(cut))
        shape = rest if isinstance(rest, Polygon) and rest.area > 200 else shape
    wall = WALLS[int(rng.integers(1, 3))], rng.uniform(0.8, 1.15)
    roof = _HALL_ROOFS[int(rng.choice(len(_HALL_ROOFS), p=_HALL_SHARES))], rng.uniform(0.75, 1.2)
    height = rng.uniform(5, 11) if rng.random() < 0.75 else rng.uniform(11, 16)
    return Lot([_block_solid(shape, height, Cladding(*wall, *roof, bay_m=0), rng)])


def _storage_rows(box: Box, plan: Plan, rng: Rng) -> list[Lot]:
    """Make rows of storage units: long grey roofs that look much like streets from above."""
    blank = Cladding(Material.STUCCO, 1.0, Material.ROOF_GREY, rng.uniform(0.8, 1.15), bay_m=0)
    lots = []
    for y in np.arange(box.y0 + 4, box.y1 - 3, 15.0):
        body = rectangle(np.array(((box.x0 + box.x1) / 2, y)), _EAST, box.width, 8.0)
        lots.append(Lot([flat_block(Polygon(plan.warp(body)), 3.2, blank, parapet=False)]))
    return lots


def _car_park(parking: Lot, box: Box, plan: Plan, rng: Rng) -> None:
    """Add a car park: rows of bays on both sides of aisles, partly occupied."""
    busy = rng.uniform(0.2, 0.75)
    for y in np.arange(box.y0 + 4, box.y1 - 4, 16.5):
        for row, facing in ((y, 1.0), (y + 5.2, -1.0)):
            x = np.arange(box.x0 + 3, box.x1 - 3, 2.75)
            if row + 2.6 > box.y1 or not len(x):
                continue
            places = [(x, row - 2.5), (x, row + 2.5), (x + 1.37, row), (x + 1.37, row + facing)]
            rows = [plan.warp(np.column_stack([a, np.full_like(a, b)])) for a, b in places]
            occupied = rng.random(len(x)) < busy
            for start, end, here, ahead, taken in zip(*rows, occupied, strict=True):
                parking.stripes.append(Stripe(np.array((start, end)), 0.45))
                if taken:
                    parking.cars.append((here, (ahead - here) / np.hypot(*(ahead - here))))
