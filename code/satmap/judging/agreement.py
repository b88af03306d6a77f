"""How labels and a prediction agree: the Jaccard index of a tile and of each building."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.tasks.buildings.labels import trace_parts
from satmap.tasks.buildings.targets import draw_instances

# Predicted pixels within this distance of a footprint belong to it, metres.
_MARGIN_M = 0.5

Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """Pixels of a tile that labels and prediction share.

    Attributes:
        shared, either: pixels of the tile in both, and in at least one of them.
        shared_by_building, either_by_building: the same for each label, (n,). The prediction counts
            within half a metre of the footprint.
        nearest: bool (h, w): pixels within half a metre of any label.
    """

    shared: int
    either: int
    shared_by_building: Counts
    either_by_building: Counts
    nearest: Mask

    @property
    def jaccard(self) -> float:
        """Jaccard index of the tile; 1 if there is nothing."""
        return self.shared / self.either if self.either else 1.0


def compare(
    predicted: Mask, shapes: NDArray[np.object_], valid: Mask, metres_per_pixel: float
) -> Agreement:
    """Compare a prediction with labels.

    Args:
        predicted: building pixels, bool (h, w).
        shapes: the labels, polygons in pixels, (n,).
        valid: pixels that count, bool (h, w).
        metres_per_pixel: size of a pixel.
    """
    labels = draw_instances(shapes, predicted.shape)
    wide = _grown(labels, _MARGIN_M / metres_per_pixel)
    nearest = wide > 0
    predicted = predicted & valid
    labels[~valid] = 0
    count = len(shapes) + 1
    own = np.bincount(labels[valid], minlength=count)[1:]
    shared = np.bincount(labels[predicted], minlength=count)[1:]
    around = np.bincount(wide[predicted], minlength=count)[1:]
    of_tile = int(shared.sum())
    return Agreement(
        of_tile, int(own.sum()) + int(predicted.sum()) - of_tile, shared, own + around - shared,
        nearest,
    )  # fmt: skip


def _grown(labels: NDArray[np.int32], distance: float) -> NDArray[np.int32]:
    """Give every pixel within a distance of a label the number of the nearest label."""
    if not labels.any():
        return labels.copy()
    away, index = cv2.distanceTransformWithLabels(
        (labels == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_index = np.zeros(int(np.max(index)) + 1, np.int32)
    of_index[index[labels > 0]] = labels[labels > 0]
    grown: NDArray[np.int32] = np.where(away <= distance, of_index[index], 0)
    return grown


def find_unlabelled(
    probability: NDArray[np.uint8],
    agreement: Agreement,
    valid: Mask,
    metres_per_pixel: float,
    certain: float,
    least_m2: float,
) -> list[shapely.Geometry]:
    """Find predicted buildings without a label.

    Narrow strips of a prediction around labels do not count.

    Args:
        probability: uint8 (h, w), 0..255 for 0..1.
        agreement: of the tile's labels.
        valid: pixels that count, bool (h, w).
        metres_per_pixel: size of a pixel.
        certain: least mean probability.
        least_m2: least area.

    Returns:
        Outlines in pixels, grown by half a metre.
    """
    rest = ((probability >= 128) & valid & ~agreement.nearest).astype(np.uint8)
    radius = max(1, round(_MARGIN_M / metres_per_pixel))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    rest = np.asarray(cv2.morphologyEx(rest, cv2.MORPH_OPEN, kernel), np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(rest, connectivity=4)
    sums = np.bincount(parts.ravel(), probability.ravel(), count)
    areas = stats[:, cv2.CC_STAT_AREA]
    chosen = (sums / np.maximum(areas, 1) >= certain * 255) & (
        areas >= least_m2 / metres_per_pixel**2
    )
    chosen[0] = False
    found = np.asarray(cv2.dilate(chosen[parts].astype(np.uint8), kernel), np.uint8)
    return [shapely.simplify(part, 1.0) for part in trace_parts(found > 0)]


def jaccards(shared: Sequence[int] | Counts, either: Sequence[int] | Counts) -> NDArray[np.float64]:
    """Return the Jaccard indices of buildings; NaN for those on no tile."""
    whole = np.asarray(either, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, np.asarray(shared) / whole, np.nan)
