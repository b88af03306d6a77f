"""Validation as the challenge scores: whole chips, the real vectoriser, the real metric."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from satmap.data.cache import CachedChip
from satmap.data.targets import CLASS_BITS
from satmap.inference.ensemble import Voter, predict_planes
from satmap.metrics.apls import apls
from satmap.models.unet import UNet
from satmap.planes import ROAD, Planes
from satmap.ranks import Ranks
from satmap.recipe import Recipe
from satmap.report.overlay import side_by_side
from satmap.report.panels import write_picture
from satmap.roads.graph import line_length_m
from satmap.roads.rows import to_rows
from satmap.roads.vectorize import vectorize
from satmap.submissions.roads_csv import RoadRow
from satmap.training.interruption import StopRequest

# So many chips are drawn, spread over the list.
_PICTURES = 4


@dataclass(frozen=True)
class ChipScore:
    """What a network made of one chip.

    Attributes:
        apls, apls_time: 0..1.
        overlap, predicted, labelled: pixels of road in both masks, in the network's, in the truth.
        rows: the roads that the network found.
    """

    apls: float
    apls_time: float
    overlap: int
    predicted: int
    labelled: int
    rows: list[RoadRow]


def validate(
    network: UNet,
    chips: Sequence[CachedChip],
    recipe: Recipe,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    stop: StopRequest | None = None,
    pictures: Path | None = None,
) -> dict[str, float]:
    """Score a network on chips that it was not trained with.

    One view and one network: what is compared is checkpoints, not ensembles.

    Args:
        network: the same on all ranks, which share the chips.
        chips: at least one.
        recipe: how to predict and to vectorise.
        device: where to compute.
        ranks: who shares the work.
        stop: looked at between two chips.
        pictures: where rank 0 draws a few of the chips, roads of the network beside the truth;
            None for no pictures.

    Returns:
        ``apls`` and ``apls_time`` (mean over the chips of an area, then over areas), ``dice`` and
        ``iou`` of the road mask (pooled over all pixels); all 0..1.

    Raises:
        Terminated: the process was asked to end.
    """
    network.eval()
    own: list[ChipScore] = []
    for chip in chips[ranks.rank :: ranks.world]:
        if stop is not None and stop.made:
            break
        own.append(_score(network, chip, recipe, device))
    if stop is not None and any(ranks.agree(stop.made)):
        raise stop.ended(
            "stopped in a validation; the same command begins it anew" if ranks.first else ""
        )
    shares = ranks.gather(own)
    scores = [shares[i % ranks.world][i // ranks.world] for i in range(len(chips))]
    if pictures is not None:
        ranks.on_first(lambda: _draw(chips, scores, pictures))
    by_aoi: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for chip, score in zip(chips, scores, strict=True):
        by_aoi[chip.aoi].append((score.apls, score.apls_time))
    areas = np.array([np.mean(values, axis=0) for values in by_aoi.values()])
    length, time = areas.mean(axis=0)
    overlap = sum(score.overlap for score in scores)
    either = sum(score.predicted + score.labelled for score in scores)
    return {
        "apls": float(length),
        "apls_time": float(time),
        "dice": 2 * overlap / max(either, 1),
        "iou": overlap / max(either - overlap, 1),
    }


def _score(network: UNet, chip: CachedChip, recipe: Recipe, device: torch.device) -> ChipScore:
    settings = recipe.inference.model_copy(update={"views": 1})
    image, target = chip.read()
    values = predict_planes([Voter(network)], image, settings, device)
    planes = Planes(network.plane_names, values, chip.metres_per_pixel)
    rows = to_rows(vectorize(planes, recipe.roads))
    metres = float(np.mean(chip.metres_per_pixel))
    score = apls(truth_rows(chip), rows, metres_per_pixel=metres)
    assert score.time is not None, "both sides state travel times"
    road, truth = planes[ROAD] >= 128, (target & CLASS_BITS) > 0
    return ChipScore(
        score.length.score,
        score.time.score,
        int((road & truth).sum()),
        int(road.sum()),
        int(truth.sum()),
        rows,
    )


def _draw(chips: Sequence[CachedChip], scores: Sequence[ChipScore], directory: Path) -> None:
    for index in range(0, len(chips), -(-len(chips) // _PICTURES)):
        chip, score = chips[index], scores[index]
        image, _ = chip.read()
        found = (f"APLS {score.apls:.3f}: {chip.image_id}", score.rows)
        picture = side_by_side(image[..., :3], [found, ("truth", truth_rows(chip))])
        write_picture(directory / f"{chip.image_id}.png", picture)


def truth_rows(chip: CachedChip) -> list[RoadRow]:
    """The labelled roads of a chip as submission rows."""
    rows = []
    for label in chip.labels:
        length = line_length_m(label.line, chip.metres_per_pixel)
        rows.append(RoadRow(label.line, length, length / label.speed_mps))
    return rows
