"""Judge the labels of a challenge's images or of a user's own images by trained networks."""

from collections.abc import Sequence
from pathlib import Path

import torch

from satmap.data.inventory import Inventory
from satmap.data.judgement import Judgement, Thresholds
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.data.scenes import cut_scenes
from satmap.judging.judge import judge_labels, label_sets_of_challenge, label_sets_of_own
from satmap.judging.networks import HeldOutNetworks


def judge(
    directories: Sequence[Path],
    own: OwnData | None,
    weights: Path,
    device: torch.device,
    thresholds: Thresholds,
    output: Path,
    cache: Path,
) -> tuple[Judgement, str]:
    """Judge labels and write the directory that ``train --judgement`` reads.

    Args:
        directories: of a challenge's images.
        own: a user's own images and labels instead; None for those of the directories.
        weights: directory of trained networks.
        device: of the networks.
        thresholds: for the verdicts.
        output: directory to write.
        cache: directory of prepared chips.

    Returns:
        The judgement, and its table by place.

    Raises:
        SatmapError: the networks do not predict buildings, or no label can be judged.
        CannotWriteError: the output cannot be written.
    """
    networks = HeldOutNetworks.load(weights, device)
    task = networks.task
    inventory: Inventory
    if own is not None:
        inventory = find_own_chips(own, task, networks.bands, cache)
        label_sets = label_sets_of_own(own, inventory)
    else:
        found = task.find_images(directories)
        found.require_labels()
        inventory = found
        if task.recipe.tiles:
            inventory = cut_scenes(found, task, networks.bands, cache)
        label_sets = label_sets_of_challenge(found, inventory)
    print(inventory.summary(), flush=True)
    return judge_labels(
        label_sets,
        networks.predict,
        thresholds,
        task.recipe.stretch,
        networks.records,
        output,
        directories,
    )
