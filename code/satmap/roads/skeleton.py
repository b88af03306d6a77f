"""From a road probability plane to a skeleton one pixel wide.

Hysteresis instead of one threshold: a road may fade as long as it is certain somewhere, which keeps
faint stretches without letting in faint blobs. But beside certain roads only certainty counts: a
low threshold there would melt roads a few metres apart into one. The border is
replicated before thinning (selim_sef's SpaceNet 5 solution), since thinning otherwise eats a road's
last half width and every road would end short of the image's edge.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize


def road_mask(
    road: NDArray[np.uint8],
    low: float,
    high: float,
    apart_px: tuple[float, float],
    object_px: float,
    hole_px: float,
) -> NDArray[np.bool_]:
    """The road's pixels: hysteresis, small objects dropped, small holes filled.

    Args:
        road: (height, width), 0..255 for probabilities 0..1, smoothed already.
        low: probability from which a pixel is road where no certain road is near.
        high: probability of certain road; each object must have some.
        apart_px: how near certain road must be, along x and y, for only it to count, pixels.
        object_px: objects of a smaller area are dropped, pixels.
        hole_px: holes of a smaller area are filled, pixels; ground that reaches the edge of the
            array is no hole, for it goes on there: the wedge between two roads that leave the image
            side by side.

    Returns:
        (height, width).
    """
    certain = (road >= high * 255).astype(np.uint8)
    if not certain.any():
        return certain.astype(np.bool_)
    candidate = (road >= low * 255).astype(np.uint8)
    # Flanks of certain roads, and the valley between two of them, stay out; what is left is faint
    # road, which grows back to touch the certain one.
    faint = candidate & ~_grown(certain, apart_px, 0)
    candidate &= certain | _grown(faint, apart_px, 1)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(candidate, connectivity=8)
    keep = np.zeros(count, np.bool_)
    keep[labels[certain > 0]] = True
    keep &= stats[:, cv2.CC_STAT_AREA] >= object_px
    mask = keep[labels]
    # Objects are 8-connected, so the ground between them must be 4-connected.
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    fill = stats[:, cv2.CC_STAT_AREA] < hole_px
    fill[np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()])] = False
    fill[0] = True
    filled: NDArray[np.bool_] = fill[labels]
    return filled


def _grown(mask: NDArray[np.uint8], reach_px: tuple[float, float], more: int) -> NDArray[np.uint8]:
    """A mask of 0 and 1, grown by whole pixels along x and y."""
    width, height = (2 * (round(reach) + more) + 1 for reach in reach_px)
    return np.asarray(cv2.dilate(mask, np.ones((height, width), np.uint8)), np.uint8)


def thin(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Skeleton of a mask, (height, width); only the part that holds any road is thinned."""
    skeleton = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        skeleton[box] = skeletonize(mask[box])  # type: ignore[no-untyped-call]
    return skeleton
