"""Place chips without georeference beside each other, by matching their borders.

Some challenges cut scenes into chips that abut and hide where each one lies. The pixels on both
sides of a cut are almost the same. A border is described by the grey values at the cut,
extrapolated from the two outermost lines, without large-scale brightness and contrast. All borders
are compared with each other by correlation. Two borders match if each is the other's best match and
no other border is nearly as similar, as for jigsaw puzzles (A. Gallagher, CVPR 2012).

Chips are then joined into mosaics, the clearest matches first. Two parts are only joined if all
borders along their seam fit, and an unclear match needs a second border that confirms it. A chip
that fits nowhere stays alone: a missing neighbour costs little, a wrong one misleads the networks.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from affine import Affine
from numpy.typing import NDArray

from satmap.data.imagery import ImageInfo, read_stretched
from satmap.data.neighbours import ImageFootprint
from satmap.errors import SatmapError
from satmap.io.progress import track
from satmap.runtime.resources import available_cores
from satmap.vectors.georeference import Georeference

# Grey values up to this are without data or so dark that JPEG's errors dominate.
_BLACK = 8
# Standard deviation of the blur along a border, pixels. It removes noise.
_BLUR_PX = 1.0
# Brightness and contrast are removed over this share of a border's length.
_LARGE_SCALE = 1 / 16
# Contrast, in grey values, below which differences are mostly noise.
_NOISE = 4.0
# Borders with less contrast, or a smaller share with data, are not compared.
_LEAST_CONTRAST = 2.0
_LEAST_DATA = 0.25

# Limits of the ratio test: the distance to the best match divided by that to the second best. Below
# _CLEAR a match is accepted. From _CLEAR to _UNCLEAR it needs a second border that confirms it. In
# real scenes the ratio of every wrong match was at least .85.
_CLEAR = 0.6
_UNCLEAR = 0.85
# Least correlations of borders: the mean along a seam, and that of a border that confirms another.
_SEAM_FITS = 0.5
_CONFIRMS = 0.4

# Borders that are compared with all others at once.
_BLOCK = 512

# Borders of a chip, and for each the step in columns and rows to the chip beyond it.
_LEFT, _RIGHT, _TOP, _BOTTOM = range(4)
_BEYOND = {_LEFT: (-1, 0), _RIGHT: (1, 0), _TOP: (0, -1), _BOTTOM: (0, 1)}
_OPPOSITE = {_LEFT: _RIGHT, _RIGHT: _LEFT, _TOP: _BOTTOM, _BOTTOM: _TOP}

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Place(NamedTuple):
    """Place of a chip: the number of its mosaic, and its column and row there, in chips."""

    mosaic: int
    column: int
    row: int


class _Match(NamedTuple):
    """A match: the chip ``there`` lies beyond the ``border`` of the chip ``here``.

    ``ratio`` is the distance to this chip over that to the next best one; low is clear.
    """

    ratio: float
    here: int
    there: int
    border: int


def join_chips(
    images: Sequence[ImageInfo], low: float, high: float, gsd_m: float
) -> list[ImageFootprint]:
    """Place images without georeference that were cut from the same scenes.

    Only images of the same size are joined. Unreadable ones stay alone.

    Args:
        images: the chips.
        low: percentile of the stretch, as for :func:`satmap.data.imagery.read_stretched`.
        high: the other percentile.
        gsd_m: pixel size of images without georeference, metres.

    Returns:
        The footprint of each image. Images that are joined have a georeference in a system of their
        mosaic alone, named by its number, in pixels. Others have their own georeference or none.
    """
    footprints = [ImageFootprint(info.georeference, info.width, info.height) for info in images]
    loose: dict[tuple[int, int], list[int]] = {}
    for index, info in enumerate(images):
        if info.georeference is None:
            loose.setdefault((info.width, info.height), []).append(index)

    def describe(index: int) -> list[Floats]:
        try:
            return describe_borders(read_stretched(images[index], low, high, 3))
        except SatmapError:
            # The prediction of the image will report the error.
            return describe_borders(
                np.zeros((images[index].height, images[index].width, 3), np.uint8)
            )

    mosaics = 0
    for (width, height), alike in sorted(loose.items()):
        with ThreadPoolExecutor(available_cores()) as pool:
            borders = list(track(pool.map(describe, alike), "reading borders", len(alike)))
        places = place_chips(borders)
        for index, place in zip(alike, places, strict=True):
            if place is None:
                continue
            corner = Affine(1, 0, place.column * width, 0, -1, -place.row * height)
            system = Georeference(f"mosaic {mosaics + place.mosaic}", corner, (gsd_m, gsd_m))
            footprints[index] = ImageFootprint(system, width, height)
        mosaics += 1 + max((place.mosaic for place in places if place), default=-1)
    return footprints


def describe_borders(image: NDArray[np.uint8]) -> list[Floats]:
    """Describe the left, right, top and bottom border of an image (h, w, channels).

    Returns:
        Four unit vectors, float32 (h // 2,), (h // 2,), (w // 2,), (w // 2,); all 0 for black,
        uniform and very short borders.
    """
    return [
        _describe(image[:, :2].swapaxes(0, 1)),
        _describe(image[:, : -3 : -1].swapaxes(0, 1)),
        _describe(image[:2]),
        _describe(image[: -3 : -1]),
    ]  # fmt: skip


def _describe(lines: NDArray[np.uint8]) -> Floats:
    """Describe a border by its lines of pixels (2, n, channels), the outermost first."""
    length = lines.shape[1]
    nothing = np.zeros(length // 2, np.float32)
    data: Floats = np.asarray((lines > _BLACK).any(axis=(0, 2)), np.float32)
    if len(lines) < 2 or data.mean() < _LEAST_DATA or length < 2:
        return nothing
    outer, inner = (np.asarray(line.mean(axis=1), np.float32) for line in lines)
    # The cut is half a pixel outside the outermost line. Both sides are extrapolated to it.
    fine = _mean_around(1.5 * outer - 0.5 * inner, data, _BLUR_PX)
    spread = length * _LARGE_SCALE
    detail = (fine - _mean_around(fine, data, spread)) * data
    if np.sqrt((detail**2).mean()) < _LEAST_CONTRAST:
        return nothing
    detail /= np.sqrt(_mean_around(detail**2, data, spread) + _NOISE**2)
    pairs = detail[: 2 * len(nothing)].reshape(-1, 2).mean(axis=1)
    pairs /= max(float(np.linalg.norm(pairs)), 1e-6)
    described: Floats = pairs
    return described


def _mean_around(values: Floats, data: Floats, sigma: float) -> Floats:
    """Average values (n,) where there is data, weighted by a Gaussian along the border."""
    total, weight = (
        cv2.GaussianBlur(row[None], (0, 1), sigmaX=sigma)[0] for row in (values * data, data)
    )
    mean: Floats = total / np.maximum(weight, 1e-3)
    return mean


def place_chips(borders: Sequence[Sequence[Floats]]) -> list[Place | None]:
    """Place chips of one size by the descriptions of their borders (:func:`describe_borders`).

    Returns:
        The place of each chip; None for chips that fit no other one. Mosaics are numbered from
        0. The first column and row are 0.
    """
    if not borders:
        return []
    sides = [np.stack([chip[side] for chip in borders]) for side in range(4)]
    matches = sorted(_match(sides, _RIGHT) + _match(sides, _BOTTOM))
    puzzle = _Puzzle(sides)
    for match in matches:
        if match.ratio < _CLEAR:
            puzzle.join(match, confirmed=False)
    # Larger parts have longer seams, which may confirm matches that were unclear before.
    left = matches
    while (rest := [match for match in left if not puzzle.join(match, confirmed=True)]) != left:
        left = rest
    return puzzle.places()


def _match(sides: Sequence[Floats], border: int) -> list[_Match]:
    """Find the clear matches between a border and the opposite border of the other chips.

    All pairs are compared by products of matrices, a block of borders at a time: 11,500 chips of
    1,024 pixels take some seconds.
    """
    one, other = sides[border], sides[_OPPOSITE[border]]
    here, there = (np.flatnonzero(side.any(axis=1)) for side in (one, other))
    if not (len(here) and len(there)):
        return []
    one, other = one[here], other[there]
    forward, first, second = _start(len(here))
    backward, first_back, second_back = _start(len(there))
    for start in range(0, len(here), _BLOCK):
        rows = slice(start, start + _BLOCK)
        scores = one[rows] @ other.T
        # A chip does not lie beside itself.
        scores[here[rows, None] == there] = -1
        forward[rows], first[rows], second[rows] = _best_two(scores)
        best, best_score, runner_up = _best_two(scores.T)
        second_back = np.maximum(
            np.maximum(second_back, runner_up), np.minimum(first_back, best_score)
        )
        backward = np.where(best_score > first_back, best + start, backward)
        first_back = np.maximum(first_back, best_score)
    mutual = backward[forward] == np.arange(len(here))
    ratio = (1 - first) / np.maximum(1 - np.maximum(second, second_back[forward]), 1e-6)
    return [
        _Match(float(ratio[i]), int(here[i]), int(there[forward[i]]), border)
        for i in np.flatnonzero(mutual & (ratio < _UNCLEAR))
    ]


def _start(count: int) -> tuple[Ints, Floats, Floats]:
    """Return start values of the best match, its score and the second best score."""
    score = np.full(count, -1, np.float32)
    return np.full(count, -1, np.int64), score, score.copy()


def _best_two(scores: Floats) -> tuple[Ints, Floats, Floats]:
    """Return the index of the largest score of each row, its value, and the second largest value.

    ``scores`` is unchanged.
    """
    rows = np.arange(len(scores))
    best = scores.argmax(axis=1)
    largest = scores[rows, best]
    scores[rows, best] = -1
    second = scores.max(axis=1)
    scores[rows, best] = largest
    return best, largest, second


@dataclass
class _Part:
    """Chips that are joined: chip by cell, a column and a row."""

    chips: dict[tuple[int, int], int]


class _Puzzle:
    """Chips that are joined step by step into mosaics."""

    def __init__(self, sides: Sequence[Floats]) -> None:
        """Begin with single chips. ``sides`` are (chips, samples) for each border."""
        self._sides = sides
        count = len(sides[0])
        self._cell = [(0, 0)] * count
        self._part = [_Part({(0, 0): chip}) for chip in range(count)]

    def join(self, match: _Match, confirmed: bool) -> bool:
        """Join the parts of two matching chips if they fit; return whether both are one part now.

        With ``confirmed`` at least two borders must fit.
        """
        here, there = self._part[match.here], self._part[match.there]
        if here is there:
            return True
        (column, row), (x, y) = self._cell[match.here], self._cell[match.there]
        right, down = _BEYOND[match.border]
        move = column + right - x, row + down - y
        if len(here.chips) < len(there.chips):
            here, there, move = there, here, (-move[0], -move[1])
        moved = {(x + move[0], y + move[1]): chip for (x, y), chip in there.chips.items()}
        if moved.keys() & here.chips.keys():
            return False
        seam = self._seam(here, moved)
        if np.mean(seam) < _SEAM_FITS or (
            confirmed and sum(score > _CONFIRMS for score in seam) < 2
        ):
            return False
        here.chips |= moved
        for cell, chip in moved.items():
            self._cell[chip], self._part[chip] = cell, here
        return True

    def _seam(self, here: _Part, moved: dict[tuple[int, int], int]) -> list[float]:
        """Correlate all borders along a seam, except black and uniform ones."""
        scores = []
        for (x, y), chip in moved.items():
            for border, (right, down) in _BEYOND.items():
                beyond = here.chips.get((x + right, y + down))
                if beyond is None:
                    continue
                one, other = self._sides[border][chip], self._sides[_OPPOSITE[border]][beyond]
                if one.any() and other.any():
                    scores.append(float(one @ other))
        return scores

    def places(self) -> list[Place | None]:
        """Return the place of each chip in its mosaic; None for single chips."""
        numbers: dict[int, int] = {}
        places: list[Place | None] = []
        for (column, row), part in zip(self._cell, self._part, strict=True):
            if len(part.chips) < 2:
                places.append(None)
                continue
            number = numbers.setdefault(id(part), len(numbers))
            left = min(x for x, _ in part.chips)
            top = min(y for _, y in part.chips)
            places.append(Place(number, column - left, row - top))
        return places
