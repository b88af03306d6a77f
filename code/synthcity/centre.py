"""Large buildings: towers, slabs, perimeter blocks with courtyards, shopping halls."""

from collections.abc import Sequence

import numpy as np
from shapely import LineString, Polygon, intersection, points, polygonize, unary_union

from synthcity.blocks import Built
from synthcity.housing import WALLS, Lot, block_cladding, frame
from synthcity.solids import Cladding, Solid, flat_block, merged
from synthcity.spectra import Material
from synthcity.strokes import CROWN_VARIANTS, Building, Crown, Fill, outline, point_at, rectangle


def block_lots(
    block: Polygon, central: bool, ground: list[Fill], rng: np.random.Generator
) -> list[Lot]:
    """Fill a block with towers, slabs or a perimeter building round a courtyard.

    Args:
        block: the land between streets, without their sidewalks.
        central: whether it lies in the densest quarter.
        ground: list to which the block's paving is appended.
        rng: random generator for all choices.
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


def _perimeter(lot: Polygon, central: bool, rng: np.random.Generator) -> list[Lot]:
    """Build along the rim of a block: one building round a courtyard, or adjoining units."""
    depth = rng.uniform(10, 14)
    court = lot.buffer(-depth, join_style="mitre")
    if not isinstance(court, Polygon) or court.area < 120 or lot.interiors:
        return _slabs(lot, central, rng)
    height = rng.uniform(10, 22) + 8 * central
    shape = Polygon(lot.exterior, [court.exterior.coords])
    yard = Material.LAWN if rng.random() < 0.6 else Material.CONCRETE
    ground = Built(ground=[Fill(outline(court), yard, rng.uniform(0.85, 1.1))])
    crowns = _court_trees(court, rng) if yard is Material.LAWN else ()
    if rng.random() < 0.45 and lot.area < 9000:
        return [Lot((_block_solid(shape, height, block_cladding(rng), rng),), ground, crowns)]
    units = _cut(shape, lot, depth, rng)
    solids = []
    for unit in units:
        if rng.random() < 0.07:
            continue
        level = max(7.0, height + rng.normal(0, 2.5))
        solids.append(_block_solid(unit, level, block_cladding(rng), rng))
    return [Lot(tuple(solids), ground, crowns)] if solids else []


def _cut(shape: Polygon, lot: Polygon, depth: float, rng: np.random.Generator) -> list[Polygon]:
    """Cut a perimeter building into units with shared walls."""
    ring, cuts, distance = LineString(lot.exterior.coords), [], rng.uniform(0, 10)
    while distance < ring.length - 8:
        here, along = point_at(ring, distance)
        # Long enough to cross the whole rim, even at a bend.
        reach = np.array((-along[1], along[0])) * 1.6 * depth
        cuts.append(LineString([here - reach, here + reach]))
        distance += rng.uniform(11, 26)
    parts = polygonize([unary_union([shape.boundary, *cuts])]).geoms
    inside = [part for part in parts if shape.contains(part.representative_point())]
    return [part for part in inside if part.area > 45]


def _court_trees(court: Polygon, rng: np.random.Generator) -> tuple[Crown, ...]:
    room = court.buffer(-4.0)
    if room.is_empty:
        return ()
    x0, y0, x1, y1 = room.bounds
    places = rng.uniform((x0, y0), (x1, y1), (int(court.area / 90), 2))
    kept = places[[room.contains(point) for point in points(places)]] if len(places) else places
    return tuple(
        Crown(
            float(x),
            float(y),
            rng.uniform(1.8, 3.4),
            int(rng.integers(CROWN_VARIANTS)),
            Material.TREE,
        )
        for x, y in kept
    )


def _slabs(lot: Polygon, central: bool, rng: np.random.Generator) -> list[Lot]:
    """Place parallel slab blocks on a lot, some with a wing."""
    centre, along, length, width = frame(lot)
    depth, pitch = rng.uniform(11, 15), rng.uniform(27, 36)
    normal = np.array((-along[1], along[0]))
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
                lots.append(Lot((_block_solid(shape, height, cladding, rng),)))
    return lots


def _towers(lot: Polygon, rng: np.random.Generator) -> list[Lot]:
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
            glass = rng.random() < 0.4
            cladding = block_cladding(
                rng, bay_m=rng.uniform(1.8, 3.4), glazing=0.85 if glass else 0.5
            )
            lots.append(Lot((_block_solid(shape, rng.uniform(32, 78), cladding, rng),)))
    return lots


def _block_solid(
    shape: Polygon, height: float, cladding: Cladding, rng: np.random.Generator
) -> Solid:
    """Make a flat-roofed building with lift houses and cooling units on its roof."""
    body = flat_block(shape, height, cladding)
    room = shape.buffer(-2.5)
    parts = [body]
    if not room.is_empty and shape.area > 180:
        _, along, *_ = frame(shape)
        x0, y0, x1, y1 = room.bounds
        for place in rng.uniform((x0, y0), (x1, y1), (int(min(14, 2 + shape.area / 150)), 2)):
            unit = Polygon(rectangle(place, along, *rng.uniform(1.5, 4.5, 2)))
            if room.contains(unit):
                metal = Cladding(
                    Material.ROOF_METAL, 0.7, Material.ROOF_METAL, rng.uniform(0.7, 1.2), bay_m=0
                )
                top = height + rng.uniform(1.2, 3.0)
                parts.append(flat_block(unit, top, metal, base=height, parapet=False))
    return merged(shape, parts)


def halls(buildings: Sequence[Building], rng: np.random.Generator) -> list[Lot]:
    """Make the halls of a shopping district, some with a corner or a courtyard cut out.

    Args:
        buildings: large buildings made by ``blocks.shops``.
        rng: random generator for all choices.
    """
    lots = []
    for hall in buildings:
        shape = Polygon(hall.outline)
        centre, along, length, width = frame(shape)
        choice = rng.random()
        if width > 26 and choice < 0.2:
            yard = rectangle(centre, along, length * rng.uniform(0.25, 0.5), width * 0.35)
            shape = shape.difference(Polygon(yard))
        elif width > 26 and choice < 0.6:
            corner = centre + along * length / 2 * rng.choice((-1, 0, 1))
            corner = corner + np.array((-along[1], along[0])) * width / 2
            cut = rectangle(corner, along, length * rng.uniform(0.4, 0.9), width * 0.9)
            rest = shape.difference(Polygon(cut))
            shape = rest if isinstance(rest, Polygon) and rest.area > 200 else shape
        blank = Cladding(WALLS[int(rng.integers(1, 3))], rng.uniform(0.8, 1.15),
                     hall.roof[0].material if isinstance(hall.roof[0], Fill) else Material.GRAVEL,
                     rng.uniform(0.8, 1.2), bay_m=0)  # fmt: skip
        height = float(min(hall.height, 16.0))
        lots.append(Lot((_block_solid(shape, height, blank, rng),)))
    return lots
