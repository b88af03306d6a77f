"""Measure the recall of small buildings with and without the Mapping Challenge's weight maps.

    .venv/bin/python benchmarks/weight_maps.py ../shared/data/buildings_mapping_challenge/train WORK
    .venv/bin/satmap make-city WORK/city --layout coco && \\
        .venv/bin/python benchmarks/weight_maps.py WORK/city/train WORK/made

For every seed, the recipe ``mapping-challenge`` with a ResNet18 from scratch is trained twice on
each half of the images, as by ``satmap train``: with its weighted cross entropy, which counts most
between buildings and on small ones, and with an unweighted one. The dice loss, steps and crops are
the same. The other half is scored: buildings found at an IoU above .5, separately for those under
32 x 32 pixels (small in COCO's terms) and the others, and the fraction of false buildings under
16 x 16 pixels. The recipe's threshold is .5; ``--thresholds`` tries others. The script uses one
thread and about a minute of CPU time per network. WORK keeps all results, and a second run does not
train again.
"""

import argparse
from pathlib import Path

import numpy as np
import shapely
import torch

from building_runs import Half, half
from satmap.data.layouts.building_challenges import find_building_images
from satmap.evaluation.metrics.building_f1 import match_buildings
from satmap.evaluation.metrics.figures import Counts
from satmap.rasters.map_files import open_map_file
from satmap.submissions.buildings_csv import BuildingRow
from satmap.tasks.buildings.labels import read_building_labels
from satmap.tasks.buildings.settings import BUILDING_FILE_MAPS
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings

_SMALL_PX2, _SPECK_PX2 = 32**2, 16**2


def main() -> None:
    """Train the missing networks, score them and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--halves", type=int, nargs="+", choices=(0, 1), default=[0, 1])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| seed, half | cross entropy | threshold | small | others | precision | F1 | specks |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for seed in options.seeds:
        for fold in options.halves:
            for name in ("plain", "weighted"):
                network = half(
                    options.images, options.work, seed, fold, weighted=name == "weighted"
                )
                for threshold in options.thresholds:
                    figures = _score(options.images, network, threshold)
                    cells = " | ".join(f"{figure:.3f}" for figure in figures)
                    print(f"| {seed}, {fold} | {name} | {threshold} | {cells} |", flush=True)


def _score(images: Path, network: Half, threshold: float) -> tuple[float, ...]:
    """Return scores over the images that the network predicted.

    They are the recall of small buildings and of others, precision, F1, and the fraction of specks
    among false buildings.
    """
    settings = network.recipe.task.vectorizer.of(None).model_copy(
        update={"seed": threshold, "low": threshold, "certain": threshold}
    )
    counts, specks = Counts(), 0
    found, small = [], []
    for chip in find_building_images([images]).chips:
        raster = network.maps / f"{chip.image_id}.tif"
        if not raster.exists():
            continue
        with open_map_file(raster, 1, BUILDING_FILE_MAPS) as mask:
            buildings = vectorize_buildings(mask.scene.at_once(), settings)
        proposals = [BuildingRow(its.polygon, its.score) for its in buildings]
        truth = shapely.get_parts(read_building_labels(chip).outlines)
        matches = match_buildings([BuildingRow(each) for each in truth], proposals)
        counts += matches.counts
        false = matches.counted & (matches.taken < 0)
        areas = np.array([row.polygon.area for row in proposals])
        specks += int((areas[false] < _SPECK_PX2).sum())
        counted = matches.counted_truth
        found.append(np.isin(np.arange(len(truth)), matches.taken)[counted])
        small.append((shapely.area(truth) < _SMALL_PX2)[counted])
    was_found, is_small = np.concatenate(found), np.concatenate(small)
    return (
        float(was_found[is_small].mean()),
        float(was_found[~is_small].mean()),
        counts.tp / max(counts.tp + counts.fp, 1),
        2 * counts.tp / max(2 * counts.tp + counts.fp + counts.fn, 1),
        specks / max(counts.fp, 1),
    )


if __name__ == "__main__":
    main()
