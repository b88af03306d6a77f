"""Compare networks that start from ImageNet weights with networks from scratch, on few chips.

    .venv/bin/python benchmarks/pretraining.py ../shared/data/roads_epfl/AOI_90_Suburb_Train WORK
    .venv/bin/python benchmarks/pretraining.py ../shared/data/buildings_barnarp/images WORK \
        --masks ../shared/data/buildings_barnarp/masks --crops 545

Both train the network of `small-roads`, or with --masks that of `small-buildings`, for the same
number of steps of eight 192 px crops on four fifths of the chips, with the command's own training.
The other chips give the scores. A run takes about 4 minutes of one thread. WORK keeps the networks,
and a second run does not train again.
"""

import argparse
import statistics
from pathlib import Path

import torch

from real_chips import HELD_OUT, Place
from satmap.data.cache import prepare_chips
from satmap.recipes.schedules import CosineSchedule
from satmap.recipes.schema import Recipe, load_recipe
from satmap.tasks.base import task_of
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.training.validation import validate
from satmap.weights.members import choose, find_weights


def main() -> None:
    """Train and score every pair and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--masks", type=Path, help="masks of the buildings in the images")
    parser.add_argument("--crops", type=int, default=1792, help="crops per training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    shipped = load_recipe("small-buildings" if options.masks else "small-roads")
    task, work, place = task_of(shipped), options.work, Place(options.images, options.masks)
    names = place.names()
    held_out = place.chips(names[::HELD_OUT], task, work / "cache")
    prepared = prepare_chips(held_out, 3, work / "cache", shipped.stretch, task).chips
    learnt = [name for name in names if name not in names[::HELD_OUT]]
    directories, own = place.to_train(learnt, work / "train")
    passes = round(options.crops / len(learnt))

    print(f"| start | seed | {' | '.join(task.scores)} |", flush=True)
    print(f"|---|---|{'---|' * len(task.scores)}", flush=True)
    gains: dict[str, list[float]] = {figure: [] for figure in task.scores}
    for seed in options.seeds:
        scores = {}
        for start in ("scratch", "ImageNet"):
            recipe = short_recipe(shipped, seed, passes)
            context = RunContext(work / f"{start}-{seed}", torch.device("cpu"))
            scratch = start == "scratch"
            settings = TrainingOptions(work / "cache", from_scratch=scratch, own=own)
            train(directories, recipe, context, settings)
            (member,) = task.load_ensemble(
                choose(find_weights(context.weights), recipe), context.device
            )
            found = validate(member.network, task, prepared, context)
            scores[start] = found
            cells = " | ".join(f"{found[figure]:.3f}" for figure in task.scores)
            print(f"| {start} | {seed} | {cells} |", flush=True)
        for figure, values in gains.items():
            values.append(scores["ImageNet"][figure] - scores["scratch"][figure])
    for figure, values in gains.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"gain in {figure}: {statistics.mean(values):+.3f}, spread {spread:.3f}")


def short_recipe(shipped: Recipe, seed: int, passes: int) -> Recipe:
    """Return a recipe with its first network, trained on all chips in one short stage."""
    member = shipped.members[0]
    changed = {
        "crop": 192,
        "batch": 8,
        "epochs": 1,
        "passes": passes,
        "validate_every": 1,
        "schedule": CosineSchedule(peak=2e-3, final=2e-5, warmup=0.05),
    }
    stage = member.stages[0].model_copy(update=changed)
    member = member.model_copy(update={"fold": None, "stages": (stage,)})
    # One view, so that maps take an eighth of the time.
    inference = shipped.inference.model_copy(update={"tta": 1, "checkpoints": ("last",)})
    return shipped.model_copy(update={"seed": seed, "members": (member,), "inference": inference})


if __name__ == "__main__":
    main()
