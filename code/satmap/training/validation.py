"""Validation as the challenge scores: whole chips, the real vectoriser, the real metric."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from satmap.data.cache import CachedChip
from satmap.data.targets import CLASS_BITS
from satmap.inference.ensemble import Voter, predict_planes
from satmap.metrics.apls import apls
from satmap.models.unet import UNet
from satmap.planes import ROAD, Planes
from satmap.recipe import Recipe
from satmap.roads.graph import line_length_m
from satmap.roads.rows import to_rows
from satmap.roads.vectorize import vectorize
from satmap.submissions.roads_csv import RoadRow


def validate(
    network: UNet, chips: Sequence[CachedChip], recipe: Recipe, device: torch.device
) -> dict[str, float]:
    """Score a network on chips that it was not trained with.

    One view and one network: what is compared is checkpoints, not ensembles.

    Returns:
        ``apls`` and ``apls_time`` (mean over the chips of an area, then over areas), ``dice`` and
        ``iou`` of the road mask (pooled over all pixels); all 0..1.
    """
    settings = recipe.inference.model_copy(update={"views": 1})
    by_aoi: dict[str, list[tuple[float, float]]] = defaultdict(list)
    overlap = predicted = labelled = 0
    network.eval()
    for chip in chips:
        image, target = chip.read()
        values = predict_planes([Voter(network)], image, settings, device)
        planes = Planes(network.plane_names, values, chip.metres_per_pixel)
        graph = vectorize(planes, recipe.roads)
        metres = float(np.mean(chip.metres_per_pixel))
        score = apls(truth_rows(chip), to_rows(graph), metres_per_pixel=metres)
        assert score.time is not None, "both sides state travel times"
        by_aoi[chip.aoi].append((score.length.score, score.time.score))
        road, truth = planes[ROAD] >= 128, (target & CLASS_BITS) > 0
        overlap += int((road & truth).sum())
        predicted += int(road.sum())
        labelled += int(truth.sum())
    areas = np.array([np.mean(scores, axis=0) for scores in by_aoi.values()])
    length, time = areas.mean(axis=0)
    return {
        "apls": float(length),
        "apls_time": float(time),
        "dice": 2 * overlap / max(predicted + labelled, 1),
        "iou": overlap / max(predicted + labelled - overlap, 1),
    }


def truth_rows(chip: CachedChip) -> list[RoadRow]:
    """The labelled roads of a chip as submission rows."""
    rows = []
    for label in chip.labels:
        length = line_length_m(label.line, chip.metres_per_pixel)
        rows.append(RoadRow(label.line, length, length / label.speed_mps))
    return rows
