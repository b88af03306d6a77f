"""Speed and confidence of a road from the planes along its centre line.

The speed is the expectation over the ten bins, weighted by length (cannab). The reference took the
largest bin of a sum over segments, not weighted by length, so one short bend could outvote a long
straight, and a road without evidence got the lowest bin.
"""

import numpy as np
from numpy.typing import NDArray

from satmap.planes import ROAD, SPEED_PLANES, Planes
from satmap.roads.trace import Line, line_length
from satmap.speeds import BIN_SPEEDS_MPH, MPS_PER_MPH

# Distance between samples along a line, pixels.
_STEP = 2.0
# A sample is the mean over a 3 x 3 lattice of pixels this far apart: about a road's width.
_WINDOW = 2


def road_samples(line: Line, shape: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of pixels at equal steps along a line in pixels, (samples,) each.

    Samples are the middles of equal parts, so that each stands for the same length of road.

    Args:
        line: float64 (n, 2), x and y in pixels.
        shape: height and width of the planes.
    """
    total = line_length(line)
    count = max(int(np.ceil(total / _STEP)), 1)
    steps = np.diff(line, axis=0)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
    middles = (np.arange(count) + 0.5) / count * total
    columns = np.interp(middles, along, line[:, 0]).astype(np.intp)
    rows = np.interp(middles, along, line[:, 1]).astype(np.intp)
    return rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)


def line_confidence(planes: Planes, line: Line) -> float:
    """Mean road probability along a line in pixels, 0..1."""
    road = planes[ROAD]
    rows, columns = road_samples(line, (road.shape[0], road.shape[1]))
    return float(road[rows, columns].mean() / 255)


def line_speed(planes: Planes, line: Line, evidence: float) -> float | None:
    """Speed along a line in pixels, metres a second; None without evidence.

    Args:
        planes: the planes, with or without speed.
        line: float64 (n, 2), x and y in pixels.
        evidence: least sum over the bins of the mean probability along the line, 0..1.
    """
    if not all(name in planes for name in SPEED_PLANES):
        return None
    height, width = planes.values.shape[1:]
    rows, columns = road_samples(line, (height, width))
    offsets = np.array([-_WINDOW, 0, _WINDOW])
    window_rows = (rows[:, None] + offsets).clip(0, height - 1)[:, :, None]
    window_columns = (columns[:, None] + offsets).clip(0, width - 1)[:, None, :]
    bins = np.array(
        [planes[name][window_rows, window_columns].mean() / 255 for name in SPEED_PLANES]
    )
    total = float(bins.sum())
    if total < evidence:
        return None
    return float(bins @ np.array(BIN_SPEEDS_MPH)) / total * MPS_PER_MPH


def fill_speeds(
    speeds: list[float | None], lengths_m: list[float], default_mps: float
) -> list[float]:
    """Speeds with the gaps filled: the length-weighted median of the known ones, or the default.

    Args:
        speeds: metres a second, None where unknown.
        lengths_m: length of each road.
        default_mps: speed where no road of the image has one.
    """
    known = [
        (speed, length)
        for speed, length in zip(speeds, lengths_m, strict=True)
        if speed is not None
    ]
    typical = default_mps
    if known:
        values, weights = np.array(sorted(known)).T
        total = np.cumsum(weights)
        typical = float(values[np.searchsorted(total, total[-1] / 2)])
    return [typical if speed is None else speed for speed in speeds]
