"""Training for buildings: the losses of their planes, and F1 by the real vectoriser and metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.cache import CachedChip
from satmap.evaluation.metrics.building_f1 import Counts, group_of, match_buildings
from satmap.evaluation.metrics.jaccard import Overlap, dice_and_iou
from satmap.rasters.probability_maps import BUILDING, ProbabilityMaps, resize_maps
from satmap.report.misses import scored_buildings_picture
from satmap.submissions.buildings_csv import BuildingRow
from satmap.tasks.buildings.losses import building_loss
from satmap.tasks.buildings.targets import BODY_BIT
from satmap.tasks.buildings.vectorizer.settings import BuildingSettingsByCategory
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tasks.roads.losses import BatchLoss


@dataclass(frozen=True)
class BuildingScore:
    """What a network made of one chip.

    Attributes:
        counts: buildings that were found, false and missed.
        overlap: of the bodies.
        rows: the buildings that the network found.
    """

    counts: Counts
    overlap: Overlap
    rows: list[BuildingRow]

    @property
    def caption(self) -> str:
        """The score in words."""
        return f"{self.counts.tp} found, {self.counts.fn} missed, {self.counts.fp} false"


@dataclass(frozen=True)
class BuildingObjective:
    """See :class:`satmap.tasks.objectives.Objective`.

    Attributes:
        parts: the planes that are learnt.
        settings: of the vectoriser.
    """

    parts: tuple[str, ...]
    settings: BuildingSettingsByCategory
    scores: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "dice", "iou")
    best: ClassVar[Mapping[str, str]] = {"f1": "best_f1", "dice": "best_dice"}
    labelled: ClassVar[str] = "building"

    @property
    def loss(self) -> BatchLoss:
        """The weighted sum over the planes."""
        return building_loss

    def score(
        self, maps: ProbabilityMaps, chip: CachedChip, target: NDArray[np.uint8]
    ) -> BuildingScore:
        """The buildings found, matched with the true ones, and the overlap of the masks."""
        body, truth = maps[BUILDING] >= 128, (target[..., 0] & BODY_BIT) > 0
        values = resize_maps(maps.values, chip.size)
        whole = ProbabilityMaps(maps.names, values, chip.metres_per_pixel)
        found = vectorize_buildings(whole, self.settings.of(chip.category))
        rows = [BuildingRow(building.polygon, building.confidence) for building in found]
        return BuildingScore(
            match_buildings(true_buildings(chip), rows).counts,
            Overlap.of(body, truth),
            rows,
        )

    def summary(
        self, chips: Sequence[CachedChip], scores: Sequence[BuildingScore]
    ) -> dict[str, float]:
        """``f1``, ``precision`` and ``recall`` at an IoU of .5 (from the counts of an area, or a
        category of looks, then the mean over these), ``dice`` and ``iou`` of the body (pooled over
        all pixels)."""
        groups: dict[str, Counts] = {}
        for chip, score in zip(chips, scores, strict=True):
            group = group_of(chip.image_id)
            groups[group] = groups.get(group, Counts()) + score.counts
        precision, recall, f1 = np.mean([_shares(counts) for counts in groups.values()], axis=0)
        return {
            "f1": float(f1),
            "precision": float(precision),
            "recall": float(recall),
            **dice_and_iou([score.overlap for score in scores]),
        }

    def picture(self, chip: CachedChip, score: BuildingScore) -> NDArray[np.uint8]:
        """What was found, missed and false, over the image."""
        image, _ = chip.read()
        height, width = chip.size
        return scored_buildings_picture(
            true_buildings(chip),
            score.rows,
            title=f"{score.caption}: {chip.image_id}",
            image=np.asarray(cv2.resize(image[..., :3], (width, height)), np.uint8),
        )


def true_buildings(chip: CachedChip) -> list[BuildingRow]:
    """The labelled buildings of a chip as rows, each part of one by itself, as files have them."""
    outlines = np.array(chip.outlines, np.object_)
    return [BuildingRow(polygon) for polygon in shapely.get_parts(outlines).tolist()]


def _shares(counts: Counts) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 for 0/0, as the challenge has it."""
    precision = counts.tp / max(counts.tp + counts.fp, 1)
    recall = counts.tp / max(counts.tp + counts.fn, 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)
