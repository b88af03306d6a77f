"""Which pixels are one building: a seeded watershed on body, border and contact.

Touching buildings are one blob of body; border and contact planes show the seam between them
(SpaceNet 4's solutions). Seeds are the sure insides, the watershed gives each pixel of the blob to
one of them, and two parts are joined again where no seam is to be seen between them: a large roof
with a doubtful spot in the middle is one building.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from satmap.buildings.settings import BuildingSettings
from satmap.planes import BORDER, BUILDING, CONTACT, Planes

Labels = NDArray[np.int32]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def find_instances(planes: Planes, settings: BuildingSettings) -> Labels:
    """Number every building's pixels.

    Args:
        planes: at least ``building``; with ``border`` and ``contact`` touching ones come apart.
        settings: thresholds.

    Returns:
        int32 (height, width), 0 outside, 1..n in the order of the buildings' first pixels, row by
        row; each building is 4-connected.
    """
    body = planes[BUILDING]
    strength: Floats = body.astype(np.float32) / np.float32(255)
    for name in (BORDER, CONTACT):
        if name in planes:
            strength *= (255 - planes[name]).astype(np.float32) / np.float32(255)
    blobs, areas, boxes = _connected(body >= settings.low * 255)
    seeds, sizes, _ = _connected(strength >= settings.seed)
    seeds[(sizes < settings.seed_px)[seeds]] = 0
    # Strength is no more than body, so every seed lies within one blob.
    places = np.flatnonzero(seeds)
    blob_of_seed = np.zeros(len(sizes), np.int32)
    blob_of_seed[seeds.ravel()[places]] = blobs.ravel()[places]
    count = np.bincount(blob_of_seed[blob_of_seed > 0], minlength=len(areas))
    sure = np.zeros(len(areas), np.bool_)
    sure[np.unique(blobs[body >= settings.certain * 255])] = True
    kept = sure | (count > 0)
    kept[0] = False
    found = np.where(kept, np.arange(len(areas), dtype=np.int32), 0)[blobs]
    following = len(areas) - 1
    for blob in np.flatnonzero(count > 1).tolist():
        box = boxes[blob]
        inside = blobs[box] == blob
        parts = _split(strength[box], np.where(inside, seeds[box], 0), inside, settings)
        found[box][inside] = parts[inside] + following
        following += int(parts.max())
    return _tidy(found, settings)


def _connected(mask: Mask) -> tuple[Labels, NDArray[np.int32], list[tuple[slice, slice]]]:
    """The 4-connected parts of a mask: labels, and by label area and bounding box."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    boxes = [
        (slice(top, top + height), slice(left, left + width))
        for left, top, width, height, _ in stats.tolist()
    ]
    areas = np.asarray(stats[:, cv2.CC_STAT_AREA], np.int32)
    return np.asarray(labels, np.int32), areas, boxes


def _split(strength: Floats, seeds: Labels, blob: Mask, settings: BuildingSettings) -> Labels:
    """A blob in parts, 1.. and 0 outside; seams that are not to be seen are undone."""
    numbers, seed_of = np.unique(seeds, return_inverse=True)
    count = len(numbers) - 1
    markers = seed_of.reshape(blob.shape)
    parts: Labels = watershed(-strength, markers, mask=blob).astype(np.int32)  # type: ignore[no-untyped-call]
    # Mean strength along the seam of each two parts.
    sums, lengths = np.zeros((2, count + 1, count + 1))
    rows, columns = np.s_[:-1], np.s_[1:]
    for one, other in (((rows,), (columns,)), (np.s_[:, :-1], np.s_[:, 1:])):
        a, b = parts[one], parts[other]
        seam = (a != b) & (a > 0) & (b > 0)
        pair = np.minimum(a, b)[seam], np.maximum(a, b)[seam]
        np.add.at(sums, pair, (strength[one][seam] + strength[other][seam]) / 2)
        np.add.at(lengths, pair, 1)
    sure = np.where(strength >= settings.seed, parts, 0)
    inside = np.atleast_1d(ndimage.median(strength, sure, np.arange(1, count + 1)))
    target = np.arange(count + 1, dtype=np.int32)
    for low, high in np.argwhere(lengths > 0).tolist():
        if sums[low, high] >= lengths[low, high] * settings.split * min(
            inside[low - 1], inside[high - 1]
        ):
            target[target == target[high]] = target[low]
    joined: Labels = target[parts]
    return joined


def _tidy(found: Labels, settings: BuildingSettings) -> Labels:
    """Small buildings dropped, small holes filled, numbers in the order of first pixels."""
    sizes = np.bincount(found.ravel())
    found[(sizes < settings.least_px)[found]] = 0
    holes, areas, boxes = _connected(found == 0)
    height, width = found.shape
    for hole in np.flatnonzero(areas < settings.hole_px).tolist():
        rows, columns = boxes[hole]
        at_edge = not (rows.start and columns.start and rows.stop < height and columns.stop < width)
        if hole == 0 or at_edge:
            continue
        box = slice(rows.start - 1, rows.stop + 1), slice(columns.start - 1, columns.stop + 1)
        spot = (holes[box] == hole).view(np.uint8)
        rim = (cv2.dilate(spot, _CROSS) > spot).view(np.bool_)
        around = np.unique(found[box][rim])
        # A gap between several buildings is none of any one's holes.
        if len(around) == 1:
            found[box][spot.view(np.bool_)] = around[0]
    flat = found.ravel()
    places = np.flatnonzero(flat)
    first = np.full(len(sizes), flat.size)
    # Of assignments to one place the last one stays: the first pixel's.
    first[flat[places[::-1]]] = places[::-1]
    present = np.flatnonzero(first < flat.size)
    rank = np.zeros(len(sizes), np.int32)
    rank[present[np.argsort(first[present])]] = np.arange(1, len(present) + 1)
    return rank[found]
