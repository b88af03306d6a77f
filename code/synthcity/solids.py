"""Three-dimensional buildings: true footprints, and the faces that a sensor sees.

x points east, y south and height up. The corners of a face are ordered so that its normal points
outward: seen from outside, they run round like those of a polygon of positive area.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from shapely import Polygon, get_coordinates
from shapely.geometry.polygon import orient

from synthcity.plan import FloatArray
from synthcity.spectra import Material

# Height between the layers of a roof, metres, so that the upper layer is the visible one.
_LAYER_M = 0.02

_PARAPET_M = 0.5


@dataclass(frozen=True, slots=True)
class Face:
    """Flat face of a building.

    Attributes:
        rings: outer ring and holes, each float64 (n, 3), x, y and height in metres, not closed.
        normal: float64 (3,), unit vector outward.
        material: surface material.
        tone: brightness relative to the material.
        bay_m: width of a wall's window bays, metres; 0 for blank walls and for roofs.
        glazing: fraction of a bay's width covered by its window.
    """

    rings: tuple[FloatArray, ...]
    normal: FloatArray
    material: Material
    tone: float
    bay_m: float = 0.0
    glazing: float = 0.0

    @property
    def is_wall(self) -> bool:
        """Whether the face is vertical."""
        return abs(float(self.normal[2])) < 1e-6


@dataclass(frozen=True)
class Solid:
    """Building with its faces.

    Attributes:
        footprint: outline on the ground with courtyards as holes, city metres.
        height: height of its highest point above ground, metres.
        faces: walls and roofs.
    """

    footprint: Polygon
    height: float
    faces: tuple[Face, ...]


@dataclass(frozen=True)
class Cladding:
    """Materials of a building.

    Attributes:
        wall: material of the walls.
        wall_tone: brightness of the walls relative to the material.
        roof: material of the roof.
        roof_tone: brightness of the roof relative to the material.
        bay_m: width of window bays, metres; 0 for blank walls.
        glazing: fraction of a bay's width covered by its window.
    """

    wall: Material
    wall_tone: float
    roof: Material
    roof_tone: float
    bay_m: float = 3.2
    glazing: float = 0.45


def face(
    rings: Sequence[FloatArray],
    material: Material,
    tone: float,
    *,
    bay_m: float = 0.0,
    glazing: float = 0.0,
) -> Face:
    """Make a face and compute its normal by Newell's method.

    Raises:
        ValueError: the corners lie on one line.
    """
    # Coordinates relative to the first corner reduce rounding errors.
    x, y, z = (rings[0] - rings[0][0]).T
    ahead = np.concatenate([np.arange(1, len(x)), [0]])
    normal = np.array(
        (
            (y * z[ahead] - z * y[ahead]).sum(),
            (z * x[ahead] - x * z[ahead]).sum(),
            (x * y[ahead] - y * x[ahead]).sum(),
        )
    )
    length = float(np.linalg.norm(normal))
    if length < 1e-9:
        raise ValueError("a face of no area")
    return Face(tuple(rings), normal / length, material, tone, bay_m, glazing)


def flat_block(
    footprint: Polygon,
    height: float,
    cladding: Cladding,
    *,
    base: float = 0.0,
    parapet: bool = True,
) -> Solid:
    """Make a flat-roofed body over any footprint; large roofs get a lighter parapet.

    Args:
        footprint: outline with courtyards as holes.
        height: height of the roof above ground, metres.
        cladding: its materials.
        base: height of the lower end of the walls above ground, metres.
        parapet: whether a large roof gets a parapet.
    """
    footprint = orient(footprint)
    faces = _walls(footprint, base, height, cladding)
    inner = footprint.buffer(-_PARAPET_M, join_style="mitre")
    rim = parapet and isinstance(inner, Polygon) and not inner.is_empty and footprint.area > 100
    tone = cladding.roof_tone * (1.25 if rim else 1.0)
    faces.append(face(_lift(footprint, height), cladding.roof, tone))
    if rim:
        cover = _lift(orient(inner.simplify(0.05)), height + _LAYER_M)
        faces.append(face(cover, cladding.roof, cladding.roof_tone))
    return Solid(footprint, height, tuple(faces))


def gabled_block(
    body: FloatArray, eaves: float, rise: float, cladding: Cladding, *, across: bool = False
) -> Solid:
    """Make a house with a gabled roof over a quadrangle; the ridge follows the longer sides.

    Args:
        body: float64 (4, 2), convex, metres.
        eaves: height of the walls, metres.
        rise: height of the ridge above the eaves, metres; the gables are vertical.
        cladding: its materials.
        across: whether the ridge follows the shorter sides instead.
    """
    return _pitched(body, eaves, rise, cladding, hip=0.0, across=across)


def hipped_block(body: FloatArray, eaves: float, rise: float, cladding: Cladding) -> Solid:
    """Make a house with a roof that slopes on all four sides; see :func:`gabled_block`."""
    return _pitched(body, eaves, rise, cladding, hip=1.0, across=False)


def _pitched(
    body: FloatArray, eaves: float, rise: float, cladding: Cladding, *, hip: float, across: bool
) -> Solid:
    footprint = orient(Polygon(body))
    corners = get_coordinates(footprint.exterior)[:4]
    longer_first = np.hypot(*(corners[1] - corners[0])) > np.hypot(*(corners[2] - corners[1]))
    if bool(longer_first) is not across:
        corners = np.roll(corners, -1, axis=0)
    # The gables now stand on sides 0-1 and 2-3; the ridge joins the middles of these sides.
    start, end = (corners[0] + corners[1]) / 2, (corners[2] + corners[3]) / 2
    length = float(np.hypot(*(end - start)))
    inset = hip * min(0.5 * float(np.hypot(*(corners[1] - corners[0]))), 0.4 * length)
    along = (end - start) / length
    a, b, c, d = (np.append(corner, eaves) for corner in corners)
    near = np.append(start + along * inset, eaves + rise)
    far = np.append(end - along * inset, eaves + rise)
    faces = _walls(footprint, 0.0, eaves, cladding)
    slopes = [(b, c, far, near), (d, a, near, far)]
    for slope in slopes:
        faces.append(face([np.array(slope)], cladding.roof, cladding.roof_tone))
    for triangle in ((a, b, near), (c, d, far)):
        if hip:
            faces.append(face([np.array(triangle)], cladding.roof, cladding.roof_tone))
        else:
            faces.append(face([np.array(triangle)], cladding.wall, cladding.wall_tone))
    return Solid(footprint, eaves + rise, tuple(faces))


def merged(footprint: Polygon, parts: Sequence[Solid]) -> Solid:
    """Merge several bodies into one building; the bodies may intersect."""
    faces = tuple(surface for part in parts for surface in part.faces)
    return Solid(orient(footprint), max(part.height for part in parts), faces)


def _walls(footprint: Polygon, base: float, top: float, cladding: Cladding) -> list[Face]:
    walls = []
    for ring in (footprint.exterior, *footprint.interiors):
        for start, end in pairwise(get_coordinates(ring)):
            if np.hypot(*(end - start)) < 1e-3:
                continue
            corners = np.array(
                ((*start, base), (*end, base), (*end, top), (*start, top)), dtype=np.float64
            )
            walls.append(
                face(
                    [corners],
                    cladding.wall,
                    cladding.wall_tone,
                    bay_m=cladding.bay_m,
                    glazing=cladding.glazing,
                )
            )
    return walls


def _lift(footprint: Polygon, height: float) -> list[FloatArray]:
    """Return the rings of a polygon at a height, float64 (n, 3) each."""
    rings = (footprint.exterior, *footprint.interiors)
    flat = [get_coordinates(ring)[:-1] for ring in rings]
    return [np.column_stack([ring, np.full(len(ring), height)]) for ring in flat]
