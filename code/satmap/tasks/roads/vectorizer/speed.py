"""Speed, confidence and width of roads, from the probability maps along their centre lines.

The speed is the expectation over the ten bins, weighted by length (cannab). The reference took the
largest bin of a sum over segments without weighting by length. There, one short bend could outvote
a long straight, and a road without evidence got the lowest bin.
"""

import numpy as np

from satmap.rasters.scene import MapSource
from satmap.tasks.roads.settings import ROAD, SPEED_MAPS
from satmap.tasks.roads.vectorizer.evidence import Evidence, samples
from satmap.tasks.roads.vectorizer.network import Floats, Ints, Network, unit
from satmap.vectors.speeds import BIN_SPEEDS_MPH, MPS_PER_MPH

# Largest distance from the centre line when measuring widths, and step, metres.
_WIDEST, _WIDTH_STEP = 12.0, 0.5
# Smallest probability of a road pixel.
_ROAD = 0.5
# Spacing of width measurements along a road, and length left out at both ends, metres.
_SPACING, _WIDTH_SKIP = 8.0, 8.0
# Distance between samples along a line, metres.
_STEP = 1.0
# Length left out at junctions, metres: there the fastest road lies on top and hides the others.
_SKIP = 3.0
# Each sample is the mean of its place and of four places this far off diagonally, metres.
_ASIDE = 0.6
# Roads are grouped by width into kinds. Widths of one kind lie within the ratio _ALIKE. There are
# _KINDS kinds to either side of the image's typical width.
_ALIKE, _KINDS = 1.6, 2
# If no speed is known, a road whose width differs from the typical one by more than the factor
# _DIFFERENT gets the default speed times this power of the width ratio: twice the width raises 25
# miles per hour to 40, three times to 55.
_DIFFERENT, _BY_WIDTH = 1.5, 0.7
_SLOWEST_MPH, _FASTEST_MPH = 10.0, 65.0


def widths_at(road: Evidence, places: Floats, directions: Floats) -> Floats:
    """Measure the width of the road at places on centre lines, (n, 2), in metres.

    The directions of the centre lines are unit vectors, (n, 2).

    Returns:
        Distance from the last road pixel on one side to the last on the other, (n,); 0 where the
        place is not road.
    """
    normals = np.stack([-directions[:, 1], directions[:, 0]], axis=1)
    offsets = np.arange(_WIDTH_STEP / 2, _WIDEST, _WIDTH_STEP)
    width = np.zeros(len(places))
    for side in (-1, 1):
        across = side * offsets[:, None, None] * normals
        inside = np.logical_and.accumulate(road.at(places + across) >= _ROAD, axis=0)
        width += _WIDTH_STEP * inside.sum(axis=0)
    return width


def _road_widths(network: Network, road: Evidence) -> tuple[Floats, Floats]:
    """Measure the width of each road away from its ends.

    Returns:
        Mean width, metres, (m,), where places that are not road count as 0; and the median width of
        the places that are road, metres, (m,), NaN without such a place.
    """
    owner, places = samples(network, np.arange(len(network.counts)), _SPACING, _WIDTH_SKIP)
    # The road's direction at each sample, from the previous sample to the next one.
    first = np.append(True, owner[1:] != owner[:-1])
    last = np.append(first[1:], True)
    index = np.arange(len(owner))
    step = places[np.where(last, index, index + 1)] - places[np.where(first, index, index - 1)]
    # For a road with a single sample, use its ends.
    alone = first & last
    line_ends = network.nodes[network.ends[owner[alone]]]
    step[alone] = line_ends[:, 1] - line_ends[:, 0]
    widths = widths_at(road, places, unit(step))
    counts = np.bincount(owner)
    mean = np.bincount(owner, widths) / counts
    # Sort by road and width, with places that are not road at the end of each road.
    order = np.lexsort((np.where(widths > 0, widths, np.inf), owner))
    on_road = np.bincount(owner, widths > 0).astype(np.int64)
    middle = np.cumsum(counts) - counts + np.maximum(on_road - 1, 0) // 2
    return mean, np.where(on_road > 0, widths[order][middle], np.nan)


def road_speeds(
    network: Network, maps: MapSource, evidence: float, default_mps: float
) -> tuple[Floats, Floats, Floats]:
    """Estimate the speed, confidence and width of every road.

    Args:
        network: the roads, metres.
        maps: the probability maps, with or without speeds.
        evidence: sum over the bins of the mean probability along a road, 0..1, from which the speed
            maps are fully trusted. Below it, their weight is the share of it that they reach, and a
            prior from the road's neighbours and width (:func:`prior_speeds`) gets the rest.
        default_mps: speed of a road of typical width if the maps give no speed for any road.

    Returns:
        Speeds in metres per second, mean road probabilities, 0..1, and widths of the road area in
        metres, NaN where unknown, (m,) each.
    """
    if not len(network.counts):
        return np.empty(0), np.empty(0), np.empty(0)
    skip = np.where(network.degrees[network.ends] > 1, _SKIP, 0.0)
    owner, places = samples(network, np.arange(len(network.counts)), _STEP, skip)
    height, width = maps.shape
    scale = np.asarray(maps.metres_per_pixel)
    offsets = np.array([(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]) * (_ASIDE / scale)
    pixels = places / scale + offsets[:, None]
    rows = pixels[..., 1].astype(np.int64).clip(0, height - 1)
    columns = pixels[..., 0].astype(np.int64).clip(0, width - 1)
    timed = all(name in maps for name in SPEED_MAPS)
    values = maps.at((ROAD, *SPEED_MAPS) if timed else (ROAD,), rows, columns)
    highest = np.bincount(owner) * len(offsets) * 255
    confidence, *means = (
        np.bincount(owner, of_map.sum(axis=0, dtype=np.int64)) / highest for of_map in values
    )
    bins = np.stack(means, axis=1) if timed else np.zeros((len(highest), len(BIN_SPEEDS_MPH)))
    total = bins.sum(axis=1)
    trust = np.minimum(total / evidence, 1)
    expected = bins @ np.array(BIN_SPEEDS_MPH) / np.where(total > 0, total, 1) * MPS_PER_MPH
    mean_widths, widths = _road_widths(network, Evidence(maps[ROAD], scale, 0.0))
    if (trust == 1).all():
        return expected, confidence, widths
    known = np.where(trust == 1, expected, np.nan)
    prior = prior_speeds(known, mean_widths, network, default_mps)
    return trust * expected + (1 - trust) * prior, confidence, widths


def prior_speeds(speeds: Floats, widths: Floats, network: Network, default_mps: float) -> Floats:
    """Estimate speeds from other roads and from road widths.

    The prior is the mean speed, weighted by length, of the first of these groups that has a known
    road: adjacent roads of similar width; the image's roads of similar width; adjacent roads; all
    roads. If no road has a known speed, the prior is the default, raised for wide and lowered for
    narrow roads.

    Speeds are in metres per second, (m,), NaN where unknown. Widths are in metres, (m,).
    ``default_mps`` is the speed of a road of typical width.
    """
    known = ~np.isnan(speeds)
    lengths = network.lengths
    ratio = np.maximum(widths, 1.0) / max(_weighted_median(widths, lengths), 1.0)
    if not known.any():
        faster = np.where(np.abs(np.log(ratio)) > np.log(_DIFFERENT), ratio**_BY_WIDTH, 1.0)
        slowest = min(_SLOWEST_MPH * MPS_PER_MPH, default_mps)
        fastest = max(_FASTEST_MPH * MPS_PER_MPH, default_mps)
        return np.clip(default_mps * faster, slowest, fastest)
    kind = np.round(np.log(ratio) / np.log(_ALIKE)).clip(-_KINDS, _KINDS).astype(np.int64) + _KINDS
    kinds = 2 * _KINDS + 1
    weights = np.where(known, lengths, 0.0)
    values = weights * np.where(known, speeds, 0.0)

    def sums(weights: Floats, groups: Ints) -> Floats:
        """Return the sum of the weights of all roads in each road's groups, (m, k), as (m,)."""
        total = np.bincount(groups.ravel(), np.repeat(weights, groups.shape[1]))
        return np.asarray(total[groups].sum(axis=1))

    at_node = network.ends * kinds + kind[:, None]
    prior = np.full(len(speeds), np.sum(values) / np.sum(weights))
    for groups in (network.ends, kind[:, None], at_node):
        length = sums(weights, groups)
        np.divide(sums(values, groups), length, out=prior, where=length > 0)
    return prior


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
