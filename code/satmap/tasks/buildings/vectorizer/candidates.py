"""Building candidates: watershed instances, and regions of the body map at nineteen thresholds.

No single threshold suits all buildings. A confidence model predicts the IoU of each candidate with
its true building, and the best of several candidates for the same building is kept (neptune's open
solution of the Mapping Challenge). Watershed parts compete with the whole blob in the same way, as
in the winning solution of SpaceNet 4.

Regions of a higher threshold lie inside those of lower ones. Their overlaps therefore follow from
the areas and one pixel of each region, and only one labelled image is in memory at a time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satmap.rasters.scene import Box
from satmap.tasks.buildings.vectorizer.tracing import Labels, Mask, at_least, connected

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Layer 0 holds the watershed instances; layer k the body map from ``THRESHOLDS[k - 1]``.
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))

#: Features of a candidate, in the model's order. Distances are to the image border.
FEATURES = (
    "threshold",
    "area",
    "mean",
    "most",
    "box_aspect",
    "box_area",
    "box_fill",
    "nearest_border",
    "farthest_border",
    "contour",
)

#: Two candidates with at least this IoU are the same building.
SAME_IOU = 0.5


@dataclass(frozen=True)
class Candidates:
    """Candidates of an image or a part of it.

    Attributes:
        layer: int64 (n,), 0 for watershed instances, else 1 + index of the threshold.
        label: int64 (n,), label of the candidate in its layer.
        features: float64 (n, 10), see ``FEATURES``; lengths in pixels, probabilities 0..1.
        rivals: int64 (2, pairs), pairs of candidates for the same building.
        ious: float64 (n,), highest IoU with a true building; 0 if no truth was given.
    """

    layer: Ints
    label: Ints
    features: Floats
    rivals: Ints
    ious: Floats


def find_candidates(
    body: NDArray[np.uint8],
    instances: Labels,
    box: Box,
    shape: tuple[int, int],
    least_px: float,
    owned: Mask | None = None,
    truth: Labels | None = None,
) -> Candidates:
    """Find the candidates in a crop of an image.

    Args:
        body: uint8 (height, width), body probability, 0..255 for 0..1.
        instances: int32 (height, width), instances from the watershed, 0 outside.
        box: position of the crop in the image.
        shape: height and width of the whole image.
        least_px: smaller candidates are left out.
        owned: bool (height, width), the pixels that thresholds are applied to; by default all.
        truth: int32 (height, width), true buildings, 0 outside.
    """
    sizes = np.bincount(truth.ravel()) if truth is not None else np.zeros(1, np.int64)
    layers: list[_Layer] = []
    rivals = [np.empty((2, 0), np.int64)]
    # From the highest threshold down, so that the regions inside a region are known already.
    for number in (0, *range(len(THRESHOLDS), 0, -1)):
        labels = instances if number == 0 else layer_labels(body, number)
        if number and owned is not None:
            labels = np.where(owned, labels, 0)
        layer = _measure(number, labels, body, box, shape, least_px)
        if truth is not None:
            layer.ious[:] = _best_ious(labels, truth, sizes, layer)
        before = sum(len(other.label) for other in layers)
        if number:
            index = np.full(int(labels.max(initial=0)) + 1, -1)
            index[layer.label] = np.arange(before, before + len(layer.label))
            rivals.append(_sharing(instances, labels, layers[0], layer, before))
            if len(layers) > 1:
                area = np.concatenate([other.features[:, _AREA] for other in layers])
                first = len(layers[0].label)
                pixel = np.concatenate([other.pixel for other in layers[1:]])
                around = index[labels.ravel()[pixel]]
                own = np.append(layer.features[:, _AREA], np.inf)
                same = area[first:] >= SAME_IOU * own[np.where(around < 0, -1, around - before)]
                rivals.append(np.stack([first + np.flatnonzero(same), around[same]]))
        layers.append(layer)
    return Candidates(
        np.repeat([layer.number for layer in layers], [len(layer.label) for layer in layers]),
        np.concatenate([layer.label for layer in layers]),
        np.concatenate([layer.features for layer in layers]),
        np.concatenate(rivals, axis=1),
        np.concatenate([layer.ious for layer in layers]),
    )


def layer_labels(body: NDArray[np.uint8], number: int) -> Labels:
    """Label the regions of the body map in threshold layer ``number`` (from 1)."""
    return connected(at_least(body, THRESHOLDS[number - 1])).labels


def non_maximum_suppression(scores: Floats, rivals: Ints) -> Ints:
    """Greedy non-maximum suppression: drop candidates with a better rival that is kept.

    Args:
        scores: float64 (n,); of equal scores, the first is better.
        rivals: int64 (2, pairs), candidates of which only one may stay.

    Returns:
        int64, indices of the kept candidates, ascending.
    """
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    better = np.minimum(*rank[rivals]) if rivals.size else np.empty(0, np.int64)
    worse = np.maximum(*rank[rivals]) if rivals.size else better
    by_better = np.argsort(better, kind="stable")
    worse = worse[by_better]
    starts = np.searchsorted(better[by_better], np.arange(len(order) + 1))
    out = np.zeros(len(order), np.bool_)
    for candidate in np.unique(better).tolist():
        if not out[candidate]:
            out[worse[starts[candidate] : starts[candidate + 1]]] = True
    return np.sort(order[~out])


_AREA = FEATURES.index("area")


@dataclass(frozen=True)
class _Layer:
    """Candidates of one layer, as in :class:`Candidates`, with a pixel index of each."""

    number: int
    label: Ints
    features: Floats
    pixel: Ints
    ious: Floats


def _measure(
    number: int,
    labels: Labels,
    body: NDArray[np.uint8],
    box: Box,
    shape: tuple[int, int],
    least_px: float,
) -> _Layer:
    inside = np.flatnonzero(labels > 0)
    values = body.ravel()[inside]
    # The last assignment to an index wins: that of the pixel with the highest probability.
    order = np.argsort(values, kind="stable")
    inside, values = inside[order], values[order]
    label = labels.ravel()[inside]
    area = np.bincount(label)
    mean = np.bincount(label, values) / np.maximum(area, 1) / 255
    pixel, most = np.zeros((2, len(area)), np.int64)
    pixel[label], most[label] = inside, values
    kept = np.flatnonzero(area >= max(least_px, 1))
    kept = kept[kept > 0]
    boxes = ndimage.find_objects(labels)
    corners = np.array(
        [(c.start, r.start, c.stop, r.stop) for r, c in (boxes[k - 1] for k in kept.tolist())],
        np.float64,
    ).reshape(-1, 4)
    wide, high = (corners[:, 2:] - corners[:, :2]).T
    corners += np.tile([box.left, box.top], 2)
    borders = np.concatenate([corners[:, :2], np.array(shape[::-1]) - corners[:, 2:]], axis=1)
    features = np.stack(
        [
            np.full(len(kept), THRESHOLDS[number - 1] if number else 0.0),
            area[kept],
            mean[kept],
            most[kept] / 255,
            np.minimum(wide, high) / np.maximum(wide, high),
            wide * high,
            area[kept] / (wide * high),
            borders.min(axis=1),
            borders.max(axis=1),
            _contours(labels, len(area))[kept],
        ],
        axis=1,
    )
    return _Layer(number, kept, features, pixel[kept], np.zeros(len(kept)))


def _contours(labels: Labels, count: int) -> Ints:
    """Count the pixel sides around every region."""
    sides = np.zeros(count, np.int64)
    for turned in (labels, labels.T):
        one, other = turned[:-1], turned[1:]
        differs = one != other
        for line in (one[differs], other[differs], turned[0], turned[-1]):
            sides += np.bincount(line, minlength=count)
    return sides


def _shared(one: Labels, other: Labels) -> tuple[Ints, Ints, Ints]:
    """Find pairs of labels that share pixels: the labels of both, and the number of pixels."""
    both = np.flatnonzero((one > 0) & (other > 0))
    width = int(other.max(initial=0)) + 1
    pairs = one.ravel()[both].astype(np.int64) * width + other.ravel()[both]
    pairs, count = np.unique(pairs, return_counts=True)
    return *np.divmod(pairs, width), count


def _best_ious(labels: Labels, truth: Labels, sizes: Ints, layer: _Layer) -> Floats:
    """Compute the highest IoU of each candidate of a layer with a true building."""
    area = np.zeros(int(labels.max(initial=0)) + 1)
    area[layer.label] = layer.features[:, _AREA]
    label, true, shared = _shared(labels, truth)
    best = np.zeros(len(area))
    np.maximum.at(best, label, shared / (area[label] + sizes[true] - shared))
    found: Floats = best[layer.label]
    return found


def _sharing(
    instances: Labels, labels: Labels, of_instances: _Layer, layer: _Layer, first: int
) -> Ints:
    """Find rivals of watershed candidates, numbered from 0, in a layer numbered from ``first``."""
    sides = []
    for found, source, start in ((of_instances, instances, 0), (layer, labels, first)):
        index = np.full(int(source.max(initial=0)) + 1, -1)
        index[found.label] = np.arange(len(found.label))
        sides.append((index, np.append(found.features[:, _AREA], np.inf), start))
    one, other, shared = _shared(instances, labels)
    (index, areas, _), (other_index, other_areas, start) = sides
    a, b = index[one], other_index[other]
    same = shared >= SAME_IOU * (areas[a] + other_areas[b] - shared)
    return np.stack([a[same], b[same] + start])
