"""Compare an ensemble of twelve passes with one distilled network of a single pass.

    .venv/bin/python benchmarks/distillation.py ../shared/data/roads_epfl/AOI_90_Suburb_Train WORK

Every fifth chip of the area is held out of all trainings. For each seed, the two rounds of
``quick-roads-single``, the ensemble and the student, are trained as by ``satmap train``. With
``--labels``, the student's network is also trained without a teacher for as many steps, to measure
the teacher's contribution. Also scored are one network of the ensemble with one view, and the mean
of its checkpoints' weights where they differ. Times are those of the networks on all held-out
chips; the contenders take turns. WORK keeps all results, and a second run does not train again. The
script uses one thread and about 15 minutes of CPU time per seed, 20 with ``--labels``.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from real_chips import HELD_OUT, link, split
from satmap.data.crops import CachedChip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.evaluation.metrics.apls import apls
from satmap.networks.ensemble import EnsembleMember, predict_maps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Inference, Recipe, load_recipe
from satmap.runtime.device import pick_device
from satmap.submissions.roads_csv import rows_of_graph
from satmap.tasks.base import task_of
from satmap.tasks.roads.settings import ROAD, ROAD_MAPS
from satmap.tasks.roads.targets import CLASS_BITS
from satmap.tasks.roads.task import truth_rows
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.average import average_weights
from satmap.weights.members import WeightFile, choose, find_weights


@dataclass(frozen=True)
class Contender:
    """Predictor to compare: its name, networks and views."""

    name: str
    members: Sequence[EnsembleMember]
    inference: Inference

    @property
    def passes(self) -> int:
        """Number of forward passes: networks times views."""
        return len(self.members) * self.inference.tta


@dataclass(frozen=True)
class Score:
    """Mean scores over the held-out chips, and seconds of the networks per chip."""

    apls: float
    apls_time: float
    iou: float
    seconds: float


def main() -> None:
    """Train what is not trained yet, score it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("area", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", default="quick-roads-single", help="a recipe of two rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--labels", action="store_true", help="also train without a teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = pick_device(options.device)
    recipe = load_recipe(options.recipe)
    _, held_out = split(options.area, options.work, recipe)
    chips = scan_roads([options.area]).chips
    left_out = chips[::HELD_OUT]
    link([chip for chip in chips if chip not in left_out], options.work / "train")

    print("| seed | what | passes | APLS length | APLS time | IoU | s per chip |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for seed in options.seeds:
        contenders = _contenders(options.work, seed, recipe, device, with_labels=options.labels)
        scores = _score(contenders, held_out, recipe, device)
        for contender, score in zip(contenders, scores, strict=True):
            print(
                f"| {seed} | {contender.name} | {contender.passes} | {score.apls:.3f} "
                f"| {score.apls_time:.3f} | {score.iou:.3f} | {score.seconds:.3f} |",
                flush=True,
            )
        print(
            f"\nseed {seed}: the ensemble takes {scores[0].seconds / scores[1].seconds:.1f} times "
            "the student's time\n",
            flush=True,
        )


def _contenders(
    work: Path, seed: int, recipe: Recipe, device: torch.device, *, with_labels: bool
) -> list[Contender]:
    """Return the ensemble, the student and the baselines, after training them."""
    student = recipe.model_copy(update={"seed": seed})
    ensemble = student.up_to_round(0)
    directory = work / f"seed{seed}"
    _train(student, work, directory / "student", device)
    teachers = directory / "student/round1"
    views = ensemble.inference.model_copy(update={"tta": student.rounds[0].tta})

    def members(directory: Path, recipe: Recipe) -> list[EnsembleMember]:
        return task_of(recipe).load_ensemble(choose(find_weights(directory), recipe), device)

    networks = members(teachers, ensemble)
    contenders = [
        Contender("ensemble", networks, views),
        Contender("student", members(directory / "student", student), student.inference),
        Contender("one network of the ensemble", networks[:1], student.inference),
    ]
    if with_labels:
        labels = student.model_copy(update={"members": student.ensemble, "rounds": ()})
        _train(labels, work, directory / "labels", device)
        trained = members(directory / "labels", labels)
        contenders.append(Contender("student without a teacher", trained, student.inference))
    first = ensemble.members[0].name
    checkpoints = [f for f in find_weights(teachers) if f.path.name.startswith(f"{first}.")]
    different = {file.checkpoint_key: file for file in checkpoints}
    if len(different) > 1:
        path = directory / "soup" / f"{first}.last.safetensors"
        average_weights(path, [file.path for file in different.values()])
        file = WeightFile(path, find_weights(path.parent)[0].metadata)
        soup = task_of(ensemble).load_ensemble([file], device)
        name = f"its {len(different)} checkpoints' mean"
        contenders.append(Contender(name, soup, student.inference))
    return contenders


def _train(recipe: Recipe, work: Path, weights: Path, device: torch.device) -> None:
    options = TrainingOptions(work / "cache")
    train([work / "train"], recipe, RunContext(weights, device), options)


def _score(
    contenders: Sequence[Contender],
    chips: Sequence[CachedChip],
    recipe: Recipe,
    device: torch.device,
) -> list[Score]:
    """Score all contenders chip by chip with the vectoriser of one recipe."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    lengths, times, seconds = (np.zeros((len(contenders), len(chips))) for _ in range(3))
    overlap, union = np.zeros(len(contenders)), np.zeros(len(contenders))
    # A warm-up pass, so that one-time setup does not count.
    _predict(contenders[0], chips[0], device)
    for column, chip in enumerate(chips):
        _, target = chip.read()
        label, truth = (target & CLASS_BITS) > 0, truth_rows(chip)
        for row, contender in enumerate(contenders):
            started = clock()
            maps = _predict(contender, chip, device)
            seconds[row, column] = clock() - started
            found = rows_of_graph(vectorize_roads(maps, recipe.task.vectorizer))
            score = apls(truth, found, metres_per_pixel=float(np.mean(chip.metres_per_pixel)))
            assert score.time is not None, "both sides state travel times"
            lengths[row, column], times[row, column] = score.length.score, score.time.score
            road = maps[ROAD] >= 128
            overlap[row] += (road & label).sum()
            union[row] += (road | label).sum()
    means = (each.mean(axis=1) for each in (lengths, times))
    columns = (*means, overlap / union, np.median(seconds, axis=1))
    return [Score(*map(float, row)) for row in zip(*columns, strict=True)]


def _predict(contender: Contender, chip: CachedChip, device: torch.device) -> ProbabilityMaps:
    image, _ = chip.read()
    values = predict_maps(contender.members, image, contender.inference, device)
    return ProbabilityMaps(ROAD_MAPS, values, chip.metres_per_pixel)


if __name__ == "__main__":
    main()
