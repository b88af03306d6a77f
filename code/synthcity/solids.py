"""Everything that stands above the ground: faces of buildings and bridges, as a sensor sees them.

x points east, y south and height up. The corners of a face are ordered so that its normal points
outward: seen from outside, they run round like those of a polygon of positive area.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from shapely import Polygon, get_coordinates
from shapely.geometry.polygon import orient

from synthcity.plan import FloatArray
from synthcity.spectra import Material
from synthcity.strokes import Fill, Shadow, Stroke, Sun

# Height between the layers of a roof, metres, so that the upper layer is the visible one.
_LAYER_M = 0.02
_PARAPET_M = 0.5
#: Upper limit of the sunlight on a face relative to level ground.
MAX_INCIDENCE = 1.4


@dataclass(frozen=True, slots=True)
class Face:
    """Flat face of a building or bridge."""

    # outer ring and holes, each float64 (n, 3), x, y and height in metres, not closed
    rings: tuple[FloatArray, ...]
    normal: FloatArray  # float64 (3,), unit vector outward
    material: Material  # surface material
    tone: float  # brightness relative to the material
    bay_m: float = 0.0  # width of a wall's window bays, metres; 0 for blank walls and for roofs
    glazing: float = 0.0  # fraction of a bay's width covered by its window
    base: float = 0.0  # height of the surface that it stands on, metres
    deck: int = 0  # number of the painted surface that covers it, see ``City.surfaces``; 0 for none


@dataclass(frozen=True)
class Solid:
    """Building with its faces."""

    footprint: Polygon  # outline on the ground with courtyards as holes, city metres
    height: float  # height of its highest point above ground, metres
    faces: tuple[Face, ...]  # walls and roofs


@dataclass(frozen=True)
class Cladding:
    """Materials of a building."""

    wall: Material  # material of the walls
    wall_tone: float  # brightness of the walls relative to the material
    roof: Material  # material of the roof
    roof_tone: float  # brightness of the roof relative to the material
    bay_m: float = 3.2  # width of window bays, metres; 0 for blank walls
    glazing: float = 0.45  # fraction of a bay's width covered by its window


def quad(
    corners: FloatArray, material: Material, tone: float, *, base: float = 0.0, deck: int = 0
) -> Face:
    """Make a face of three or four corners (n, 3); its normal is that of its first triangle."""
    (ax, ay, az), (bx, by, bz) = (corners[1] - corners[0]).tolist(), (corners[-1] - corners[0])
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    normal = np.array((x, y, z)) / max(1e-12, (x * x + y * y + z * z) ** 0.5)
    return Face((corners,), normal, material, tone, base=base, deck=deck)


def flat_block(
    footprint: Polygon,
    height: float,
    cladding: Cladding,
    *,
    base: float = 0.0,
    parapet: bool = True,
) -> Solid:
    """Make a flat-roofed body over any footprint; large roofs get a lighter parapet.

    ``height`` and ``base`` are those of the roof and of the lower end of the walls, metres.
    """
    footprint = orient(footprint)
    faces = _walls(footprint, base, height, cladding)
    inner = footprint
    if parapet and footprint.area > 100:
        inner = footprint.buffer(-_PARAPET_M, join_style="mitre")
    rim = inner is not footprint and isinstance(inner, Polygon) and not inner.is_empty
    tone = cladding.roof_tone * (1.25 if rim else 1.0)
    faces.append(_level(footprint, height, cladding.roof, tone, base))
    if rim:
        cover = orient(inner.simplify(0.05))
        faces.append(_level(cover, height + _LAYER_M, cladding.roof, cladding.roof_tone, base))
    return Solid(footprint, height, tuple(faces))


def _level(shape: Polygon, height: float, material: Material, tone: float, base: float) -> Face:
    flat = [get_coordinates(ring)[:-1] for ring in (shape.exterior, *shape.interiors)]
    rings = [np.column_stack([ring, np.full(len(ring), height)]) for ring in flat]
    return Face(tuple(rings), np.array((0.0, 0.0, 1.0)), material, tone, base=base)


def pitched_block(
    body: FloatArray,
    eaves: float,
    rise: float,
    cladding: Cladding,
    *,
    hipped: bool = False,
    across: bool = False,
) -> Solid:
    """Make a house with a pitched roof over a quadrangle; the ridge follows the longer sides.

    Args:
        body: float64 (4, 2), convex, metres.
        eaves: height of the walls, metres.
        rise: height of the ridge above the eaves, metres.
        cladding: its materials.
        hipped: whether the roof slopes on all four sides; otherwise the gables are vertical.
        across: whether the ridge follows the shorter sides instead.
    """
    footprint = orient(Polygon(body))
    corners = get_coordinates(footprint.exterior)[:4]
    longer_first = np.hypot(*(corners[1] - corners[0])) > np.hypot(*(corners[2] - corners[1]))
    if bool(longer_first) is not across:
        corners = np.roll(corners, -1, axis=0)
    # The gables now stand on sides 0-1 and 2-3; the ridge joins the middles of these sides.
    start, end = (corners[0] + corners[1]) / 2, (corners[2] + corners[3]) / 2
    length = float(np.hypot(*(end - start)))
    inset = min(0.5 * float(np.hypot(*(corners[1] - corners[0]))), 0.4 * length) if hipped else 0.0
    along = (end - start) / length
    a, b, c, d = np.column_stack([corners, np.full(4, eaves)])
    near = np.append(start + along * inset, eaves + rise)
    far = np.append(end - along * inset, eaves + rise)
    faces = _walls(footprint, 0.0, eaves, cladding)
    roof = (cladding.roof, cladding.roof_tone)
    end_wall = roof if hipped else (cladding.wall, cladding.wall_tone)
    faces += [quad(np.array(slope), *roof) for slope in ((b, c, far, near), (d, a, near, far))]
    faces += [quad(np.array(end), *end_wall) for end in ((a, b, near), (c, d, far))]
    return Solid(footprint, eaves + rise, tuple(faces))


def merged(footprint: Polygon, parts: Sequence[Solid]) -> Solid:
    """Merge several bodies into one building; the bodies may intersect."""
    faces = tuple(surface for part in parts for surface in part.faces)
    return Solid(orient(footprint), max(part.height for part in parts), faces)


def _walls(footprint: Polygon, base: float, top: float, cladding: Cladding) -> list[Face]:
    walls = []
    for ring in (footprint.exterior, *footprint.interiors):
        for (x0, y0), (x1, y1) in pairwise(get_coordinates(ring).tolist()):
            length = float(np.hypot(x1 - x0, y1 - y0))
            if length >= 1e-3:
                corners = np.array(((x0, y0, base), (x1, y1, base), (x1, y1, top), (x0, y0, top)))
                normal = np.array(((y1 - y0) / length, (x0 - x1) / length, 0.0))
                walls.append(
                    Face((corners,), normal, cladding.wall, cladding.wall_tone, cladding.bay_m,
                         cladding.glazing, base)
                )  # fmt: skip
    return walls


def sunlight(normals: FloatArray, sun: Sun) -> FloatArray:
    """Return the sunlight on faces relative to level ground, float64 (n,), not limited."""
    # The direction to the sun, scaled so that level ground has a sunlight of 1.
    return np.asarray(normals @ np.array((-sun[0], -sun[1], 1.0)), dtype=np.float64)


def from_above(faces: Iterable[Face], sun: Sun) -> list[Stroke]:
    """Return a body as the flat painter draws it: the shadows of its lit faces, then its roofs.

    A face shades the surface that it stands on: the ground, or the roof under a cooling unit.
    """
    strokes: list[Stroke] = []
    waiting: list[Fill] = []
    base = 0.0
    for face in faces:
        if face.base > base:
            # The roofs below come first, so that the shadows fall on them.
            strokes, waiting, base = [*strokes, *waiting], [], face.base
        light = float(sunlight(face.normal, sun))
        if light > 1e-6:
            rings = [ring[:, :2] + (ring[:, 2:] - face.base) * sun for ring in face.rings]
            strokes.append(Shadow(rings[0], tuple(rings[1:])))
        if face.normal[2] > 1e-6:
            tone = face.tone * (0.3 + 0.7 * min(max(light, 0.0), MAX_INCIDENCE))
            ring, *holes = (ring[:, :2] for ring in face.rings)
            waiting.append(Fill(ring, face.material, tone, lit=True, holes=tuple(holes)))
    return strokes + waiting
