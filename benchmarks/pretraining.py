"""Compare networks that start from ImageNet weights with networks from scratch, on few chips.

    .venv/bin/python benchmarks/pretraining.py ../shared/data/roads_epfl/AOI_90_Suburb_Train WORK

Both train the same EfficientNet-Lite0 with a light decoder for 224 steps of eight 192 px crops on
four fifths of the chips, with the command's own training. The other chips give the scores. A run
takes about 8 minutes of one thread. WORK keeps the networks, and a second run does not train again.
"""

import argparse
import statistics
from pathlib import Path

import torch

from real_chips import HELD_OUT, link
from satmap.data.cache import prepare_chips
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.recipes.schema import (
    CosineSchedule,
    DecoderSettings,
    Member,
    Recipe,
    Stage,
    load_recipe,
)
from satmap.tasks.base import task_of
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.training.validation import validate
from satmap.weights.members import choose, find_weights

_FIGURES = ("apls", "apls_time", "iou")


def main() -> None:
    """Train and score every pair and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("area", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    chips = scan_roads([options.area]).chips
    held_out = chips[::HELD_OUT]
    link([chip for chip in chips if chip not in held_out], options.work / "train")

    print("| start | seed | APLS length | APLS time | IoU |\n|---|---|---|---|---|", flush=True)
    gains: dict[str, list[float]] = {figure: [] for figure in _FIGURES}
    for seed in options.seeds:
        scores = {}
        for start in ("scratch", "ImageNet"):
            recipe = _recipe(options.encoder, seed)
            context = RunContext(options.work / f"{start}-{seed}", torch.device("cpu"))
            cache = options.work / "cache"
            settings = TrainingOptions(cache, from_scratch=start == "scratch")
            train([options.work / "train"], recipe, context, settings)
            task, files = task_of(recipe), choose(find_weights(context.weights), recipe)
            (member,) = task.load_ensemble(files, context.device)
            prepared = prepare_chips(held_out, 3, cache, recipe.stretch, task).chips
            found = validate(member.network, task, prepared, context)
            scores[start] = found
            cells = " | ".join(f"{found[figure]:.3f}" for figure in _FIGURES)
            print(f"| {start} | {seed} | {cells} |", flush=True)
        for figure in _FIGURES:
            gains[figure].append(scores["ImageNet"][figure] - scores["scratch"][figure])
    for figure, values in gains.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"gain in {figure}: {statistics.mean(values):+.3f}, spread {spread:.3f}")


def _recipe(encoder: str, seed: int) -> Recipe:
    """Return `small-roads` with one network for all chips and one short stage."""
    shipped = load_recipe("small-roads")
    schedule = CosineSchedule(peak=2e-3, final=2e-5, warmup=0.05)
    stage = Stage(crop=192, batch=8, epochs=1, passes=28, schedule=schedule)
    member = Member(
        fold=None,
        encoder=encoder,
        pretrained=True,
        bands=3,
        decoder=DecoderSettings(kind="light"),
        losses=shipped.members[0].losses,
        stages=(stage,),
    )
    inference = shipped.inference.model_copy(update={"checkpoints": ("last",)})
    changed = {"seed": seed, "members": (member,), "inference": inference}
    return shipped.model_copy(update=changed)


if __name__ == "__main__":
    main()
