"""Strokes that a city is painted with, and geometry helpers to make them.

A scene is a list of strokes in painting order, in city metres. To paint a chip, the painter draws
the strokes that touch it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from shapely import LineString, MultiPoint, Polygon, get_coordinates

from synthcity.plan import FloatArray
from synthcity.spectra import Material

#: Number of crown shapes; each tree refers to one.
CROWN_VARIANTS = 12


@dataclass(frozen=True, slots=True)
class Fill:
    """Surface: polygon float64 (n, 2), metres; a ``lit`` surface covers earlier shadows."""

    points: FloatArray
    material: Material
    tone: float = 1.0
    lit: bool = False


@dataclass(frozen=True, slots=True)
class Shadow:
    """Cast shadow: polygon float64 (n, 2), metres."""

    points: FloatArray


@dataclass(frozen=True, slots=True)
class Stripe:
    """Line of road paint: float64 (n, 2), metres; ``strength`` is its coverage of a pixel, 0..1."""

    points: FloatArray
    strength: float
    yellow: bool = False


@dataclass(frozen=True, slots=True)
class Crown:
    """Tree crown, or its shadow if ``material`` is None, in metres."""

    x: float
    y: float
    radius: float
    variant: int
    material: Material | None
    tone: float = 1.0


Stroke = Fill | Shadow | Stripe | Crown


@dataclass(frozen=True)
class Building:
    """Box with a roof, seen from above.

    Attributes:
        outline: float64 (n, 2), convex, metres.
        height: height of the eaves above ground, metres.
        roof: parts of the roof and their shadows on it.
    """

    outline: FloatArray
    height: float
    roof: tuple[Fill | Shadow, ...]


@dataclass(frozen=True)
class Scene:
    """Strokes of a city in painting order, with bounds float64 (n, 4): x0, y0, x1, y1, metres."""

    strokes: tuple[Stroke, ...]
    bounds: FloatArray

    def within(self, x0: float, y0: float, x1: float, y1: float) -> list[Stroke]:
        """Return the strokes that may touch a rectangle, in order."""
        b = self.bounds
        hits = (b[:, 0] <= x1) & (b[:, 2] >= x0) & (b[:, 1] <= y1) & (b[:, 3] >= y0)
        return [self.strokes[i] for i in np.flatnonzero(hits)]


def scene_of(strokes: Sequence[Stroke]) -> Scene:
    """Make a scene of strokes in painting order."""
    bounds = np.array([_bounds(stroke) for stroke in strokes], dtype=np.float64)
    return Scene(tuple(strokes), bounds.reshape(-1, 4))


def _bounds(stroke: Stroke) -> tuple[float, float, float, float]:
    if isinstance(stroke, Crown):
        # Crowns are lumpy and reach beyond their nominal radius.
        r = 1.4 * stroke.radius
        return stroke.x - r, stroke.y - r, stroke.x + r, stroke.y + r
    x0, y0 = stroke.points.min(axis=0)
    x1, y1 = stroke.points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def rectangle(centre: FloatArray, along: FloatArray, length: float, width: float) -> FloatArray:
    """Return a rotated rectangle, float64 (4, 2); ``along`` is the unit vector of its length."""
    u = along * (length / 2)
    v = np.array((-along[1], along[0])) * (width / 2)
    return np.array((centre + u + v, centre + u - v, centre - u - v, centre - u + v))


def ribbon(line: LineString, width: float, *, flat: bool = False) -> FloatArray:
    """Return the outline of a line ``width`` metres wide, with round or flat ends."""
    shape = line.buffer(width / 2, quad_segs=4, cap_style="flat" if flat else "round")
    return outline(shape)


def outline(shape: Polygon) -> FloatArray:
    """Return the outer ring of a polygon or of its largest part, float64 (n, 2)."""
    if shape.geom_type != "Polygon":
        shape = max(shape.geoms, key=lambda part: part.area)
    return np.asarray(get_coordinates(shape.exterior), dtype=np.float64)


def cast_shadow(points: FloatArray, height: float, shadow_per_m: tuple[float, float]) -> Shadow:
    """Return the ground shadow of a convex prism."""
    shift = np.array(shadow_per_m) * height
    hull = MultiPoint(np.concatenate([points, points + shift])).convex_hull
    return Shadow(outline(hull))


def point_at(line: LineString, distance: float) -> tuple[FloatArray, FloatArray]:
    """Return the point at a distance along a line (clamped) and the unit direction there."""
    span = min(1.0, line.length / 4)
    distance = min(max(distance, 0.0), line.length)
    here = np.array(line.interpolate(distance).coords[0])
    back = np.array(line.interpolate(max(0.0, distance - span)).coords[0])
    ahead = np.array(line.interpolate(min(line.length, distance + span)).coords[0])
    along = ahead - back
    return here, along / np.hypot(along[0], along[1])
