"""Training for roads: the losses of their heads, and APLS by the real vectoriser and metric."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from satmap.data.cache import CachedChip
from satmap.evaluation.metrics.apls import apls
from satmap.evaluation.metrics.jaccard import Overlap, dice_and_iou
from satmap.rasters.probability_maps import ROAD, ProbabilityMaps
from satmap.report.road_overlay import side_by_side
from satmap.submissions.roads_csv import RoadRow, rows_of_graph
from satmap.tasks.roads.losses import BatchLoss, road_loss
from satmap.tasks.roads.targets import CLASS_BITS
from satmap.tasks.roads.vectorizer.settings import RoadSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import line_length_m


@dataclass(frozen=True)
class RoadScore:
    """What a network made of one chip.

    Attributes:
        apls, apls_time: 0..1.
        overlap: of the road masks.
        rows: the roads that the network found.
    """

    apls: float
    apls_time: float
    overlap: Overlap
    rows: list[RoadRow]

    @property
    def caption(self) -> str:
        """The score in words."""
        return f"APLS {self.apls:.3f}"


@dataclass(frozen=True)
class RoadObjective:
    """See :class:`satmap.tasks.objectives.Objective`.

    Attributes:
        settings: of the vectoriser.
    """

    settings: RoadSettings
    parts: ClassVar[tuple[str, ...]] = ("road", "speed", "junction")
    scores: ClassVar[tuple[str, ...]] = ("apls", "apls_time", "dice", "iou")
    best: ClassVar[Mapping[str, str]] = {"apls": "best_apls", "dice": "best_dice"}
    labelled: ClassVar[str] = "road"

    @property
    def loss(self) -> BatchLoss:
        """The weighted sum over road, speed and junction."""
        return road_loss

    def score(
        self, maps: ProbabilityMaps, chip: CachedChip, target: NDArray[np.uint8]
    ) -> RoadScore:
        """APLS of the roads found, and the overlap of the masks."""
        rows = rows_of_graph(vectorize_roads(maps, self.settings))
        metres = float(np.mean(chip.metres_per_pixel))
        score = apls(truth_rows(chip), rows, metres_per_pixel=metres)
        assert score.time is not None, "both sides state travel times"
        road, truth = maps[ROAD] >= 128, (target & CLASS_BITS) > 0
        return RoadScore(
            score.length.score,
            score.time.score,
            Overlap.of(road, truth),
            rows,
        )

    def summary(self, chips: Sequence[CachedChip], scores: Sequence[RoadScore]) -> dict[str, float]:
        """``apls`` and ``apls_time`` (mean over the chips of an area, then over areas), ``dice``
        and ``iou`` of the road mask (pooled over all pixels)."""
        by_aoi: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for chip, score in zip(chips, scores, strict=True):
            by_aoi[chip.aoi].append((score.apls, score.apls_time))
        areas = np.array([np.mean(values, axis=0) for values in by_aoi.values()])
        length, time = areas.mean(axis=0)
        return {
            "apls": float(length),
            "apls_time": float(time),
            **dice_and_iou([score.overlap for score in scores]),
        }

    def picture(self, chip: CachedChip, score: RoadScore) -> NDArray[np.uint8]:
        """The roads of the network beside the truth."""
        image, _ = chip.read()
        found = (f"{score.caption}: {chip.image_id}", score.rows)
        return side_by_side(image[..., :3], [found, ("truth", truth_rows(chip))])


def truth_rows(chip: CachedChip) -> list[RoadRow]:
    """The labelled roads of a chip as submission rows."""
    rows = []
    for label in chip.labels:
        length = line_length_m(label.line, chip.metres_per_pixel)
        rows.append(RoadRow(label.line, length, length / label.speed_mps))
    return rows
