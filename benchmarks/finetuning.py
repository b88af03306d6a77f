"""Compare fine-tuning with ImageNet weights and random weights, on few chips of another place.

    .venv/bin/python benchmarks/finetuning.py ../shared/data/roads_massachusetts/images WORK \\
        --masks ../shared/data/roads_massachusetts/masks --metres-per-pixel 0.9 --pattern 'img-*' \\
        --init NETWORK_OF_ANOTHER_PLACE

The images have masks, or are a directory of SpaceNet roads. Networks learn 5, 10 and 20 of them:
from a trained network of `small-roads` as in `finetune-roads`, and from ImageNet and random weights
with the schedule of `small-roads`. All have the same number of steps, chips and crops. Of every
fifth image the first ones are held out for the scores. A run takes about a minute of one thread.
WORK keeps the networks, and a second run does not train again.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from real_chips import HELD_OUT, Place
from satmap.data.cache import prepare_chips
from satmap.data.crops import CachedChip
from satmap.recipes.schema import Recipe, load_recipe
from satmap.tasks.base import task_of
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.training.validation import validate
from satmap.weights.members import choose, find_weights

_FIGURES = ("apls", "apls_time", "iou")
_STARTS = ("scratch", "ImageNet", "fine-tuned")

# Crops of 192 px per step.
_BATCH = 4


def main() -> None:
    """Train and score every start with every number of chips, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--pattern", default="*", help="which of the images with masks to use")
    parser.add_argument("--metres-per-pixel", type=float)
    parser.add_argument("--init", type=Path, required=True, help="network of another place")
    parser.add_argument("--chips", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=16, help="number of images to score")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = options.work
    place = Place(options.images, options.masks, options.pattern, options.metres_per_pixel)
    names = place.names()
    left = [name for name in names if name not in names[::HELD_OUT]]
    recipe = _recipe(0, 1, "ImageNet")
    task = task_of(recipe)
    held_out = place.chips(names[::HELD_OUT][: options.held_out], task, work / "cache")
    test = prepare_chips(held_out, 3, work / "cache", recipe.stretch, task).chips
    print("| chips | seed | start | APLS length | APLS time | IoU |\n|---|---|---|---|---|---|")
    _print_row("0", "", "network of another place", _score(options.init, test, work))
    for count in options.chips:
        scores: dict[str, list[Mapping[str, float]]] = {start: [] for start in _STARTS}
        for seed in options.seeds:
            # Seeds also differ in their chips.
            order = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))
            chosen = [left[index] for index in order[:count].tolist()]
            directories, own = place.to_train(chosen, work / f"{count}-chips-{seed}")
            for start in _STARTS:
                context = RunContext(work / f"{start}-{count}-{seed}", torch.device("cpu"))
                settings = TrainingOptions(
                    work / "cache",
                    from_scratch=start == "scratch",
                    init=options.init if start == "fine-tuned" else None,
                    own=own,
                )
                passes = max(1, round(options.steps * _BATCH / count))
                train(directories, _recipe(seed, passes, start), context, settings)
                scores[start].append(_score(context.weights, test, work))
                _print_row(str(count), str(seed), start, scores[start][-1])
        for start in ("ImageNet", "scratch"):
            _print_gains(count, start, scores["fine-tuned"], scores[start])


def _recipe(seed: int, passes: int, start: str) -> Recipe:
    """Return a recipe of one network for all chips, with one short stage."""
    shipped = load_recipe("finetune-roads" if start == "fine-tuned" else "small-roads")
    member = shipped.members[0]
    stage = member.stages[0]
    changed = {"crop": 192, "batch": _BATCH, "epochs": 1, "passes": passes, "validate_every": 1}
    member = member.model_copy(update={"fold": None, "stages": (stage.model_copy(update=changed),)})
    inference = shipped.inference.model_copy(update={"checkpoints": ("last",)})
    return shipped.model_copy(update={"seed": seed, "members": (member,), "inference": inference})


def _score(weights: Path, chips: Sequence[CachedChip], work: Path) -> dict[str, float]:
    """Score the last network of a directory on the held-out chips."""
    files = find_weights(weights)
    recipe = files[0].recipe
    task, context = task_of(recipe), RunContext(work / "scores", torch.device("cpu"))
    (member,) = task.load_ensemble(choose(files, recipe)[:1], context.device)
    return validate(member.network, task, chips, context)


def _print_row(chips: str, seed: str, start: str, scores: Mapping[str, float]) -> None:
    cells = " | ".join(f"{scores[figure]:.3f}" for figure in _FIGURES)
    print(f"| {chips} | {seed} | {start} | {cells} |", flush=True)


def _print_gains(
    count: int,
    start: str,
    tuned: Sequence[Mapping[str, float]],
    others: Sequence[Mapping[str, float]],
) -> None:
    """Print mean and spread of the paired differences."""
    for figure in _FIGURES:
        gains = [one[figure] - other[figure] for one, other in zip(tuned, others, strict=True)]
        spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
        print(
            f"{count} chips, fine-tuned minus {start}, {figure}: {statistics.mean(gains):+.3f}, "
            f"spread {spread:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
