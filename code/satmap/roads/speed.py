"""Speed and confidence of roads from the planes along their centre lines.

The speed is the expectation over the ten bins, weighted by length (cannab). The reference took the
largest bin of a sum over segments, not weighted by length, so one short bend could outvote a long
straight, and a road without evidence got the lowest bin.
"""

import numpy as np
from numpy.typing import NDArray

from satmap.planes import ROAD, SPEED_PLANES
from satmap.roads.evidence import samples
from satmap.roads.network import Network
from satmap.roads.scene import RoadPlanes
from satmap.speeds import BIN_SPEEDS_MPH, MPS_PER_MPH

Floats = NDArray[np.float64]

# Distance between samples along a line, metres.
_STEP = 1.0
# At a junction the faster of the roads that meet lies on top and says nothing of the others.
_SKIP = 3.0
# Each sample is the mean of its pixel and of four so far off in the pixel's corners, metres.
_ASIDE = 0.6


def road_speeds(
    network: Network, planes: RoadPlanes, evidence: float, default_mps: float
) -> tuple[Floats, Floats]:
    """Speed and confidence of every road.

    Args:
        network: the roads, metres.
        planes: the planes, with or without speeds.
        evidence: least sum over the bins of the mean probability along a road, 0..1; with less a
            road gets its neighbours' speed, or the image's typical one.
        default_mps: speed where the planes know none, metres a second.

    Returns:
        Speeds, metres a second, and mean road probability, 0..1, (m,) each.
    """
    count = len(network.counts)
    if not count:
        return np.empty(0), np.empty(0)
    skip = np.where(network.degrees[network.ends] > 1, _SKIP, 0.0)
    owner, places = samples(network, np.arange(count), _STEP, skip)
    number = np.bincount(owner, minlength=count)
    height, width = planes.shape
    scale = np.asarray(planes.metres_per_pixel)
    offsets = np.array([(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]) * (_ASIDE / scale)
    pixels = places / scale + offsets[:, None]
    rows = pixels[..., 1].astype(np.int64).clip(0, height - 1)
    columns = pixels[..., 0].astype(np.int64).clip(0, width - 1)
    timed = all(name in planes for name in SPEED_PLANES)
    values = planes.at((ROAD, *SPEED_PLANES) if timed else (ROAD,), rows, columns)
    confidence, *means = (
        np.bincount(owner, of_plane.sum(axis=0, dtype=np.int64), minlength=count)
        / (number * len(offsets) * 255)
        for of_plane in values
    )
    if not timed:
        return np.full(count, default_mps), confidence
    bins = np.stack(means, axis=1)
    total = bins.sum(axis=1)
    known = total >= evidence
    speeds = np.full(count, np.nan)
    speeds[known] = bins[known] @ np.array(BIN_SPEEDS_MPH) / total[known] * MPS_PER_MPH
    return fill_speeds(speeds, network, default_mps), confidence


def fill_speeds(speeds: Floats, network: Network, default_mps: float) -> Floats:
    """Speeds with the gaps filled, by those of the roads that meet the unknown one at its ends.

    Where none of those is known the image's typical speed serves, the median weighted by length;
    where no road of the image is known, the default.

    Args:
        speeds: metres a second, NaN where unknown, (m,).
        network: the roads.
        default_mps: speed where no road of the image has one.
    """
    known = ~np.isnan(speeds)
    if known.all():
        return speeds
    if not known.any():
        return np.full(len(speeds), default_mps)
    lengths, nodes = network.lengths, len(network.nodes)
    order = np.argsort(speeds[known])
    total = np.cumsum(lengths[known][order])
    typical = speeds[known][order][np.searchsorted(total, total[-1] / 2)]
    ends = network.ends[known].ravel()
    weights = np.repeat(lengths[known], 2)
    weight = np.bincount(ends, weights, minlength=nodes)
    weighted = np.bincount(ends, weights * np.repeat(speeds[known], 2), minlength=nodes)
    meeting = weight[network.ends].sum(axis=1)
    neighbours = weighted[network.ends].sum(axis=1) / np.where(meeting > 0, meeting, 1)
    filled: Floats = np.where(known, speeds, np.where(meeting > 0, neighbours, typical))
    return filled
