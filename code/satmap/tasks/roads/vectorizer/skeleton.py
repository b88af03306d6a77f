"""Road mask and skeleton of a road probability map.

Hysteresis thresholding lets a road fade as long as it is certain somewhere, which keeps faint
stretches without faint blobs. Near certain roads, however, only certain pixels count, because a low
threshold would merge roads a few metres apart. Objects and holes are measured by their contours
(Suzuki and Abe 1985, as in OpenCV), which takes a tenth of the time of labelling every pixel.
"""

from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from satmap.tasks.roads.settings import RoadSettings
from satmap.tasks.roads.vectorizer.network import Floats, Ints

Mask = NDArray[np.uint8]
Words = NDArray[np.uint64]

_ONE, _LAST = np.uint64(1), np.uint64(63)


def thin(mask: Mask) -> tuple[Ints, Ints, int]:
    """Return the skeleton of a mask: 8-connected lines one pixel wide, with the mask's topology.

    In an iteration of two subiterations (Guo and Hall 1989), a pixel depends only on pixels at most
    two pixels away.

    Args:
        mask: (height, width), road where not 0; there is no road beyond the edge.

    Returns:
        Rows and columns of the skeleton's pixels, (n,) each, row by row from left to right, and the
        number of iterations.
    """
    height, width = mask.shape
    # Pad the rows by at least one bit, and the array by rows and words on all sides. Then no
    # neighbour is outside the array, and rows do not run into each other.
    per_row = width // 64 + 1
    packed = np.zeros((height + 4, per_row * 8), np.uint8)
    packed[2 : height + 2, : (width + 7) // 8] = np.packbits(mask, axis=1, bitorder="little")
    words: Words = packed.view("<u8").reshape(-1)
    filled = active = np.flatnonzero(words)
    near = np.zeros(len(words), np.bool_)
    shifts = [down + right for right in (0, 1, -1) for down in (-per_row, 0, per_row)]
    around = active + np.array(shifts)[:, None]
    iterations = 0
    while len(active):
        iterations += 1
        changed = np.zeros(len(active), np.bool_)
        for odd in (True, False):
            here, removable = _removable(words.take(around).reshape(3, 3, -1), odd)
            gone = here & removable
            words[active] = here ^ gone
            changed |= gone != 0
        # While most words change, finding the unchanged ones takes longer than processing them.
        if 2 * np.count_nonzero(changed) < len(active):
            near[:] = False
            near[around[:, changed].ravel()] = True
            active = filled[near[filled]]
            around = active + np.array(shifts)[:, None]
    in_bytes = words.view(np.uint8)
    bytes_at = np.flatnonzero(in_bytes)
    byte, bit = np.nonzero(np.unpackbits(in_bytes[bytes_at, None], axis=1, bitorder="little"))
    rows, columns = np.divmod(bytes_at[byte], per_row * 8)
    return rows - 2, columns * 8 + bit, iterations


def _removable(block: Words, odd: bool) -> tuple[Words, Words]:
    """Return the middle words, and which of their pixels a subiteration may remove."""
    middle, eastern, western = block
    # These are p2..p9 in the paper, clockwise from north.
    n, here, s = middle
    ne, e, se = middle >> _ONE | eastern << _LAST
    nw, w, sw = middle << _ONE | western >> _LAST
    nw_n, ne_e, se_s, sw_w = nw | n, ne | e, se | s, sw | w
    n_ne, e_se, s_sw, w_nw = n | ne, e | se, s | sw, w | nw
    # The pixel has exactly one run of road around it.
    a, b, c, d = ne_e & ~n, se_s & ~e, sw_w & ~s, nw_n & ~w
    single = (a ^ b ^ c ^ d) & ~(a & b | c & d)
    # It has two or three neighbours, counted in pairs, using the pairing that gives fewer.
    first, second = _two_and_four(nw_n, ne_e, se_s, sw_w), _two_and_four(n_ne, e_se, s_sw, w_nw)
    single &= first[0] & second[0] & ~(first[1] & second[1])
    spared = (s_sw | ~nw) & w if odd else (n_ne | ~se) & e
    return here, single & ~spared


def _two_and_four(a: Words, b: Words, c: Words, d: Words) -> tuple[Words, Words]:
    """Return where at least two of four bits are set, and where all are."""
    ab, cd = a & b, c & d
    return np.asarray(ab | cd | (a | b) & (c | d), np.uint64), ab & cd


def road_mask(road: Mask, settings: RoadSettings, scale: Floats) -> Mask:
    """Return the road mask: blur, apply two thresholds, drop small objects and fill small holes.

    The other part of the hysteresis, that a road must be certain somewhere, is applied to the
    network, where connectivity is known (``satmap.tasks.roads.vectorizer.clean.drop_unlikely``).
    Ground that reaches the edge of the array is not a hole, because it continues outside, for
    example between two roads that leave the image side by side.

    Args:
        road: (height, width), 0..255 for probabilities 0..1.
        settings: thresholds.
        scale: metres per pixel along x and y, (2,).

    Returns:
        uint8 (height, width), 0 or 1.
    """
    low, high = settings.low, settings.high
    if settings.smooth_m > 0:
        x, y = (settings.smooth_m / scale).tolist()
        # The kernel reaches two standard deviations to either side; a twentieth of the weight lies
        # beyond.
        size = 2 * ceil(2 * x) + 1, 2 * ceil(2 * y) + 1
        blurred = cv2.GaussianBlur(road, size, x, sigmaY=y, borderType=cv2.BORDER_REPLICATE)
        road = np.asarray(blurred, np.uint8)
    mask = _at_least(road, high)
    if low < high:
        # Exclude the sides of certain roads and the valley between two of them. The rest is faint
        # road, which grows back until it touches the certain road. Results overwrite their sources,
        # because allocating arrays of this size costs more time than all the operations.
        candidate = _at_least(road, low)
        reach = np.rint(settings.apart_m / scale).astype(int)
        near = cv2.dilate(mask, _square(reach))
        faint = cv2.subtract(candidate, near, dst=near)
        if cv2.countNonZero(faint):
            cv2.dilate(faint, _square(reach + 1), dst=faint)
            cv2.bitwise_and(candidate, faint, dst=faint)
            cv2.bitwise_or(mask, faint, dst=mask)
    pixel_m2 = float(scale.prod())
    return _without_small_parts(mask, settings.object_m2 / pixel_m2, settings.hole_m2 / pixel_m2)


def _at_least(road: Mask, probability: float) -> Mask:
    # OpenCV's threshold is exclusive.
    level = ceil(probability * 255) - 1
    return np.asarray(cv2.threshold(road, level, 1, cv2.THRESH_BINARY)[1], np.uint8)


def _square(reach: Ints) -> Mask:
    """Return the kernel that dilates a mask by whole pixels along x and y."""
    width, height = 2 * reach + 1
    return np.ones((height, width), np.uint8)


def _without_small_parts(mask: Mask, object_px: float, hole_px: float) -> Mask:
    """Remove small objects and small holes from a mask in place."""
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return mask
    holes, objects = [], []
    for contour, (_, _, _, parent) in zip(contours, tree[0].tolist(), strict=True):
        # A contour runs through the centres of its pixels, so half of each pixel lies outside the
        # polygon. The contour of a hole runs through the surrounding road.
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
