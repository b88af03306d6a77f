"""Training targets: road labels rasterized into one byte per pixel.

The low four bits hold the road class: 0 for no road, 1..10 for the speed bins. Where roads overlap,
the faster one is on top, as in selim_sef's solution. The highest bit marks junctions. Class and
junction bits together encode the reference's twelve target maps. Bit 6 marks the centre lines of
roads, for losses that measure whether roads are connected rather than how wide they are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from satmap.tasks.roads.settings import TargetSettings
from satmap.vectors.speeds import MPS_PER_MPH, speed_bin

CLASS_BITS = 0x0F
JUNCTION_BIT = 0x80
CENTRE_BIT = 0x40

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
    """

    line: NDArray[np.float64]
    speed_mph: float
    width_m: float | None = None

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
