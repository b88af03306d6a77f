"""Speed and confidence of roads from the planes along their centre lines.

The speed is the expectation over the ten bins, weighted by length (cannab). The reference took the
largest bin of a sum over segments, not weighted by length, so one short bend could outvote a long
straight, and a road without evidence got the lowest bin.
"""

import numpy as np
from numpy.typing import NDArray

from satmap.rasters.scene import MapSource
from satmap.tasks.roads.settings import ROAD, SPEED_MAPS
from satmap.tasks.roads.vectorizer.evidence import Evidence, samples
from satmap.tasks.roads.vectorizer.network import Ints, Line, Network
from satmap.vectors.speeds import BIN_SPEEDS_MPH, MPS_PER_MPH

# Sides are looked at so far, in such steps, metres.
_WIDEST, _STEP = 12.0, 0.5
# A pixel is road from this probability on.
_ROAD = 0.5
# Between measurements along a road, and what is left out at a junction, metres.
_SPACING, _SKIP = 8.0, 8.0


def widths_at(road: Evidence, places: Line, directions: Line) -> NDArray[np.float64]:
    """Width of the road at places on centre lines, metres.

    Args:
        road: the road plane.
        places: (n, 2), metres.
        directions: unit vectors along the centre lines, (n, 2).

    Returns:
        From the last road pixel on one side to the last on the other, (n,); 0 where the place is
        no road.
    """
    normals = np.stack([-directions[:, 1], directions[:, 0]], axis=1)
    offsets = np.arange(_STEP / 2, _WIDEST, _STEP)
    width = np.zeros(len(places))
    for side in (-1, 1):
        across = side * offsets[:, None, None] * normals
        inside = np.logical_and.accumulate(road.at(places + across) >= _ROAD, axis=0)
        width += _STEP * inside.sum(axis=0)
    return width


def road_widths(network: Network, road: Evidence) -> NDArray[np.float64]:
    """Mean width of each road away from its ends, metres, (m,)."""
    count = len(network.counts)
    owner, places = samples(network, np.arange(count), _SPACING, _SKIP)
    return np.bincount(
        owner, widths_at(road, places, _directions(network, owner, places)), minlength=count
    ) / np.bincount(owner, minlength=count)


def _directions(network: Network, owner: Ints, places: Line) -> Line:
    """Directions of roads at samples: from the sample before to the one behind."""
    first = np.append(True, owner[1:] != owner[:-1])
    last = np.append(first[1:], True)
    index = np.arange(len(owner))
    step = places[np.where(last, index, index + 1)] - places[np.where(first, index, index - 1)]
    # A road with a single sample has only its ends.
    alone = first & last
    line_ends = network.nodes[network.ends[owner[alone]]]
    step[alone] = line_ends[:, 1] - line_ends[:, 0]
    return step / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-9)[:, None]


Floats = NDArray[np.float64]

# Distance between samples along a line, metres.
_STEP = 1.0
# At a junction the faster of the roads that meet lies on top and says nothing of the others.
_SKIP = 3.0
# Each sample is the mean of its pixel and of four so far off in the pixel's corners, metres.
_ASIDE = 0.6
# Roads of one kind: their widths lie within this ratio, about the image's typical one and so many
# steps to either side.
_ALIKE, _KINDS = 1.6, 2
# Without any speed: a road so many times as wide as most, or so much narrower, is faster or slower
# by this power of it. Two lanes that become four go from 25 to 40 miles an hour, six to 55.
_DIFFERENT, _BY_WIDTH = 1.5, 0.7
_SLOWEST_MPH, _FASTEST_MPH = 10.0, 65.0


def road_speeds(
    network: Network, maps: MapSource, evidence: float, default_mps: float
) -> tuple[Floats, Floats]:
    """Speed and confidence of every road.

    Args:
        network: the roads, metres.
        maps: the planes, with or without speeds.
        evidence: sum over the bins of the mean probability along a road, 0..1, from which the
            planes are believed. Below it they count by their share of it, and a prior by the
            road's neighbours and width for the rest (:func:`prior_speeds`).
        default_mps: speed of a road of the image's typical width where the planes know no road's.

    Returns:
        Speeds, metres a second, and mean road probability, 0..1, (m,) each.
    """
    count = len(network.counts)
    if not count:
        return np.empty(0), np.empty(0)
    skip = np.where(network.degrees[network.ends] > 1, _SKIP, 0.0)
    owner, places = samples(network, np.arange(count), _STEP, skip)
    number = np.bincount(owner, minlength=count)
    height, width = maps.shape
    scale = np.asarray(maps.metres_per_pixel)
    offsets = np.array([(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]) * (_ASIDE / scale)
    pixels = places / scale + offsets[:, None]
    rows = pixels[..., 1].astype(np.int64).clip(0, height - 1)
    columns = pixels[..., 0].astype(np.int64).clip(0, width - 1)
    timed = all(name in maps for name in SPEED_MAPS)
    values = maps.at((ROAD, *SPEED_MAPS) if timed else (ROAD,), rows, columns)
    confidence, *means = (
        np.bincount(owner, of_map.sum(axis=0, dtype=np.int64), minlength=count)
        / (number * len(offsets) * 255)
        for of_map in values
    )
    bins = np.stack(means, axis=1) if timed else np.zeros((count, len(BIN_SPEEDS_MPH)))
    total = bins.sum(axis=1)
    trust = np.minimum(total / evidence, 1)
    expected = bins @ np.array(BIN_SPEEDS_MPH) / np.where(total > 0, total, 1) * MPS_PER_MPH
    if (trust == 1).all():
        return expected, confidence
    widths = road_widths(network, Evidence(maps[ROAD], scale, 0.0))
    known = np.where(trust == 1, expected, np.nan)
    prior = prior_speeds(known, widths, network, default_mps)
    return trust * expected + (1 - trust) * prior, confidence


def prior_speeds(speeds: Floats, widths: Floats, network: Network, default_mps: float) -> Floats:
    """What a road's speed is likely to be, from other roads and its width.

    The mean, weighted by length, of the known roads that meet it and are about as wide; where
    there is none, of those of the image that are about as wide; then of those that meet it; then of
    all. Where no road of the image is known, the default, more for a road wider than most and less
    for a narrower one.

    Args:
        speeds: metres a second, NaN where unknown, (m,).
        widths: metres, (m,).
        network: the roads.
        default_mps: speed of a road of typical width.

    Returns:
        Metres a second, (m,).
    """
    known = ~np.isnan(speeds)
    lengths, nodes = network.lengths, len(network.nodes)
    ratio = np.maximum(widths, 1.0) / max(_weighted_median(widths, lengths), 1.0)
    if not known.any():
        faster = np.where(np.abs(np.log(ratio)) > np.log(_DIFFERENT), ratio**_BY_WIDTH, 1.0)
        slowest, fastest = (
            min(_SLOWEST_MPH * MPS_PER_MPH, default_mps),
            max(_FASTEST_MPH * MPS_PER_MPH, default_mps),
        )
        return np.asarray(np.clip(default_mps * faster, slowest, fastest), np.float64)
    kind = np.round(np.log(ratio) / np.log(_ALIKE)).clip(-_KINDS, _KINDS).astype(np.int64) + _KINDS
    kinds = 2 * _KINDS + 1
    weights = np.where(known, lengths, 0.0)
    values = weights * np.where(known, speeds, 0.0)

    def means(groups: Ints, count: int, of_road: Ints) -> Floats:
        """Mean speed of the groups that each road looks at, (m,), NaN where none is known."""
        per_road = groups.reshape(len(speeds), -1)
        each = per_road.shape[1]
        weight = np.bincount(per_road.ravel(), np.repeat(weights, each), minlength=count)
        value = np.bincount(per_road.ravel(), np.repeat(values, each), minlength=count)
        seen = weight[of_road].reshape(len(speeds), -1).sum(axis=1)
        total = value[of_road].reshape(len(speeds), -1).sum(axis=1)
        mean: Floats = np.divide(total, seen, out=np.full(len(speeds), np.nan), where=seen > 0)
        return mean

    at_node = network.ends * kinds + kind[:, None]
    prior = np.full(len(speeds), np.sum(values) / np.sum(weights))
    for groups, count in ((network.ends, nodes), (kind, kinds), (at_node, nodes * kinds)):
        better = means(groups, count, groups)
        prior = np.where(np.isnan(better), prior, better)
    return prior


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
