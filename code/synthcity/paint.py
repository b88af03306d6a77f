"""Paint a window of a scene: from strokes to materials, radiance and sensor counts."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import Polygon, clip_by_rect

from synthcity.noise import Window, gaussian_noise, smooth_noise
from synthcity.plan import FloatArray
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
from synthcity.strokes import (
    CROWN_VARIANTS,
    Crown,
    Fill,
    Scene,
    Shadow,
    Stripe,
    outline,
)

# Sigma of the optical blur, and painted margin around the chip, pixels.
_BLUR_SIGMA = 0.75
_MARGIN = 8

# OpenCV takes polygon corners as integers with this many binary places.
_PLACES = 4

# Larger coordinates are clipped first, because OpenCV's fixed point would overflow.
_FAR_PX = 4000.0

_STAMP = 48


@dataclass(frozen=True)
class Grid:
    """Pixel size of the city, metres in x and in y."""

    x_m: float
    y_m: float


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

    def __init__(self, window: Window, grid: Grid) -> None:
        shape = (window.height, window.width)
        self.window = window
        self.grid = grid
        self.material: NDArray[np.uint8] = np.full(shape, Material.DRY_GRASS, dtype=np.uint8)
        self.tone: NDArray[np.float32] = np.ones(shape, dtype=np.float32)
        self.shade: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self.white: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self.yellow: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)

    def pixels(self, points: FloatArray) -> FloatArray:
        """Convert city metres to pixels, x = column and y = row; integers are pixel edges."""
        corner = (self.window.column, self.window.row)
        return points / (self.grid.x_m, self.grid.y_m) - corner

    def polygon(self, points: FloatArray) -> NDArray[np.int32] | None:
        """Convert a polygon to OpenCV's fixed-point corners; None if it is far from the window."""
        xy = self.pixels(points)
        if np.abs(xy).max() > _FAR_PX + max(self.window.width, self.window.height):
            edge = 16.0
            near = clip_by_rect(
                Polygon(xy).buffer(0), -edge, -edge,
                self.window.width + edge, self.window.height + edge,
            )  # fmt: skip
            if near.is_empty:
                return None
            xy = outline(near)
        return _fixed(xy)

    def draw(self, scene: Scene) -> None:
        """Draw all strokes that touch the window, in the scene's order."""
        x0, y0, x1, y1 = self.window.metres(self.grid.x_m, self.grid.y_m)
        for stroke in scene.within(x0, y0, x1, y1):
            match stroke:
                case Fill():
                    self.fill(stroke)
                case Shadow():
                    self.shadow(stroke)
                case Stripe():
                    self.stripe(stroke)
                case Crown():
                    self.crown(stroke)

    def fill(self, stroke: Fill) -> None:
        """Draw a surface."""
        polygon = self.polygon(stroke.points)
        if polygon is None:
            return
        cv2.fillPoly(self.material, [polygon], int(stroke.material), shift=_PLACES)
        cv2.fillPoly(self.tone, [polygon], float(stroke.tone), shift=_PLACES)
        cv2.fillPoly(self.white, [polygon], 0.0, shift=_PLACES)
        cv2.fillPoly(self.yellow, [polygon], 0.0, shift=_PLACES)
        if stroke.lit:
            cv2.fillPoly(self.shade, [polygon], 0.0, shift=_PLACES)

    def shadow(self, stroke: Shadow) -> None:
        """Draw a cast shadow."""
        polygon = self.polygon(stroke.points)
        if polygon is not None:
            cv2.fillPoly(self.shade, [polygon], 1.0, shift=_PLACES)

    def stripe(self, stroke: Stripe) -> None:
        """Draw road paint."""
        layer = self.yellow if stroke.yellow else self.white
        line = _fixed(self.pixels(stroke.points))
        cv2.polylines(layer, [line], False, float(stroke.strength), shift=_PLACES)

    def crown(self, stroke: Crown) -> None:
        """Draw a tree or its shadow, snapped to the city's pixel grid so that chips agree."""
        across = max(3, round(2.6 * stroke.radius / self.grid.x_m))
        down = max(3, round(2.6 * stroke.radius / self.grid.y_m))
        stamp = cv2.resize(
            crown_stamps()[stroke.variant], (across, down), interpolation=cv2.INTER_AREA
        )
        left = round(stroke.x / self.grid.x_m - across / 2) - self.window.column
        top = round(stroke.y / self.grid.y_m - down / 2) - self.window.row
        rows = slice(max(0, top), min(self.window.height, top + down))
        columns = slice(max(0, left), min(self.window.width, left + across))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        part = stamp[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        covered = part[..., 0] > 0.5
        if stroke.material is None:
            shade = self.shade[rows, columns]
            # Light passes through leaves, so the shadow is lighter than that of a wall.
            shade[covered] = np.maximum(shade[covered], 0.85)
            return
        self.material[rows, columns][covered] = stroke.material
        self.tone[rows, columns][covered] = stroke.tone * part[..., 1][covered]
        for layer in (self.shade, self.white, self.yellow):
            layer[rows, columns][covered] = 0.0


def paint(
    scene: Scene, window: Window, grid: Grid, sensor: Sensor, seed: int, rng: np.random.Generator
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
    canvas = Canvas(window.grown(_MARGIN), grid)
    canvas.draw(scene)
    radiance = cv2.GaussianBlur(_radiance(canvas, seed), (0, 0), _BLUR_SIGMA)
    inner = radiance[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return to_counts(np.asarray(inner, dtype=np.float32), sensor, rng)


def _radiance(canvas: Canvas, seed: int) -> NDArray[np.float32]:
    """Return the radiance of the ground, float32 (h, w, 8), relative to full light on white."""
    window = canvas.window
    fine, middle = gaussian_noise(window, 0.9, seed + 1), gaussian_noise(window, 3.5, seed + 2)
    weather_lawns(canvas, middle, seed)
    strength = GRAIN[canvas.material]
    tone = canvas.tone * (1 + strength[..., 0] * fine + strength[..., 1] * middle)
    # Slow variation of light and haze.
    tone *= (
        1 + 0.05 * smooth_noise(window, 700, seed + 3) + 0.03 * smooth_noise(window, 90, seed + 4)
    )
    radiance = REFLECTANCE[canvas.material] * np.clip(tone, 0.15, 2.5)[..., None]
    for layer, pigment in ((canvas.white, WHITE_PAINT), (canvas.yellow, YELLOW_PAINT)):
        painted = layer > 0
        cover = layer[painted][:, None]
        radiance[painted] = (1 - cover) * radiance[painted] + cover * pigment
    radiance *= light(canvas.shade)
    return np.asarray(radiance, dtype=np.float32)


def weather_lawns(canvas: Canvas, middle: NDArray[np.float32], seed: int) -> None:
    """Turn patches of lawn into dry grass, and patches of dry grass into soil or lawn."""
    dryness = smooth_noise(canvas.window, 60, seed + 5) + 0.16 * middle
    lawn, dry = canvas.material == Material.LAWN, canvas.material == Material.DRY_GRASS
    canvas.material[lawn & (dryness > 0.55)] = Material.DRY_GRASS
    canvas.material[dry & (dryness > 0.6)] = Material.SOIL
    canvas.material[dry & (dryness < -0.75)] = Material.LAWN


def _fixed(xy: FloatArray) -> NDArray[np.int32]:
    """Convert to OpenCV's fixed point: its integers are pixel centres, ours are pixel edges."""
    return np.rint((xy - 0.5) * (1 << _PLACES)).astype(np.int32)


@cache
def crown_stamps() -> tuple[NDArray[np.float32], ...]:
    """Return the tree crowns seen from above, each float32 (48, 48, 2): coverage and tone."""
    rng = np.random.default_rng(20190905)
    return tuple(_draw_crown(rng) for _ in range(CROWN_VARIANTS))


def _draw_crown(rng: np.random.Generator) -> NDArray[np.float32]:
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
    return np.stack([cover, np.clip(tone, 0.25, 1.8)], axis=2).astype(np.float32)
