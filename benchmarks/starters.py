"""Score the starter networks on held-out chips and on data that they have never seen.

    .venv/bin/python benchmarks/starters.py roads ../shared/data WORK [--weights DIR]
    .venv/bin/python benchmarks/starters.py speed ../shared/data WORK

The weights are those of the starter network by default. Scored are the chips that its training held
out, with the training's own images and labels in DATA, and all chips of other data sets, which are
resampled to the network's pixel size. The table lists, per data set: IoU of the pixels above 0.5,
pooled; F1 of the skeletons with a tolerance of 3 pixels, pooled; and the mean APLS by length of the
chips with roads. The reliability table compares the probabilities with the share of road pixels.
WORK holds the cut chips, and pictures of the worst chips of each data set.

``speed`` maps the demo's picture with one view and one thread, and prints CPU seconds per square
kilometre, vectors included, and those of one pass of the networks alone: of the starter, the four
networks of ``sn5-roads``, and torchvision's DeepLabV3 over ResNet50, all in the precision of
``satmap predict``.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rasterio
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from satmap.data.cache import prepare_chips
from satmap.data.crops import CachedChip
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.networks.ensemble import EnsembleMember, predict_maps
from satmap.networks.unet import build_network
from satmap.prediction.map import MapRequest, map_sources
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import load_recipe
from satmap.report.panels import write_picture
from satmap.runtime.device import autocast
from satmap.tasks.base import task_of
from satmap.tasks.roads.settings import ROAD, ROAD_MAPS
from satmap.tasks.roads.targets import CLASS_BITS
from satmap.tasks.roads.task import RoadTask
from satmap.tasks.roads.vectorizer.skeleton import thin
from satmap.weights.members import WeightFile, find_weights, recipe_of, trained_gsd
from satmap.weights.starters import PICTURES, starter_weights

_CPU = torch.device("cpu")
_TOLERANCE_PX = 3
_WORST = 6
_PASS_PX = 1024
_BINS = 10


@dataclass(frozen=True)
class ChipScore:
    """Pixels (true positives, false positives, false negatives), skeletons, APLS of one chip.

    ``skeletons`` holds: predicted pixels, those near a true one, true pixels, those found.
    ``reliability`` holds per bin of probability: pixels, sum of probabilities, road pixels.
    """

    pixels: NDArray[np.int64]
    skeletons: NDArray[np.int64]
    apls: float
    has_roads: bool
    reliability: NDArray[np.float64]


def main() -> None:
    """Print the tables and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["roads", "speed"])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--tta", type=int, help="views of each image (default: the recipe's)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task == "speed":
        _speed(options.work)
        return
    files = find_weights(options.weights or starter_weights(options.task))
    recipe = recipe_of(files)
    if options.tta:
        inference = recipe.inference.model_copy(update={"tta": options.tta})
        recipe = recipe.model_copy(update={"inference": inference})
    task = task_of(recipe)
    assert isinstance(task, RoadTask)
    networks = task.load_ensemble(files, _CPU)
    print("| data | chips | IoU | F1 | precision | recall | APLS |\n|---|---|---|---|---|---|---|")
    reliability: dict[str, NDArray[np.float64]] = {}
    for name, chips in _data_sets(task, files, options.data, options.work / "cache"):
        scores = [_score(task, networks, chip) for chip in chips]
        print(f"| {name} | {len(chips)} | {_row(scores)} |", flush=True)
        reliability[name] = sum((s.reliability for s in scores), np.zeros((3, _BINS)))
        _draw_worst(task, networks, chips, scores, options.work / "worst" / name)
    print(f"\n| probability | {' | '.join(f'{n}: mean, roads' for n in reliability)} |")
    print(f"|---|{'---|' * len(reliability)}")
    for number in range(_BINS):
        cells = []
        for count, mean, roads in (table[:, number] for table in reliability.values()):
            cells.append(f"{mean / count:.2f}, {roads / count:.2f}" if count else "")
        print(f"| {number / _BINS:.1f} to {(number + 1) / _BINS:.1f} | {' | '.join(cells)} |")


def _speed(work: Path) -> None:
    """Print CPU seconds per square kilometre of a map at 1 m, and of the networks alone."""
    work.mkdir(parents=True, exist_ok=True)
    weights, picture = starter_weights("roads"), PICTURES / "natick.tif"
    times = []
    for number in range(3):
        output = work / f"speed{number}.gpkg"
        started = time.process_time()
        map_sources(MapRequest((), output, weights, "cpu", sources=(str(picture),), views=1))
        times.append(time.process_time() - started)
        output.unlink()
    with rasterio.open(picture) as file:
        area = file.width * file.height / 1e6
    whole = statistics.median(times) / area
    task = task_of(recipe_of(find_weights(weights)))
    (starter,) = task.load_ensemble(find_weights(weights), _CPU)
    passes = {"starter": _pass_seconds(starter.network, 3)}
    members = load_recipe("sn5-roads").members
    passes["sn5-roads, four networks"] = sum(
        _pass_seconds(
            build_network(m.encoder, m.bands, ROAD_MAPS, m.decoder.widths, m.decoder.kind), m.bands
        )
        for m in members
    )
    deeplab = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=1
    )
    passes["DeepLabV3, ResNet50"] = _pass_seconds(deeplab, 3)
    print("| what | CPU s per km2 | ratio to the whole map |\n|---|---|---|")
    print(f"| map with the starter, vectors included | {whole:.2f} | 1 |")
    for name, seconds in passes.items():
        print(f"| one pass: {name} | {seconds:.2f} | {seconds / whole:.2f} |")


def _pass_seconds(network: nn.Module, channels: int) -> float:
    """Return the CPU seconds of one pass over a million pixels, median of three."""
    network = network.eval().to(memory_format=torch.channels_last)
    image = torch.rand(1, channels, _PASS_PX, _PASS_PX).contiguous(
        memory_format=torch.channels_last
    )
    seconds = []
    with torch.inference_mode(), autocast(_CPU):
        for _ in range(4):
            started = time.process_time()
            network(image)
            seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:]) / (_PASS_PX**2 / 1e6)


def _data_sets(
    task: RoadTask, files: Sequence[WeightFile], data: Path, cache: Path
) -> Iterator[tuple[str, Sequence[CachedChip]]]:
    """Yield the held-out chips of the training, then those of other data sets."""
    gsd = trained_gsd(files)
    own, newyork = data / "roads_massachusetts", data / "both_newyork"
    epfl = data / "roads_epfl/AOI_90_Suburb_Train"
    sets = {
        "held out": OwnData((str(own / "images"),), own / "masks", metres_per_pixel=1.0),
        "roads_epfl": OwnData((str(epfl / "PS-RGB"),), epfl / "geojson_roads_speed", gsd=gsd),
        # Their pixels have about the size of the training's.
        "both_newyork": OwnData(
            (str(newyork / "images"),), newyork / "roads", metres_per_pixel=0.9
        ),
    }
    held_out = files[0].held_out or frozenset()
    for name, source in sets.items():
        found = find_own_chips(source, task, 3, cache).chips
        if name == "held out":
            found = tuple(chip for chip in found if chip.image_id in held_out)
        yield name, prepare_chips(found, 3, cache, task.recipe.stretch, task).chips


def _maps(
    task: RoadTask, networks: Sequence[EnsembleMember], chip: CachedChip
) -> tuple[ProbabilityMaps, NDArray[np.uint8]]:
    """Predict a chip; ignored pixels are 0."""
    image, target = chip.read()
    values = predict_maps(networks, image, task.recipe.inference, _CPU)
    values = values * ((target & task.ignored_bit) == 0)
    return ProbabilityMaps(task.map_names, values, chip.metres_per_pixel), target


def _score(task: RoadTask, networks: Sequence[EnsembleMember], chip: CachedChip) -> ChipScore:
    maps, target = _maps(task, networks, chip)
    found, truth = maps[ROAD] >= 128, (target & CLASS_BITS) > 0
    counted = (target & task.ignored_bit) == 0
    lines = [_skeleton(found), _skeleton(truth)]
    near = [
        cv2.distanceTransform(1 - line, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= _TOLERANCE_PX
        if line.any()
        else np.zeros(line.shape, bool)
        for line in lines
    ]
    probability = maps[ROAD][counted] / 255
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    reliability = [
        np.bincount(bins, weights, _BINS) for weights in (None, probability, truth[counted])
    ]
    return ChipScore(
        np.array([(found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum()]),
        np.array(
            [lines[0].sum(), lines[0][near[1]].sum(), lines[1].sum(), lines[1][near[0]].sum()]
        ),
        task.score_maps(maps, chip, target).apls,
        bool(chip.payload),
        np.array(reliability, np.float64),
    )


def _skeleton(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    rows, columns, _ = thin(mask.astype(np.uint8))
    line = np.zeros(mask.shape, np.uint8)
    line[rows, columns] = 1
    return line


def _row(scores: Sequence[ChipScore]) -> str:
    hit, wrong, missed = np.sum([score.pixels for score in scores], axis=0)
    found, right, true, seen = np.sum([score.skeletons for score in scores], axis=0)
    precision, recall = right / max(found, 1), seen / max(true, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    apls = np.mean([score.apls for score in scores if score.has_roads])
    figures = (hit / (hit + wrong + missed), f1, precision, recall, apls)
    return " | ".join(f"{figure:.3f}" for figure in figures)


def _draw_worst(
    task: RoadTask,
    networks: Sequence[EnsembleMember],
    chips: Sequence[CachedChip],
    scores: Sequence[ChipScore],
    place: Path,
) -> None:
    """Draw the chips with roads that have the lowest APLS."""
    place.mkdir(parents=True, exist_ok=True)
    order = sorted(range(len(chips)), key=lambda number: scores[number].apls)
    for number in [number for number in order if scores[number].has_roads][:_WORST]:
        chip = chips[number]
        maps, target = _maps(task, networks, chip)
        picture = task.draw(chip, task.score_maps(maps, chip, target))
        write_picture(place / f"{chip.image_id.replace('/', '-')}.png", picture)


if __name__ == "__main__":
    main()
