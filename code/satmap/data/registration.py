"""Measure how far labels lie from what the images show.

The outlines of the labels are correlated with the strength of the image's edges, at every shift
within a few metres (registration by cross-correlation, computed with the Fourier transform). The
correlations of many chips are added, so that the noise of single chips averages out. A measurement
counts only if parts of the chips agree with each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import fft

# Largest offset that is found, metres, or pixels where their size is not known.
_REACH_M, _REACH_PX = 8.0, 24
# Finer chips are reduced to this pixel size.
_PIXEL_M = 0.2
# Half the width of roads, metres, and pixels.
_ROAD_M, _ROAD_PX = 3.0, 6.0
# The chips are measured in this many parts, of which most must agree with the whole.
_PARTS, _AGREEING = 5, 4
# Parts agree within this distance, metres, and pixels.
_SAME_M, _SAME_PX = 0.6, 2.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Offset:
    """Position of labels relative to the image.

    Attributes:
        right, down: in pixels; positive if the labels lie too far to the right, or too low.
        chips: number of chips that were measured.
        is_certain: whether parts of the chips agree.
    """

    right: float
    down: float
    chips: int
    is_certain: bool


def measure_offset(
    chips: Sequence[tuple[NDArray[np.uint8], NDArray[np.object_]]], metres: float | None
) -> Offset | None:
    """Measure the offset between labels and images.

    Args:
        chips: image, uint8 (h, w, channels), 0 without data, and its lines or polygons in pixels.
        metres: size of a pixel; None if not known.

    Returns:
        None if there is nothing to measure.
    """
    reduce = max(1, round(_PIXEL_M / metres)) if metres else 1
    pixel = metres * reduce if metres else None
    reach = min(max(3, round(_REACH_M / pixel)), 64) if pixel else _REACH_PX
    half_road = _ROAD_M / pixel if pixel else _ROAD_PX
    found = [
        each
        for image, shapes in chips
        if (each := _correlation(image, shapes, reduce, reach, half_road)) is not None
    ]
    if not found:
        return None
    right, down = _peak(np.sum(found, axis=0))
    count = min(_PARTS, len(found))
    parts = [_peak(np.sum(found[part::count], axis=0)) for part in range(count)]
    same = max(_SAME_M / pixel, 1.0) if pixel else _SAME_PX
    agreeing = sum(np.hypot(x - right, y - down) <= same for x, y in parts)
    is_certain = count == _PARTS and agreeing >= _AGREEING and max(abs(right), abs(down)) < reach
    return Offset(right * reduce, down * reduce, len(found), is_certain)


def _correlation(
    image: NDArray[np.uint8],
    shapes: NDArray[np.object_],
    reduce: int,
    reach: int,
    half_road: float,
) -> Floats | None:
    """Return the correlation at every shift up to ``reach``, (2 reach + 1, 2 reach + 1)."""
    height, width = image.shape[0] // reduce, image.shape[1] // reduce
    if min(height, width) <= 2 * reach or not len(shapes):
        return None
    outlines = _draw(shapes, (height, width), reduce, half_road)
    edges = _edges(image, (height, width))
    if not outlines.any() or not edges.any():
        return None
    size = [fft.next_fast_len(side + reach, real=True) for side in (height, width)]
    spectrum = fft.rfft2(outlines, size) * np.conj(fft.rfft2(edges, size))
    whole = fft.irfft2(spectrum, size)
    around = np.arange(-reach, reach + 1)
    surface: Floats = whole[np.ix_(around, around)].astype(np.float32)
    return surface


def _edges(image: NDArray[np.uint8], size: tuple[int, int]) -> Floats:
    """Return the strength of the edges relative to their surroundings, with a mean of 0."""
    height, width = size
    small = cv2.resize(image[..., :3], (width, height), interpolation=cv2.INTER_AREA)
    valid = (small.reshape(height, width, -1).max(axis=2) > 0).astype(np.uint8)
    grey = small.reshape(height, width, -1).astype(np.float32).mean(axis=2)
    grey = np.asarray(cv2.GaussianBlur(grey, (0, 0), 1.0), np.float32)
    strength = np.hypot(cv2.Scharr(grey, cv2.CV_32F, 1, 0), cv2.Scharr(grey, cv2.CV_32F, 0, 1))
    # The border of the data is no edge of an object.
    inside = np.asarray(cv2.erode(valid, np.ones((7, 7), np.uint8)), np.uint8) > 0
    strength *= inside
    local = cv2.boxFilter(strength, -1, (41, 41))
    relative = np.minimum(strength / (local + 8.0), 3.0)
    mean = relative[inside].mean() if inside.any() else 0.0
    edges: Floats = np.where(inside, relative - mean, 0).astype(np.float32)
    return edges


def _draw(
    shapes: NDArray[np.object_], size: tuple[int, int], reduce: int, half_road: float
) -> Floats:
    """Draw outlines of buildings as 1, or both sides of roads as 1 and their middle as -1."""
    scaled = shapely.transform(shapes, lambda xy: xy / reduce)
    if scaled[0].geom_type == "LineString":
        roads = shapely.union_all(shapely.buffer(scaled, half_road))
        middle = _outlined(shapely.union_all(scaled), size, max(1, round(half_road)))
        sides = _outlined(roads.boundary, size, 1)
        return np.subtract(2 * sides, middle, dtype=np.float32)
    return _outlined(shapely.union_all(shapely.boundary(scaled)), size, 1)


def _outlined(lines: shapely.Geometry, size: tuple[int, int], thickness: int) -> Floats:
    drawn = np.zeros(size, np.uint8)
    near = shapely.clip_by_rect(lines, -64, -64, size[1] + 64, size[0] + 64)
    for part in shapely.get_parts(near).tolist():
        # OpenCV counts from the centre of the first pixel, here in steps of 1/16.
        points = np.rint((shapely.get_coordinates(part) - 0.5) * 16).astype(np.int32)
        cv2.polylines(drawn, [points], False, 255, thickness, cv2.LINE_AA, 4)
    return np.divide(drawn, 255, dtype=np.float32)


def _peak(surface: Floats) -> tuple[float, float]:
    """Return the shift to the right and down with the highest correlation, to parts of a pixel."""
    smooth = np.asarray(cv2.GaussianBlur(surface, (0, 0), 1.0), np.float32)
    reach = len(smooth) // 2
    row, column = divmod(int(smooth.argmax()), smooth.shape[1])

    def refined(values: Floats, at: int) -> float:
        if not 0 < at < len(values) - 1:
            return float(at - reach)
        before, here, after = values[at - 1 : at + 2].astype(float).tolist()
        curve = before - 2 * here + after
        return at - reach + (0.5 * (before - after) / curve if curve < 0 else 0.0)

    return refined(smooth[row], column), refined(smooth[:, column], row)
