r"""Score the starter networks on held-out chips and on data that they have never seen.

    .venv/bin/python benchmarks/starters.py roads ../shared/data WORK [--weights DIR]
    .venv/bin/python benchmarks/starters.py buildings ../shared/data WORK [--left-out DIR] \
        [--trained DIR...]
    .venv/bin/python benchmarks/starters.py speed ../shared/data WORK

The weights are those of the starter network by default. Scored are the chips that its training held
out, and all chips of other data sets, which are resampled to the network's pixel size. For roads
the held-out chips are found by the training's own images and labels in DATA, for buildings in the
cut chips of the training, ``--trained``. ``--left-out DIR`` holds one directory of weights per
place, with the place's name: networks that have not learned from it. Each is scored on its place.

The table lists, per data set: IoU of the pixels above 0.5, pooled; F1, pooled: of the skeletons
with a tolerance of 3 pixels, or of the buildings at an IoU of 0.5; and for roads the mean APLS by
length of the chips with roads. The reliability table compares the probabilities with the share of
true pixels. WORK holds the cut chips, and pictures of the worst chips of each data set.

``speed`` maps the demo's pictures with one view and one thread, that of roads repeated 16 times and
that of buildings, which is small, 25 times. It prints CPU seconds per square kilometre, vectors
included, and those of one pass of the networks alone: of the starter, the four networks of
``sn5-roads``, and torchvision's DeepLabV3 over ResNet50, all in the precision of ``predict``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from satmap.data.cache import prepare_chips
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.layouts.own_chips import find_cut_chips
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.demo import PLACES
from satmap.networks.ensemble import EnsembleMember, predict_maps
from satmap.networks.unet import build_network
from satmap.prediction.map import MapRequest, map_sources
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Recipe, load_recipe
from satmap.report.panels import write_picture
from satmap.runtime.device import autocast
from satmap.tasks.base import task_of
from satmap.tasks.buildings.settings import BUILDING
from satmap.tasks.buildings.targets import BODY_BIT
from satmap.tasks.buildings.task import BuildingTask
from satmap.tasks.roads.settings import ROAD, ROAD_MAPS
from satmap.tasks.roads.targets import CLASS_BITS
from satmap.tasks.roads.task import RoadTask
from satmap.tasks.roads.vectorizer.skeleton import thin
from satmap.weights.members import WeightFile, find_weights, recipe_of, trained_gsd
from satmap.weights.starters import starter_weights

_CPU = torch.device("cpu")
_TOLERANCE_PX = 3
_WORST = 6
_PASS_PX = 1024
_BINS = 10
_REPEATED = {"roads": 4, "buildings": 5}
# Metres per pixel of the networks.
ROAD_GSD, BUILDING_GSD = 1.0, 0.2

# Places of the training of starter-buildings, to leave out one after the other: images and labels
# in DATA, and the metres to the east and north by which the labels are moved.
_OAM, _OPEN_CITIES = "buildings_openaerialmap", "buildings_open_cities/train_tier_1"
BUILDING_PLACES = {
    "place1": (f"{_OAM}/place1/tiles", f"{_OAM}/place1/labels", (0.0, 0.0)),
    "place3": (f"{_OAM}/place3/tiles", f"{_OAM}/place3/labels", (0.0, 0.0)),
    "place5": (f"{_OAM}/place5/tiles", f"{_OAM}/place5/labels", (-1.0, 1.2)),
    "area2": (f"{_OPEN_CITIES}/area2", f"{_OPEN_CITIES}/area2", (0.0, 0.0)),
    "area4": (f"{_OPEN_CITIES}/area4", f"{_OPEN_CITIES}/area4", (0.0, 0.0)),
    "accra": ("open_cities/train_tier_1", "open_cities/train_tier_1", (0.0, 0.0)),
}
# Data that no network has learned from: images and masks in DATA, metres per pixel, and how many
# images are scored: every n-th.
_UNSEEN_BUILDINGS = {
    "open_cities/test": ("open_cities/test", "open_cities/test_truth", 0.05, 1),
    "buildings_barnarp": ("buildings_barnarp/images", "buildings_barnarp/masks", 0.16, 1),
    "both_newyork": ("both_newyork/images", "both_newyork/buildings", 0.91, 16),
}

_Task = RoadTask | BuildingTask


@dataclass(frozen=True)
class Network:
    """The network of a directory of weights.

    Attributes:
        task: with the recipe of the prediction.
        members: the loaded network.
        files: its weight file.
    """

    task: _Task
    members: Sequence[EnsembleMember]
    files: Sequence[WeightFile]


# Data sets by name: weights (None for the starter), and a function that finds the chips.
_DataSets = dict[str, tuple[Path | None, Callable[[Network], Sequence[Chip]]]]


@dataclass(frozen=True)
class ChipScore:
    """Score of one chip.

    Attributes:
        pixels: true positives, false positives, false negatives.
        objects: pixels of skeletons, or buildings: predicted, right ones of these, true ones, found
            ones of these.
        quality: APLS of a chip with roads, F1 of one with buildings; None of an empty one.
        reliability: per bin of probability: pixels, sum of probabilities, true pixels.
    """

    pixels: NDArray[np.int64]
    objects: NDArray[np.int64]
    quality: float | None
    reliability: NDArray[np.float64]


def main() -> None:
    """Print the tables and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["roads", "buildings", "speed"])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--left-out", type=Path, help="directory of weights by left-out place")
    parser.add_argument("--trained", type=Path, nargs="+", help="cut chips of the training")
    parser.add_argument("--only", nargs="+", help="names of the data sets to score")
    parser.add_argument("--tta", type=int, help="views of each image (default: the recipe's)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task == "speed":
        for task in PLACES:
            _speed(task, options.work)
        return
    is_road = options.task == "roads"
    print(f"| data | chips | IoU | F1 | precision | recall |{' APLS |' if is_road else ''}")
    print(f"|---|---|---|---|---|---|{'---|' if is_road else ''}")
    reliability: dict[str, NDArray[np.float64]] = {}
    left_out = []
    for name, network, chips in _data_sets(options):
        scores = [_score(network, chip) for chip in chips]
        print(f"| {name} | {len(chips)} | {_row(scores, is_road)} |", flush=True)
        reliability[name] = sum((s.reliability for s in scores), np.zeros((3, _BINS)))
        _draw_worst(network, chips, scores, options.work / "worst" / name.replace("/", "-"))
        if name in BUILDING_PLACES:
            left_out.append(_figures(scores)[:4])
    if left_out:
        means = " | ".join(f"{figure:.3f}" for figure in np.mean(left_out, axis=0))
        print(f"| mean of {len(left_out)} left-out places | | {means} |")
    print(f"\n| probability | {' | '.join(f'{n}: mean, {options.task}' for n in reliability)} |")
    print(f"|---|{'---|' * len(reliability)}")
    for number in range(_BINS):
        cells = []
        for count, mean, true in (table[:, number] for table in reliability.values()):
            cells.append(f"{mean / count:.2f}, {true / count:.2f}" if count else "")
        print(f"| {number / _BINS:.1f} to {(number + 1) / _BINS:.1f} | {' | '.join(cells)} |")


def load(weights: Path, views: int | None) -> Network:
    """Load the network of a directory; None are the views of its recipe."""
    files = find_weights(weights)
    recipe: Recipe = recipe_of(files)
    if views:
        inference = recipe.inference.model_copy(update={"tta": views})
        recipe = recipe.model_copy(update={"inference": inference})
    task = task_of(recipe)
    assert isinstance(task, RoadTask | BuildingTask)
    return Network(task, task.load_ensemble(files, _CPU), files)


def _speed(name: str, work: Path) -> None:
    """Print CPU seconds per square kilometre of a map, and of the networks alone."""
    work.mkdir(parents=True, exist_ok=True)
    weights, picture = starter_weights(name), work / f"{name}.tif"
    _write_repeated(PLACES[name], picture, _REPEATED[name])
    times = []
    for number in range(3):
        output = work / f"speed{number}.gpkg"
        started = time.process_time()
        map_sources(MapRequest((), output, weights, "cpu", sources=(str(picture),), views=1))
        times.append(time.process_time() - started)
        output.unlink()
    network = load(weights, 1)
    gsd = trained_gsd(network.files)
    assert gsd is not None
    with rasterio.open(picture) as file:
        area = file.width * file.height * abs(file.transform.determinant) / 1e6
        area *= _ground_scale(file) ** 2
    whole = statistics.median(times) / area
    # Millions of pixels per square kilometre.
    pixels = 1 / gsd**2
    (starter,) = network.members
    passes = {"starter": _pass_seconds(starter.network, 3), **_reference_passes()}
    print(f"\n| {name}, {area:.3f} km2 at {gsd:.2f} m | CPU s per km2 | ratio to the whole map |")
    print("|---|---|---|")
    print(f"| map with the starter, vectors included | {whole:.2f} | 1 |")
    for label, seconds in passes.items():
        print(f"| one pass: {label} | {seconds * pixels:.2f} | {seconds * pixels / whole:.2f} |")


@cache
def _reference_passes() -> dict[str, float]:
    """Return the CPU seconds of one pass of other networks over a million pixels."""
    networks = [
        (build_network(m.encoder, m.bands, ROAD_MAPS, m.decoder.widths, m.decoder.kind), m.bands)
        for m in load_recipe("sn5-roads").members
    ]
    deeplab = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=1
    )
    return {
        "sn5-roads, four networks": sum(_pass_seconds(*network) for network in networks),
        "DeepLabV3, ResNet50": _pass_seconds(deeplab, 3),
    }


def _write_repeated(picture: Path, output: Path, times: int) -> None:
    """Write a picture several times side by side and one below the other."""
    with rasterio.open(picture) as file:
        pixels = np.tile(file.read(), (1, times, times))
        profile = file.profile | {"height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(output, "w", **profile) as file:
        file.write(pixels)


def _ground_scale(file: rasterio.DatasetReader) -> float:
    """Return the metres on the ground per unit of a raster's reference system."""
    if file.crs.to_epsg() != 3857:
        return 1.0
    # Web mercator is stretched by the latitude.
    middle = (file.bounds.top + file.bounds.bottom) / 2
    return float(1 / np.cosh(middle / 6378137))


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
    options: argparse.Namespace,
) -> Iterator[tuple[str, Network, Sequence[CachedChip]]]:
    """Yield held-out chips and those of other data sets, each with the network to score."""
    prepared = options.work / "cache"
    starter = load(options.weights or starter_weights(options.task), options.tta)
    for name, (weights, find) in (
        road_sets(options) if options.task == "roads" else building_sets(options)
    ).items():
        if options.only and name not in options.only:
            continue
        network = load(weights, options.tta) if weights else starter
        task = network.task
        chips = find(network)
        yield name, network, prepare_chips(chips, 3, prepared, task.recipe.stretch, task).chips


def own(
    options: argparse.Namespace, images: Path, labels: Path, **settings: Any
) -> Callable[[Network], Sequence[Chip]]:
    """Return a function that cuts images and labels into chips for a network."""
    data = OwnData((str(images),), labels, **settings)
    return lambda network: find_own_chips(data, network.task, 3, options.work / "cache").chips


def _held_out(network: Network, chips: Sequence[Chip]) -> list[Chip]:
    names = network.files[0].held_out or frozenset()
    return [chip for chip in chips if chip.image_id in names]


def road_sets(options: argparse.Namespace) -> _DataSets:
    """Return the data sets of roads by name."""
    suburbs, newyork = options.data / "roads_massachusetts", options.data / "both_newyork"
    epfl = options.data / "roads_epfl/AOI_90_Suburb_Train"
    find = own(options, suburbs / "images", suburbs / "masks", metres_per_pixel=1.0)
    return {
        "held out": (None, lambda network: _held_out(network, find(network))),
        "roads_epfl": (
            None,
            own(options, epfl / "PS-RGB", epfl / "geojson_roads_speed", gsd=ROAD_GSD),
        ),
        # Their pixels have about the size of the training's.
        "both_newyork": (
            None,
            own(options, newyork / "images", newyork / "roads", metres_per_pixel=0.9),
        ),
    }


def building_sets(options: argparse.Namespace) -> _DataSets:
    """Return the data sets of buildings by name."""
    sets: _DataSets = {}
    for name, (images, labels, shift) in BUILDING_PLACES.items():
        if options.left_out and (weights := options.left_out / name).is_dir():
            place = options.data / images
            find = own(options, place, options.data / labels, gsd=BUILDING_GSD, shift=shift)
            sets[name] = weights, find
    if options.trained:
        found = find_cut_chips(options.trained, "buildings")
        assert found is not None
        sets["held out"] = None, partial(_held_out, chips=found.chips)
    for name, (images, masks, metres, step) in _UNSEEN_BUILDINGS.items():
        place = options.work / "resampled" / name.replace("/", "-")
        if not options.only or name in options.only:
            factor = metres / BUILDING_GSD
            _resample(options.data / images, options.data / masks, factor, place, step)
        find = own(options, place / "images", place / "masks", metres_per_pixel=BUILDING_GSD)
        sets[name] = None, find
    return sets


def _resample(images: Path, masks: Path, factor: float, place: Path, step: int) -> None:
    """Resample every ``step``-th image and its mask by a factor, unless this was done before."""
    if place.is_dir():
        return
    paths = {path.stem: path for path in images.rglob("*") if path.is_file()}
    for folder in ("images", "masks"):
        (place / folder).mkdir(parents=True)
    for path in sorted(masks.iterdir())[::step]:
        with rasterio.open(paths[path.stem]) as file:
            image = file.read([1, 2, 3]).transpose(1, 2, 0)
        with rasterio.open(path) as file:
            mask = (file.read(1) > 0).astype(np.uint8)
        kernel = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        size = round(image.shape[1] * factor), round(image.shape[0] * factor)
        small = cv2.resize(image, size, interpolation=kernel)
        kernel = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        share = cv2.resize(mask * np.float32(255), size, interpolation=kernel)
        cv2.imwrite(str(place / "images" / f"{path.stem}.png"), small[..., ::-1])
        cv2.imwrite(str(place / "masks" / f"{path.stem}.png"), (share >= 128) * np.uint8(255))


def predicted_maps(network: Network, chip: CachedChip) -> tuple[ProbabilityMaps, NDArray[np.uint8]]:
    """Predict a chip; ignored pixels are 0. Returns the maps and the target."""
    image, target = chip.read()
    task = network.task
    values = predict_maps(network.members, image, task.recipe.inference, _CPU)
    values = values * (_counted(task, target) > 0)
    return ProbabilityMaps(task.map_names, values, chip.metres_per_pixel), target


def _counted(task: _Task, target: NDArray[np.uint8]) -> NDArray[np.bool_]:
    counted: NDArray[np.bool_] = (_bits(target) & task.ignored_bit) == 0
    return counted


def _bits(target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the first byte of a target."""
    return target if target.ndim == 2 else target[..., 0]


def _score(network: Network, chip: CachedChip) -> ChipScore:
    task = network.task
    maps, target = predicted_maps(network, chip)
    is_road = isinstance(task, RoadTask)
    first = maps[ROAD if is_road else BUILDING]
    found, truth = first >= 128, (_bits(target) & (CLASS_BITS if is_road else BODY_BIT)) > 0
    counted = _counted(task, target)
    probability = first[counted] / 255
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    reliability = [
        np.bincount(bins, weights, _BINS) for weights in (None, probability, truth[counted])
    ]
    if isinstance(task, RoadTask):
        objects = _near_skeletons(found, truth)
        quality = task.score_maps(maps, chip, target).apls if chip.payload else None
    else:
        counts = task.score_maps(maps, chip, target).counts
        true = counts.tp + counts.fn
        objects = np.array([counts.tp + counts.fp, counts.tp, true, counts.tp])
        quality = 2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn) if true else None
    return ChipScore(
        np.array([(found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum()]),
        objects,
        quality,
        np.array(reliability, np.float64),
    )


def _near_skeletons(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the pixels of both skeletons, and those that lie near the other one."""
    lines = [_skeleton(found), _skeleton(truth)]
    near = [
        cv2.distanceTransform(1 - line, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= _TOLERANCE_PX
        if line.any()
        else np.zeros(line.shape, bool)
        for line in lines
    ]
    return np.array(
        [lines[0].sum(), lines[0][near[1]].sum(), lines[1].sum(), lines[1][near[0]].sum()]
    )


def _skeleton(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    rows, columns, _ = thin(mask.astype(np.uint8))
    line = np.zeros(mask.shape, np.uint8)
    line[rows, columns] = 1
    return line


def _figures(scores: Sequence[ChipScore]) -> tuple[float, ...]:
    """Return IoU, F1, precision and recall, pooled, and the mean quality."""
    hit, wrong, missed = np.sum([score.pixels for score in scores], axis=0)
    found, right, true, seen = np.sum([score.objects for score in scores], axis=0)
    precision, recall = right / max(found, 1), seen / max(true, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    quality = np.mean([score.quality for score in scores if score.quality is not None])
    return hit / (hit + wrong + missed), f1, precision, recall, float(quality)


def _row(scores: Sequence[ChipScore], is_road: bool) -> str:
    figures = _figures(scores)
    return " | ".join(f"{figure:.3f}" for figure in (figures if is_road else figures[:4]))


def _draw_worst(
    network: Network, chips: Sequence[CachedChip], scores: Sequence[ChipScore], place: Path
) -> None:
    """Draw the chips with roads or buildings that have the lowest quality."""
    place.mkdir(parents=True, exist_ok=True)
    quality = {n: s.quality for n, s in enumerate(scores) if s.quality is not None}
    for number in sorted(quality, key=quality.__getitem__)[:_WORST]:
        chip = chips[number]
        maps, target = predicted_maps(network, chip)
        task = network.task
        # The same call twice: each task has its own type of score.
        if isinstance(task, RoadTask):
            picture = task.draw(chip, task.score_maps(maps, chip, target))
        else:
            picture = task.draw(chip, task.score_maps(maps, chip, target))
        write_picture(place / f"{chip.image_id.replace('/', '-')}.png", picture)


if __name__ == "__main__":
    main()
