"""Houses and rows of houses along streets, and the materials of all buildings."""

from dataclasses import dataclass, field

import numpy as np
from shapely import Polygon, get_coordinates, is_valid, union_all

from synthcity.blocks import KERB_M, Built, bare_ground, drive
from synthcity.network import Edge
from synthcity.plan import FloatArray
from synthcity.solids import Cladding, Solid, flat_block, gabled_block, hipped_block, merged
from synthcity.spectra import Material
from synthcity.strokes import Crown, Fill, point_at, rectangle

#: Materials of pitched roofs, and their frequencies.
PITCHED = (Material.ROOF_GREY, Material.ROOF_BROWN, Material.ROOF_TILE)

PITCHED_SHARES = (0.46, 0.30, 0.24)

_FLAT = (Material.ROOF_GREY, Material.GRAVEL, Material.ROOF_WHITE, Material.ROOF_METAL,
         Material.ROOF_BROWN)  # fmt: skip

_FLAT_SHARES = (0.36, 0.26, 0.18, 0.10, 0.10)

#: Materials of walls: houses have the first two, halls the last two.
WALLS = (Material.BRICK, Material.STUCCO, Material.CONCRETE)


@dataclass(frozen=True)
class Lot:
    """Buildings that are kept or dropped together.

    Attributes:
        solids: buildings, which may touch.
        built: ground covers around them.
        crowns: trees in courtyards.
    """

    solids: tuple[Solid, ...]
    built: Built = field(default_factory=Built)
    crowns: tuple[Crown, ...] = ()

    @property
    def ground(self) -> Polygon:
        """Union of the footprints."""
        return union_all([solid.footprint for solid in self.solids])


def block_cladding(
    rng: np.random.Generator, *, bay_m: float = 3.2, glazing: float = 0.45
) -> Cladding:
    """Draw the materials of a block of flats or offices."""
    return Cladding(
        wall=WALLS[int(rng.integers(len(WALLS)))],
        wall_tone=rng.uniform(0.75, 1.2),
        roof=_FLAT[int(rng.choice(len(_FLAT), p=_FLAT_SHARES))],
        roof_tone=rng.uniform(0.75, 1.2),
        bay_m=bay_m,
        glazing=glazing,
    )


def house_cladding(street_roof: int | None, rng: np.random.Generator) -> Cladding:
    """Draw the materials of a house; ``street_roof`` indexes ``PITCHED``, None draws a roof."""
    kind = int(rng.choice(len(PITCHED), p=PITCHED_SHARES)) if street_roof is None else street_roof
    return Cladding(
        wall=WALLS[int(rng.integers(2))],
        wall_tone=rng.uniform(0.85, 1.3),
        roof=PITCHED[kind],
        roof_tone=rng.uniform(0.7, 1.3),
        bay_m=3.4,
        glazing=0.3,
    )


def frame(lot: Polygon) -> tuple[FloatArray, FloatArray, float, float]:
    """Return centre, direction, length and width of a lot's minimum rotated rectangle."""
    corners = get_coordinates(lot.minimum_rotated_rectangle)[:4]
    sides = np.diff(corners[:3], axis=0)
    lengths = np.hypot(sides[:, 0], sides[:, 1])
    longer = int(np.argmax(lengths))
    return (
        corners.mean(axis=0),
        sides[longer] / lengths[longer],
        float(lengths[longer]),
        float(lengths[1 - longer]),
    )


def row(
    edge: Edge, side: int, distance: float, rng: np.random.Generator
) -> tuple[float, list[Lot]]:
    """Make a row of terraced houses with shared walls.

    Args:
        edge: their street.
        side: 1 for the right of its direction, -1 for the left.
        distance: start of the row along the street, metres.
        rng: random generator for all choices.

    Returns:
        The length of street that the row takes, metres, and the row, or no lot without room for it.
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
        out = np.array((-along[1], along[0])) * side
        near.append(here + out * setback)
        far.append(here + out * (setback + depth))
    flat = rng.random() < 0.35
    eaves = rng.uniform(5.5, 8.5)
    cladding = house_cladding(None, rng)
    solids = []
    for i in range(count):
        body = np.array((near[i], near[i + 1], far[i + 1], far[i]))
        if not is_valid(Polygon(body)) or Polygon(body).area < 0.5 * frontage * depth:
            # A sharp bend leaves no room on its inner side.
            return frontage, []
        paint = house_cladding(None, rng) if rng.random() < 0.5 else cladding
        height = eaves + rng.choice((0.0, 0.0, 0.6, -0.6))
        if flat:
            top = Cladding(paint.wall, paint.wall_tone, Material.GRAVEL, rng.uniform(0.7, 1.2), 2.8)
            solids.append(flat_block(Polygon(body), height, top))
        else:
            # The ridge runs along the row even if a house is deeper than wide.
            deep = np.hypot(*(body[3] - body[0])) > np.hypot(*(body[1] - body[0]))
            rise = rng.uniform(1.6, 2.6)
            solids.append(gabled_block(body, height, rise, paint, across=bool(deep)))
    built = Built(ground=[Fill(np.array([*near, *far[::-1]]), Material.LAWN, 0.95)])
    return count * frontage + rng.uniform(5, 16), [Lot(tuple(solids), built)]


def house(
    kerb: FloatArray,
    along: FloatArray,
    out: FloatArray,
    frontage: float,
    street_roof: int | None,
    lawn: float,
    rng: np.random.Generator,
) -> Lot:
    """Make a house in its garden: a rectangle, an L or a T, with a drive and sometimes a shed.

    Args:
        kerb: point on the kerb in front of the house, metres.
        along: direction of the street, unit vector.
        out: direction from the street to the house, unit vector.
        frontage: width of the parcel along the street, metres.
        street_roof: index of its roof in ``PITCHED``; None draws one.
        lawn: how common lawns are in its street, 0..1.
        rng: random generator for all choices.
    """
    width, depth = min(frontage - 3, rng.uniform(10, 16)), rng.uniform(8, 11.5)
    setback = KERB_M + rng.uniform(4, 9)
    cladding = house_cladding(street_roof, rng)
    eaves, rise = rng.choice((3.0, 3.3, 5.6, 6.0)), rng.uniform(1.4, 2.8)
    roofed = hipped_block if rng.random() < 0.45 else gabled_block
    middle = kerb + out * (setback + depth / 2)
    parts = [roofed(rectangle(middle, along, width, depth), eaves, rise, cladding)]
    shift = along * rng.choice((-1, 1))
    choice = rng.random()
    if choice < 0.6:
        # A wing at a corner makes an L, one in the middle a T. It points to the street or garden.
        place = shift * (width * 0.27) if choice < 0.4 else along * 0.0
        reach, way = rng.uniform(3, 6), rng.choice((-1, 1, 1))
        wing = middle + place + out * way * (depth / 2 + reach / 2 - 1)
        body = rectangle(wing, out, reach + 2, width * rng.uniform(0.38, 0.46))
        parts.append(gabled_block(body, eaves - 0.1, rise * 0.75, cladding))
    footprint = union_all([part.footprint for part in parts])
    solids = [merged(footprint, parts)]
    built = Built()
    ground = Material.LAWN if rng.random() < 0.35 + 0.6 * lawn else bare_ground(rng)
    parcel = rectangle(kerb + out * (KERB_M + 16), along, frontage, 31)
    built.ground.append(Fill(parcel, ground, rng.uniform(0.82, 1.15)))
    drive(built, kerb, along, out, width, setback, shift, rng)
    if rng.random() < 0.3:
        place = kerb + out * (setback + depth + rng.uniform(8, 10)) - shift * width / 3
        shed = Polygon(rectangle(place, along, rng.uniform(3, 6), rng.uniform(3, 5)))
        metal = Cladding(Material.STUCCO, 0.9, Material.ROOF_METAL, rng.uniform(0.6, 1.0), bay_m=0)
        if shed.distance(footprint) > 1:
            solids.append(flat_block(shed, 2.6, metal))
    return Lot(tuple(solids), built)
