"""Which pixels are one building: a seeded watershed on body, border and contact.

Touching buildings are one blob of body; border and contact planes show the seam between them
(SpaceNet 4's solutions). Seeds are the sure insides, the watershed gives each pixel of the blob to
one of them, and two parts are joined again where no seam is to be seen between them, or none that
two buildings could have: a large roof with a doubtful spot in the middle is one building.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.buildings.settings import BORDER, BUILDING, CONTACT, BuildingSettings
from satmap.tasks.buildings.vectorizer.basins import Boundaries, find_basins, find_boundaries
from satmap.tasks.buildings.vectorizer.tracing import (
    Labels,
    Mask,
    Parts,
    at_least,
    connected,
    label_areas,
)

Bytes = NDArray[np.uint8]

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
# A hole of n pixels has at most so many times n around it, where it is a single one.
_RIM = 4
# Of what OpenCV says of a contour: the contour that it is a hole of, or -1.
_PARENT = 3


def find_instances(maps: ProbabilityMaps, settings: BuildingSettings) -> Labels:
    """Number every building's pixels.

    Args:
        maps: at least ``building``; with ``border`` and ``contact`` touching ones come apart.
        settings: thresholds.

    Returns:
        int32 (height, width), 0 outside, 1..n in the order of the buildings' first pixels, row by
        row; each building is 4-connected.
    """
    return blob_bits(maps, settings, connected(at_least(maps[BUILDING], settings.low)))


def blob_bits(maps: ProbabilityMaps, settings: BuildingSettings, blobs: Parts) -> Labels:
    """As :func:`find_instances`, where the blobs of the body are known; each stands for itself."""
    body, strength = maps[BUILDING], _strength(maps)
    seeds = connected(at_least(strength, settings.seed))
    kept_seed = seeds.areas >= settings.seed_px
    kept_seed[0] = False
    # Strength is no more than body, so every seed lies within one blob.
    blob_of_seed = _blob_of(seeds, blobs)
    count = np.bincount(blob_of_seed[kept_seed], minlength=blobs.count)
    sure = np.zeros(blobs.count, np.bool_)
    sure[blobs.labels[at_least(body, settings.certain)]] = True
    kept = sure | (count > 0)
    kept[0] = False
    split = count > 1
    if split.any():
        kept_seed &= split[blob_of_seed]
        number = np.where(kept_seed, np.cumsum(kept_seed, dtype=np.int32), 0)
        found, kept = _split(strength, seeds, number, blobs, split, kept, settings)
    else:
        found = blobs.labels.copy()
    found = _fill_holes(found, blobs, settings)
    sizes = label_areas(found, len(kept))
    return _numbered(found, kept & (sizes >= settings.least_px))


def _strength(maps: ProbabilityMaps) -> Bytes:
    """Body x (1 - border) x (1 - contact), 0..255."""
    strength = maps[BUILDING]
    for name in (BORDER, CONTACT):
        if name in maps:
            strength = np.asarray(cv2.multiply(strength, 255 - maps[name], scale=1 / 255))
    return strength.astype(np.uint8, copy=False)


def _blob_of(seeds: Parts, blobs: Parts) -> NDArray[np.int32]:
    """The blob that each seed lies in, (seeds,)."""
    places = np.flatnonzero(seeds.labels > 0)
    blob = np.zeros(seeds.count, np.int32)
    blob[seeds.labels.ravel()[places]] = blobs.labels.ravel()[places]
    return blob


def _split(
    strength: Bytes,
    seeds: Parts,
    number: NDArray[np.int32],
    blobs: Parts,
    split: Mask,
    kept: Mask,
    settings: BuildingSettings,
) -> tuple[Labels, Mask]:
    """Blobs of several seeds in parts: new labels, and which of them are kept.

    Args:
        strength: (height, width).
        seeds: of all blobs.
        number: (seeds,), 1.. for those of blobs to be split, 0 for others.
        blobs: of the body.
        split: (blobs,), which have several seeds.
        kept: (blobs,), which are buildings.
        settings: when a split is plausible.
    """
    markers = number.take(seeds.labels)
    basins = find_basins(strength, markers, blobs, split)
    boundaries = find_boundaries(strength, basins, blobs)
    place = np.flatnonzero(markers > 0)
    part = markers.ravel()[place]
    parts = int(number.max())
    sums = np.bincount(part, strength.ravel()[place], minlength=parts + 1)
    inside = sums / np.maximum(np.bincount(part, minlength=parts + 1), 1)
    target = _joined(boundaries, label_areas(basins, parts + 1), inside, settings)
    # A part counts on from the blobs.
    target += np.int32(blobs.count - 1)
    label = np.where(split, np.int32(0), np.arange(blobs.count, dtype=np.int32))
    found = np.where(basins > 0, target.take(basins), label.take(blobs.labels))
    return found, np.concatenate([kept & ~split, np.ones(parts, np.bool_)])


def _joined(
    boundaries: Boundaries,
    areas: NDArray[np.int64],
    inside: NDArray[np.float64],
    settings: BuildingSettings,
) -> NDArray[np.int32]:
    """What every part belongs to, (parts + 1,), once implausible splits are undone.

    Args:
        boundaries: where basins meet.
        areas: (parts + 1,), pixels.
        inside: (parts + 1,), mean strength of the markers.
        settings: when a split is plausible.
    """
    one, other = boundaries.pairs
    darkest = np.minimum(inside[one], inside[other])
    weak = boundaries.strength >= settings.split * darkest
    # What is too small for a building, or enclosed, belongs to that with which it shares most.
    smaller = np.where(areas[one] <= areas[other], one, other)
    longest = np.zeros(len(areas), np.int64)
    np.maximum.at(longest, one, boundaries.length)
    np.maximum.at(longest, other, boundaries.length)
    enclosed = boundaries.length > settings.seam * np.sqrt(areas[smaller])
    small = areas[smaller] < settings.least_px
    weak |= (enclosed | small) & (boundaries.length == longest[smaller])
    graph = sparse.coo_array(
        (np.ones(int(weak.sum())), (one[weak], other[weak])), shape=2 * (len(areas),)
    )
    _, group = connected_components(graph, directed=False)
    first = np.full(len(areas), len(areas), np.int32)
    np.minimum.at(first, group, np.arange(len(areas), dtype=np.int32))
    target: NDArray[np.int32] = first[group]
    return target


def _fill_holes(found: Labels, blobs: Parts, settings: BuildingSettings) -> Labels:
    """Small holes given to the building around them."""
    body = (blobs.labels > 0).view(np.uint8)
    contours, levels = cv2.findContours(body, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour, level in zip(contours, levels[0] if contours else (), strict=True):
        # The rim of a hole, not of a blob, and not of one that is larger by far.
        if level[_PARENT] < 0 or len(contour) > _RIM * settings.hole_px:
            continue
        left, top, width, height = cv2.boundingRect(contour)
        box = slice(top, top + height), slice(left, left + width)
        holes = connected(body[box] == 0)
        for hole in range(1, holes.count):
            spot = (holes.labels == hole).view(np.uint8)
            rim = cv2.dilate(spot, _CROSS, borderValue=0) > spot
            inner = not (spot[[0, -1]].any() or spot[:, [0, -1]].any())
            around = found[box][rim]
            # A gap between several buildings is none of any one's holes.
            if inner and spot.sum() < settings.hole_px and (around == around[0]).all():
                found[box][spot.view(np.bool_)] = around[0]
    return found


def _numbered(found: Labels, kept: Mask) -> Labels:
    """Labels that are kept, numbered in the order of their first pixels."""
    flat = found.ravel()
    places = np.flatnonzero(flat > 0)
    first = np.full(len(kept), flat.size)
    # Of assignments to one place the last one stays: the first pixel's.
    first[flat[places[::-1]]] = places[::-1]
    present = np.flatnonzero(kept & (first < flat.size))
    rank = np.zeros(len(kept), np.int32)
    rank[present[np.argsort(first[present])]] = np.arange(1, len(present) + 1)
    return rank.take(found)
