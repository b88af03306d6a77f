"""Compare the choices of `starter-roads` at equal CPU time, with several seeds.

    .venv/bin/python benchmarks/starter_choices.py ../shared/data/roads_massachusetts WORK

Every variant changes one thing of the recipe `starter-roads` and learns from the same chips for the
same CPU time of one thread. `reference` is the first stage of `sn5-roads`, whose encoder DPN92
starts from random weights, as its ImageNet weights are not a Python package. A sixth of the chips
is held out, as in the recipe, and scored with one view. WORK keeps every result, so that the same
command goes on where it stopped; then it prints the means, and the paired differences.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml

from real_chips import train_for
from satmap.data.cache import prepare_chips
from satmap.data.crops import CachedChip
from satmap.data.folds import split_chips
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.recipes.schema import Recipe, parse_recipe
from satmap.runtime.resources import reuse_memory
from satmap.tasks.base import Task, task_of
from satmap.training.run_context import RunContext
from satmap.training.validation import validate

_FIGURES = ("iou", "dice", "apls")
_PLAIN = {"shift": 0, "resize_probability": 0, "rotation_probability": 0,
          "colour_jitter_probability": 0}  # fmt: skip

# What differs from the recipe, by variant: keys of the recipe, of its member, of the losses of its
# road map.
_Change = Mapping[str, Any]
VARIANTS: dict[str, tuple[_Change, _Change, _Change]] = {
    "starter-roads": ({}, {}, {}),
    "reference": ({}, {}, {}),
    "from scratch": ({}, {"pretrained": False}, {}),
    "without moving average": ({"optimizer": {"name": "adamw", "weight_decay": 1e-2}}, {}, {}),
    "flips only": ({"augmentation": _PLAIN}, {}, {}),
    "with centreline dice": ({}, {}, {"centreline_dice": 0.5}),
    "with a loss on features": ({}, {}, {"features": 0.1}),
    "with recall": ({}, {}, {"recall": 0.5}),
    "mostly cross entropy": ({}, {}, {"dice": 0.2}),
    "EfficientNet-Lite2": ({}, {"encoder": "efficientnet_lite2"}, {}),
    # About as many pixels per step.
    "four crops of 384 pixels": ({}, {"stages": [{"crop": 384, "batch": 4}]}, {}),
    "half of the chips": ({}, {}, {}),
    "a quarter of the chips": ({}, {}, {}),
}
# The network learns from every n-th chip.
_EVERY = {"half of the chips": 2, "a quarter of the chips": 4}


def main() -> None:
    """Train and score every variant with every seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=150.0, help="of each training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        for variant in options.variants:
            scores.setdefault(variant, []).append(_score(options, variant, seed))
    print(f"| variant | steps | {' | '.join(_FIGURES)} | paired difference in IoU, APLS |")
    print(f"|{'---|' * (len(_FIGURES) + 3)}")
    for variant, of_seeds in scores.items():
        steps = round(statistics.mean(each["steps"] for each in of_seeds))
        cells = [_mean_and_spread([each[name] for each in of_seeds]) for name in _FIGURES]
        base = scores[options.variants[0]]
        gaps = [
            _mean_and_spread([a[n] - b[n] for a, b in zip(of_seeds, base, strict=True)], "+")
            for n in ("iou", "apls")
        ]
        print(f"| {variant} | {steps} | {' | '.join(cells)} | {', '.join(gaps)} |")


def _score(options: argparse.Namespace, variant: str, seed: int) -> dict[str, float]:
    """Return the scores and the number of steps of a variant, trained unless already done."""
    name = f"{variant.replace(' ', '-')}-{seed}"
    path = options.work / "results" / f"{name}.json"
    if path.exists():
        found: dict[str, float] = json.loads(path.read_text())
        return found
    task = task_of(_recipe(variant, seed))
    training, held_out = _chips(options.data, options.work, task)
    training = training[:: _EVERY.get(variant, 1)]
    weights = options.work / "weights" / name
    # Otherwise a training that was killed would resume, and its earlier CPU time would not count.
    shutil.rmtree(weights, ignore_errors=True)
    network, steps, seconds = train_for(task, training, weights, options.seconds)
    context = RunContext(options.work / "scores", torch.device("cpu"))
    found = {**validate(network, task, held_out, context), "steps": steps, "seconds": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found))
    temporary.rename(path)
    print(f"{name}: {steps} steps, {seconds:.0f} s, IoU {found['iou']:.3f}", flush=True)
    return found


def _recipe(variant: str, seed: int) -> Recipe:
    content = _shipped("starter-roads")
    changed, of_member, of_road = VARIANTS[variant]
    member = content["members"][0]
    stage = member["stages"][0] | of_member.get("stages", [{}])[0]
    member = member | {"fold": None} | of_member | {"stages": [stage]}
    member["losses"] = {**member["losses"], "road": member["losses"]["road"] | of_road}
    content |= changed
    if variant == "reference":
        member, content = _reference(content)
    content |= {"name": variant.lower().replace(" ", "-"), "seed": seed, "members": [member]}
    return parse_recipe(yaml.safe_dump(content), variant)


def _reference(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the reference's network, losses, schedule and augmentation, for RGB images of 1 m."""
    shipped = _shipped("sn5-roads")
    first = shipped["members"][0]
    stage = first["stages"][0] | {"crop": 256, "batch": 8}
    member = first | {"fold": None, "bands": 3, "pretrained": False, "stages": [stage]}
    kept = {key: content[key] for key in ("task", "folds", "inference")}
    return member, {key: value for key, value in shipped.items() if key != "members"} | kept


def _shipped(name: str) -> dict[str, Any]:
    text = files("satmap.recipes").joinpath(f"{name}.yaml").read_text()
    content: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in content.items() if not key.startswith("x-")}


def _chips(data: Path, work: Path, task: Task) -> tuple[Sequence[CachedChip], Sequence[CachedChip]]:
    """Return the chips to learn from and those that are held out."""
    own = OwnData((str(data / "images"),), data / "masks", metres_per_pixel=1.0)
    inventory = find_own_chips(own, task, 3, work / "cache")
    recipe = task.recipe
    folds = split_chips(inventory.chips, recipe.folds_by, 6, 0, inventory.duplicates)
    chips = prepare_chips(inventory.chips, 3, work / "cache", recipe.stretch, task).chips
    return (
        [chip for chip in chips if folds[chip.image_id]],
        [chip for chip in chips if not folds[chip.image_id]],
    )


def _mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}"


if __name__ == "__main__":
    main()
