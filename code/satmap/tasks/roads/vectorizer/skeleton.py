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

Words = NDArray[np.uint64]

_ONE, _LAST = np.uint64(1), np.uint64(63)


def thin(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Skeleton of a mask: lines one pixel wide, 8-connected, with the topology of the mask.

    Args:
        mask: (height, width), road where not 0; beyond its edge there is no road.

    Returns:
        Rows and columns of the skeleton's pixels, (n,) each, row after row from left to right.
    """
    rows, columns, _ = thin_counting(mask)
    return rows, columns


def thin_counting(
    mask: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The same, and the number of iterations it took.

    In an iteration, which is two subiterations, what a pixel becomes depends on pixels two off at
    most.
    """
    height, width = mask.shape
    # At least one spare bit at the end of a row, and one spare row above and below with a spare
    # word beyond: no neighbour is ever outside the array, and rows do not run into each other.
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
        # While most of them change, looking for the others takes longer than looking at them.
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
    """Words, and which of their pixels a subiteration may take away if they are road.

    Args:
        block: the words, those to the east and those to the west of them; each in the row above,
            in their own and in the row below; (3, 3, words).
        odd: which of the two subiterations.
    """
    middle, eastern, western = block
    # p2..p9 in the paper, clockwise from north.
    n, here, s = middle
    ne, e, se = middle >> _ONE | eastern << _LAST
    nw, w, sw = middle << _ONE | western >> _LAST
    nw_n, ne_e, se_s, sw_w = nw | n, ne | e, se | s, sw | w
    n_ne, e_se, s_sw, w_nw = n | ne, e | se, s | sw, w | nw
    # Exactly one run of road around the pixel.
    a, b, c, d = ne_e & ~n, se_s & ~e, sw_w & ~s, nw_n & ~w
    single = (a ^ b ^ c ^ d) & ~(a & b | c & d)
    # Two or three neighbours, counted in pairs, by the pairing that gives fewer.
    first, second = _two_and_four(nw_n, ne_e, se_s, sw_w), _two_and_four(n_ne, e_se, s_sw, w_nw)
    single &= first[0] & second[0] & ~(first[1] & second[1])
    spared = (s_sw | ~nw) & w if odd else (n_ne | ~se) & e
    return here, single & ~spared


def _two_and_four(a: Words, b: Words, c: Words, d: Words) -> tuple[Words, Words]:
    """Where at least two of four are set, and where all are."""
    ab, cd = a & b, c & d
    return np.asarray(ab | cd | (a | b) & (c | d), np.uint64), ab & cd


Mask = NDArray[np.uint8]


def smooth(probability_map: NDArray[np.uint8], sigma_px: tuple[float, float]) -> NDArray[np.uint8]:
    """A plane blurred by a Gaussian of the given standard deviations along x and y, pixels."""
    if min(sigma_px) <= 0:
        return probability_map
    sigma_x, sigma_y = sigma_px
    # Two standard deviations to either side: a twentieth of the weight lies beyond.
    size = tuple(2 * int(np.ceil(2 * sigma)) + 1 for sigma in sigma_px)
    return np.asarray(
        cv2.GaussianBlur(
            probability_map, size, sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE
        ),
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
    knows what hangs together (``satmap.tasks.roads.vectorizer.clean.drop_unlikely``).

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
