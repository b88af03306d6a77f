"""F1 of building footprints, the score of SpaceNet 1, 2 and 4.

The challenges' rule (Van Etten, Lindenbaum, Bacastow 2018, "SpaceNet: A Remote Sensing Dataset and
Challenge Series"): proposals in descending confidence each take the building of the truth that
they overlap best and that no earlier one has taken, if they share more than half of their union.
Their two scorers, one in Java and one in Python, differ at the margins. Where they do, this one
drops no polygon of exactly 20 square pixels, as the Java one, and repairs invalid polygons by a
buffer of zero width, as the Python one does with proposals; it does so with the truth too, which
the Python one leaves to be missed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.evaluation.metrics.figures import Figures, Report
from satmap.io.text import natural_key
from satmap.submissions.buildings_csv import SMALLEST_PX2, BuildingRow

#: Intersection over union; a match needs more.
LEAST_IOU = 0.5

# Margin for the rounding of bounds that spare an exact intersection.
_ROUNDING = 1e-9

# Pairs intersected at once: bounds the memory on images of whole cities.
_PAIRS = 1 << 16

# The angle from which a look of SpaceNet 4 was taken, in the image's id.
_VIEW_ANGLE = re.compile(r"nadir(\d+)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Matches:
    """Which proposals of an image found which buildings.

    Attributes:
        taken: int64 (proposals,), index of the building each proposal found; -1: none.
        counted_truth: bool (buildings,), whether each is large enough to count.
        counted: bool (proposals,), the same for proposals.
    """

    taken: NDArray[np.int64]
    counted_truth: NDArray[np.bool_]
    counted: NDArray[np.bool_]

    @property
    def counts(self) -> "Counts":
        """How many were found, false and missed."""
        found = int((self.taken >= 0).sum())
        return Counts(found, int(self.counted.sum()) - found, int(self.counted_truth.sum()) - found)


@dataclass(frozen=True)
class Counts:
    """True positives, false positives and false negatives, of one image or many."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


def match_buildings(truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow]) -> Matches:
    """Match the buildings of one image.

    Of equally sure proposals the first chooses first; of equally good buildings the first is
    taken. Polygons under 20 square pixels, measured before a repair as the scorers do, count on
    neither side.
    """
    buildings, building_areas, counted_truth = _measure(truth)
    polygons, areas, counted = _measure(proposals)
    near, at = np.empty((2, 0), np.intp)
    if counted.any() and counted_truth.any():
        near, at = shapely.STRtree(buildings).query(polygons)
        sizeable = counted[near] & counted_truth[at]
        near, at = near[sizeable], at[sizeable]
        # No more can be shared than the smaller of the two, and than their boxes have in common.
        most = np.minimum(areas[near], building_areas[at])
        most = np.minimum(most, _common_box(polygons, buildings, near, at))
        likely = most > (LEAST_IOU - _ROUNDING) * (areas[near] + building_areas[at] - most)
        near, at = near[likely], at[likely]
    shared = _shared_areas(polygons, buildings, near, at)
    union = areas[near] + building_areas[at] - shared
    good = shared > LEAST_IOU * union
    near, at, iou = near[good], at[good], shared[good] / union[good]

    confidences = np.array([row.confidence for row in proposals])
    rank = np.empty(len(proposals), np.intp)
    rank[np.argsort(-confidences, kind="stable")] = np.arange(len(proposals))
    taken = [-1] * len(proposals)
    free = [True] * len(truth)
    order = np.lexsort((at, -iou, rank[near]))
    for proposal, building in zip(near[order].tolist(), at[order].tolist(), strict=True):
        if taken[proposal] < 0 and free[building]:
            taken[proposal] = building
            free[building] = False
    return Matches(np.array(taken, np.int64), counted_truth, counted)


def score_buildings(
    truth: Mapping[str, Sequence[BuildingRow]], proposal: Mapping[str, Sequence[BuildingRow]]
) -> Report:
    """Score a whole file: per image, per group of images, in total.

    Groups are AOIs (see :func:`group_of`); for SpaceNet 4, whose ids name the look's angle, the
    categories ``nadir`` (up to 25 degrees), ``off-nadir`` (up to 40) and ``very off-nadir``. All
    have ``tp, fp, fn, precision, recall, f1``; groups and total also ``images``, how many were
    scored, and the fair counting: images that only one file has are missed or false as a whole.

    A group's F1 follows from its summed counts. The total sums the counts, but its precision,
    recall and F1 are the means over the groups that occur. As in the official scorers 0/0 is 0, so
    a group where there is nothing to find, or no image to score, has an F1 of 0. Only a single
    image that is empty on both sides has 1: there is nothing wrong with it, and no official score.
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
    perfect = {"precision": 1.0, "recall": 1.0, "f1": 1.0}
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
    """What an image is scored with: its AOI, or the nadir category of a SpaceNet 4 look.

    The AOI is the first three ``_``-separated parts of the id, of which the last part is never
    one: SpaceNet 1's ``013022223130_Public_img1`` belongs to ``013022223130_Public``.
    """
    if view_angle := _VIEW_ANGLE.search(image_id):
        angle = int(view_angle[1])
        return "nadir" if angle <= 25 else "off-nadir" if angle <= 40 else "very off-nadir"
    return "_".join(image_id.split("_")[:-1][:3]) or "all"


def _measure(
    rows: Sequence[BuildingRow],
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.bool_]]:
    """Valid polygons, their areas, and which are large enough to count."""
    polygons = np.array([row.polygon for row in rows], np.object_)
    areas = shapely.area(polygons)
    counted = areas >= SMALLEST_PX2
    invalid = ~shapely.is_valid(polygons)
    polygons[invalid] = shapely.buffer(polygons[invalid], 0)
    areas[invalid] = shapely.area(polygons[invalid])
    return polygons, areas, counted


def _common_box(
    polygons: NDArray[np.object_],
    buildings: NDArray[np.object_],
    near: NDArray[np.intp],
    at: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Area that the bounding boxes of each pair have in common."""
    a, b = shapely.bounds(polygons)[near], shapely.bounds(buildings)[at]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common: NDArray[np.float64] = np.maximum(sides, 0).prod(axis=1)
    return common


def _shared_areas(
    polygons: NDArray[np.object_],
    buildings: NDArray[np.object_],
    near: NDArray[np.intp],
    at: NDArray[np.intp],
) -> NDArray[np.float64]:
    shared = np.empty(len(near))
    for begin in range(0, len(near), _PAIRS):
        pairs = slice(begin, begin + _PAIRS)
        shared[pairs] = shapely.area(
            shapely.intersection(polygons[near[pairs]], buildings[at[pairs]])
        )
    return shared


def _figures(counts: Counts) -> dict[str, float | int]:
    precision = _share(counts.tp, counts.tp + counts.fp)
    recall = _share(counts.tp, counts.tp + counts.fn)
    # From the two rather than from the counts: rounds as the official scorers do.
    f1 = _share(2 * precision * recall, precision + recall)
    return {
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _total(groups: Sequence[Figures]) -> Figures:
    """Counts added up, shares as means over the groups."""
    shares = ("precision", "recall", "f1")
    empty = _figures(Counts())
    total: dict[str, float | int] = {}
    for name in (*empty, *(f"fair_{name}" for name in empty), "images"):
        added = sum(group[name] or 0 for group in groups)
        is_share = name.removeprefix("fair_") in shares
        total[name] = _share(added, len(groups)) if is_share else added
    return total
