"""Instance segmentation of buildings: a seeded watershed on building, border and contact maps.

Touching buildings form one blob of the building map; the border and contact maps show the seam
between them (SpaceNet 4 solutions). Seeds are the confident interiors, and the watershed assigns
each pixel of the blob to a seed. Two parts are merged again if there is no clear seam between them,
or if the seam is implausible for two buildings: a large roof with an uncertain spot stays one
building.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from skimage.segmentation import watershed

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.buildings.settings import BORDER, BUILDING, CONTACT, BuildingSettings
from satmap.tasks.buildings.vectorizer.tracing import (
    Bytes,
    Floats,
    Ints,
    Labels,
    Mask,
    Parts,
    at_least,
    connected,
    connected_groups,
    label_areas,
)

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
# The contour around a single hole of n pixels has at most this multiple of n points.
_RIM = 4
# Index in OpenCV's contour hierarchy: the contour that this one is a hole of, or -1.
_PARENT = 3


def find_instances(
    maps: ProbabilityMaps, settings: BuildingSettings, blobs: Parts | None = None
) -> Labels:
    """Segment building instances, independently within each blob of the building map.

    The maps are at least ``building``; ``border`` and ``contact`` help to separate touching
    buildings. ``blobs`` are the connected parts of the building map at or above ``settings.low``,
    if known already. The labels, (height, width), are 0 outside and 1..n in row-major order of the
    instances' first pixels; each instance is 4-connected.
    """
    body, strength = maps[BUILDING], _strength(maps)
    blobs = blobs or connected(at_least(body, settings.low))
    seeds = connected(at_least(strength, settings.seed))
    kept_seed = seeds.areas >= settings.seed_px
    kept_seed[0] = False
    # Strength never exceeds the building probability, so every seed lies within one blob.
    places = np.flatnonzero(seeds.labels > 0)
    blob_of_seed = np.zeros(seeds.count, np.int32)
    blob_of_seed[seeds.labels.ravel()[places]] = blobs.labels.ravel()[places]
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
    """Compute building x (1 - border) x (1 - contact), uint8, 0..255."""
    strength = maps[BUILDING]
    for name in (BORDER, CONTACT):
        if name in maps:
            strength = np.asarray(cv2.multiply(strength, 255 - maps[name], scale=1 / 255))
    return strength.astype(np.uint8, copy=False)


def _split(
    strength: Bytes,
    seeds: Parts,
    number: Labels,
    blobs: Parts,
    split: Mask,
    kept: Mask,
    settings: BuildingSettings,
) -> tuple[Labels, Mask]:
    """Split blobs with several seeds; return new labels, and which of them are kept.

    Seeds of blobs to be split have a ``number`` from 1, others 0. ``split`` marks the blobs with
    several seeds, and ``kept`` those that are buildings.
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


@dataclass(frozen=True)
class Boundaries:
    """Boundaries between adjacent basins.

    Attributes:
        pairs: (2, n), markers of two adjacent basins, each pair once, ascending.
        length: (n,), length of the boundary in pixel sides.
        strength: (n,), mean strength along the boundary, 0..255.
    """

    pairs: Ints
    length: Ints
    strength: Floats


def find_basins(strength: Bytes, markers: Labels, blobs: Parts, split: Mask) -> Labels:
    """Assign the pixels of some blobs to markers by watershed, the strongest pixels first.

    Among pixels of equal strength, those fewer steps from a marker come first, so boundaries run
    through the middle of plateaus.

    The markers 1..n, (height, width), each lie within one blob. ``split``, (blobs,), marks those
    with markers, which are processed. The result is the marker of each pixel, 0 outside of them.
    """
    basins = np.zeros_like(markers)
    # One blob at a time, because their bounding boxes may overlap.
    for blob in np.flatnonzero(split).tolist():
        box = blobs.boxes[blob]
        inside = blobs.labels[box] == blob
        within = np.where(inside, markers[box], 0)
        found = watershed(255 - strength[box], within, mask=inside)  # type: ignore[no-untyped-call]
        np.copyto(basins[box], found, where=inside)
    return basins


def find_boundaries(strength: Bytes, basins: Labels, blobs: Parts) -> Boundaries:
    """Find the boundaries between basins of the same blob, from :func:`find_basins`."""
    pairs, between = [], []
    count = int(basins.max(initial=0)) + 1
    for turn in (lambda image: image, np.transpose):
        here, blob, values = turn(basins), turn(blobs.labels), turn(strength)
        a, b = here[:-1], here[1:]
        apart = np.nonzero((a != b) & (a > 0) & (b > 0) & (blob[:-1] == blob[1:]))
        a, b = a[apart].astype(np.int64), b[apart].astype(np.int64)
        pairs.append(np.minimum(a, b) * count + np.maximum(a, b))
        between.append((values[:-1][apart].astype(np.float64) + values[1:][apart]) / 2)
    pair, number, length = np.unique(np.concatenate(pairs), return_inverse=True, return_counts=True)
    mean = np.bincount(number, np.concatenate(between), minlength=len(pair)) / np.maximum(length, 1)
    return Boundaries(np.stack(np.divmod(pair, count)), length.astype(np.int64), mean)


def _joined(
    boundaries: Boundaries, areas: Ints, inside: Floats, settings: BuildingSettings
) -> Labels:
    """Merge parts whose split is implausible; return the first part of the group of each.

    ``areas``, in pixels, and ``inside``, the mean strength of the markers, are (parts + 1,).
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
    group = connected_groups(boundaries.pairs[:, merged], len(areas))
    _, first = np.unique(group, return_index=True)
    return first[group].astype(np.int32)


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
