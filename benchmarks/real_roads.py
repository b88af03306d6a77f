"""Train on real aerial images and score on held-out ones: APLS, IoU of the road mask, minutes.

    .venv/bin/python benchmarks/real_roads.py ../shared/data/roads_epfl/AOI_90_Suburb_Train WORK

Every fifth chip of the area is held out. WORK keeps the split, weights and pictures, and a second
run does not train again. The script takes about 25 minutes on two idle cores with the recipe
``small-roads``.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from real_chips import HELD_OUT, link
from satmap.data.cache import prepare_chip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.evaluation.metrics.apls import score_roads
from satmap.networks.ensemble import predict_maps
from satmap.prediction.images import prepare_image
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import load_recipe
from satmap.report.panels import Ground, write_picture
from satmap.report.pictures import roads_picture
from satmap.report.table import score_table
from satmap.runtime.device import pick_device
from satmap.submissions.roads_csv import rows_of_graph, write_roads_csv
from satmap.tasks.base import task_of
from satmap.tasks.roads.settings import ROAD, ROAD_MAPS
from satmap.tasks.roads.targets import CLASS_BITS
from satmap.tasks.roads.task import truth_rows
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import choose, find_weights


def main() -> None:
    """Train, predict the held-out chips and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("area", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", default="small-roads")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    task = task_of(recipe)
    context = RunContext(options.work / "weights", pick_device())
    chips = scan_roads([options.area]).chips
    held_out = chips[::HELD_OUT]
    split = options.work / "train"
    link([chip for chip in chips if chip not in held_out], split)

    started = time.perf_counter()
    train([split], recipe, context, TrainingOptions(options.work / "cache", from_scratch=True))
    trained = time.perf_counter()
    members = task.load_ensemble(choose(find_weights(context.weights), recipe), context.device)
    truth, proposal, metres = {}, {}, []
    overlap = union = 0
    for chip in held_out:
        seen = prepare_image(chip, members, task)
        values = predict_maps(seen.members, seen.pixels, recipe.inference, context.device)
        maps = ProbabilityMaps(ROAD_MAPS, values, seen.metres_per_pixel)
        cached = prepare_chip(chip, options.work / "cache", recipe.stretch, task)
        image, target = cached.read()
        road, label = maps[ROAD] >= 128, (target & CLASS_BITS) > 0
        overlap += int((road & label).sum())
        union += int((road | label).sum())
        truth[chip.image_id] = truth_rows(cached)
        proposal[chip.image_id] = rows_of_graph(vectorize_roads(maps, recipe.task.vectorizer))
        metres.append(np.mean(maps.metres_per_pixel))
        picture = roads_picture(
            proposal[chip.image_id],
            truth[chip.image_id],
            ground=Ground.of_image(image[..., :3], float(metres[-1])),
            caption=[chip.image_id],
            metres_per_pixel=float(metres[-1]),
        )
        write_picture(options.work / "pictures" / f"{chip.image_id}.png", picture)
    predicted = time.perf_counter()
    write_roads_csv(options.work / "out.csv", proposal)
    report = score_roads(truth, proposal, metres_per_pixel=float(np.mean(metres)))
    print(score_table(report))
    print(f"IoU of the road mask {overlap / union:.3f}")
    print(f"training {(trained - started) / 60:.1f} min on {len(chips) - len(held_out)} chips")
    print(f"prediction {(predicted - trained) / len(held_out):.1f} s per chip")


if __name__ == "__main__":
    main()
