"""A smooth field of shifts between labels and predictions.

Every tile is compared with its labels at all shifts. The shift of a tile is the one that fits the
tile and those around it in the same scene best. If these do not agree, it is the shift of the whole
scene; else that of the nearest tiles of the area; else that of the whole area. If none is certain,
labels stay in place. The tiles of small scenes are compared in blocks, because the certainty of a
shift comes from independent measurements.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.judgement import Evidence
from satmap.data.registration import ShiftScores, best_shift, shift_scores
from satmap.vectors.georeference import metres_per_degree

Floats = NDArray[np.float64]

# Number of tiles that are measured together, and the most measurements of a scene or an area.
_TOGETHER, _MOST = 9, 400
# Smallest side of a block of a tile, metres. Labels are found up to 8 m away.
_LEAST_BLOCK_M = 20.0
# An error below this does not make a tile count more than others in the smooth field, metres.
_LEAST_ERROR_M = 0.3
# Error of tiles without a certain shift, which take over that of the others.
_NO_WEIGHT_M = 1000.0


@dataclass(frozen=True)
class MeasuredTile:
    """Measurements of one tile.

    Attributes:
        scene, area: where it belongs.
        place: longitude and latitude of its centre.
        gsd_m: size of a pixel.
        side_m: length of a side.
        scores: how well each block fits at all shifts; blocks without information are left out.
    """

    scene: str
    area: str
    place: tuple[float, float]
    gsd_m: float
    side_m: float
    scores: tuple[ShiftScores, ...]


@dataclass(frozen=True)
class TileShift:
    """How far the labels of a tile lie to the right and down, and the uncertainty, in metres."""

    right_m: float
    down_m: float
    error_m: float
    evidence: Evidence


_UNKNOWN = TileShift(0.0, 0.0, 0.0, "none")


def score_blocks(
    probability: NDArray[np.uint8], shapes: NDArray[np.object_], gsd_m: float, tiles: int
) -> tuple[ShiftScores, ...]:
    """Compare a tile with its labels at all shifts, in blocks if its scene has few tiles.

    Args:
        probability: of buildings, uint8 (h, w), 0..255 for 0..1.
        shapes: the labels in pixels.
        gsd_m: size of a pixel.
        tiles: number of tiles of its scene.
    """
    height, width = probability.shape
    per_side = math.ceil(math.sqrt(_TOGETHER / tiles))
    per_side = max(1, min(per_side, int(min(height, width) * gsd_m / _LEAST_BLOCK_M)))
    found = []
    for rows in _parts(height, per_side):
        for columns in _parts(width, per_side):
            part = probability[rows, columns]
            box = shapely.box(columns.start, rows.start, columns.stop, rows.stop)
            inside = shapes[shapely.intersects(shapes, box)]
            if len(inside) and (part >= 128).any():
                corner = columns.start, rows.start
                moved = shapely.transform(inside, lambda xy, c=corner: xy - c)
                found.append(shift_scores(part.astype(np.float32) / 255, moved, gsd_m))
    return tuple(scores for scores in found if scores is not None)


def _parts(length: int, count: int) -> list[slice]:
    ends = np.linspace(0, length, count + 1).astype(int).tolist()
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def measure_shifts(tiles: Sequence[MeasuredTile]) -> list[TileShift]:
    """Return the shift of every tile, smooth within each scene."""
    scenes: dict[str, list[int]] = defaultdict(list)
    areas: dict[str, list[MeasuredTile]] = defaultdict(list)
    for number, tile in enumerate(tiles):
        scenes[tile.scene].append(number)
        areas[tile.area].append(tile)
    of_area = {name: _shift_of(members) for name, members in areas.items()}
    shifts = [_UNKNOWN] * len(tiles)
    for members in scenes.values():
        area = tiles[members[0]].area
        found = _shifts_of_scene([tiles[n] for n in members], areas[area], of_area[area])
        for number, shift in zip(members, found, strict=True):
            shifts[number] = shift
    return shifts


def _shifts_of_scene(
    tiles: Sequence[MeasuredTile], area: Sequence[MeasuredTile], of_area: TileShift | None
) -> list[TileShift]:
    """Return the shift of each tile of a scene; ``area`` are all tiles of its area."""
    places = in_metres(np.array([tile.place for tile in tiles]))
    whole = _shift_of(tiles)
    if whole:
        fallback = replace(whole, evidence="scene")
    else:
        around = _shift_near(tiles[0].place, area) or of_area
        fallback = replace(around, evidence="area") if around else _UNKNOWN
    if sum(bool(tile.scores) for tile in tiles) <= _TOGETHER:
        return [fallback] * len(tiles)
    shifts = [_shift_near(tile.place, tiles) or fallback for tile in tiles]
    if all(shift is _UNKNOWN for shift in shifts):
        return shifts
    values = np.array([(shift.right_m, shift.down_m) for shift in shifts])
    errors = np.array([_NO_WEIGHT_M if shift is _UNKNOWN else shift.error_m for shift in shifts])
    smooth = smoothed(places, values, places, tiles[0].side_m, errors)
    return [
        TileShift(right, down, shift.error_m, "scene" if shift is _UNKNOWN else shift.evidence)
        for (right, down), shift in zip(smooth.tolist(), shifts, strict=True)
    ]


def _shift_near(place: tuple[float, float], tiles: Sequence[MeasuredTile]) -> TileShift | None:
    """Return the shift of the tiles around a place; None if it is uncertain."""
    measured = [tile for tile in tiles if tile.scores]
    if not measured:
        return None
    away = in_metres(np.array([place, *(tile.place for tile in measured)]))
    near = np.argsort(np.hypot(*(away[1:] - away[0]).T), kind="stable")[:_TOGETHER]
    return _shift_of([measured[number] for number in near.tolist()])


def _shift_of(tiles: Sequence[MeasuredTile]) -> TileShift | None:
    """Return the shift that fits tiles best; None if it is uncertain."""
    # Areas may have scenes of several pixel sizes, whose scores cannot be added.
    kinds: dict[tuple[int, ...], list[tuple[ShiftScores, float]]] = defaultdict(list)
    for tile in tiles:
        for scores in tile.scores:
            kinds[(scores.step, *scores.surface.shape)].append((scores, tile.gsd_m))
    if not kinds:
        return None
    chosen = max(kinds.values(), key=len)
    chosen = chosen[:: -(-len(chosen) // _MOST)]
    gsd_m = float(np.mean([size for _, size in chosen]))
    found = best_shift([scores for scores, _ in chosen], gsd_m)
    if not found.is_certain:
        return None
    return TileShift(found.right * gsd_m, found.down * gsd_m, found.error * gsd_m, "tile")


def in_metres(lon_lat: Floats) -> Floats:
    """Return places (n, 2), in longitude and latitude, in metres from the equator.

    Distances are right within some kilometres of the first place.
    """
    metres: Floats = lon_lat * metres_per_degree(float(lon_lat[0, 1]))
    return metres


def smoothed(
    places: Floats, values: Floats, wanted: Floats, width_m: float, errors: Floats | None = None
) -> Floats:
    """Return the mean of values around places, weighted by a Gaussian of the distance.

    Args:
        places: of the values, metres, (n, 2).
        values: (n, 2).
        wanted: places of the means, metres, (m, 2).
        width_m: standard deviation of the Gaussian.
        errors: of the values, metres, (n,); values with small errors count more.

    Returns:
        Float64 (m, 2). Far from all places, the mean is the value of the nearest one.
    """
    weights = np.ones(len(places))
    if errors is not None:
        weights = 1 / np.maximum(errors, _LEAST_ERROR_M) ** 2
    means = np.empty((len(wanted), values.shape[1]))
    # One row after the other: all distances would not fit into memory.
    for number, place in enumerate(wanted):
        squares = ((places - place) ** 2).sum(axis=1)
        near = np.exp((squares.min() - squares) / (2 * width_m**2)) * weights
        means[number] = near @ values / near.sum()
    return means


@dataclass(frozen=True)
class ShiftField:
    """Moves of labels around tiles.

    Attributes:
        places: longitude and latitude of the tiles' centres, (n, 2).
        moves: metres to the east and north by which labels there are to be moved, (n, 2).
        width_m: side of a tile, the distance over which the field changes.
    """

    places: Floats
    moves: Floats
    width_m: float

    def at(self, lon_lat: Floats) -> Floats:
        """Return the moves at places (m, 2), in degrees of longitude and latitude."""
        if not len(lon_lat):
            return np.empty((0, 2))
        if (self.moves == self.moves[0]).all():
            moves = np.repeat(self.moves[:1], len(lon_lat), axis=0)
        else:
            together = in_metres(np.concatenate([self.places, lon_lat]))
            known, wanted = together[: len(self.places)], together[len(self.places) :]
            moves = smoothed(known, self.moves, wanted, self.width_m / 2)
        per_degree = np.array([metres_per_degree(lat) for lat in lon_lat[:, 1].tolist()])
        degrees: Floats = moves / per_degree
        return degrees
