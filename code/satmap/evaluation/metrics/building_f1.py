"""F1 of building footprints, the score of SpaceNet 1, 2 and 4.

The challenges' rule (Van Etten, Lindenbaum, Bacastow 2018, "SpaceNet: A Remote Sensing Dataset and
Challenge Series"): proposals choose in descending order of confidence. Each takes the free building
that it overlaps best, if their intersection over union is more than 0.5. The official Java and
Python scorers differ in details. Where they do, this scorer keeps polygons of exactly 20 square
pixels, like the Java scorer, and repairs invalid proposals with a zero-width buffer, like the
Python scorer. It also repairs invalid buildings of the truth, which the Python scorer counts as
missed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.evaluation.metrics.figures import Counts, Figures, Report
from satmap.io.text import natural_key
from satmap.submissions.buildings_csv import SMALLEST_PX2, BuildingRow

#: The intersection over union of a match must be larger than this.
LEAST_IOU = 0.5

# Margin for rounding errors when bounds rule out a pair without an exact intersection.
_ROUNDING = 1e-9

# Pairs intersected at a time; bounds memory on images of whole cities.
_PAIRS = 1 << 16

_SHARES = ("precision", "recall", "f1")

# Off-nadir angle in the id of a SpaceNet 4 image.
_VIEW_ANGLE = re.compile(r"nadir(\d+)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches between the proposals and the buildings of one image.

    Attributes:
        taken: int64 (proposals,), index of the building that each proposal matched; -1 for none.
        counted_truth: bool (buildings,), whether each building is large enough to count.
        counted: bool (proposals,), whether each proposal is large enough to count.
    """

    taken: NDArray[np.int64]
    counted_truth: NDArray[np.bool_]
    counted: NDArray[np.bool_]

    @property
    def counts(self) -> Counts:
        """Numbers of buildings found, false and missed."""
        found = int((self.taken >= 0).sum())
        return Counts(found, int(self.counted.sum()) - found, int(self.counted_truth.sum()) - found)


def match_buildings(truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow]) -> Matches:
    """Match the proposals of one image with its buildings.

    Of equally confident proposals the first chooses first; of equally good buildings the first is
    taken. Polygons under 20 square pixels do not count on either side. Their area is measured
    before a repair, as in the official scorers.
    """
    buildings, building_areas, counted_truth = measure(truth)
    polygons, areas, counted = measure(proposals)
    # Candidate pairs of proposal i and building j.
    i, j = np.empty((2, 0), np.intp)
    if counted.any() and counted_truth.any():
        i, j = shapely.STRtree(buildings).query(polygons)
        sizeable = counted[i] & counted_truth[j]
        i, j = i[sizeable], j[sizeable]
        # An intersection is at most the smaller polygon and at most the overlap of the boxes.
        most = np.minimum(areas[i], building_areas[j])
        a, b = shapely.bounds(polygons)[i], shapely.bounds(buildings)[j]
        sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
        most = np.minimum(most, np.maximum(sides, 0).prod(axis=1))
        likely = most > (LEAST_IOU - _ROUNDING) * (areas[i] + building_areas[j] - most)
        i, j = i[likely], j[likely]
    shared = np.empty(len(i))
    for begin in range(0, len(i), _PAIRS):
        part = slice(begin, begin + _PAIRS)
        shared[part] = shapely.area(shapely.intersection(polygons[i[part]], buildings[j[part]]))
    union = areas[i] + building_areas[j] - shared
    good = shared > LEAST_IOU * union
    i, j, iou = i[good], j[good], shared[good] / union[good]

    confidences = np.array([row.score for row in proposals])
    taken = [-1] * len(proposals)
    free = [True] * len(truth)
    order = np.lexsort((j, -iou, i, -confidences[i]))
    for proposal, building in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if taken[proposal] < 0 and free[building]:
            taken[proposal] = building
            free[building] = False
    return Matches(np.array(taken, np.int64), counted_truth, counted)


def best_ious(
    truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow], matches: Matches
) -> NDArray[np.float64]:
    """Return each proposal's intersection over union, float64 (proposals,), for pictures.

    It is that with the matched building, or else the largest with any building; 0 without overlap.
    """
    buildings, building_areas, _ = measure(truth)
    polygons, areas, _ = measure(proposals)
    best = np.zeros(len(proposals))
    if not (len(buildings) and len(polygons)):
        return best
    i, j = shapely.STRtree(buildings).query(polygons)
    shared = shapely.area(shapely.intersection(polygons[i], buildings[j]))
    iou = shared / np.maximum(areas[i] + building_areas[j] - shared, _ROUNDING)
    np.maximum.at(best, i, iou)
    matched = matches.taken[i] == j
    best[i[matched]] = iou[matched]
    return best


def score_buildings(
    truth: Mapping[str, Sequence[BuildingRow]], proposal: Mapping[str, Sequence[BuildingRow]]
) -> Report:
    """Score a whole file: per image, per group of images, and in total.

    Groups are AOIs (see :func:`group_of`). For SpaceNet 4, whose ids contain the off-nadir angle,
    they are the categories ``nadir`` (up to 25 degrees), ``off-nadir`` (up to 40) and
    ``very off-nadir``. All have ``tp, fp, fn, precision, recall, f1``. Groups and total also have
    ``images``, the number of images scored, and ``fair_`` figures, which count images that are in
    only one file as entirely missed or false.

    A group's F1 follows from its summed counts. The total sums the counts, but averages precision,
    recall and F1 over the groups that occur. As in the official scorers 0/0 is 0, so a group with
    nothing to find or no image to score has an F1 of 0. The official scorers have no score of
    single images; here an image that is empty on both sides scores 1.
    """
    ids = sorted(truth.keys() | proposal.keys(), key=natural_key)
    counts = {
        image_id: match_buildings(truth.get(image_id, ()), proposal.get(image_id, ())).counts
        for image_id in ids
    }
    scored = truth.keys() & proposal.keys()
    members: dict[str, list[str]] = {}
    for image_id in ids:
        members.setdefault(group_of(image_id), []).append(image_id)
    groups: dict[str, Figures] = {}
    for group, of_group in members.items():
        official = [counts[image_id] for image_id in of_group if image_id in scored]
        fair = _figures(sum((counts[image_id] for image_id in of_group), Counts()))
        groups[group] = {
            **_figures(sum(official, Counts())),
            **{f"fair_{name}": figure for name, figure in fair.items()},
            "images": len(official),
        }
    perfect = dict.fromkeys(_SHARES, 1.0)
    return Report(
        metric="building_f1",
        total=_total(list(groups.values())),
        aois=groups,
        images={
            image_id: _figures(counts[image_id]) | (perfect if counts[image_id] == Counts() else {})
            for image_id in ids
            if image_id in scored
        },
        truth_only=tuple(image_id for image_id in ids if image_id not in proposal),
        proposal_only=tuple(image_id for image_id in ids if image_id not in truth),
    )


def group_of(image_id: str) -> str:
    """Return the group of an image: its AOI, or the nadir category of a SpaceNet 4 image.

    The AOI is the first three ``_``-separated parts of the id, but never includes the last part:
    SpaceNet 1's ``013022223130_Public_img1`` belongs to ``013022223130_Public``.
    """
    if view_angle := _VIEW_ANGLE.search(image_id):
        angle = int(view_angle[1])
        return "nadir" if angle <= 25 else "off-nadir" if angle <= 40 else "very off-nadir"
    return "_".join(image_id.split("_")[:-1][:3]) or "all"


def measure(
    rows: Sequence[BuildingRow],
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.bool_]]:
    """Return repaired polygons, their areas, and whether each is large enough to count."""
    polygons = np.array([row.polygon for row in rows], np.object_)
    areas = shapely.area(polygons)
    counted = areas >= SMALLEST_PX2
    invalid = ~shapely.is_valid(polygons)
    polygons[invalid] = shapely.buffer(polygons[invalid], 0)
    areas[invalid] = shapely.area(polygons[invalid])
    return polygons, areas, counted


def precision_recall_f1(counts: Counts) -> tuple[float, float, float]:
    """Return precision, recall and F1, 0..1; 0/0 counts as 0, as in the official scorers."""
    precision = _share(counts.tp, counts.tp + counts.fp)
    recall = _share(counts.tp, counts.tp + counts.fn)
    # Computed from precision and recall, not from the counts, to round like the official scorers.
    return precision, recall, _share(2 * precision * recall, precision + recall)


def _figures(counts: Counts) -> dict[str, float | int]:
    shares = zip(_SHARES, precision_recall_f1(counts), strict=True)
    return {**asdict(counts), **dict(shares)}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _total(groups: Sequence[Figures]) -> Figures:
    """Sum the counts and average precision, recall and F1 over the groups."""
    empty = _figures(Counts())
    total: dict[str, float | int] = {}
    for name in (*empty, *(f"fair_{name}" for name in empty), "images"):
        added = sum(group[name] or 0 for group in groups)
        is_share = name.removeprefix("fair_") in _SHARES
        total[name] = _share(added, len(groups)) if is_share else added
    return total
