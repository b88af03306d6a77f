"""View angles, and a z-buffer that finds the visible surface of each pixel from one of them.

A parallel oblique view displaces a point at height ``h`` by ``h`` times a fixed shift on the
ground. The highest of all surfaces at one pixel is the nearest, so heights serve as depths (E.
Catmull, "A subdivision algorithm for computer display of curved surfaces", 1974). The same view
from the sun finds the shadows (L. Williams, "Casting curved shadows on curved surfaces", 1978).

The 27 view angles are those of SpaceNet 4: one pass of a satellite over Atlanta, from north to
south. It first looked southward, then northward. Angles, azimuths and resolutions are from the
published list. Catalogue ids are invented, except one that readers of the data set rely on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthcity.files import CityError
from synthcity.noise import Grid, Window
from synthcity.paint import crown_stamp
from synthcity.plan import Float32, FloatArray, Rng
from synthcity.solids import Face, Solid
from synthcity.strokes import Crown

# Off-nadir angle and target azimuth (degrees), resolution of the panchromatic band (metres). The
# list rounds up to 31.0, 37.0 and 54.0 degrees where directory names say 30, 36 and 53.
_COLLECTS = (
    (7.8, 118.4, 0.48), (8.3, 78.4, 0.49), (10.5, 148.6, 0.49), (10.6, 57.6, 0.48),
    (13.9, 162.0, 0.49), (14.8, 43.0, 0.49), (16.9, 168.7, 0.52), (19.3, 35.1, 0.52),
    (21.3, 174.7, 0.54), (23.5, 30.7, 0.54), (25.4, 178.4, 0.57), (27.4, 27.7, 0.58),
    (29.1, 181.0, 0.61), (30.97, 25.5, 0.62), (32.5, 182.8, 0.65), (34.0, 23.8, 0.68),
    (36.97, 22.6, 0.74), (39.6, 21.5, 0.80), (42.0, 20.7, 0.87), (44.2, 20.0, 0.95),
    (46.1, 19.5, 1.03), (47.8, 19.0, 1.13), (49.3, 18.5, 1.23), (50.9, 18.0, 1.36),
    (52.2, 17.7, 1.48), (53.4, 17.4, 1.63), (53.97, 17.4, 1.67),
)  # fmt: skip
# Two view angles share the name "nadir10". Only this id identifies the one that faces south.
_REAL_IDS = {10.5: "1030010003993E00"}
#: Number of view angles.
VIEW_ANGLE_COUNT = len(_COLLECTS)
#: Value of ``View.surface`` for bare ground.
GROUND = -1
#: Height of a crown's centre above the ground, in radii.
CROWN_LIFT = 1.5
# Vertical radius of a crown, in horizontal radii.
_CROWN_HEIGHT = 0.8


@dataclass(frozen=True)
class ViewAngle:
    """View angle of one collect."""

    angle: float  # off-nadir angle, degrees
    # direction from the satellite to the target, degrees clockwise from north; high objects
    # lean in this direction
    azimuth: float
    resolution_m: float  # native pixel size, geometric mean of both sides, metres
    catalogue: str = ""  # catalogue id of the collect

    @property
    def name(self) -> str:
        """Name of SpaceNet 4's directory, with the angle truncated to whole degrees."""
        return f"Atlanta_nadir{int(self.angle)}_catid_{self.catalogue}"

    @property
    def shift(self) -> tuple[float, float]:
        """Displacement per metre of height, eastward and southward, metres."""
        slope, heading = np.tan(np.radians(self.angle)), np.radians(self.azimuth)
        return float(slope * np.sin(heading)), float(-slope * np.cos(heading))


def make_view_angles(count: int, rng: Rng) -> tuple[ViewAngle, ...]:
    """Choose ``count`` of the 27 view angles, evenly spaced by rank.

    Raises:
        CityError: ``count`` is not within 1..27.
    """
    if not 1 <= count <= VIEW_ANGLE_COUNT:
        raise CityError(
            f"cannot make {count} view angles; give a number from 1 to {VIEW_ANGLE_COUNT}."
        )
    serials = rng.choice(0xFFFFF, VIEW_ANGLE_COUNT, replace=False)
    chosen = np.unique(np.rint(np.linspace(0, VIEW_ANGLE_COUNT - 1, count)).astype(int))
    return tuple(
        ViewAngle(*_COLLECTS[i], _REAL_IDS.get(_COLLECTS[i][0], f"103001009{serials[i]:05X}00"))
        for i in chosen
    )


@dataclass(frozen=True)
class Skyline:
    """Everything that rises above the ground of a city."""

    faces: tuple[Face, ...]  # faces of all buildings, then those of bridges
    normals: FloatArray  # float64 (faces, 3), their normals
    owner: NDArray[np.int32]  # int32 (faces,), index of each face's building, -1 for bridges
    boxes: FloatArray  # float64 (faces, 6), minimum x, y and height, then the maximum of each
    crowns: tuple[Crown, ...]  # tree crowns
    places: FloatArray  # float64 (crowns, 3), x, y and radius of each crown


def skyline_of(
    solids: Sequence[Solid], crowns: Sequence[Crown], bridges: Sequence[Face] = ()
) -> Skyline:
    """Collect the faces of all buildings and bridges, and the crowns."""
    faces = [surface for solid in solids for surface in solid.faces]
    owner = [i for i, solid in enumerate(solids) for _ in solid.faces] + [-1] * len(bridges)
    faces += bridges
    boxes = [(*f.rings[0].min(axis=0), *f.rings[0].max(axis=0)) for f in faces]
    return Skyline(
        tuple(faces),
        np.array([f.normal for f in faces], dtype=np.float64).reshape(-1, 3),
        np.array(owner, dtype=np.int32),
        np.array(boxes, dtype=np.float64).reshape(-1, 6),
        tuple(crowns),
        np.array([(c.x, c.y, c.radius) for c in crowns], dtype=np.float64).reshape(-1, 3),
    )


@dataclass(frozen=True)
class View:
    """Visible surfaces of a window; all arrays are (h, w)."""

    window: Window  # the rendered pixels
    shift: tuple[float, float]  # (x, y), displacement on the ground per metre of height, metres
    height: Float32  # float32, height of the visible surface above ground, metres
    # int32, index of the visible face; or the number of faces plus the index of the visible
    # crown; or ``GROUND``
    surface: NDArray[np.int32]
    tone: Float32  # float32, brightness of leaves; 1 elsewhere


def render_view(skyline: Skyline, window: Window, grid: Grid, shift: tuple[float, float]) -> View:
    """Render the visible surfaces of a window.

    Args:
        skyline: buildings and trees.
        window: the city's pixels on the ground.
        grid: pixel size.
        shift: (x, y), displacement on the ground per metre of height, metres.
    """
    shape = (window.height, window.width)
    view = View(
        window,
        shift,
        np.zeros(shape, dtype=np.float32),
        np.full(shape, GROUND, dtype=np.int32),
        np.ones(shape, dtype=np.float32),
    )
    for index in _faces_in(skyline, window, grid, shift):
        _draw_face(view, skyline.faces[index], int(index), grid)
    first = len(skyline.faces)
    for index in _crowns_in(skyline, window, grid, shift):
        _draw_crown(view, skyline.crowns[index], first + int(index), grid)
    return view


def _faces_in(
    skyline: Skyline, window: Window, grid: Grid, shift: tuple[float, float]
) -> NDArray[np.intp]:
    """Return the indices of faces turned to the viewer that may touch the window, roofs first."""
    if not skyline.faces:
        return np.empty(0, dtype=np.intp)
    low, high = skyline.boxes[:, :3], skyline.boxes[:, 3:]
    normals = skyline.normals
    # The direction to the viewer is (-shift, 1).
    hits = normals[:, 2] - normals[:, :2] @ shift > 1e-6
    edges = window.metres(grid)
    for axis in (0, 1):
        moved = np.stack([low[:, 2], high[:, 2]]) * shift[axis]
        hits &= low[:, axis] + moved.min(axis=0) < edges[2 + axis]
        hits &= high[:, axis] + moved.max(axis=0) > edges[axis]
    # A wall and its roof have the same height where they meet, and the first one drawn stays.
    inside = np.flatnonzero(hits)
    return inside[np.argsort(np.abs(normals[inside, 2]) < 1e-6, kind="stable")]


def _crowns_in(
    skyline: Skyline, window: Window, grid: Grid, shift: tuple[float, float]
) -> NDArray[np.intp]:
    x, y, radius = skyline.places.T
    reach = 3.0 * radius
    x0, y0, x1, y1 = window.metres(grid)
    x, y = (place + CROWN_LIFT * radius * by for place, by in zip((x, y), shift, strict=True))
    return np.flatnonzero((x + reach > x0) & (x - reach < x1) & (y + reach > y0) & (y - reach < y1))


def _draw_face(view: View, surface: Face, index: int, grid: Grid) -> None:
    window, shift = view.window, np.array(view.shift)
    corner, pixel = (window.column, window.row), (grid.x_m, grid.y_m)
    rings = [(ring[:, :2] + ring[:, 2:] * shift) / pixel - corner for ring in surface.rings]
    left, top = np.maximum(0, np.floor(rings[0].min(axis=0)).astype(int))
    right, bottom = np.ceil(rings[0].max(axis=0)).astype(int)
    right, bottom = min(right, window.width), min(bottom, window.height)
    if left >= right or top >= bottom:
        return
    x, y = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
    covered = coverage(rings, x, y)
    if not covered.any():
        return
    # Height at which the line of sight through a ground point meets the plane n (x, y, z) = d.
    normal = surface.normal
    offset = float(normal @ surface.rings[0][0])
    across, down = ((x + corner[0]) * pixel[0], (y + corner[1]) * pixel[1])
    height = (offset - (normal[0] * across)[None, :] - (normal[1] * down)[:, None]) / (
        normal[2] - normal[:2] @ shift
    )
    heights = surface.rings[0][:, 2]
    height = np.clip(height, heights.min(), heights.max()).astype(np.float32)
    part = (slice(top, bottom), slice(left, right))
    nearest = view.height[part]
    shows = covered & (height > nearest)
    nearest[shows] = height[shows]
    view.surface[part][shows] = index
    view.tone[part][shows] = 1.0


def coverage(rings: Sequence[FloatArray], x: FloatArray, y: FloatArray) -> NDArray[np.bool_]:
    """Rasterize a polygon on a lattice by the even-odd rule, bool (len(y), len(x)).

    Args:
        rings: the outer ring and holes, float64 (n, 2) each, not closed, in any direction.
        x: ascending x coordinates of the lattice.
        y: ascending y coordinates of the lattice.
    """
    inside = np.zeros((len(y), len(x)), dtype=bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            low, high = (y0, y1) if y0 < y1 else (y1, y0)
            first, last = np.searchsorted(y, (low, high))
            if first < last:
                crossing = x0 + (y[first:last] - y0) * ((x1 - x0) / (y1 - y0))
                inside[first:last] ^= x < crossing[:, None]
    return inside


def _draw_crown(view: View, crown: Crown, index: int, grid: Grid) -> None:
    """Draw a crown as a ball, elongated along the displacement."""
    shift = view.shift
    slant = float(np.hypot(*shift))
    lengthened = float(np.sqrt(1 + (_CROWN_HEIGHT * slant) ** 2) - 1) / max(slant, 1e-9)
    stretch = 1 + lengthened * abs(shift[0]), 1 + lengthened * abs(shift[1])
    lift = CROWN_LIFT * crown.radius
    place = crown.x + lift * shift[0], crown.y + lift * shift[1]
    rows, columns, part = crown_stamp(crown, place, view.window, grid, stretch)
    dome = np.sqrt(np.clip(1 - part[..., 2] ** 2 - part[..., 3] ** 2, 0, 1))
    height = (lift + _CROWN_HEIGHT * crown.radius * dome).astype(np.float32)
    nearest = view.height[rows, columns]
    shows = (part[..., 0] > 0.5) & (height > nearest)
    nearest[shows] = height[shows]
    view.surface[rows, columns][shows] = index
    view.tone[rows, columns][shows] = crown.tone * part[..., 1][shows]
