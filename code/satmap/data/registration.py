"""Measure how far labels lie from what images or probability maps show.

Labels and target are correlated at every shift within a few metres (registration by
cross-correlation, computed with the Fourier transform). Images are compared by their edges, which
follow the outlines of buildings and both sides of roads. The correlations of many chips are added,
so that the noise of single chips averages out. Resampling the chips (bootstrap, Efron 1979) tells
how sure the result is.

:func:`measure_offset` gives one offset for all chips. For a field of offsets, compute
:func:`shift_scores` of every chip once, and :func:`best_shift` of the chips around each place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from scipy import fft

# Largest offset that is found, metres, or pixels where their size is not known.
_REACH_M, _REACH_PX = 8.0, 24
# Finer chips are reduced to this pixel size.
_PIXEL_M = 0.25
# Half of typical road widths, in metres; in pixels if their size is not known.
_ROADS_M, _ROADS_PX = (3.0, 5.0, 8.0), (6.0, 10.0, 16.0)
# Standard deviation of the blur of the summed scores, in metres or pixels. Roofs do not all lie at
# the same offset, because buildings lean by different amounts.
_BLUR_M, _BLUR_PX = 0.6, 1.5
# The result is certain if there are enough chips and this share of the resampled results lies
# within this distance of it, in metres or pixels.
_SHARE, _SURE_M, _SURE_PX, _LEAST_CHIPS = 0.8, 1.0, 3.0, 5
_RESAMPLED = 50
# Edges are divided by the mean strength in a square of this side, plus a constant that keeps weak
# edges weak.
_AROUND_PX, _WEAK = 81, 8.0

Floats = NDArray[np.float32]
Shapes = NDArray[np.object_]


@dataclass(frozen=True)
class Offset:
    """Position of labels relative to images or maps.

    Attributes:
        right, down: in pixels; positive if the labels lie too far to the right, or too low.
        error: pixels within which 80 % of the results of resampled chips lie.
        chips: number of chips that were measured.
        is_certain: whether there are enough chips and they agree.
    """

    right: float
    down: float
    error: float
    chips: int
    is_certain: bool


@dataclass(frozen=True)
class ShiftScores:
    """How well the labels of a chip fit its target at every shift.

    Attributes:
        surface: float32 (2 n + 1, 2 n + 1): the score by down and right, each -n to n steps.
        step: pixels of the chip per step.
    """

    surface: Floats
    step: int


def measure_offset(
    chips: Sequence[tuple[NDArray[Any], Shapes]], metres: float | None
) -> Offset | None:
    """Measure one offset between labels and images or probability maps of many chips.

    Args:
        chips: target and labels of each, as for :func:`shift_scores`.
        metres: size of a pixel; None if not known.

    Returns:
        None if there is nothing to measure.
    """
    found = [shift_scores(target, shapes, metres) for target, shapes in chips]
    scores = [each for each in found if each is not None]
    return best_shift(scores, metres) if scores else None


def shift_scores(target: NDArray[Any], shapes: Shapes, metres: float | None) -> ShiftScores | None:
    """Compare the labels of a chip with its target at every shift of up to 8 metres.

    Args:
        target: image, uint8 (h, w, channels), 0 without data; or probability map of the labelled
            objects, floating point (h, w), 0 to 1.
        shapes: lines or polygons in pixels, all of one kind.
        metres: size of a pixel; None if not known.

    Returns:
        None if there are no labels, nothing is to be seen, or the chip is too small.
    """
    step = max(1, round(_PIXEL_M / metres)) if metres else 1
    pixel = metres * step if metres else None
    reach = min(max(3, round(_REACH_M / pixel)), 64) if pixel else _REACH_PX
    height, width = target.shape[0] // step, target.shape[1] // step
    if min(height, width) <= 2 * reach or not len(shapes):
        return None
    halves = [half / pixel for half in _ROADS_M] if pixel else list(_ROADS_PX)
    scaled = shapely.transform(shapes, lambda xy: xy / step)
    if target.ndim == 2:
        drawn = _filled(scaled, (height, width), halves[0])
        shown = _ridges(target, (height, width))
    else:
        drawn = _outlines(scaled, (height, width), halves)
        shown = _edges(target, (height, width))
    strength = float(np.sqrt(np.mean(shown**2)))
    if not drawn.any() or strength == 0:
        return None
    size = [fft.next_fast_len(side + reach, real=True) for side in (height, width)]
    spectrum = fft.rfft2(drawn, size) * np.conj(fft.rfft2(shown / strength, size))
    around = np.arange(-reach, reach + 1)
    surface: Floats = fft.irfft2(spectrum, size)[np.ix_(around, around)].astype(np.float32)
    return ShiftScores(surface, step)


def best_shift(scores: Sequence[ShiftScores], metres: float | None) -> Offset:
    """Return the one offset that fits all chips best.

    Args:
        scores: of one chip or more, all with pixels of the same size.
        metres: size of a pixel; None if not known.
    """
    step = scores[0].step
    pixel = metres * step if metres else None
    surfaces = np.array([score.surface for score in scores])
    count, side, _ = surfaces.shape
    blur = max(0.7, _BLUR_M / pixel) if pixel else _BLUR_PX
    best = _peak(surfaces.sum(axis=0), blur)
    weights = np.random.default_rng(0).multinomial(count, [1 / count] * count, _RESAMPLED)
    summed = (weights.astype(np.float32) @ surfaces.reshape(count, -1)).reshape(-1, side, side)
    away = [float(np.hypot(*(_peak(each, blur) - best))) for each in summed]
    error = float(np.quantile(away, _SHARE))
    sure = _SURE_M / pixel if pixel else _SURE_PX
    # A peak at the border may lie beyond it.
    is_certain = (
        count >= _LEAST_CHIPS and error <= sure and float(np.abs(best).max()) < side // 2 - 1
    )
    right, down = (best * step).tolist()
    return Offset(right, down, error * step, count, is_certain)


def _edges(image: NDArray[np.uint8], size: tuple[int, int]) -> Floats:
    """Return the strength of the edges relative to their surroundings, with a mean of 0."""
    height, width = size
    small = cv2.resize(image[..., :3], (width, height), interpolation=cv2.INTER_AREA)
    colours = small.reshape(height, width, -1).astype(np.float32)
    # The border of the data is no edge of an object.
    valid = (colours.max(axis=2) > 0).astype(np.uint8)
    inside = np.asarray(cv2.erode(valid, np.ones((7, 7), np.uint8)), np.uint8) > 0
    squares = np.zeros(size, np.float32)
    for band in np.moveaxis(colours, 2, 0):
        smooth = cv2.GaussianBlur(band, (0, 0), 1.0)
        for x, y in ((1, 0), (0, 1)):
            squares += np.square(cv2.Scharr(smooth, cv2.CV_32F, x, y))
    strength = np.where(inside, np.sqrt(squares), 0).astype(np.float32)
    around = (_AROUND_PX, _AROUND_PX)
    local = cv2.blur(strength, around) / np.maximum(
        cv2.blur(inside.astype(np.float32), around), 1e-3
    )
    relative = np.minimum(strength / (local + _WEAK), 3.0)
    mean = relative[inside].mean() if inside.any() else 0.0
    edges: Floats = np.where(inside, relative - mean, 0).astype(np.float32)
    return edges


def _ridges(probability: NDArray[Any], size: tuple[int, int]) -> Floats:
    """Return how far a map (h, w) exceeds its surroundings: minus its Laplacian."""
    height, width = size
    small = cv2.resize(
        probability.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
    )
    ridges: Floats = -np.asarray(
        cv2.Laplacian(cv2.GaussianBlur(small, (0, 0), 1.5), cv2.CV_32F), np.float32
    )
    return ridges


def _filled(shapes: Shapes, size: tuple[int, int], half_road: float) -> Floats:
    """Draw polygons, or lines with the width of roads, as 1."""
    if shapes[0].geom_type == "LineString":
        shapes = shapely.buffer(shapes, half_road)
    drawn = np.zeros(size, np.float32)
    rasterio.features.rasterize([(shape, 1) for shape in shapes], out=drawn)
    return drawn


def _outlines(shapes: Shapes, size: tuple[int, int], halves: Sequence[float]) -> Floats:
    """Draw outlines of buildings as 1, or sides of roads as positive and middles as negative.

    The sides of roads are drawn for each of the half widths. Sides and middles of roads add up to
    0. Otherwise ground with many edges would attract roads.
    """
    if shapes[0].geom_type != "LineString":
        return _lines(shapely.union_all(shapely.boundary(shapes)), size)
    drawn = np.zeros(size, np.float32)
    line = _lines(shapely.union_all(shapes), size)
    for half in halves:
        sides = _lines(shapely.union_all(shapely.buffer(shapes, half)).boundary, size)
        middle = np.asarray(cv2.GaussianBlur(line, (0, 0), half / 2), np.float32)
        drawn += sides - middle * (sides.sum() / max(float(middle.sum()), 1.0))
    return drawn


def _lines(lines: shapely.Geometry, size: tuple[int, int]) -> Floats:
    drawn = np.zeros(size, np.uint8)
    near = shapely.clip_by_rect(lines, -64, -64, size[1] + 64, size[0] + 64)
    for part in shapely.get_parts(near).tolist():
        # OpenCV counts from the centre of the first pixel, here in steps of 1/16.
        points = np.rint((shapely.get_coordinates(part) - 0.5) * 16).astype(np.int32)
        cv2.polylines(drawn, [points], False, 255, 1, cv2.LINE_AA, 4)
    return np.divide(drawn, 255, dtype=np.float32)


def _peak(surface: Floats, blur: float) -> NDArray[np.float64]:
    """Return the shift to the right and down with the highest score, to parts of a step."""
    smooth = np.asarray(cv2.GaussianBlur(surface, (0, 0), blur), np.float32)
    reach = len(smooth) // 2
    row, column = divmod(int(smooth.argmax()), smooth.shape[1])

    def refined(values: Floats, at: int) -> float:
        if not 0 < at < len(values) - 1:
            return float(at - reach)
        before, here, after = values[at - 1 : at + 2].astype(float).tolist()
        curve = before - 2 * here + after
        return at - reach + (0.5 * (before - after) / curve if curve < 0 else 0.0)

    return np.array([refined(smooth[row], column), refined(smooth[:, column], row)])
