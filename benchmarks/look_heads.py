"""Compare one head per view-angle category with a single head, on synthetic oblique cities.

    .venv/bin/python benchmarks/look_heads.py WORK

Every seed makes a city whose tiles are seen from nine view angles. Two networks learn from it as by
``satmap train``, with the recipe ``sn4-buildings`` and a ResNet18 from scratch: one with the
recipe's three heads, the other with a single head. Both take the same steps on the same crops. They
are scored by the challenge's F1 on tiles of another city under the same sun. The script uses one
thread and about four minutes of CPU time per network. WORK keeps all results, and a second run does
not train again.
"""

import argparse
from pathlib import Path

import torch

from building_runs import predicted, small_recipe, trained
from satmap.evaluation.score import score_files
from satmap.recipes.schema import load_recipe
from synthcity import BuildingLayout, make_building_city

_CATEGORIES = ("nadir", "off-nadir", "very off-nadir")


def main() -> None:
    """Train the missing networks, score them and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--looks", type=int, default=9, help="view angles of every tile")
    parser.add_argument("--chips", type=int, default=6, help="number of training tiles")
    parser.add_argument("--passes", type=int, default=4, help="crops per image and epoch")
    parser.add_argument("--heads", type=int, nargs="+", choices=(1, 3), default=[1, 3])
    parser.add_argument("--turned", action="store_true", help="flip and rotate crops; 4 test views")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shipped = load_recipe("sn4-buildings")
    if options.turned:
        augmentation = shipped.augmentation.model_copy(update={"flips": True})
        inference = shipped.inference.model_copy(update={"tta": 4})
        shipped = shipped.model_copy(update={"augmentation": augmentation, "inference": inference})
    print(f"| seed | heads | F1 | {' | '.join(_CATEGORIES)} | precision | recall | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for seed in options.seeds:
        place = options.work / f"seed{seed}"
        if not (place / "city").exists():
            make_building_city(
                place / "city",
                BuildingLayout.SPACENET4,
                chips=options.chips,
                test_chips=4,
                seed=seed,
                size=384,
                view_angles=options.looks,
            )
        for heads in options.heads:
            name = f"{heads}-turned" if options.turned else f"{heads}"
            recipe = small_recipe(shipped, seed=seed, crop=192, passes=options.passes)
            if heads == 1:
                one = recipe.task.model_copy(update={"view_angle_heads": None})
                recipe = recipe.model_copy(update={"task": one})
            weights = place / f"weights{name}"
            seconds = trained(recipe, place / "city/train", weights, options.work / "cache")
            out = predicted(place / "city/test", place / f"out{name}.csv", weights)
            report = score_files(place / "city/test_truth.csv", out).report
            figures = [report.total["f1"]]
            figures += [report.aois[category]["f1"] for category in _CATEGORIES]
            figures += [report.total["precision"], report.total["recall"]]
            cells = " | ".join(f"{figure:.3f}" for figure in figures)
            print(f"| {seed} | {name} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
