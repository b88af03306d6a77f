"""Compare fine-tuning with ImageNet weights and random weights, on few chips of another place.

    .venv/bin/python benchmarks/finetuning.py PLACE OTHER WORK

PLACE and OTHER are directories of SpaceNet roads in different places. A network learns PLACE first,
from ImageNet weights; --init takes a trained one instead. Then 5, 10 and 20 chips of OTHER are
learned from that network, as in the recipe `finetune-roads`, and from ImageNet and random weights
with the schedule of `small-roads`. All have the same number of steps, chips and crops. Every fifth
chip of OTHER is held out for the scores. A run takes at most 2 minutes of one thread. WORK keeps
the networks, and a second run does not train again.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from real_chips import HELD_OUT, link
from satmap.data.cache import prepare_chips
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.layouts.spacenet_roads import scan_roads
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
    parser.add_argument("place", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--init", type=Path, help="network of PLACE, instead of training one")
    parser.add_argument("--chips", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150, help="steps per run on OTHER")
    parser.add_argument("--place-steps", type=int, default=400)
    parser.add_argument("--held-out", type=int, help="number of chips to score; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = options.work
    found = scan_roads([options.other]).chips
    held_out = found[::HELD_OUT][: options.held_out]
    left = [chip for chip in found if chip not in found[::HELD_OUT]]
    recipe = _recipe(0, 1, "ImageNet")
    test = prepare_chips(held_out, 3, work / "cache", recipe.stretch, task_of(recipe)).chips
    init = options.init or _learn_place(options.place, work, options.place_steps)
    print("| chips | seed | start | APLS length | APLS time | IoU |\n|---|---|---|---|---|---|")
    untrained = _score(init, test, work)
    _print_row("0", "", "network of PLACE", untrained)
    for count in options.chips:
        scores: dict[str, list[Mapping[str, float]]] = {start: [] for start in _STARTS}
        for seed in options.seeds:
            # Seeds also differ in their chips.
            directory = work / f"{count}-chips-{seed}"
            link(_some(left, count, seed), directory)
            for start in _STARTS:
                weights = work / f"{start}-{count}-{seed}"
                chosen = init if start == "fine-tuned" else None
                _train(directory, weights, work, options.steps, seed, start, chosen)
                scores[start].append(_score(weights, test, work))
                _print_row(str(count), str(seed), start, scores[start][-1])
        for start in ("ImageNet", "scratch"):
            _print_gains(count, start, scores["fine-tuned"], scores[start])


def _learn_place(place: Path, work: Path, steps: int) -> Path:
    """Train the first network on all chips of its place; return its weights."""
    _train(place, work / "place", work, steps, 0, "ImageNet")
    return work / "place"


def _train(
    directory: Path,
    weights: Path,
    work: Path,
    steps: int,
    seed: int,
    start: str,
    init: Path | None = None,
) -> None:
    passes = max(1, round(steps * _BATCH / len(scan_roads([directory]).chips)))
    context = RunContext(weights, torch.device("cpu"))
    options = TrainingOptions(work / "cache", from_scratch=start == "scratch", init=init)
    train([directory], _recipe(seed, passes, start), context, options)


def _recipe(seed: int, passes: int, start: str) -> Recipe:
    """Return a recipe of one network for all chips, with one short stage."""
    shipped = load_recipe("finetune-roads" if start == "fine-tuned" else "small-roads")
    member = shipped.members[0]
    stage = member.stages[0]
    changed = {"crop": 192, "batch": _BATCH, "epochs": 1, "passes": passes, "validate_every": 1}
    member = member.model_copy(update={"fold": None, "stages": (stage.model_copy(update=changed),)})
    inference = shipped.inference.model_copy(update={"checkpoints": ("last",)})
    return shipped.model_copy(update={"seed": seed, "members": (member,), "inference": inference})


def _some(chips: Sequence[Chip], count: int, seed: int) -> list[Chip]:
    order = torch.randperm(len(chips), generator=torch.Generator().manual_seed(seed))
    return [chips[index] for index in order[:count].tolist()]


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
