"""Training targets of buildings: two bytes per pixel.

The first byte has bits for the body of a building, its border and the ground squeezed between two
buildings (SpaceNet 4 solutions). The second byte encodes the pixel weight of a weighted cross
entropy, as in neptune's open solution of the Mapping Challenge. Weights are high between buildings
that are close to each other, and higher on small buildings than on large ones. They range from a
third to thousands, so the byte stores their logarithm in steps of 5 %.
"""

import cv2
import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from satmap.tasks.buildings.settings import BuildingTargetSettings
from satmap.tasks.buildings.vectorizer.tracing import Bytes, Labels, Mask
from satmap.vectors.buildings import Polygons

# Distances or weights of pixels.
Values = NDArray[np.float32]

BODY_BIT = 0x01
BORDER_BIT = 0x02
CONTACT_BIT = 0x04

# A weight is 2 to the power of (code - _ONE) / _STEPS.
_STEPS = 14
_ONE = 64

# Beyond this distance, in units of near_px, the Gaussian adds nothing noticeable to a weight of 1.
_REACH = 6.0


def rasterize_buildings(
    outlines: Polygons, shape: tuple[int, int], settings: BuildingTargetSettings
) -> Bytes:
    """Draw the target of a chip, (height, width, 2), from polygons and multi-polygons in pixels.

    Channel 0 combines ``BODY_BIT``, ``BORDER_BIT`` and ``CONTACT_BIT``; channel 1 is the weight, an
    index into :func:`weight_table`.
    """
    labels = draw_instances(outlines, shape, settings.edge_px)
    reach = max(_REACH * settings.near_px, settings.contact_px)
    near, far = two_nearest(labels, reach)
    body, border = labels > 0, inner_border(labels, settings.border_px)
    contact = ~body & (far <= settings.contact_px)
    target = np.empty((*shape, 2), np.uint8)
    target[..., 0] = body * BODY_BIT | border * BORDER_BIT | contact * CONTACT_BIT
    target[..., 1] = encode_weights(pixel_weights(labels, near, far, settings))
    return target


def inner_border(labels: Labels, width: int) -> Mask:
    """Return the pixels of instances within ``width`` pixels of another instance or the outside."""
    kernel = np.ones((2 * width + 1,) * 2, np.uint8)
    # OpenCV has no int32 morphology; float32 is exact up to 16 million buildings.
    numbers = labels.astype(np.float32)
    least = cv2.erode(numbers, kernel, borderType=cv2.BORDER_REPLICATE)
    most = cv2.dilate(numbers, kernel, borderType=cv2.BORDER_REPLICATE)
    border: Mask = (labels > 0) & (least != most)
    return border


def pixel_weights(
    labels: Labels, near: Values, far: Values, settings: BuildingTargetSettings
) -> Values:
    """Compute the loss weight of each pixel from the nearest buildings and the building's size.

    Let d be the sum of the distances to the two nearest buildings. With a single building in the
    image, d is twice its distance; with none, d is 0. The weight is
    1 + near_weight exp(-d^2 / near_px^2), or 1 where d is 0. On a building it is multiplied by
    size_px / sqrt(area). The original solution stored d in a byte, which wrapped around at 256.
    ``near`` and ``far`` are the distances from :func:`two_nearest`; all arrays are (height, width).
    """
    sizes = np.bincount(labels.ravel())
    count = np.count_nonzero(sizes[1:])
    together = near * 2 if count == 1 else near + far
    weights = 1 + settings.near_weight * np.exp(-((together / settings.near_px) ** 2))
    weights[(together == 0) | (count == 0)] = 1
    of_size = np.ones(len(sizes), np.float32)
    of_size[1:] = settings.size_px / np.sqrt(np.maximum(sizes[1:], 1))
    weighted: Values = (weights * of_size[labels]).astype(np.float32)
    return weighted


def encode_weights(weights: Values) -> Bytes:
    """Encode weights as bytes on a logarithmic scale: 0.05 to 12,000 within 2.5 %."""
    codes = np.rint(np.log2(weights) * _STEPS) + _ONE
    encoded: Bytes = np.clip(codes, 0, 255).astype(np.uint8)
    return encoded


def weight_table() -> Values:
    """Return the weight that each byte encodes, (256,)."""
    table: Values = np.exp2((np.arange(256, dtype=np.float32) - _ONE) / _STEPS)
    return table


def draw_instances(outlines: Polygons, shape: tuple[int, int], edge_px: int = 0) -> Labels:
    """Rasterize buildings, in pixels, as labels: 0 outside, 1 + index of the building inside.

    A pixel belongs to a building if its centre is inside. Where two overlap, the smaller one wins.
    Buildings that lie wholly within ``edge_px`` of the image edge are left out. Labels of buildings
    without a pixel do not occur.
    """
    labels = np.zeros(shape, np.int32)
    large_to_small = np.argsort(-shapely.area(outlines), kind="stable").tolist()
    # rasterize silently skips shapes that contain no pixel centre.
    shapes = [(outlines[i], i + 1) for i in large_to_small]
    if shapes:
        rasterio.features.rasterize(shapes, out=labels)
    if edge_px:
        inner = np.unique(labels[edge_px:-edge_px, edge_px:-edge_px])
        labels[~np.isin(labels, inner)] = 0
    return labels


def two_nearest(labels: Labels, reach: float = np.inf) -> tuple[Values, Values]:
    """Compute the distance from every pixel to the nearest and the second nearest building.

    Distances are Euclidean, in pixels between their centres, and 0 inside a building. They are
    infinite beyond ``reach``, which saves much time if it is small, and where there is no such
    building. Labels are 0 outside, and may have gaps.
    """
    first = np.full(labels.shape, np.inf, np.float32)
    second = first.copy()
    height, width = labels.shape
    margin = max(height, width) if np.isinf(reach) else int(np.ceil(reach))
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        if place is None:
            continue
        rows, columns = place
        box = (
            slice(max(rows.start - margin, 0), min(rows.stop + margin, height)),
            slice(max(columns.start - margin, 0), min(columns.stop + margin, width)),
        )
        outside = (labels[box] != number).view(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        distance[distance > reach] = np.inf
        near, far = first[box], second[box]
        np.minimum(far, np.maximum(near, distance), out=far)
        np.minimum(near, distance, out=near)
    return first, second
