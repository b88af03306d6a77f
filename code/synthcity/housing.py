"""Houses in their gardens and rows of houses, along streets."""

import numpy as np
from shapely import Polygon, is_valid, union_all

from synthcity.blocks import KERB_M, Built, bare_ground, drive
from synthcity.lots import Lot, house_coat
from synthcity.network import Edge
from synthcity.plan import FloatArray
from synthcity.solids import Coat, flat_block, gabled_block, hipped_block, merged
from synthcity.spectra import Material
from synthcity.strokes import Fill, at, rectangle


def row(
    edge: Edge, side: int, distance: float, rng: np.random.Generator
) -> tuple[float, list[Lot]]:
    """Terraced houses that share their walls.

    Args:
        edge: their street.
        side: 1 to the right of its direction, -1 to the left.
        distance: where along the street they begin, metres.
        rng: source of all choices.

    Returns:
        The length of the street that they take, metres, and the row, if there is room for one.
    """
    frontage, depth = rng.uniform(6.0, 9.5), rng.uniform(9, 12)
    setback = edge.street.width_m / 2 + KERB_M + rng.uniform(0.5, 4)
    room = edge.line.length - 8 - distance
    count = min(int(rng.integers(3, 10)), int(room / frontage))
    if count < 2:
        return max(room, 6.0), []
    near, far = [], []
    for i in range(count + 1):
        here, along = at(edge.line, distance + i * frontage)
        out = np.array((-along[1], along[0])) * side
        near.append(here + out * setback)
        far.append(here + out * (setback + depth))
    flat = rng.random() < 0.35
    eaves = rng.uniform(5.5, 8.5)
    coat = house_coat(None, rng)
    solids = []
    for i in range(count):
        body = np.array((near[i], near[i + 1], far[i + 1], far[i]))
        if not is_valid(Polygon(body)) or Polygon(body).area < 0.5 * frontage * depth:
            # On the inner side of a sharp bend there is no room behind the street.
            return frontage, []
        paint = house_coat(None, rng) if rng.random() < 0.5 else coat
        height = eaves + rng.choice((0.0, 0.0, 0.6, -0.6))
        if flat:
            top = Coat(paint.wall, paint.wall_tone, Material.GRAVEL, rng.uniform(0.7, 1.2), 2.8)
            solids.append(flat_block(Polygon(body), height, top))
        else:
            # The ridge runs along the row, whichever side of a house is longer.
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
    liked: int | None,
    lawn: float,
    rng: np.random.Generator,
) -> Lot:
    """A house in its garden: a rectangle, an L or a T, with a drive and sometimes a shed.

    Args:
        kerb: the middle of its piece of the street's kerb, metres.
        along: the street's direction, unit vector.
        out: the direction from the street to the house, unit vector.
        frontage: length of its piece of the street, metres.
        liked: its roof among ``PITCHED``; None for any.
        lawn: how much lawns are liked in its street, 0..1.
        rng: source of all choices.
    """
    width, depth = min(frontage - 3, rng.uniform(10, 16)), rng.uniform(8, 11.5)
    setback = KERB_M + rng.uniform(4, 9)
    coat = house_coat(liked, rng)
    eaves, rise = rng.choice((3.0, 3.3, 5.6, 6.0)), rng.uniform(1.4, 2.8)
    roofed = hipped_block if rng.random() < 0.45 else gabled_block
    middle = kerb + out * (setback + depth / 2)
    parts = [roofed(rectangle(middle, along, width, depth), eaves, rise, coat)]
    shift = along * rng.choice((-1, 1))
    luck = rng.random()
    if luck < 0.6:
        # At a corner the wing makes an L, in the middle a T; to the street or to the garden.
        place = shift * (width * 0.27) if luck < 0.4 else along * 0.0
        reach, way = rng.uniform(3, 6), rng.choice((-1, 1, 1))
        wing = middle + place + out * way * (depth / 2 + reach / 2 - 1)
        body = rectangle(wing, out, reach + 2, width * rng.uniform(0.38, 0.46))
        parts.append(gabled_block(body, eaves - 0.1, rise * 0.75, coat))
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
        metal = Coat(Material.STUCCO, 0.9, Material.ROOF_METAL, rng.uniform(0.6, 1.0), bay_m=0)
        if shed.distance(footprint) > 1:
            solids.append(flat_block(shed, 2.6, metal))
    return Lot(tuple(solids), built)
