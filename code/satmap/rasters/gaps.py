"""Fill the pixels of an image that have no data, before networks see it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Smaller gaps are dark pixels rather than ground without an image. Width in pixels.
_LEAST_PX = 3


def mirror_into_gaps(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill gaps with the mirrored image around them, like the space beyond the edge of an image.

    Black wedges at the edge of a warped image make networks miss the roads beside them. Every pixel
    of a gap gets the pixel at the same distance on the other side of the gap's nearest edge.

    Args:
        pixels: uint8 (height, width, channels); gaps are 0 in all channels.

    Returns:
        A filled copy, or the array itself without gaps.
    """
    import cv2

    empty: NDArray[np.uint8] = np.asarray(~pixels.any(axis=2), np.uint8)
    if not empty.any():
        return pixels
    # Beyond the image there is no data either, so that a narrow wedge at its edge is a gap, too.
    frame = _LEAST_PX
    framed = np.pad(empty, frame, constant_values=1)
    opened = cv2.morphologyEx(framed, cv2.MORPH_OPEN, np.ones((_LEAST_PX, _LEAST_PX), np.uint8))
    gap = opened[frame:-frame, frame:-frame]
    if not gap.any() or gap.all():
        return pixels
    rows, columns = np.nonzero(gap)
    near_row, near_column = _nearest(gap, rows, columns)
    height, width = gap.shape
    row = np.clip(2 * near_row - rows, 0, height - 1)
    column = np.clip(2 * near_column - columns, 0, width - 1)
    # The mirrored place may lie in a gap again.
    outside = gap[row, column] > 0
    row[outside], column[outside] = near_row[outside], near_column[outside]
    filled = pixels.copy()
    filled[rows, columns] = pixels[row, column]
    return filled


def _nearest(
    gap: NDArray[Any], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return row and column of the nearest pixel outside a gap, for pixels inside."""
    import cv2

    _, labels = cv2.distanceTransformWithLabels(gap, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    # Every pixel outside has its own label, and pixels inside have that of the nearest one.
    places = np.zeros(labels.max() + 1, np.intp)
    outside = np.flatnonzero(gap == 0)
    places[labels.ravel()[outside]] = outside
    nearest_row, nearest_column = np.divmod(places[labels[rows, columns]], gap.shape[1])
    return nearest_row, nearest_column
