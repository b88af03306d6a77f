"""Pixel windows, and noise that depends on position only, so that neighbouring chips match."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from synthcity.plan import Float32

# The Gaussian kernel is cut off at this many sigmas.
_TAIL = 4


@dataclass(frozen=True)
class Grid:
    """Pixel size of the city, metres in x and in y."""

    x_m: float
    y_m: float


@dataclass(frozen=True)
class Window:
    """Rectangle of the city's pixel grid: first column and row, width and height, pixels."""

    column: int
    row: int
    width: int
    height: int

    def grown(self, margin: int) -> "Window":
        """Return the window enlarged by ``margin`` pixels on every side."""
        more = 2 * margin
        return Window(
            self.column - margin, self.row - margin, self.width + more, self.height + more
        )

    def metres(self, grid: Grid) -> tuple[float, float, float, float]:
        """Return x0, y0, x1, y1 in city metres."""
        right, bottom = self.column + self.width, self.row + self.height
        return self.column * grid.x_m, self.row * grid.y_m, right * grid.x_m, bottom * grid.y_m


def gaussian_noise(window: Window, sigma: float, seed: int) -> Float32:
    """Return unit-variance noise blurred by a Gaussian of ``sigma`` pixels, float32 (h, w)."""
    margin = int(np.ceil(_TAIL * sigma))
    wide = window.grown(margin)
    white = _white(
        np.arange(wide.column, wide.column + wide.width),
        np.arange(wide.row, wide.row + wide.height),
        seed,
    )
    blurred = cv2.GaussianBlur(white, (2 * margin + 1, 2 * margin + 1), sigma)
    inner = blurred[margin : margin + window.height, margin : margin + window.width]
    # A uniform variable on -1..1 has variance 1/3. The blur divides it by about 4 pi sigma^2.
    return np.asarray(inner * np.float32(np.sqrt(3 * 4 * np.pi) * sigma), dtype=np.float32)


def smooth_noise(window: Window, spacing: float, seed: int) -> Float32:
    """Return smooth noise, about -1..1, with features of ``spacing`` (>= 16) pixels: (h, w)."""
    across, columns = _spline(np.arange(window.column, window.column + window.width), spacing)
    down, rows = _spline(np.arange(window.row, window.row + window.height), spacing)
    knots = _white(columns, rows, seed)
    return np.asarray(1.8 * (down @ knots @ across.T), dtype=np.float32)


def _white(columns: NDArray[np.int64], rows: NDArray[np.int64], seed: int) -> Float32:
    """Return independent uniform values on -1..1 by hashing, float32 (rows, columns)."""
    x = columns.astype(np.uint32)[None, :]
    y = rows.astype(np.uint32)[:, None]
    # MurmurHash3's finaliser, applied to a mix of both coordinates and the seed.
    value = (x * np.uint32(0x9E3779B1)) ^ (y * np.uint32(0x85EBCA77))
    value ^= np.uint32((seed * 0x27D4EB2F) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value ^= value >> np.uint32(shift)
        value *= np.uint32(factor)
    value ^= value >> np.uint32(16)
    return value.astype(np.float32) / np.float32(2**31) - np.float32(1)


def _spline(pixels: NDArray[np.int64], spacing: float) -> tuple[Float32, NDArray[np.int64]]:
    """Return cubic B-spline weights (n, knots) at ``pixels``, and the knots."""
    first = np.floor(pixels / spacing).astype(np.int64) - 1
    t = pixels / spacing - first - 1
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    knots = np.arange(first[0], first[-1] + 4)
    matrix = np.zeros((len(pixels), len(knots)), dtype=np.float32)
    columns = (first - first[0])[:, None] + np.arange(4)
    np.put_along_axis(matrix, columns, (np.stack(weights, axis=1) / 6).astype(np.float32), axis=1)
    return matrix, knots
