"""Merge the candidates of an image into buildings: suppression, voting on masks, outlines.

Source: the mask voting of Multi-task Network Cascades, https://arxiv.org/abs/1512.04412. There the
candidates come from all rounds of one network; here they also come from all windows, symmetries and
networks of an ensemble. Importable without torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.building_instances.settings import MergeSettings
from satmap.tasks.buildings.measures import rate_buildings
from satmap.tasks.buildings.selection import read_selection_once
from satmap.tasks.buildings.vectorizer.candidates import (
    non_maximum_suppression,
)
from satmap.tasks.buildings.vectorizer.polygons import clipped, exact_polygons, simplify_outlines
from satmap.tasks.buildings.vectorizer.right_angles import squared_outlines, touching
from satmap.tasks.buildings.vectorizer.tracing import (
    Floats,
    Ints,
    Labels,
    connected,
    connected_groups,
)
from satmap.tasks.buildings.vectorizer.vectorize_buildings import selected_outlines
from satmap.tasks.calibration import read_calibration
from satmap.tasks.result_decoders import NO_MODELS, FittedModels
from satmap.vectors.buildings import Building, Polygons

#: Left, top, right and bottom of a rectangle.
Corners = tuple[float, float, float, float]

# A candidate whose box ends this close to a window's edge may be cut there, pixels.
_CUT_PX = 2.0
# Two cut candidates belong to one building if they share this part of the smaller one.
_SAME = 0.5


@dataclass(frozen=True)
class Candidates:
    """Candidates for buildings, in pixels of an image.

    Attributes:
        boxes: float64 (n, 4), left, top, right, bottom.
        scores: float64 (n,), 0..1.
        masks: uint8 (n, m, m), building probability on a grid over the box, 0..255 for 0..1.
        is_cut: bool (n,), whether the edge of a window may have cut the building.
        seen: float64 (n, 4), the window of each candidate; None if all were found in one window.
    """

    boxes: Floats
    scores: Floats
    masks: NDArray[np.uint8]
    is_cut: NDArray[np.bool_]
    seen: Floats | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def join(cls, parts: Sequence["Candidates"], mask_px: int) -> "Candidates":
        """Join candidates with windows, in the order of the parts.

        ``mask_px`` is the side of their masks.
        """
        none = cls(
            np.empty((0, 4)),
            np.empty(0),
            np.empty((0, mask_px, mask_px), np.uint8),
            np.empty(0, np.bool_),
            np.empty((0, 4)),
        )
        every = [none, *parts]
        return cls(
            np.concatenate([part.boxes for part in every]),
            np.concatenate([part.scores for part in every]),
            np.concatenate([part.masks for part in every]),
            np.concatenate([part.is_cut for part in every]),
            np.concatenate([part.seen for part in every if part.seen is not None]),
        )


@dataclass(frozen=True)
class Instance:
    """A building as a mask.

    Attributes:
        left, top: column and row of the mask's first pixel in the image.
        probability: float32 (h, w), the share of the votes for each pixel, 0..1.
        score: 0..1.
    """

    left: int
    top: int
    probability: NDArray[np.float32]
    score: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom."""
        height, width = self.probability.shape
        return self.left, self.top, self.left + width, self.top + height


class Instances(list[Instance]):
    """The buildings of an image, with its probability maps if the network has any.

    Attributes:
        maps: probability maps of the image. For a block of a map they include its surroundings.
        left, top: column and row of the maps' first pixel in the image.
    """

    def __init__(
        self,
        found: Iterable[Instance],
        maps: ProbabilityMaps | None = None,
        left: int = 0,
        top: int = 0,
    ) -> None:
        super().__init__(found)
        self.maps, self.left, self.top = maps, left, top


class _Pairs:
    """Pairs of candidates whose boxes intersect, and their intersection over union."""

    def __init__(self, boxes: Floats) -> None:
        rectangles = shapely.box(*boxes.T)
        one, other = shapely.STRtree(rectangles).query(rectangles)
        later = one < other
        self.one, self.other = one[later], other[later]
        self._boxes = boxes

    @cached_property
    def common(self) -> Floats:
        """Area of the intersection."""
        a, b = self._boxes[self.one], self._boxes[self.other]
        sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
        return np.asarray(sides.clip(0).prod(axis=1))

    @cached_property
    def iou(self) -> Floats:
        """Intersection over union."""
        area = (self._boxes[:, 2:] - self._boxes[:, :2]).prod(axis=1)
        union = area[self.one] + area[self.other] - self.common
        return np.asarray(self.common / np.maximum(union, 1e-9))


def vote(
    candidates: Candidates,
    weights: Floats,
    whole: Corners,
    settings: MergeSettings,
    least_score: float,
) -> list[Instance]:
    """Suppress candidates, and let all candidates vote on the masks of those that stay.

    The result does not depend on the order of the candidates, except among equal scores.

    Args:
        candidates: the candidates of an image.
        weights: (n,), factor of each candidate's vote; a vote also counts by its score.
        whole: rectangle that masks are clipped to.
        settings: suppression and voting.
        least_score: buildings with a lower score are left out.

    Returns:
        The buildings, the best ones first. Two cut parts of one building are united.
    """
    pairs, cut = _Pairs(candidates.boxes), candidates.is_cut
    kept = _chosen(candidates, pairs, settings, least_score)
    voters = _voters(kept, pairs, pairs.iou >= settings.voting)
    drawn = [
        _average(candidates, weights, each, index, whole)
        for index, each in zip(kept.tolist(), voters, strict=True)
    ]
    places = [place for place, each in enumerate(drawn) if each is not None]
    found = [each for each in drawn if each is not None]
    kept = kept[places]
    windows = None if candidates.seen is None else candidates.seen[kept]
    return _apart(_united(found, cut[kept], windows, settings), settings)


def _chosen(
    candidates: Candidates, pairs: _Pairs, settings: MergeSettings, least_score: float
) -> Ints:
    """Return the candidates that become buildings or parts of one, the best ones first."""
    good, cut = candidates.scores >= least_score, candidates.is_cut
    area = (candidates.boxes[:, 2:] - candidates.boxes[:, :2]).prod(axis=1)
    for part, whole in ((pairs.one, pairs.other), (pairs.other, pairs.one)):
        # A part of a building that another window shows whole.
        seen_whole = cut[part] & ~cut[whole] & (candidates.scores[whole] >= least_score)
        good[part[seen_whole & (pairs.common >= _SAME * area[part])]] = False
    rivals = (pairs.iou > settings.suppression) & good[pairs.one] & good[pairs.other]
    # Two windows may show different parts of one building.
    rivals &= ~(cut[pairs.one] & cut[pairs.other] & _differ(candidates.seen, pairs))
    # A candidate that no window cuts is better than any that is cut.
    rank = candidates.scores - cut
    kept = non_maximum_suppression(rank, np.stack([pairs.one[rivals], pairs.other[rivals]]))
    kept = kept[good[kept]]
    return kept[np.argsort(-candidates.scores[kept], kind="stable")]


def _differ(windows: Floats | None, pairs: _Pairs) -> NDArray[np.bool_]:
    """Return which pairs of candidates were found in different windows."""
    if windows is None:
        return np.zeros(len(pairs.one), np.bool_)
    return np.asarray((windows[pairs.one] != windows[pairs.other]).any(axis=1))


def _apart(found: list[Instance], settings: MergeSettings) -> list[Instance]:
    """Drop buildings that share too much with a better one; the best ones come first."""
    if settings.overlap >= 1 or len(found) < 2:
        return found
    pairs = _Pairs(np.array([each.box for each in found], np.float64))
    rivals = np.array(
        [
            _overlap(found[a], found[b], settings.threshold) > settings.overlap
            for a, b in zip(pairs.one.tolist(), pairs.other.tolist(), strict=True)
        ],
        np.bool_,
    )
    scores = np.array([each.score for each in found])
    kept = non_maximum_suppression(scores, np.stack([pairs.one[rivals], pairs.other[rivals]]))
    return [found[index] for index in kept.tolist()]


def _voters(kept: Ints, pairs: _Pairs, near: NDArray[np.bool_]) -> list[Ints]:
    """Return the candidates that vote on each kept one, itself included."""
    one = np.concatenate([pairs.one[near], pairs.other[near], kept])
    other = np.concatenate([pairs.other[near], pairs.one[near], kept])
    order = np.argsort(one, kind="stable")
    one, other = one[order], other[order]
    starts = np.searchsorted(one, kept, "left")
    ends = np.searchsorted(one, kept, "right")
    return [np.sort(other[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def _average(
    candidates: Candidates, weights: Floats, voters: Ints, kept: int, whole: Corners
) -> Instance | None:
    """Draw the masks of the voters on pixels, and average them by their weights.

    A candidate has no vote on pixels that its window does not show. Returns None if no box holds
    the centre of a pixel.
    """
    least, most = np.floor(whole[:2]).astype(int), np.ceil(whole[2:]).astype(int)
    boxes = _pixels(candidates.boxes[voters]).clip(np.tile(least, 2), np.tile(most, 2))
    valid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    voters, boxes = voters[valid], boxes[valid]
    if not len(voters):
        return None
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    total = np.zeros((bottom - top, right - left), np.float32)
    share = candidates.scores[voters] * weights[voters]
    for voter, corners, part in zip(voters.tolist(), boxes.tolist(), share.tolist(), strict=True):
        x, y, end_x, end_y = corners
        drawn = _drawn(candidates.masks[voter], candidates.boxes[voter], (x, y, end_x, end_y))
        total[y - top : end_y - top, x - left : end_x - left] += drawn * part
    votes: float | NDArray[np.float32] = float(share.sum())
    if (
        candidates.seen is not None
        and (candidates.seen[voters] != candidates.seen[voters[0]]).any()
    ):
        votes = np.zeros_like(total)
        shown = _pixels(candidates.seen[voters]).clip((left, top) * 2, (right, bottom) * 2)
        for (x, y, end_x, end_y), part in zip(shown.tolist(), share.tolist(), strict=True):
            votes[y - top : end_y - top, x - left : end_x - left] += part
    total /= np.maximum(votes, 1e-9) * 255
    return Instance(left, top, total, float(candidates.scores[kept]))


def _pixels(boxes: Floats) -> Ints:
    """Return the pixels whose centres lie in boxes (n, 4): left, top, right and bottom."""
    return np.ceil(boxes - 0.5).astype(np.int64)


def _drawn(
    mask: NDArray[np.uint8], box: Floats, pixels: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """Resample a mask over a box to the pixels of a rectangle, bilinearly, 0..255."""
    side = len(mask)
    left, top, right, bottom = pixels
    scale_x, scale_y = side / (box[2] - box[0]), side / (box[3] - box[1])
    matrix = np.array(
        [
            [scale_x, 0, (left + 0.5 - box[0]) * scale_x - 0.5],
            [0, scale_y, (top + 0.5 - box[1]) * scale_y - 0.5],
        ]
    )
    drawn = cv2.warpAffine(
        mask.astype(np.float32),
        matrix,
        (right - left, bottom - top),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(drawn, np.float32)


def _united(
    found: list[Instance],
    is_cut: NDArray[np.bool_],
    windows: Floats | None,
    settings: MergeSettings,
) -> list[Instance]:
    """Unite the parts of buildings that different windows have cut and that overlap."""
    cut = np.flatnonzero(is_cut)
    if len(cut) < 2 or windows is None:
        return found
    boxes = np.array([found[index].box for index in cut.tolist()], np.float64)
    pairs = _Pairs(boxes)
    same = [
        _overlap(found[cut[a]], found[cut[b]], settings.threshold) >= _SAME
        for a, b in zip(pairs.one.tolist(), pairs.other.tolist(), strict=True)
    ]
    links = np.stack([pairs.one, pairs.other])[
        :, np.array(same, np.bool_) & _differ(windows[cut], pairs)
    ]
    if not links.size:
        return found
    group = connected_groups(links, len(cut))
    members: dict[int, list[int]] = {}
    for place, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(int(cut[place]))
    joined = {parts[0]: _whole([found[p] for p in parts]) for parts in members.values()}
    dropped = {part for parts in members.values() for part in parts[1:]}
    kept = [joined.get(i, each) for i, each in enumerate(found) if i not in dropped]
    return sorted(kept, key=lambda each: -each.score)


def _overlap(one: Instance, other: Instance, threshold: float) -> float:
    """Return which share of the smaller mask both have in common; both are cut to both boxes."""
    left, top = max(one.left, other.left), max(one.top, other.top)
    right, bottom = min(one.box[2], other.box[2]), min(one.box[3], other.box[3])
    if right <= left or bottom <= top:
        return 0.0
    parts = [
        each.probability[top - each.top : bottom - each.top, left - each.left : right - each.left]
        >= threshold
        for each in (one, other)
    ]
    smaller = min(part.sum() for part in parts)
    return float((parts[0] & parts[1]).sum() / smaller) if smaller else 0.0


def _whole(parts: Sequence[Instance]) -> Instance:
    """Return the union of parts; the score is that of the best one."""
    if len(parts) == 1:
        return parts[0]
    boxes = np.array([part.box for part in parts])
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    probability = np.zeros((bottom - top, right - left), np.float32)
    for part in parts:
        rows = slice(part.top - top, part.top - top + part.probability.shape[0])
        columns = slice(part.left - left, part.left - left + part.probability.shape[1])
        np.maximum(probability[rows, columns], part.probability, out=probability[rows, columns])
    return Instance(left, top, probability, max(part.score for part in parts))


def cut_by_window(boxes: Floats, seen: Corners, whole: Corners) -> NDArray[np.bool_]:
    """Return which boxes (n, 4) end at an edge of a window that is not an edge of the image."""
    edges, ends = np.array(seen), np.array(whole)
    return np.asarray(((np.abs(boxes - edges) <= _CUT_PX) & (edges != ends)).any(axis=1))


@dataclass(frozen=True)
class InstanceDecoder:
    """Turns the buildings of an image, as masks, into outlines.

    Attributes:
        settings: how candidates become buildings; here least score and sizes, threshold, outlines.
        shape: height and width of the image.
        metres_per_pixel: along x and y.
        models: the selection model, which chooses among these buildings and those of the
            probability maps; without one, the buildings are taken as they are. And the calibration;
            without one, buildings have no confidence.
    """

    settings: MergeSettings
    shape: tuple[int, int]
    metres_per_pixel: tuple[float, float]
    models: FittedModels = NO_MODELS

    def decode(self, prediction: Sequence[Instance]) -> list[Building]:
        """Return the buildings that touch the image, the best ones first.

        They may extend into its surroundings. They do not overlap: a pixel belongs to the building
        with the most votes there.
        """
        if self.models.selection and isinstance(prediction, Instances) and prediction.maps:
            return self._touching(self._pooled(prediction, prediction.maps))
        least = self.settings.least_score
        prediction = [each for each in prediction if each.score >= least]
        found: list[Building] = []
        if not prediction:
            return found
        boxes = np.array([each.box for each in prediction], np.float64)
        pairs = _Pairs(boxes)
        group = connected_groups(np.stack([pairs.one, pairs.other]), len(boxes))
        for number in np.unique(group).tolist():
            found += self._outlined(
                [prediction[i] for i in np.flatnonzero(group == number).tolist()]
            )
        return self._touching(found)

    def _touching(self, found: Sequence[Building]) -> list[Building]:
        """Return the buildings that touch the image, rated, the best ones first."""
        image = shapely.box(0, 0, self.shape[1], self.shape[0])
        touching = [building for building in found if building.polygon.intersects(image)]
        if self.models.calibration is not None:
            calibration = read_calibration(self.models.calibration)
            touching = rate_buildings(touching, None, calibration)
        return sorted(touching, key=lambda each: (-each.score, each.polygon.wkb))

    def _pooled(self, prediction: Instances, maps: ProbabilityMaps) -> list[Building]:
        """Choose among the buildings of the cascade and those of the probability maps."""
        assert self.models.selection is not None
        model, settings = read_selection_once(self.models.selection), self.settings
        corner = np.array([prediction.left, prediction.top])
        labels = draw_found(prediction, maps.shape, corner, settings.threshold)
        scores = np.array([each.score for each in prediction])
        buildings: list[Building] = []
        for outlines, ious in selected_outlines(
            maps, settings.watershed, settings.least_iou, model, (labels, scores)
        ):
            buildings += map(Building, self._simplified(outlines, corner), ious.tolist())
        return buildings

    def _outlined(self, group: Sequence[Instance]) -> list[Building]:
        """Return the outlines of buildings whose boxes are connected by overlaps."""
        settings = self.settings
        corners = np.array([each.box for each in group])
        left, top = corners[:, :2].min(axis=0).tolist()
        right, bottom = corners[:, 2:].max(axis=0).tolist()
        shape = bottom - top, right - left
        labels = draw_found(group, shape, np.array([left, top]), settings.threshold)
        for number, each in enumerate(group, 1):
            self._tidy(labels, number, each, left, top)
        exact = exact_polygons(labels)
        present = [index for index, outline in enumerate(exact) if outline is not None]
        if not present:
            return []
        outlines = np.array([exact[index] for index in present], np.object_)
        drawn = self._simplified(outlines, np.array([left, top]))
        return [
            Building(polygon, group[index].score)
            for index, polygon in zip(present, drawn, strict=True)
        ]

    def _tidy(
        self, labels: NDArray[np.int32], number: int, each: Instance, left: int, top: int
    ) -> None:
        """Keep the largest part of a building, fill its small holes, drop it if it is small."""
        rows = slice(each.top - top, each.top - top + each.probability.shape[0])
        columns = slice(each.left - left, each.left - left + each.probability.shape[1])
        window = labels[rows, columns]
        parts = connected(window == number)
        if parts.count <= 1:
            return
        largest = 1 + int(parts.areas[1:].argmax())
        window[(parts.labels > 0) & (parts.labels != largest)] = 0
        body = np.pad(window == number, 1)
        holes = connected(~body)
        small = np.flatnonzero(holes.areas < self.settings.hole_px)
        small = small[(small > 0) & (small != holes.labels[0, 0])]
        if len(small):
            filled = np.isin(holes.labels, small)[1:-1, 1:-1] & (window == 0)
            window[filled] = number
        if (window == number).sum() < max(self.settings.least_px, 1):
            window[window == number] = 0

    def _simplified(self, exact: Polygons, corner: Ints) -> Polygons:
        """Simplify outlines whose origin is a pixel of the image, and move them to it."""
        settings = self.settings
        outlines = simplify_outlines(exact, settings.simplify_px)
        for group in touching(exact) if settings.simplify_px else ():
            if len(group) > 1:
                # Shared walls stay shared: neighbours get the same vertices.
                coverage = shapely.segmentize(exact[group], 1.0)
                outlines[group] = shapely.coverage_simplify(coverage, settings.simplify_px)
        outlines, exact = (
            shapely.transform(each, lambda xy: xy + corner) for each in (outlines, exact)
        )
        if settings.right_angles:
            outlines = squared_outlines(
                exact, outlines, settings.simplify_px, self.shape, self.metres_per_pixel
            )
        return clipped(outlines, exact, self.shape)


def draw_found(
    found: Sequence[Instance], shape: tuple[int, int], corner: Ints, threshold: float
) -> Labels:
    """Number the pixels of buildings: 1 + index of the one with the most votes, 0 for the ground.

    The result is int32 of a height and width; its first pixel is ``corner`` (x, y) of the image.
    """
    labels = np.zeros(shape, np.int32)
    most = np.full(shape, threshold, np.float32)
    for number, each in enumerate(found, 1):
        left, top = each.left - int(corner[0]), each.top - int(corner[1])
        rows = slice(max(top, 0), max(top + each.probability.shape[0], 0))
        columns = slice(max(left, 0), max(left + each.probability.shape[1], 0))
        height, width = labels[rows, columns].shape
        part = each.probability[rows.start - top :, columns.start - left :][:height, :width]
        higher = part > most[rows, columns]
        most[rows, columns][higher] = part[higher]
        labels[rows, columns][higher] = number
    return labels
