"""Validation as the challenge scores: whole chips, the real vectoriser, the real metric."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from satmap.data.cache import CachedChip
from satmap.networks.unet import UNet
from satmap.prediction.dense import EnsembleMember, predict_maps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Recipe
from satmap.report.panels import write_picture
from satmap.runtime.ranks import Ranks
from satmap.tasks.objectives import Objective, objective_of
from satmap.training.run_context import StopRequest

# So many chips are drawn, spread over the list.
_PICTURES = 4


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
        pictures: where rank 0 draws a few of the chips, what the network found beside the truth;
            None for no pictures.

    Returns:
        The scores of the recipe's objective, all 0..1.

    Raises:
        Terminated: the process was asked to end.
    """
    network.eval()
    objective = objective_of(recipe)
    own: list[Any] = []
    for chip in chips[ranks.rank :: ranks.world]:
        if stop is not None and stop.made:
            break
        own.append(_score(network, chip, recipe, objective, device))
    if stop is not None and any(ranks.agree(stop.made)):
        raise stop.ended(
            "stopped in a validation; the same command begins it anew" if ranks.first else ""
        )
    shares = ranks.gather(own)
    scores = [shares[i % ranks.world][i // ranks.world] for i in range(len(chips))]
    if pictures is not None:
        ranks.on_first(lambda: _draw(chips, scores, objective, pictures))
    return objective.summary(chips, scores)


def _score(
    network: UNet, chip: CachedChip, recipe: Recipe, objective: Objective, device: torch.device
) -> Any:
    settings = recipe.inference.model_copy(update={"tta": 1})
    image, target = chip.read()
    values = predict_maps([EnsembleMember(network)], image, settings, device, chip.category)
    return objective.score(
        ProbabilityMaps(network.map_names, values, chip.metres_per_pixel), chip, target
    )


def _draw(
    chips: Sequence[CachedChip], scores: Sequence[Any], objective: Objective, directory: Path
) -> None:
    for index in range(0, len(chips), -(-len(chips) // _PICTURES)):
        picture = objective.picture(chips[index], scores[index])
        write_picture(directory / f"{chips[index].image_id}.png", picture)
