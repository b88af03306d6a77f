"""Training targets: road labels rasterized into one byte per pixel.

The low four bits hold the road class: 0 for no road, 1..10 for the speed bins. Where roads overlap,
the faster one is on top, as in selim_sef's solution. The highest bit marks junctions. Class and
junction bits together encode the reference's twelve target maps. Bit 6 marks the centre lines of
roads, for losses that measure whether roads are connected rather than how wide they are.

Networks that learn levels have a second byte per pixel: where roads cross on different levels,
where the upper deck is, and where the labels do not tell.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from satmap.evaluation.metrics.crossings import LocatedCrossings, locate_crossings
from satmap.evaluation.metrics.road_samples import places_at
from satmap.submissions.roads_csv import RoadRow
from satmap.tasks.roads.settings import TargetSettings
from satmap.vectors.speeds import MPS_PER_MPH, speed_bin

CLASS_BITS = 0x0F
JUNCTION_BIT = 0x80
CENTRE_BIT = 0x40

#: Bits of the second byte of a target: crossings on different levels, upper decks at crossings, and
#: pixels where the labels tell neither.
CROSSING_BIT, DECK_BIT = 0x01, 0x02
CROSSING_UNKNOWN_BIT, DECK_UNKNOWN_BIT = 0x04, 0x08

# Ground around the overlap of two roads that belongs to their crossing; length of the upper deck,
# and of the road below it, beyond that overlap; longest half of an overlap. Metres.
_CROSSING_M, _DECK_M, _BELOW_M, _OVERLAP_M = 2.0, 12.0, 8.0, 60.0
# Distance between points of a road near a crossing, metres.
_STEP_M = 1.0

# Half width of a centre line: a skeleton dilated by two pixels at 0.3 m per pixel, as in skeleton
# recall (arXiv 2404.03010).
_CENTRE_M = 0.75

# Number of segment ends that make a junction.
_JUNCTION_ENDS = 3

# Label vertices closer than this are the same place.
_SAME_PLACE_M = 0.1


@dataclass(frozen=True)
class RoadLabel:
    """One labelled road.

    Attributes:
        line: float64 (n >= 2, 2), x = column and y = row in pixels; may leave the image.
        speed_mph: > 0.
        width_m: None if not known.
        level: 0 on the ground, higher above it (:func:`satmap.vectors.levels.road_level`).
    """

    line: NDArray[np.float64]
    speed_mph: float
    width_m: float | None = None
    level: float = 0.0

    @property
    def speed_mps(self) -> float:
        """Speed in metres per second."""
        return self.speed_mph * MPS_PER_MPH


def rasterize_roads(
    labels: Sequence[RoadLabel],
    shape: tuple[int, int],
    metres_per_pixel: tuple[float, float],
    settings: TargetSettings,
) -> NDArray[np.uint8]:
    """Rasterize the target of a chip.

    Args:
        labels: roads in pixels; parts outside the image are clipped.
        shape: height and width of the image.
        metres_per_pixel: pixel size along x and y; buffers are round on the ground, not in pixels.
        settings: widths in metres.

    Returns:
        uint8 (height, width): road class in ``CLASS_BITS``, junctions in ``JUNCTION_BIT``, centre
        lines in ``CENTRE_BIT``.
    """
    if not labels:
        return np.zeros(shape, np.uint8)
    scale = np.asarray(metres_per_pixel)
    slow_to_fast = sorted(labels, key=lambda label: speed_bin(label.speed_mph))
    lines = [shapely.LineString(label.line * scale) for label in slow_to_fast]

    def rasterize(buffer_m: float | list[float], values: Iterable[int]) -> NDArray[np.uint8]:
        bodies = shapely.transform(shapely.buffer(lines, buffer_m), lambda xy: xy / scale)
        pixels: NDArray[np.uint8] = rasterio.features.rasterize(
            zip(bodies, values, strict=True), out_shape=shape, fill=0, dtype="uint8"
        )
        return pixels

    classes = [speed_bin(label.speed_mph) + 1 for label in slow_to_fast]
    widths = [label.width_m for label in slow_to_fast]
    target = rasterize([w / 2 if w else settings.road_buffer_m for w in widths], classes)
    centres = rasterize(min(_CENTRE_M, settings.road_buffer_m), [CENTRE_BIT] * len(lines))
    target |= np.where(target, centres, 0)
    target |= _draw_junctions([label.line for label in labels], shape, scale, settings)
    return target


def rasterize_levels(
    labels: Sequence[RoadLabel],
    shape: tuple[int, int],
    metres_per_pixel: tuple[float, float],
    settings: TargetSettings,
) -> NDArray[np.uint8]:
    """Rasterize where roads cross on different levels, and which of them is above.

    A crossing is what :mod:`satmap.evaluation.metrics.crossings` defines. ``CROSSING_BIT`` marks
    the ground that both roads cover, and 2 m around it. ``DECK_BIT`` marks the upper road up to
    12 m beyond. Of several decks above each other, each one hides those below. Where two crossing
    roads have the same level, the labels do not tell which one is above: both have
    ``DECK_UNKNOWN_BIT``.

    Arguments as for :func:`rasterize_roads`.

    Returns:
        uint8 (height, width).
    """
    target = np.zeros(shape, np.uint8)
    scale = np.asarray(metres_per_pixel)
    rows = [RoadRow(road.line * scale, np.nan, np.nan, road.level) for road in labels]
    found = locate_crossings(rows, 1.0)
    if found is None or not len(found.xy):
        return target
    halves = np.array([road.width_m or 2 * settings.road_buffer_m for road in labels]) / 2
    half = halves[found.rows]
    sine = np.abs(np.sin(np.diff(found.directions, axis=1)[:, 0]))
    # Half the length of road that the other one covers, at most: that of two equally wide roads
    # along each other's sides.
    overlap = np.minimum(half.sum(axis=1) / np.maximum(sine, 1e-3), _OVERLAP_M)

    def draw(bodies: NDArray[np.object_], bit: int, *, clear: bool = False) -> None:
        drawn = rasterio.features.rasterize(
            shapely.transform(bodies, lambda xy: xy / scale), shape, dtype="uint8"
        )
        target[:] = np.where(drawn, target & ~np.uint8(bit) if clear else target | bit, target)

    near = _stretches(found, overlap + _CROSSING_M)
    bodies = shapely.buffer(near, half + _CROSSING_M)
    areas = shapely.intersection(bodies[:, 0], bodies[:, 1])
    draw(
        shapely.intersection(
            areas,
            shapely.buffer(shapely.points(found.xy), overlap + half.max(axis=1) + _CROSSING_M),
        ),
        CROSSING_BIT,
    )
    decks = shapely.buffer(_stretches(found, overlap + _DECK_M), half, cap_style="flat")
    below = shapely.buffer(_stretches(found, overlap + _BELOW_M), half, cap_style="flat")
    above = found.above
    if (above == 0).any():
        draw(decks[above == 0].ravel(), DECK_UNKNOWN_BIT)
    # From the lowest deck to the highest one.
    levels = found.levels.max(axis=1)
    for level in np.unique(levels[above != 0]):
        here = np.flatnonzero((levels == level) & (above != 0))
        upper = np.where(above[here] > 0, 0, 1)
        draw(below[here, 1 - upper], DECK_BIT, clear=True)
        draw(decks[here, upper], DECK_BIT)
    return target


def _stretches(found: LocatedCrossings, reach: NDArray[np.float64]) -> NDArray[np.object_]:
    """Return both roads within ``reach`` (n,) metres of each crossing, LineStrings (n, 2).

    A road ends at its next junction.
    """
    lines = []
    for places in (found.first, found.second):
        middle, totals = places.offset[:, 0], found.graph.totals[places.edge, 0]
        start, stop = np.maximum(middle - reach, 0), np.minimum(middle + reach, totals)
        counts = np.ceil((stop - start) / _STEP_M).astype(np.int64) + 1
        of = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        along = start[of] + rank * ((stop - start) / (counts - 1))[of]
        _, xy = places_at(found.graph, places.edge[of], along)
        lines.append(shapely.linestrings(xy, indices=of))
    return np.stack(lines, axis=1)


def _draw_junctions(
    lines: Sequence[NDArray[np.float64]],
    shape: tuple[int, int],
    scale: NDArray[np.float64],
    settings: TargetSettings,
) -> NDArray[np.uint8]:
    """Draw stubs along the segments that meet at junctions, with the value ``JUNCTION_BIT``."""
    # Each segment appears once per end: (from x, from y, to x, to y) in metres.
    segments = np.concatenate([np.hstack([line[:-1], line[1:]]) for line in lines])
    ends = np.concatenate([segments, segments[:, [2, 3, 0, 1]]]) * np.tile(scale, 2)
    counts = np.array([len(line) - 1 for line in lines])
    line = np.repeat(np.arange(len(lines)), counts)
    first = np.cumsum(counts) - counts
    opens, closes = (np.isin(np.arange(len(line)), at) for at in (first, first + counts - 1))
    meets = _meet(
        ends[:, :2], np.tile(line, 2), np.concatenate([opens, closes]), settings.junction_grid_m
    )
    stubs = ends[meets]
    along = stubs[:, 2:] - stubs[:, :2]
    length = np.hypot(along[:, 0], along[:, 1])[:, None]
    reach = np.minimum(1, settings.junction_stub_m / np.maximum(length, 1e-9))
    stubs[:, 2:] = stubs[:, :2] + along * reach
    # OpenCV assumes square pixels, so the thickness follows the mean pixel size.
    thickness = max(1, round(settings.junction_width_m / float(scale.mean())))
    starts, stops = stubs[:, :2] / scale, stubs[:, 2:] / scale
    # Coordinates far outside the image would overflow OpenCV's fixed-point format.
    near = np.maximum(starts, stops) > -thickness
    near &= np.minimum(starts, stops) < np.array(shape[::-1]) + thickness
    inside = np.all(near, axis=1)
    drawn = np.zeros(shape, np.uint8)
    for start, stop in zip(starts[inside].astype(int), stops[inside].astype(int), strict=True):
        cv2.line(drawn, start.tolist(), stop.tolist(), JUNCTION_BIT, thickness)
    return drawn


def _meet(
    places: NDArray[np.float64], line: NDArray[np.int64], terminal: NDArray[np.bool_], grid_m: float
) -> NDArray[np.bool_]:
    """Return which segment ends meet in a junction.

    ``line`` is the number of the line that each end belongs to, ``terminal`` whether the line ends
    there.

    Three or more ends at the same place make a junction. Ends that only share a cell of the grid,
    which the reference uses, also need to belong to at least two lines, one of which ends in the
    cell. Otherwise two roads that pass over each other would meet wherever their vertices fall into
    one cell, and a bend drawn with many vertices would meet itself.
    """
    at_place, _ = _group(places, _SAME_PLACE_M)
    in_cell, cell = _group(places, grid_m)
    ended = np.bincount(cell, terminal) > 0
    several = np.bincount(np.unique(np.stack([cell, line]), axis=1)[0]) > 1
    by_cell: NDArray[np.bool_] = (in_cell >= _JUNCTION_ENDS) & (ended & several)[cell]
    return by_cell | (at_place >= _JUNCTION_ENDS)


def _group(places: NDArray[np.float64], size: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count how many places share the grid cell of each place, and number the cells."""
    cells = np.rint(places / size).astype(np.int64)
    _, cell, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    cell = cell.ravel()
    return counts[cell], cell
