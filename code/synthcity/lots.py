"""Houses, rows of houses and garages along streets, and the materials of all buildings."""

from dataclasses import dataclass, field

import numpy as np
from shapely import Polygon, get_coordinates, is_valid, union_all

from synthcity.network import Edge
from synthcity.plan import FloatArray, Rng
from synthcity.solids import Cladding, Solid, flat_block, merged, pitched_block
from synthcity.spectra import Material
from synthcity.strokes import Crown, Fill, Stripe, across, point_at, rectangle

#: Sidewalk and verge beside the carriageway, metres.
KERB_M = 3.2
#: Materials of pitched roofs, and their frequencies.
PITCHED = (Material.ROOF_GREY, Material.ROOF_BROWN, Material.ROOF_TILE)
PITCHED_SHARES = (0.46, 0.30, 0.24)
_FLAT = (Material.ROOF_GREY, Material.GRAVEL, Material.ROOF_WHITE, Material.ROOF_METAL,
         Material.ROOF_BROWN)  # fmt: skip
_FLAT_SHARES = (0.36, 0.26, 0.18, 0.10, 0.10)
#: Materials of walls: houses have the first two, halls the last two.
WALLS = (Material.BRICK, Material.STUCCO, Material.CONCRETE)


@dataclass
class Lot:
    """Buildings that are kept or dropped together, with what lies around them."""

    solids: list[Solid] = field(default_factory=list)  # buildings, which may touch
    # parcels, drives, car parks, pools, in painting order
    ground: list[Fill] = field(default_factory=list)
    stripes: list[Stripe] = field(default_factory=list)  # lines of parking bays
    # (place, direction) of parked cars
    cars: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)
    crowns: list[Crown] = field(default_factory=list)  # trees in courtyards

    def add(self, other: "Lot") -> None:
        """Append the contents of ``other``."""
        for name in ("solids", "ground", "stripes", "cars", "crowns"):
            getattr(self, name).extend(getattr(other, name))


def block_cladding(rng: Rng, *, bay_m: float = 3.2, glazing: float = 0.45) -> Cladding:
    """Draw the materials of a block of flats or offices."""
    wall = WALLS[int(rng.integers(len(WALLS)))], rng.uniform(0.75, 1.2)
    roof = _FLAT[int(rng.choice(len(_FLAT), p=_FLAT_SHARES))], rng.uniform(0.75, 1.2)
    return Cladding(*wall, *roof, bay_m, glazing)


def house_cladding(street_roof: int | None, rng: Rng) -> Cladding:
    """Draw the materials of a house; ``street_roof`` indexes ``PITCHED``, None draws a roof."""
    kind = int(rng.choice(len(PITCHED), p=PITCHED_SHARES)) if street_roof is None else street_roof
    wall = WALLS[int(rng.integers(2))], rng.uniform(0.85, 1.3)
    return Cladding(*wall, PITCHED[kind], rng.uniform(0.7, 1.3), bay_m=3.4, glazing=0.3)


def metal_cladding(rng: Rng, wall: Material = Material.ROOF_METAL) -> Cladding:
    """Draw the materials of a shed or of a unit on a roof."""
    return Cladding(wall, 0.8, Material.ROOF_METAL, rng.uniform(0.6, 1.2), bay_m=0)


def frame(lot: Polygon) -> tuple[FloatArray, FloatArray, float, float]:
    """Return centre, direction, length and width of a lot's minimum rotated rectangle."""
    corners = get_coordinates(lot.minimum_rotated_rectangle)[:4]
    sides = np.diff(corners[:3], axis=0)
    lengths = np.hypot(sides[:, 0], sides[:, 1])
    longer = int(np.argmax(lengths))
    along = sides[longer] / lengths[longer]
    return corners.mean(axis=0), along, float(lengths[longer]), float(lengths[1 - longer])


def row(edge: Edge, side: int, distance: float, rng: Rng) -> tuple[float, list[Lot]]:
    """Make a row of terraced houses with shared walls, from a distance along a street on.

    ``side`` is 1 for the right of the street's direction, -1 for the left. Returns the length of
    street that the row takes, metres, and the row, or no lot without room for it.
    """
    frontage, depth = rng.uniform(6.0, 9.5), rng.uniform(9, 12)
    setback = edge.street.width_m / 2 + KERB_M + rng.uniform(0.5, 4)
    room = edge.line.length - 8 - distance
    count = min(int(rng.integers(3, 10)), int(room / frontage))
    if count < 2:
        return max(room, 6.0), []
    near, far = [], []
    for i in range(count + 1):
        here, along = point_at(edge.line, distance + i * frontage)
        out = across(along) * side
        near.append(here + out * setback)
        far.append(here + out * (setback + depth))
    flat = rng.random() < 0.35
    eaves = rng.uniform(5.5, 8.5)
    cladding = house_cladding(None, rng)
    lot = Lot(ground=[Fill(np.array([*near, *far[::-1]]), Material.LAWN, 0.95)])
    for i in range(count):
        body = np.array((near[i], near[i + 1], far[i + 1], far[i]))
        if not is_valid(Polygon(body)) or Polygon(body).area < 0.5 * frontage * depth:
            # A sharp bend leaves no room on its inner side.
            return frontage, []
        paint = house_cladding(None, rng) if rng.random() < 0.5 else cladding
        height = eaves + rng.choice((0.0, 0.0, 0.6, -0.6))
        if flat:
            top = Cladding(paint.wall, paint.wall_tone, Material.GRAVEL, rng.uniform(0.7, 1.2), 2.8)
            lot.solids.append(flat_block(Polygon(body), height, top))
        else:
            # The ridge runs along the row even if a house is deeper than wide.
            deep = bool(depth > np.hypot(*(body[1] - body[0])))
            rise = rng.uniform(1.6, 2.6)
            lot.solids.append(pitched_block(body, height, rise, paint, across=deep))
    return count * frontage + rng.uniform(5, 16), [lot]


def house(
    kerb: FloatArray,
    along: FloatArray,
    out: FloatArray,
    frontage: float,
    street_roof: int | None,
    lawn: float,
    rng: Rng,
) -> Lot:
    """Make a house in its garden: a rectangle, an L or a T, with a drive, a shed or a pool.

    It faces the point ``kerb`` of a street. ``along`` and ``out`` are unit vectors along the street
    and from it to the house; ``frontage`` is the width of its parcel, metres. ``street_roof`` is
    the index of its roof in ``PITCHED``, None draws one. ``lawn``, 0..1, is the share of lawns.
    """
    width, depth = min(frontage - 3, rng.uniform(10, 16)), rng.uniform(8, 11.5)
    setback = KERB_M + rng.uniform(4, 9)
    cladding = house_cladding(street_roof, rng)
    eaves, rise = rng.choice((3.0, 3.3, 5.6, 6.0)), rng.uniform(1.4, 2.8)
    middle = kerb + out * (setback + depth / 2)
    body = rectangle(middle, along, width, depth)
    parts = [pitched_block(body, eaves, rise, cladding, hipped=rng.random() < 0.45)]
    shift = along * rng.choice((-1, 1))
    choice = rng.random()
    if choice < 0.6:
        # A wing at a corner makes an L, one in the middle a T. It points to the street or garden.
        place = shift * (width * 0.27) if choice < 0.4 else along * 0.0
        reach, way = rng.uniform(3, 6), rng.choice((-1, 1, 1))
        wing = middle + place + out * way * (depth / 2 + reach / 2 - 1)
        body = rectangle(wing, out, reach + 2, width * rng.uniform(0.38, 0.46))
        parts.append(pitched_block(body, eaves - 0.1, rise * 0.75, cladding))
    footprint = union_all([part.footprint for part in parts]) if parts[1:] else parts[0].footprint
    lot = Lot([merged(footprint, parts)])
    ground = Material.LAWN
    if rng.random() > 0.35 + 0.6 * lawn:
        grounds = (Material.DRY_GRASS, Material.SOIL, Material.GRAVEL)
        ground = grounds[int(rng.choice(3, p=(0.6, 0.3, 0.1)))]
    parcel = rectangle(kerb + out * (KERB_M + 16), along, frontage, 31)
    lot.ground.append(Fill(parcel, ground, rng.uniform(0.82, 1.15)))
    _drive(lot, kerb + shift * (width / 2 - 2.2), out, setback, rng)
    yard = kerb + out * (setback + depth + rng.uniform(8, 10))
    choice = rng.random()
    if choice < 0.3:
        place = yard - shift * width / 3
        shed = Polygon(rectangle(place, along, rng.uniform(3, 6), rng.uniform(3, 5)))
        if shed.distance(footprint) > 1:
            lot.solids.append(flat_block(shed, 2.6, metal_cladding(rng, Material.STUCCO)))
    elif choice < 0.36:
        pool = rectangle(yard, along, rng.uniform(5, 8), rng.uniform(3, 4.5))
        deck = rectangle(yard, along, 10, 6.5)
        lot.ground += [Fill(deck, Material.CONCRETE, 1.1), Fill(pool, Material.POOL)]
    return lot


def _drive(lot: Lot, kerb: FloatArray, out: FloatArray, setback: float, rng: Rng) -> None:
    """Add a drive from the street to the house, of concrete or asphalt."""
    surface = Material.CONCRETE if rng.random() < 0.6 else Material.ASPHALT
    strip = rectangle(kerb + out * (setback / 2), out, setback + 1, rng.uniform(2.8, 5))
    lot.ground.append(Fill(strip, surface, rng.uniform(0.8, 1.2)))
    if rng.random() < 0.4:
        lot.cars.append((kerb + out * (setback - 3), out))


def garage(kerb: FloatArray, along: FloatArray, out: FloatArray, rng: Rng) -> Lot:
    """Make a garage at an alley, with its apron."""
    depth = rng.uniform(5.5, 7)
    body = rectangle(kerb + out * (KERB_M + depth / 2 + 0.6), along, rng.uniform(5.5, 7), depth)
    apron = rectangle(kerb + out * 2, along, 5.5, 5)
    return Lot(
        [pitched_block(body, 2.6, 1.2, house_cladding(int(rng.integers(2)), rng))],
        [Fill(apron, Material.CONCRETE, rng.uniform(0.8, 1.15))],
    )
