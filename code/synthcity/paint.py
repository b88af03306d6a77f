"""Flat painter: a window of a scene from above, from strokes to materials and sensor counts."""

from dataclasses import dataclass
from functools import cache
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import Polygon, clip_by_rect

from synthcity.noise import Grid, Window, gaussian_noise, smooth_noise
from synthcity.plan import Float32, FloatArray, Rng
from synthcity.spectra import (
    GRAIN,
    REFLECTANCE,
    WHITE_PAINT,
    YELLOW_PAINT,
    Material,
    Sensor,
    light,
    to_counts,
)
from synthcity.strokes import CROWN_VARIANTS, Crown, Fill, Scene, Shadow, Stripe, outline

# Sigma of the optical blur, and painted margin around the chip, pixels.
_BLUR_SIGMA = 0.75
_MARGIN = 8
# OpenCV takes polygon corners as integers with this many binary places.
_PLACES = 4
# Larger coordinates are clipped first, because OpenCV's fixed point would overflow.
_FAR_PX = 4000.0
_STAMP = 48
#: Strength of a crown's shadow; some light passes through leaves.
LEAF_SHADE = 0.85


class Canvas:
    """Layers of a window during painting.

    Attributes:
        window: the painted pixels.
        grid: pixel size.
        material: uint8 (h, w).
        tone: float32 (h, w), brightness relative to the material.
        shade: float32 (h, w), 0 in the sun, 1 in full shadow.
        white: float32 (h, w), coverage by white road paint, 0..1.
        yellow: float32 (h, w), coverage by yellow road paint, 0..1.
    """

    def __init__(self, window: Window, grid: Grid, bare: Material = Material.DRY_GRASS) -> None:
        shape = (window.height, window.width)
        self.window = window
        self.grid = grid
        self.material: NDArray[np.uint8] = np.full(shape, bare, dtype=np.uint8)
        self.tone: Float32 = np.ones(shape, dtype=np.float32)
        self.shade: Float32 = np.zeros(shape, dtype=np.float32)
        self.white: Float32 = np.zeros(shape, dtype=np.float32)
        self.yellow: Float32 = np.zeros(shape, dtype=np.float32)

    def pixels(self, points: FloatArray) -> FloatArray:
        """Convert city metres to pixels, x = column and y = row; integers are pixel edges."""
        corner = (self.window.column, self.window.row)
        return points / (self.grid.x_m, self.grid.y_m) - corner

    def polygon(self, stroke: Fill | Shadow) -> list[NDArray[np.int32]]:
        """Convert a polygon to OpenCV's fixed-point rings; none if it is far from the window."""
        xy = self.pixels(stroke.points)
        if np.abs(xy).max() > _FAR_PX + max(self.window.width, self.window.height):
            edge = 16.0
            near = clip_by_rect(
                Polygon(xy).buffer(0), -edge, -edge,
                self.window.width + edge, self.window.height + edge,
            )  # fmt: skip
            if near.is_empty:
                return []
            xy = outline(near)
        return [_fixed(xy), *(_fixed(self.pixels(hole)) for hole in stroke.holes)]

    def draw(self, scene: Scene) -> Self:
        """Draw all strokes that touch the window, in the scene's order."""
        for stroke in scene.within(self.window, self.grid):
            match stroke:
                case Fill():
                    self.fill(stroke)
                case Shadow():
                    cv2.fillPoly(self.shade, self.polygon(stroke), 1.0, shift=_PLACES)
                case Stripe():
                    self.stripe(stroke)
                case Crown():
                    self.crown(stroke)
        return self

    def fill(self, stroke: Fill) -> None:
        """Draw a surface."""
        rings = self.polygon(stroke)
        cv2.fillPoly(self.material, rings, int(stroke.material), shift=_PLACES)
        cv2.fillPoly(self.tone, rings, float(stroke.tone), shift=_PLACES)
        for layer in (self.white, self.yellow, *((self.shade,) if stroke.lit else ())):
            cv2.fillPoly(layer, rings, 0.0, shift=_PLACES)

    def stripe(self, stroke: Stripe) -> None:
        """Draw road paint."""
        layer = self.yellow if stroke.yellow else self.white
        line = _fixed(self.pixels(stroke.points))
        cv2.polylines(layer, [line], False, float(stroke.strength), shift=_PLACES)

    def crown(self, stroke: Crown) -> None:
        """Draw a tree or its shadow."""
        rows, columns, part = crown_stamp(stroke, (stroke.x, stroke.y), self.window, self.grid)
        covered = part[..., 0] > 0.5
        if stroke.material is None:
            shade = self.shade[rows, columns]
            # Light passes through leaves, so the shadow is lighter than that of a wall.
            shade[covered] = np.maximum(shade[covered], LEAF_SHADE)
            return
        self.material[rows, columns][covered] = stroke.material
        self.tone[rows, columns][covered] = stroke.tone * part[..., 1][covered]
        for layer in (self.shade, self.white, self.yellow):
            layer[rows, columns][covered] = 0.0


def crown_stamp(
    crown: Crown,
    place: tuple[float, float],
    window: Window,
    grid: Grid,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> tuple[slice, slice, Float32]:
    """Return the rows and columns of a window that a crown takes, and its picture there.

    The picture is float32 (rows, columns, 4): coverage, tone, and x and y in radii of the crown. It
    is snapped to the city's pixel grid, so that neighbouring chips agree.

    Args:
        crown: the tree.
        place: x and y of the middle of the picture, city metres.
        window: the pixels.
        grid: pixel size.
        stretch: factors of its size in x and y.
    """
    across = max(3, round(2.6 * crown.radius * stretch[0] / grid.x_m))
    down = max(3, round(2.6 * crown.radius * stretch[1] / grid.y_m))
    left = round(place[0] / grid.x_m - across / 2) - window.column
    top = round(place[1] / grid.y_m - down / 2) - window.row
    rows = slice(max(0, top), max(0, min(window.height, top + down)))
    columns = slice(max(0, left), max(0, min(window.width, left + across)))
    stamp = cv2.resize(_crown_stamps()[crown.variant], (across, down), interpolation=cv2.INTER_AREA)
    part = stamp[
        max(0, -top) : max(0, window.height - top), max(0, -left) : max(0, window.width - left)
    ]
    return rows, columns, np.asarray(part, dtype=np.float32)


def paint(
    scene: Scene, window: Window, grid: Grid, sensor: Sensor, seed: int, rng: Rng
) -> NDArray[np.uint16]:
    """Paint a window of the city and return sensor counts, uint16 (h, w, 8), 1..2047.

    Args:
        scene: the city.
        window: the pixels to paint.
        grid: pixel size.
        sensor: radiometry of the collect.
        seed: seed of the ground textures, the same for all windows of a city.
        rng: random generator for the sensor's noise in this window.
    """
    canvas = Canvas(window.grown(_MARGIN), grid).draw(scene)
    radiance = cv2.GaussianBlur(_radiance(canvas, seed), (0, 0), _BLUR_SIGMA)
    inner = radiance[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return to_counts(np.asarray(inner, dtype=np.float32), sensor, rng)


def _radiance(canvas: Canvas, seed: int) -> Float32:
    """Return the radiance of the ground, float32 (h, w, 8), relative to full light on white."""
    textures = Textures.of(canvas.window, seed)
    textures.weather(canvas, seed)
    bands = tuple(range(REFLECTANCE.shape[1]))
    radiance = reflected(canvas.material, canvas.tone, canvas.white, canvas.yellow, textures, bands)
    radiance *= light(canvas.shade)
    return radiance


@dataclass(frozen=True)
class Textures:
    """Grain of all surfaces and variation of light in a window; float32 (h, w) each."""

    fine: Float32  # grain of about 2 pixels
    middle: Float32  # grain of about 8 pixels
    slow: Float32  # slow variation of light and haze

    @classmethod
    def of(cls, window: Window, seed: int) -> Self:
        """Draw the textures of a window; ``seed`` is the same for all windows of a city."""
        fine, middle = gaussian_noise(window, 0.9, seed + 1), gaussian_noise(window, 3.5, seed + 2)
        slow = 1 + 0.05 * smooth_noise(window, 700, seed + 3)
        slow += 0.03 * smooth_noise(window, 90, seed + 4)
        return cls(fine, middle, slow)

    def weather(self, canvas: Canvas, seed: int) -> None:
        """Turn patches of lawn into dry grass, and patches of dry grass into soil or lawn."""
        dryness = smooth_noise(canvas.window, 60, seed + 5) + 0.16 * self.middle
        lawn, dry = canvas.material == Material.LAWN, canvas.material == Material.DRY_GRASS
        canvas.material[lawn & (dryness > 0.55)] = Material.DRY_GRASS
        canvas.material[dry & (dryness > 0.6)] = Material.SOIL
        canvas.material[dry & (dryness < -0.75)] = Material.LAWN


def reflected(
    material: NDArray[np.uint8],
    tone: Float32,
    white: Float32,
    yellow: Float32,
    textures: Textures,
    bands: tuple[int, ...],
) -> Float32:
    """Return what surfaces reflect in full light, float32 (h, w, bands); see :class:`Canvas`."""
    strength = GRAIN[material]
    grain = 1 + strength[..., 0] * textures.fine + strength[..., 1] * textures.middle
    shown = np.clip(tone * grain * textures.slow, 0.15, 2.5)
    radiance = REFLECTANCE[:, bands][material] * shown[..., None]
    for layer, pigment in ((white, WHITE_PAINT), (yellow, YELLOW_PAINT)):
        painted = layer > 0
        cover = layer[painted][:, None]
        radiance[painted] = (1 - cover) * radiance[painted] + cover * pigment[list(bands)]
    return np.asarray(radiance, dtype=np.float32)


def _fixed(xy: FloatArray) -> NDArray[np.int32]:
    """Convert to OpenCV's fixed point: its integers are pixel centres, ours are pixel edges."""
    return np.rint((xy - 0.5) * (1 << _PLACES)).astype(np.int32)


@cache
def _crown_stamps() -> tuple[Float32, ...]:
    rng = np.random.default_rng(20190905)
    return tuple(_draw_crown(rng) for _ in range(CROWN_VARIANTS))


def _draw_crown(rng: Rng) -> Float32:
    """Draw a lumpy dome, brighter to the south-east, where the sun is."""
    span = np.linspace(-1.3, 1.3, _STAMP)
    x, y = np.meshgrid(span, span)
    angle, distance = np.arctan2(y, x), np.hypot(x, y)
    edge = np.ones_like(angle)
    for waves in (2, 3, 5, 8):
        edge += rng.uniform(0.03, 0.09) * np.sin(waves * angle + rng.uniform(0, 2 * np.pi))
    cover = (distance < edge).astype(np.float32)
    tone = 1.15 + 0.42 * (0.45 * x + 0.9 * y) * np.clip(distance, 0, 1)
    tone -= 0.35 * np.clip(distance / edge, 0, 1) ** 3
    clumps = cv2.GaussianBlur(rng.standard_normal((_STAMP, _STAMP)), (0, 0), 2.2)
    tone += 0.16 * clumps / clumps.std()
    return np.stack([cover, np.clip(tone, 0.25, 1.8), x, y], axis=2).astype(np.float32)
