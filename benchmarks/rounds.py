"""Compare roads learned from few labels with and without a round on unlabelled images.

    .venv/bin/python benchmarks/rounds.py ../shared/data/roads_massachusetts WORK --seeds 0

Every fifth crop is a test image. Of the others a tenth has its mask, and the rest is unlabelled.
For each seed three networks of the same kind are trained by ``satmap.training``: the first round,
which knows only the labels; a second round that starts anew and learns from the first one's soft
pseudo-labels in half of every batch; and, as the control, a network that learns only from the
labels for as many steps as both rounds together. All are scored on the test images: IoU of the road
pixels, pooled, and mean APLS by length. WORK keeps all results, and a second run does not train
again. The script uses one thread and 5 to 10 minutes of CPU time per seed; ``--scale`` multiplies
all lengths.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from satmap.data.cache import prepare_chips
from satmap.data.crops import CachedChip
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.recipes.schema import Recipe, build_recipe
from satmap.tasks.base import task_of
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import choose, find_weights

CPU = torch.device("cpu")
_TEST, _LABELLED = 5, 10
# Passes over the labelled chips: of the first round, of the second, and of the control. The second
# round has as many unlabelled crops besides, so a pass there is two steps for one.
_PASSES = {"first": 48, "second": 32, "control": 112}


def main() -> None:
    """Train what is not trained yet, score it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all trainings' length")
    parser.add_argument(
        "--settings", nargs="*", default=[], help="of the round, such as labels=hard"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    _link(options.data, options.work)
    settings = dict(text.split("=", 1) for text in options.settings)
    tests: Sequence[CachedChip] = ()
    print("| seed | what | IoU | APLS |\n|---|---|---|---|", flush=True)
    for seed in options.seeds:
        rounds = _recipe(seed, options.scale, "first", settings)
        control = _recipe(seed, options.scale, "control", None)
        directory = options.work / f"seed{seed}"
        tests = tests or _tests(options.work, rounds)
        for recipe, name in ((rounds, "rounds"), (control, "control")):
            unlabelled = (options.work / "unlabelled",) if recipe.rounds else ()
            training = TrainingOptions(
                options.work / "cache", unlabelled=unlabelled, own=_own(options.work, "train")
            )
            train([], recipe, RunContext(directory / name, CPU), training)
        for name, recipe, place in (
            ("labels, first round", rounds.up_to_round(0), "rounds/round1"),
            ("labels, as long as both rounds", control, "control"),
            ("labels and pseudo-labels, second round", rounds, "rounds"),
        ):
            scores = _score(directory / place, recipe, tests)
            print(f"| {seed} | {name} | {scores['iou']:.3f} | {scores['apls']:.3f} |", flush=True)


def _link(data: Path, work: Path) -> None:
    """Sort the crops into test, labelled and unlabelled images; void tiles are left out."""
    images = sorted(p for p in (data / "images").iterdir() if not p.stem.startswith("void"))
    others = [path for number, path in enumerate(images) if number % _TEST]
    labelled = others[::_LABELLED]
    for path in images:
        part = "train" if path in labelled else "unlabelled" if path in others else "held-out"
        place = work / part if part == "unlabelled" else work / part / "images"
        links = [(place, path)]
        if part != "unlabelled":
            links.append((work / part / "masks", data / "masks" / f"{path.stem}.png"))
        for folder, target in links:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / target.name).exists():
                (folder / target.name).symlink_to(target.resolve())


def _own(work: Path, part: str) -> OwnData:
    place = work / part
    return OwnData((str(place / "images"),), place / "masks", metres_per_pixel=1.0)


def _recipe(seed: int, scale: float, first: str, settings: dict[str, str] | None) -> Recipe:
    """Return a recipe of one network; with ``settings`` of its second round, if there is one."""

    def member(kind: str) -> dict[str, Any]:
        return {
            "fold": None,
            "encoder": "efficientnet_lite0",
            "bands": 3,
            "decoder": {"kind": "light", "widths": [128, 96, 64, 32]},
            "losses": {
                "road": {"dice": 0.5, "focal": 2, "bce": 0.1},
                "speed": {"dice": 0.1, "focal": 2, "bce": 1},
                "junction": {"dice": 0.1, "focal": 1},
            },
            "stages": [
                {
                    "crop": 192,
                    "batch": 8,
                    "epochs": 4,
                    "passes": max(1, round(_PASSES[kind] * scale / 4)),
                    "schedule": {"kind": "cosine", "peak": 2e-3, "final": 2e-5},
                }
            ],
        }

    rounds = [] if settings is None else [{"members": [member("second")], "tta": 1, **settings}]
    content = {
        "name": "rounds-benchmark" if rounds else "labels-benchmark",
        "description": "roads from a tenth of the labels",
        "task": {"name": "roads", "default_metres_per_pixel": 1.0},
        "seed": seed,
        "folds": 2,
        "members": [member(first)],
        "rounds": rounds,
        "inference": {"tta": 1, "checkpoints": ["last"]},
    }
    return build_recipe(content)


def _tests(work: Path, recipe: Recipe) -> Sequence[CachedChip]:
    task = task_of(recipe)
    found = find_own_chips(_own(work, "held-out"), task, 3, work / "cache")
    return prepare_chips(found.chips, 3, work / "cache", recipe.stretch, task).chips


def _score(weights: Path, recipe: Recipe, chips: Sequence[CachedChip]) -> dict[str, float]:
    """Score a network without test-time augmentation."""
    task = task_of(recipe)
    (member,) = task.load_ensemble(choose(find_weights(weights), recipe), CPU)
    scores = [task.score_chip(member.network, chip, CPU) for chip in chips]
    return task.summarize(chips, scores)


if __name__ == "__main__":
    main()
