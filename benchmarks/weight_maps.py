"""Recall of small buildings with and without the Mapping Challenge's weight maps.

    .venv/bin/python benchmarks/weight_maps.py ../shared/data/buildings_mapping_challenge/train WORK
    .venv/bin/satmap make-city WORK/city --layout coco && \\
        .venv/bin/python benchmarks/weight_maps.py WORK/city/train WORK/made

For every seed the recipe ``mapping-challenge``, with a ResNet18 from scratch, is trained twice on
each half of the images, as ``satmap train`` does it: with its cross entropy, which counts most
between buildings and on small ones, and with the same that counts all pixels alike. The dice beside
it, steps and crops are the same. Scored is the other half, which a network has not seen: buildings
found at an IoU above .5, those under 32 x 32 pixels, COCO's small ones, by themselves. One thread,
about a minute of processor time a network. WORK keeps it all; run again it trains no more.
"""

import argparse
from pathlib import Path

import numpy as np
import shapely
import torch

from building_runs import half
from satmap.data.building_labels import read_building_labels
from satmap.data.buildings import scan_buildings
from satmap.metrics.building_f1 import Counts, match_buildings
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv

_SMALL_PX2 = 32**2


def main() -> None:
    """Train what is not trained yet, score it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--halves", type=int, nargs="+", choices=(0, 1), default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| seed, half | cross entropy | small | others | precision | F1 | CPU s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for seed in options.seeds:
        for fold in options.halves:
            for name in ("plain", "weighted"):
                network = half(
                    options.images, options.work, seed, fold, weighted=name == "weighted"
                )
                cells = " | ".join(f"{x:.3f}" for x in _score(options.images, network.out))
                print(f"| {seed}, {fold} | {name} | {cells} | {network.seconds:.0f} |", flush=True)


def _score(images: Path, out: Path) -> tuple[float, float, float, float]:
    """Recall of small buildings and of others, precision and F1, over the images predicted."""
    proposals = read_buildings_csv(out)
    counts = Counts()
    found, small = [], []
    for chip in scan_buildings([images]).chips:
        if chip.image_id not in proposals:
            continue
        truth = shapely.get_parts(read_building_labels(chip).outlines)
        matches = match_buildings([BuildingRow(each) for each in truth], proposals[chip.image_id])
        counts += matches.counts
        counted = matches.counted_truth
        found.append(np.isin(np.arange(len(truth)), matches.taken)[counted])
        small.append((shapely.area(truth) < _SMALL_PX2)[counted])
    was_found, is_small = np.concatenate(found), np.concatenate(small)
    return (
        float(was_found[is_small].mean()),
        float(was_found[~is_small].mean()),
        counts.tp / max(counts.tp + counts.fp, 1),
        2 * counts.tp / max(2 * counts.tp + counts.fp + counts.fn, 1),
    )


if __name__ == "__main__":
    main()
