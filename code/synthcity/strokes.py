"""Strokes that flat surfaces are painted with, and geometry helpers to make them.

A scene is a list of strokes in painting order, in city metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from shapely import LineString, Polygon, get_coordinates, line_interpolate_point

from synthcity.noise import Grid, Window
from synthcity.plan import FloatArray
from synthcity.spectra import Material

#: Number of crown shapes; each tree refers to one.
CROWN_VARIANTS = 12
Sun = tuple[float, float]
"""(x, y), metres of shadow per metre of height; y grows southward."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Surface: polygon float64 (n, 2), metres; a ``lit`` surface covers earlier shadows."""

    points: FloatArray
    material: Material
    tone: float = 1.0
    lit: bool = False
    holes: tuple[FloatArray, ...] = ()


@dataclass(frozen=True, slots=True)
class Shadow:
    """Cast shadow: polygon float64 (n, 2), metres."""

    points: FloatArray
    holes: tuple[FloatArray, ...] = ()


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
class Scene:
    """Strokes of a city in painting order, with bounds float64 (n, 4): x0, y0, x1, y1, metres."""

    strokes: tuple[Stroke, ...]
    bounds: FloatArray

    def within(self, window: Window, grid: Grid) -> list[Stroke]:
        """Return the strokes that may touch a window, in order."""
        x0, y0, x1, y1 = window.metres(grid)
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
    return (*stroke.points.min(axis=0), *stroke.points.max(axis=0))


def across(along: FloatArray) -> FloatArray:
    """Return the direction to the right of ``along`` (x eastward, y southward), float64 (2,)."""
    return np.array((-along[1], along[0]))


def rectangle(centre: FloatArray, along: FloatArray, length: float, width: float) -> FloatArray:
    """Return a rotated rectangle, float64 (4, 2); ``along`` is the unit vector of its length."""
    u = along * (length / 2)
    v = across(along) * (width / 2)
    return np.array((centre + u + v, centre + u - v, centre - u - v, centre - u + v))


def ribbon(line: LineString, width: float, *, flat: bool = False) -> FloatArray:
    """Return the outline of a line ``width`` metres wide, with round or flat ends."""
    return outline(line.buffer(width / 2, quad_segs=4, cap_style="flat" if flat else "round"))


def outline(shape: Polygon) -> FloatArray:
    """Return the outer ring of a polygon or of its largest part, float64 (n, 2)."""
    if shape.geom_type != "Polygon":
        shape = max(shape.geoms, key=lambda part: part.area)
    return np.asarray(get_coordinates(shape.exterior), dtype=np.float64)


def cast_shadow(points: FloatArray, height: float, sun: Sun) -> Shadow:
    """Return the ground shadow of a convex prism."""
    both = np.concatenate([points, points + np.array(sun) * height]).astype(np.float32)
    return Shadow(cv2.convexHull(both)[:, 0].astype(np.float64))


def point_at(line: LineString, distance: float) -> tuple[FloatArray, FloatArray]:
    """Return the point at a distance along a line (clamped) and the unit direction there."""
    length = line.length
    span = min(1.0, length / 4)
    distance = min(max(distance, 0.0), length)
    places = (distance, max(0.0, distance - span), min(length, distance + span))
    here, back, ahead = get_coordinates(line_interpolate_point(line, places))
    along = ahead - back
    return here, along / np.hypot(along[0], along[1])
