"""Instance segmentation of buildings: a seeded watershed on body, border and contact maps.

Touching buildings form one blob of the body map; the border and contact maps show the seam between
them (SpaceNet 4 solutions). Seeds are the confident interiors, and the watershed assigns each pixel
of the blob to a seed. Two parts are merged again if there is no clear seam between them, or if the
seam is implausible for two buildings: a large roof with an uncertain spot stays one building.
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
# The contour around a single hole of n pixels has at most this multiple of n points.
_RIM = 4
# Index in OpenCV's contour hierarchy: the contour that this one is a hole of, or -1.
_PARENT = 3


def find_instances(maps: ProbabilityMaps, settings: BuildingSettings) -> Labels:
    """Segment building instances.

    Args:
        maps: probability maps, at least ``building``; ``border`` and ``contact`` help to separate
            touching buildings.
        settings: thresholds.

    Returns:
        int32 (height, width), 0 outside, instances 1..n in row-major order of their first pixels;
        each is 4-connected.
    """
    return find_instances_in_blobs(
        maps, settings, connected(at_least(maps[BUILDING], settings.low))
    )


def find_instances_in_blobs(
    maps: ProbabilityMaps, settings: BuildingSettings, blobs: Parts
) -> Labels:
    """Segment building instances within given blobs of the body map, each independently.

    Args:
        maps: as in :func:`find_instances`.
        settings: thresholds.
        blobs: connected parts of the body map at or above ``settings.low``.

    Returns:
        As :func:`find_instances`.
    """
    body, strength = maps[BUILDING], _strength(maps)
    seeds = connected(at_least(strength, settings.seed))
    kept_seed = seeds.areas >= settings.seed_px
    kept_seed[0] = False
    # Strength never exceeds the body probability, so every seed lies within one blob.
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
    """Compute body x (1 - border) x (1 - contact), uint8, 0..255."""
    strength = maps[BUILDING]
    for name in (BORDER, CONTACT):
        if name in maps:
            strength = np.asarray(cv2.multiply(strength, 255 - maps[name], scale=1 / 255))
    return strength.astype(np.uint8, copy=False)


def _blob_of(seeds: Parts, blobs: Parts) -> NDArray[np.int32]:
    """Return the blob that contains each seed, int32 (seeds,)."""
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
    """Split blobs with several seeds into parts.

    Args:
        strength: (height, width).
        seeds: the seeds of all blobs.
        number: (seeds,), 1.. for seeds of blobs to be split, 0 for others.
        blobs: blobs of the body map.
        split: (blobs,), True for blobs with several seeds.
        kept: (blobs,), True for blobs that are buildings.
        settings: thresholds for plausible splits.

    Returns:
        New labels, and which of them are kept.
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
    # Labels of parts follow those of the blobs.
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
    """Merge parts whose split is implausible.

    Args:
        boundaries: boundaries between basins.
        areas: (parts + 1,), pixels.
        inside: (parts + 1,), mean strength of the markers.
        settings: thresholds for plausible splits.

    Returns:
        int32 (parts + 1,), the first part of the group that each part is merged into.
    """
    one, other = boundaries.pairs
    weaker = np.minimum(inside[one], inside[other])
    merged = boundaries.strength >= settings.split * weaker
    # A part that is too small or enclosed joins the neighbour with the longest common boundary.
    smaller = np.where(areas[one] <= areas[other], one, other)
    longest = np.zeros(len(areas), np.int64)
    np.maximum.at(longest, one, boundaries.length)
    np.maximum.at(longest, other, boundaries.length)
    enclosed = boundaries.length > settings.seam * np.sqrt(areas[smaller])
    small = areas[smaller] < settings.least_px
    merged |= (enclosed | small) & (boundaries.length == longest[smaller])
    graph = sparse.coo_array(
        (np.ones(int(merged.sum())), (one[merged], other[merged])), shape=2 * (len(areas),)
    )
    _, group = connected_components(graph, directed=False)
    first = np.full(len(areas), len(areas), np.int32)
    np.minimum.at(first, group, np.arange(len(areas), dtype=np.int32))
    target: NDArray[np.int32] = first[group]
    return target


def _fill_holes(found: Labels, blobs: Parts, settings: BuildingSettings) -> Labels:
    """Assign small holes to the building around them."""
    body = (blobs.labels > 0).view(np.uint8)
    contours, levels = cv2.findContours(body, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour, level in zip(contours, levels[0] if contours else (), strict=True):
        # Skip outer contours, and holes that are far too large.
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
            # A gap between several buildings is not a hole.
            if inner and spot.sum() < settings.hole_px and (around == around[0]).all():
                found[box][spot.view(np.bool_)] = around[0]
    return found


def _numbered(found: Labels, kept: Mask) -> Labels:
    """Renumber the kept labels in row-major order of their first pixels; others become 0."""
    flat = found.ravel()
    places = np.flatnonzero(flat > 0)
    first = np.full(len(kept), flat.size)
    # The last assignment to an index wins, so go backwards to keep the first pixel.
    first[flat[places[::-1]]] = places[::-1]
    present = np.flatnonzero(kept & (first < flat.size))
    rank = np.zeros(len(kept), np.int32)
    rank[present[np.argsort(first[present])]] = np.arange(1, len(present) + 1)
    return rank.take(found)
