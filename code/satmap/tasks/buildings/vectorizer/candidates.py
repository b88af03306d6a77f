"""Building candidates: watershed instances, and regions of the building map at 19 thresholds.

No single threshold suits all buildings. A selection model predicts the IoU of each candidate with
its true building, and the best of several candidates for the same building is kept (neptune's open
solution of the Mapping Challenge). Watershed parts compete with the whole blob in the same way, as
in the winning solution of SpaceNet 4.

Regions of a higher threshold lie inside those of lower ones. Their overlaps therefore follow from
the areas and one pixel of each region, and only one labelled image is in memory at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from satmap.rasters.scene import Box
from satmap.tasks.buildings.vectorizer.tracing import (
    Bytes,
    Floats,
    Ints,
    Labels,
    Mask,
    at_least,
    connected,
    corners_of,
    label_areas,
)

#: Layer 0 holds the watershed instances; layer k the building map from ``THRESHOLDS[k - 1]``.
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

#: Features of candidates among which are buildings that a cascade found, with its score.
SCORED_FEATURES = (*FEATURES, "score")

#: Layer of the buildings that a cascade found.
FOUND = -1

#: Two candidates with at least this IoU are the same building.
SAME_IOU = 0.5


@dataclass(frozen=True)
class Candidates:
    """Candidates of an image or a part of it.

    Attributes:
        layer: (n,), 0 for watershed instances, ``FOUND`` for those of a cascade, else 1 + index of
            the threshold.
        label: (n,), label of the candidate in its layer.
        features: (n, 10), see ``FEATURES``, or (n, 11) with the score of a cascade; lengths in
            pixels, probabilities 0..1.
        rivals: (2, pairs), pairs of candidates for the same building.
        ious: (n,), highest IoU with a true building; 0 if no truth was given.
    """

    layer: Ints
    label: Ints
    features: Floats
    rivals: Ints
    ious: Floats


def find_candidates(
    body: Bytes,
    instances: Labels,
    box: Box,
    shape: tuple[int, int],
    least_px: float,
    owned: Mask | None = None,
    truth: Labels | None = None,
    found: tuple[Labels, Floats] | None = None,
) -> Candidates:
    """Find the candidates in a crop of an image of some height and width (``shape``).

    All arrays are (height, width): ``body``, the building probability, 0..255 for 0..1; the
    instances from the watershed; the pixels that thresholds are applied to (``owned``, by default
    all); and the true buildings. Candidates with fewer than ``least_px`` pixels are left out.
    ``found`` are the buildings 1..n of a cascade, and the score of each.
    """
    own = [(0, instances)] + ([(FOUND, found[0])] if found else [])
    layers: list[_Layer] = []
    ious = []
    rivals = [np.empty((2, 0), np.int64)]
    # From the highest threshold down, so that the regions inside a region are known already.
    for number in (*(number for number, _ in own), *range(len(THRESHOLDS), 0, -1)):
        labels = dict(own)[number] if number <= 0 else layer_labels(body, number)
        if number > 0 and owned is not None:
            labels = np.where(owned, labels, 0)
        layer = _measure(number, labels, body, box, shape, least_px)
        ious.append(_best_ious(labels, truth, layer))
        before = sum(len(other.label) for other in layers)
        # Those among the instances, and those among the regions of higher thresholds.
        start = 0
        for other_layer, (_, others) in zip(layers, own, strict=False):
            one, other, shared = _shared(others, labels)
            a, area = other_layer.find(one)
            b, other_area = layer.find(other)
            same = shared >= SAME_IOU * (area + other_area - shared)
            rivals.append(np.stack([start + a[same], before + b[same]]))
            start += len(other_layer.label)
        if len(layers) > len(own):
            area = np.concatenate([inner.areas for inner in layers[len(own) :]])
            pixel = np.concatenate([inner.pixel for inner in layers[len(own) :]])
            b, other_area = layer.find(labels.ravel()[pixel])
            same = area >= SAME_IOU * other_area
            rivals.append(np.stack([start + np.flatnonzero(same), before + b[same]]))
        layers.append(layer)
    return Candidates(
        np.repeat([layer.number for layer in layers], [len(layer.label) for layer in layers]),
        np.concatenate([layer.label for layer in layers]),
        _with_scores(layers, found[1]) if found else np.concatenate([e.features for e in layers]),
        np.concatenate(rivals, axis=1),
        np.concatenate(ious),
    )


def _with_scores(layers: Sequence["_Layer"], scores: Floats) -> Floats:
    """Return the features of all layers with the scores of a cascade, 0 for other candidates."""
    return np.concatenate(
        [
            np.column_stack(
                [
                    layer.features,
                    scores[layer.label - 1] if layer.number == FOUND else 0 * layer.areas,
                ]
            )
            for layer in layers
        ]
    )


def layer_labels(body: Bytes, number: int) -> Labels:
    """Label the regions of the building map in threshold layer ``number`` (from 1)."""
    return connected(at_least(body, THRESHOLDS[number - 1])).labels


def non_maximum_suppression(scores: Floats, rivals: Ints) -> Ints:
    """Greedy non-maximum suppression: drop candidates with a better rival that is kept.

    Of equal scores (n,), the first is better. Of two rivals (2, pairs), only one may stay. Return
    the indices of the kept candidates, ascending.
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

    @property
    def areas(self) -> Floats:
        return self.features[:, _AREA]

    def find(self, labels: Labels | Ints) -> tuple[Ints, Floats]:
        """Return index and area of the candidates with these labels; -1 and inf if none has it."""
        place = np.searchsorted(self.label, labels)
        index = np.where(np.append(self.label, -1)[place] == labels, place, -1)
        return index, np.append(self.areas, np.inf)[index]


def _measure(
    number: int, labels: Labels, body: Bytes, box: Box, shape: tuple[int, int], least_px: float
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
    corners = corners_of([boxes[label - 1] for label in kept.tolist()]).astype(np.float64)
    wide, high = (corners[:, 2:] - corners[:, :2]).T
    corners += np.tile([box.left, box.top], 2)
    borders = np.concatenate([corners[:, :2], np.array(shape[::-1]) - corners[:, 2:]], axis=1)
    features = np.stack(
        [
            np.full(len(kept), THRESHOLDS[number - 1] if number > 0 else 0.0),
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
    return _Layer(number, kept, features, pixel[kept])


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


def _best_ious(labels: Labels, truth: Labels | None, layer: _Layer) -> Floats:
    """Compute the highest IoU of each candidate with a true building; 0 without truth."""
    if truth is None:
        return np.zeros(len(layer.label))
    sizes = label_areas(truth, int(truth.max()) + 1)
    label, true, shared = _shared(labels, truth)
    index, area = layer.find(label)
    # The last element collects regions that are no candidates.
    best = np.zeros(len(layer.label) + 1)
    np.maximum.at(best, index, shared / (area + sizes[true] - shared))
    return best[:-1]
