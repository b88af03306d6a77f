"""Seeded watershed of blobs, and the boundaries between its basins."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from satmap.tasks.buildings.vectorizer.tracing import Labels, Parts

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Boundaries:
    """Where basins meet.

    Attributes:
        pairs: int64 (2, boundaries), two markers whose basins meet, each pair once, ascending.
        length: int64 (boundaries,), pixels' sides along which they meet.
        strength: float64 (boundaries,), mean along the boundary, 0..255.
    """

    pairs: Longs
    length: Longs
    strength: NDArray[np.float64]


def find_basins(
    strength: NDArray[np.uint8], markers: Labels, blobs: Parts, split: NDArray[np.bool_]
) -> Labels:
    """Give every pixel of some blobs to a marker, the strongest pixels first.

    Of pixels of one strength those that are fewer steps from a marker come first, so that
    boundaries run in the middle of plateaus.

    Args:
        strength: uint8 (height, width).
        markers: int32 (height, width), 0 outside, 1..n, each within one blob.
        blobs: what pixels are connected in.
        split: bool (blobs,), the blobs with markers.

    Returns:
        int32 (height, width), the marker of each pixel; 0 outside of the blobs.
    """
    basins = np.zeros_like(markers)
    # Blob by blob: they may lie side by side.
    for blob in np.flatnonzero(split).tolist():
        box = blobs.boxes[blob]
        inside = blobs.labels[box] == blob
        within = np.where(inside, markers[box], 0)
        found = watershed(255 - strength[box], within, mask=inside)  # type: ignore[no-untyped-call]
        np.copyto(basins[box], found, where=inside)
    return basins


def find_boundaries(strength: NDArray[np.uint8], basins: Labels, blobs: Parts) -> Boundaries:
    """Where basins of one blob meet."""
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
