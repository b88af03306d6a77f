"""Compare networks trained with and without augmentation of the image quality, on few chips.

    .venv/bin/python benchmarks/robustness.py ../shared/data/roads_epfl/AOI_90_Suburb_Train WORK

All train the network of `small-roads` from ImageNet weights with equal steps of eight 192 px crops
on four fifths of the chips. The other chips give the scores of a plain prediction. Then
`variants.py` maps variants of them. A run takes about 4 minutes of one thread. WORK keeps the
networks, and a second run does not train again.
"""

import argparse
from pathlib import Path

import torch

from pretraining import short_recipe
from real_chips import HELD_OUT, Place
from satmap.data.cache import prepare_chips
from satmap.recipes.schema import Augmentation, load_recipe
from satmap.tasks.base import task_of
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.training.validation import validate
from satmap.weights.members import choose, find_weights

_FIGURES = ("apls", "apls_time", "iou")
_AUGMENTATIONS = ("plain", "recipe")


def main() -> None:
    """Train and score every pair and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("area", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=28, help="crops per chip")
    parser.add_argument(
        "--augmentations", nargs="+", choices=_AUGMENTATIONS, default=_AUGMENTATIONS
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    shipped, work, place = load_recipe("small-roads"), options.work, Place(options.area)
    task, names = task_of(shipped), place.names()
    held_out = place.chips(names[::HELD_OUT], task, work / "cache")
    prepared = prepare_chips(held_out, 3, work / "cache", shipped.stretch, task).chips
    learnt = [name for name in names if name not in names[::HELD_OUT]]
    directories, _ = place.to_train(learnt, work / "train")

    print("| augmentation | seed | APLS length | APLS time | IoU |", flush=True)
    print("|---|---|---|---|---|", flush=True)
    for seed in options.seeds:
        for name in options.augmentations:
            recipe = short_recipe(shipped, seed, options.passes)
            if name == "plain":
                recipe = recipe.model_copy(update={"augmentation": Augmentation()})
            context = RunContext(work / f"{name}-{seed}", torch.device("cpu"))
            train(directories, recipe, context, TrainingOptions(work / "cache"))
            files = choose(find_weights(context.weights), recipe)
            (member,) = task.load_ensemble(files, context.device)
            found = validate(member.network, task, prepared, context)
            cells = " | ".join(f"{found[figure]:.3f}" for figure in _FIGURES)
            print(f"| {name} | {seed} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
