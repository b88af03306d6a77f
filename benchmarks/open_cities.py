"""Compare the choices of the Open Cities recipes, one at a time, in short trainings.

    .venv/bin/python benchmarks/open_cities.py ../shared/data WORK --rows ours black --seeds 0 1 2

Every row is the network of `small-open-cities`, trained by ``satmap.training`` on the scenes of
Accra and on the areas 3 and 5 of ``buildings_open_cities``. All rows have equal steps, except that
a round adds its own; ``longer`` is the control for it. The scores are Jaccards, pooled over pixels:
of the 40 test chips, predicted by ``satmap.prediction`` with one view, and of the areas 2 and 4,
which no training has seen. WORK keeps all results, and a second run does not train again. A run
takes 4 to 8 minutes of one thread.
"""

import argparse
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from satmap.data.cache import prepare_chips
from satmap.data.judgement import Thresholds
from satmap.evaluation.score import score_files
from satmap.judging.run import judge
from satmap.prediction.run import predict
from satmap.recipes.schema import Recipe, build_recipe, load_recipe
from satmap.tasks.base import task_of
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.training.validation import validate
from satmap.weights.members import choose, find_weights

_CPU = torch.device("cpu")
_TRAINED, _HELD_OUT = ("area3", "area5"), ("area2", "area4")
_EPOCHS = 6

_REFERENCE: dict[str, Any] = {
    "tiles": {"zoom": 19, "size": 1024, "nodata": "black"},
    "sampling": "equal_scenes",
    "augmentation": {
        "shift": 0,
        "resize": 0,
        "resize_probability": 0,
        "rotation": 0,
        "rotation_probability": 0,
        "colour_jitter_probability": 0.5,
        "quality_probability": 0.5,
    },
    "optimizer": {"name": "adamw", "weight_decay": 1e-4, "clip_norm": None},
}
_REFERENCE_STAGE = {
    "schedule": {
        "kind": "cyclic",
        "high": 1e-4,
        "low": 1e-6,
        "half_period": 1.2,
        "shape": "cosine",
    },
    "later_losses": {3: {"building": {"lovasz_softmax": 1}}},
}
_ROUND = {"share": 0.33, "test_images": True, "tta": 4}
_SOFT = {"labels": "soft", "ignore": [0.4, 0.6], "confidence_weights": True}

# Changes of each row to the recipe, its stage, its losses, the length or the data of the training.
ROWS: dict[str, dict[str, Any]] = {
    "ours": {},
    "reference": {"recipe": _REFERENCE, "stage": _REFERENCE_STAGE, "losses": {"bce": 1}},
    "reference, our schedule": {"recipe": _REFERENCE, "losses": {"bce": 1}},
    "black": {"recipe": {"tiles": {"zoom": 19, "size": 1024, "nodata": "black"}}},
    "hard round": {"recipe": {"rounds": [{**_ROUND, "labels": "hard"}]}},
    "soft round": {"recipe": {"rounds": [{**_ROUND, **_SOFT}]}},
    "longer": {"length": 2.5},
    "tier 2": {"data": "train_tier_2"},
    "tier 2, judged": {"data": "train_tier_2", "judged": True},
    "equal scenes": {"recipe": {"sampling": "equal_scenes"}},
    "folds by tile": {"recipe": {"folds": 5, "folds_by": "tile"}, "fold": 0},
}


def main() -> None:
    """Train what is not trained yet, score it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=1, help="crops per tile and epoch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.work
    _link(options.data, work)
    columns = ("test chips", "without neighbours", *_HELD_OUT, "validation")
    print(f"| row | seed | {' | '.join(columns)} |", flush=True)
    print(f"|---|---|{'---|' * len(columns)}", flush=True)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for seed in options.seeds:
        for row in options.rows:
            scores = _run(row, seed, options.passes, options.data, work)
            found[row, seed] = scores
            cells = (f"{scores[name]:.3f}" if name in scores else "" for name in columns)
            print(f"| {row} | {seed} | {' | '.join(cells)} |", flush=True)
    for row in options.rows:
        if row == "ours" or "ours" not in options.rows:
            continue
        for name in columns:
            pairs = [(found[row, seed], found["ours", seed]) for seed in options.seeds]
            gains = [a[name] - b[name] for a, b in pairs if name in a and name in b]
            if gains:
                spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
                print(f"{row} against ours, {name}: {statistics.mean(gains):+.3f} ± {spread:.3f}")


def _link(data: Path, work: Path) -> None:
    """Lay out the scenes to train on and the areas that are held out."""
    scenes = data / "open_cities"
    links = {
        work / "train" / "train_tier_1" / "acc": scenes / "train_tier_1" / "acc",
        work / "tier2" / "train_tier_2": scenes / "train_tier_2",
        work / "test": scenes / "test",
        work / "truth": scenes / "test_truth",
    }
    areas = data / "buildings_open_cities" / "train_tier_1"
    for part, names in (("train", _TRAINED), ("held-out", _HELD_OUT)):
        links |= {work / part / "train_tier_1" / name: areas / name for name in names}
    for place, target in links.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(target.resolve())


def _recipe(row: str, seed: int, passes: int) -> Recipe:
    """Return the recipe of a row: `small-open-cities` with one network, and the row's changes."""
    changes = ROWS[row]
    content = load_recipe("small-open-cities").model_dump(mode="json", exclude_unset=True)
    stage = {
        "crop": 256,
        "batch": 4,
        "epochs": _EPOCHS,
        "passes": max(1, round(passes * changes.get("length", 1))),
        "validate_every": _EPOCHS,
        "schedule": {"kind": "cosine", "peak": 2e-3, "final": 2e-5, "warmup": 0.1},
        **changes.get("stage", {}),
    }
    member = {
        **content["members"][0],
        "fold": changes.get("fold"),
        "losses": {"building": changes.get("losses", {"dice": 1, "bce": 1})},
        "stages": [stage],
    }
    content |= {
        "seed": seed,
        "members": [member],
        "inference": {"tta": 1, "checkpoints": ["last"], "join_chips": True, "gaps": "mirror"},
        **changes.get("recipe", {}),
    }
    return build_recipe(content)


def _run(row: str, seed: int, passes: int, data: Path, work: Path) -> dict[str, float]:
    changes, recipe = ROWS[row], _recipe(row, seed, passes)
    weights = work / f"seed{seed}" / row.replace(",", "").replace(" ", "-")
    first = work / f"seed{seed}" / "ours"
    if recipe.rounds and first.exists() and not weights.exists():
        # The first round is the network without rounds.
        shutil.copytree(first, weights / "round1")
    directories = [work / "train"]
    if "data" in changes:
        directories.append(work / "tier2")
    options = TrainingOptions(work / "cache", unlabelled=(work / "test",) if recipe.rounds else ())
    if changes.get("judged"):
        options = replace(options, judgement=_judged(first, work))
    train(directories, recipe, RunContext(weights, _CPU), options)
    scores = _held_out(weights, recipe, work)
    for name, joined in (("test chips", True), ("without neighbours", False)):
        output = weights / f"{name.replace(' ', '-')}.zip"
        if not output.exists() and (joined or row == "ours"):
            chosen = recipe.model_copy(
                update={"inference": recipe.inference.model_copy(update={"join_chips": joined})}
            )
            file = weights / f"{name.replace(' ', '-')}.yaml"
            # JSON is YAML.
            file.write_text(chosen.model_dump_json(exclude_unset=True), encoding="utf-8")
            predict([work / "test"], output, weights, "cpu", recipe_name=str(file))
        if output.exists():
            report = score_files(work / "truth", output).report
            scores[name] = float(report.total["jaccard"] or 0)
    return scores


def _judged(weights: Path, work: Path) -> Path:
    """Judge the labels of tier 2 by the network that knows only tier 1."""
    output = weights.parent / "judgement"
    if not output.exists():
        cache = work / "cache"
        _, table = judge([work / "tier2"], None, weights, _CPU, Thresholds(), output, cache)
        print(table, flush=True)
    return output


def _held_out(weights: Path, recipe: Recipe, work: Path) -> dict[str, float]:
    """Score the network on the areas that no training has seen.

    ``validation`` is the score of the training itself on its fold, if it has one.
    """
    plain = recipe.model_copy(update={"tiles": None})
    task = task_of(plain)
    (file,) = choose(find_weights(weights), recipe)
    (member,) = task.load_ensemble([file], _CPU)
    scores = {"validation": file.scores["jaccard"]} if file.scores else {}
    for area in _HELD_OUT:
        found = task.find_images([work / "held-out" / "train_tier_1" / area])
        chips = prepare_chips(found.chips, 3, work / "cache", plain.stretch, task).chips
        scores[area] = validate(member.network, task, chips, RunContext(work, _CPU))["jaccard"]
    return scores


if __name__ == "__main__":
    main()
