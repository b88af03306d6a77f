"""Building recipe for trainings of seconds, and weights that need no training."""

from pathlib import Path
from typing import Any

import torch
import yaml

from satmap.networks.unet import build_network
from satmap.recipes.schema import parse_recipe
from satmap.tasks.buildings.settings import BUILDING_MAPS
from satmap.weights.network_files import save_weights

BUILDING_RECIPE = """
name: test
description: crops of 64 pixels
task: {name: buildings}
folds: 2
members:
  - fold: 0
    encoder: resnet18
    pretrained: false
    bands: 3
    decoder: [8, 8, 8, 8]
    losses: {building: {weighted: 1, dice: 0.5}, border: {focal: 1}}
    stages:
      - {crop: 64, batch: 2, epochs: 2, chips: 2,
         schedule: {kind: plateau, rate: 2.0e-3, patience: 1}}
      - {crop: 64, batch: 2, epochs: 1, schedule: {kind: steps, rates: {0: 1.0e-4}},
         losses: {building: {weighted: 1, dice: 5}, border: {focal: 1}}}
inference: {tta: 1, checkpoints: [last]}
"""


def with_task(**settings: object) -> dict[str, Any]:
    """Return the recipe with other settings of its task."""
    content: dict[str, Any] = yaml.safe_load(BUILDING_RECIPE)
    return content | {"task": content["task"] | settings}


def undecided_weights(
    directory: Path, seed: int = 1, held_out: str | None = None, **settings: object
) -> None:
    """Write an untrained network that is confident in places."""
    vectorizer = {"seed": 0.55, "low": 0.5, "certain": 0.5, "least_px": 10}
    content = with_task(vectorizer=vectorizer, **settings)
    recipe = parse_recipe(yaml.safe_dump(content), "test")
    torch.manual_seed(seed)
    network = build_network("resnet18", 3, BUILDING_MAPS[:2], (8,) * 4)
    with torch.no_grad():
        network.head.weight *= 50
    metadata = {"recipe": recipe.model_dump_json(), "member": "a", "stage": "1", "epoch": "1"}
    if held_out is not None:
        metadata["held_out"] = held_out
    save_weights(directory / "a.last.safetensors", network, metadata)
