"""Seeded watershed inside blobs, and the boundaries between its basins."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from satmap.tasks.buildings.vectorizer.tracing import Labels, Parts

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Boundaries:
    """Boundaries between adjacent basins.

    Attributes:
        pairs: int64 (2, boundaries), markers of two adjacent basins, each pair once, ascending.
        length: int64 (boundaries,), length of the boundary in pixel sides.
        strength: float64 (boundaries,), mean strength along the boundary, 0..255.
    """

    pairs: Longs
    length: Longs
    strength: NDArray[np.float64]


def find_basins(
    strength: NDArray[np.uint8], markers: Labels, blobs: Parts, split: NDArray[np.bool_]
) -> Labels:
    """Assign the pixels of some blobs to markers by watershed, the strongest pixels first.

    Among pixels of equal strength, those fewer steps from a marker come first, so boundaries run
    through the middle of plateaus.

    Args:
        strength: uint8 (height, width).
        markers: int32 (height, width), 0 outside, 1..n, each within one blob.
        blobs: connected parts that the basins fill.
        split: bool (blobs,), the blobs with markers, which are processed.

    Returns:
        int32 (height, width), the marker of each pixel; 0 outside the processed blobs.
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


def find_boundaries(strength: NDArray[np.uint8], basins: Labels, blobs: Parts) -> Boundaries:
    """Find the boundaries between basins of the same blob.

    Args:
        strength: uint8 (height, width).
        basins: int32 (height, width), from :func:`find_basins`.
        blobs: the blobs that contain the basins.
    """
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
