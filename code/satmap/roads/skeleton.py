"""From a road probability plane to its pixels of road.

Hysteresis instead of one threshold: a road may fade as long as it is certain somewhere, which keeps
faint stretches without letting in faint blobs. But beside certain roads only certainty counts: a
low threshold there would melt roads a few metres apart into one. Objects and holes are told by
their contours (Suzuki and Abe 1985, as OpenCV has it), which takes a tenth of the time of labelling
every pixel.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]


def smooth(plane: NDArray[np.uint8], sigma_px: tuple[float, float]) -> NDArray[np.uint8]:
    """A plane blurred by a Gaussian of the given standard deviations along x and y, pixels."""
    if min(sigma_px) <= 0:
        return plane
    sigma_x, sigma_y = sigma_px
    # Two standard deviations to either side: a twentieth of the weight lies beyond.
    size = tuple(2 * int(np.ceil(2 * sigma)) + 1 for sigma in sigma_px)
    return np.asarray(
        cv2.GaussianBlur(plane, size, sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE),
        np.uint8,
    )


def road_mask(
    road: NDArray[np.uint8],
    low: float,
    high: float,
    apart_px: tuple[float, float],
    object_px: float,
    hole_px: float,
) -> Mask:
    """The road's pixels: two thresholds, small objects dropped, small holes filled.

    The rest of the hysteresis, that road must be certain somewhere, is left to the network, which
    knows what hangs together (``satmap.roads.clean.drop_uncertain``).

    Args:
        road: (height, width), 0..255 for probabilities 0..1, smoothed already.
        low: probability from which a pixel is road where no certain road is near.
        high: probability of certain road.
        apart_px: how near certain road must be, along x and y, for only it to count, pixels.
        object_px: objects of a smaller area are dropped, pixels.
        hole_px: holes of a smaller area are filled, pixels; ground that reaches the edge of the
            array is no hole, for it goes on there: the wedge between two roads that leave the image
            side by side.

    Returns:
        (height, width), 0 or 1.
    """
    mask = _at_least(road, high)
    if low < high:
        # Flanks of certain roads, and the valley between two of them, stay out; what is left is
        # faint road, which grows back to touch the certain one. Results go where their sources
        # were: new arrays of this size cost more time than all that is done with them.
        candidate = _at_least(road, low)
        near = cv2.dilate(mask, _square(apart_px, 0))
        faint = cv2.subtract(candidate, near, dst=near)
        if cv2.countNonZero(faint):
            cv2.dilate(faint, _square(apart_px, 1), dst=faint)
            cv2.bitwise_and(candidate, faint, dst=faint)
            cv2.bitwise_or(mask, faint, dst=mask)
    return _without_trifles(mask, object_px, hole_px)


def _at_least(road: NDArray[np.uint8], probability: float) -> Mask:
    # OpenCV's threshold is exclusive.
    level = int(np.ceil(probability * 255)) - 1
    return np.asarray(cv2.threshold(road, level, 1, cv2.THRESH_BINARY)[1], np.uint8)


def _square(reach_px: tuple[float, float], more: int) -> Mask:
    """What grows a mask by whole pixels along x and y."""
    width, height = (2 * (round(reach) + more) + 1 for reach in reach_px)
    return np.ones((height, width), np.uint8)


def _without_trifles(mask: Mask, object_px: float, hole_px: float) -> Mask:
    """The mask without small objects and small holes; changed in place."""
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return mask
    holes, objects = [], []
    for contour, (_, _, _, parent) in zip(contours, tree[0].tolist(), strict=True):
        # A contour runs through the middle of its pixels: half of each lies outside of what it
        # encloses. One round a hole runs through the road beside it.
        half = len(contour) / 2
        if parent >= 0:
            if cv2.contourArea(contour) - half + 1 < hole_px:
                holes.append(contour)
        elif half < object_px and cv2.contourArea(contour) + half + 1 < object_px:
            objects.append(contour)
    if holes:
        cv2.drawContours(mask, holes, -1, 1, cv2.FILLED)
    if objects:
        cv2.drawContours(mask, objects, -1, 0, cv2.FILLED)
    return mask
