"""The strokes that a made city is painted with, and small geometry to make them.

A scene is a list of strokes in painting order, in city metres. Painting a chip means running
those that touch it; nothing else needs to know what a house or a tree is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from shapely import LineString, MultiPoint, Polygon, get_coordinates

from synthcity.plan import FloatArray
from synthcity.spectra import Material

#: Crown shapes that the painter has ready; a tree names one.
CROWN_VARIANTS = 12


@dataclass(frozen=True, slots=True)
class Fill:
    """A surface: polygon float64 (n, 2), metres; ``lit`` ones rise out of shadows drawn before."""

    points: FloatArray
    material: Material
    tone: float = 1.0
    lit: bool = False


@dataclass(frozen=True, slots=True)
class Shadow:
    """A cast shadow: polygon float64 (n, 2), metres."""

    points: FloatArray


@dataclass(frozen=True, slots=True)
class Stripe:
    """A line of road paint: float64 (n, 2), metres; ``strength`` 0..1 is its cover of a pixel."""

    points: FloatArray
    strength: float
    yellow: bool = False


@dataclass(frozen=True, slots=True)
class Crown:
    """A tree from above, or (``material`` None) the shadow of one; metres."""

    x: float
    y: float
    radius: float
    variant: int
    material: Material | None
    tone: float = 1.0


Stroke = Fill | Shadow | Stripe | Crown


@dataclass(frozen=True)
class Building:
    """A box with a roof.

    Attributes:
        outline: float64 (n, 2), convex, metres.
        height: eaves above ground, metres.
        roof: the parts of the roof, and the shadows that they cast on it.
    """

    outline: FloatArray
    height: float
    roof: tuple[Fill | Shadow, ...]


@dataclass(frozen=True)
class Scene:
    """All strokes of a city in order, with their bounds float64 (n, 4): x0, y0, x1, y1, metres."""

    strokes: tuple[Stroke, ...]
    bounds: FloatArray

    def within(self, x0: float, y0: float, x1: float, y1: float) -> list[Stroke]:
        """The strokes that may touch a rectangle, in order."""
        b = self.bounds
        hits = (b[:, 0] <= x1) & (b[:, 2] >= x0) & (b[:, 1] <= y1) & (b[:, 3] >= y0)
        return [self.strokes[i] for i in np.flatnonzero(hits)]


def scene_of(strokes: Sequence[Stroke]) -> Scene:
    """Index strokes by place."""
    bounds = np.array([_bounds(stroke) for stroke in strokes], dtype=np.float64)
    return Scene(tuple(strokes), bounds.reshape(-1, 4))


def _bounds(stroke: Stroke) -> tuple[float, float, float, float]:
    if isinstance(stroke, Crown):
        # Lumps reach a little beyond the nominal radius.
        r = 1.4 * stroke.radius
        return stroke.x - r, stroke.y - r, stroke.x + r, stroke.y + r
    x0, y0 = stroke.points.min(axis=0)
    x1, y1 = stroke.points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def rectangle(centre: FloatArray, along: FloatArray, length: float, width: float) -> FloatArray:
    """A turned rectangle, float64 (4, 2); ``along`` is the unit vector of its length."""
    u = along * (length / 2)
    v = np.array((-along[1], along[0])) * (width / 2)
    return np.array((centre + u + v, centre + u - v, centre - u - v, centre - u + v))


def ribbon(line: LineString, width: float, *, flat: bool = False) -> FloatArray:
    """The outline of a line drawn ``width`` metres wide, with round or flat ends."""
    shape = line.buffer(width / 2, quad_segs=4, cap_style="flat" if flat else "round")
    return outline(shape)


def outline(shape: Polygon) -> FloatArray:
    """The outer ring of a polygon, float64 (n, 2); of the largest part if there are several."""
    if shape.geom_type != "Polygon":
        shape = max(shape.geoms, key=lambda part: part.area)
    return np.asarray(get_coordinates(shape.exterior), dtype=np.float64)


def cast(points: FloatArray, height: float, shadow_per_m: tuple[float, float]) -> Shadow:
    """The shadow on the ground of a convex prism."""
    shift = np.array(shadow_per_m) * height
    hull = MultiPoint(np.concatenate([points, points + shift])).convex_hull
    return Shadow(outline(hull))


def at(line: LineString, distance: float) -> tuple[FloatArray, FloatArray]:
    """The point of a line at a distance, kept within it, and the unit vector of its direction."""
    span = min(1.0, line.length / 4)
    distance = min(max(distance, 0.0), line.length)
    here = np.array(line.interpolate(distance).coords[0])
    back = np.array(line.interpolate(max(0.0, distance - span)).coords[0])
    ahead = np.array(line.interpolate(min(line.length, distance + span)).coords[0])
    along = ahead - back
    return here, along / np.hypot(along[0], along[1])
