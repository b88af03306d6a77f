"""Measure how well the confidences of the starter networks are calibrated on unseen places.

    PYTHONPATH=code .venv/bin/python benchmarks/calibration.py roads ../shared/data WORK
    PYTHONPATH=code .venv/bin/python benchmarks/calibration.py buildings ../shared/data WORK

The starter maps every chip of several places: chips that its training held out, and data that it
has never seen, resampled to its pixel size. Each road and each building is then right or wrong
(docs/confidence.md). The mean probability is compared with the calibrated confidence of a fit to
all other places. The table lists per place the expected calibration error of both, the share that
is right, and the precision if the 80 % with the highest value are kept. Intervals are those of 95 %
of 300 samples of the chips, drawn with replacement; the fit stays the same.

``--write`` writes the calibration that comes with the starter. It is fitted to the same places but
those of ``_ONLY_SCORED``, whose licence is unclear. WORK keeps the measured objects per place.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import starters
from satmap.data.cache import prepare_chips
from satmap.data.chip import Chip, record_images
from satmap.data.crops import CachedChip
from satmap.evaluation.metrics.building_f1 import match_buildings
from satmap.evaluation.metrics.reliability import calibration_error, kept_at
from satmap.evaluation.metrics.right_roads import right_roads
from satmap.io.checksums import in_threads, record_file
from satmap.io.files import write_text
from satmap.provenance.manifest import (
    WeightsManifest,
    record_data,
    record_recipe,
    write_manifest,
)
from satmap.submissions.buildings_csv import BuildingRow
from satmap.tasks.buildings.measures import measure_buildings
from satmap.tasks.buildings.outputs import true_buildings
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tasks.calibration import CALIBRATION_FILE, Labelled, fit_calibration
from satmap.tasks.roads.measures import measure_roads
from satmap.tasks.roads.task import RoadTask
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.weights.starters import starter_weights

_SAMPLES = 300
_COVERAGE = 0.8
# Data whose licence is unclear: it may be used for scores only.
_ONLY_SCORED = ("both_newyork", "buildings_barnarp")
# Places near to what the network has learned from: it is right more often there than elsewhere, so
# buildings are not calibrated by them. For roads there are too few other places.
_NEAR = {"buildings": ("held out",), "roads": ()}
# Of large data sets, every n-th chip is mapped.
_EVERY = {"buildings": {"buildings_barnarp": 4, "both_newyork": 8}}
# Places of the training whose chips can be cut again, with their numbers in the training.
_HELD_OUT = {"place1": 1, "accra": 6}

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Place:
    """The objects of a place.

    Attributes:
        features: float64 (n, features).
        right: bool (n,).
        mean: float64 (n,), mean probability of each.
        chip: int64 (n,), the chip of each.
        chips: number of chips.
    """

    features: Floats
    right: Bools
    mean: Floats
    chip: NDArray[np.int64]
    chips: int


def main() -> None:
    """Print the table; write the starter's calibration if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["roads", "buildings"])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+", help="names of the places (default: all)")
    parser.add_argument("--tta", type=int, help="views of each image (default: the recipe's)")
    parser.add_argument("--write", action="store_true", help="write the starter's calibration")
    options = parser.parse_args()
    options.weights = options.left_out = options.trained = None
    torch.set_num_threads(1)
    network = starters.load(starter_weights(options.task), options.tta)
    finders = dict(_finders(options, network))
    places = {}
    for name, find in finders.items():
        if not options.only or name in options.only:
            places[name] = _measured(name, network, find, options)
            print(f"{name}: {len(places[name].right)} {options.task}", flush=True)
    names = network.task.confidence_features()
    print(
        f"\n| {options.task} | chips | objects | right | error: mean probability | error: "
        f"calibrated | precision | kept {_COVERAGE:g}: mean probability | kept {_COVERAGE:g}: "
        "calibrated |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, place in places.items():
        left_out = (name, *_NEAR[options.task])
        others = {other: its for other, its in places.items() if other not in left_out}
        print(_row(name, place, _fit(options.task, names, others)), flush=True)
    if options.write:
        without = (*_ONLY_SCORED, *_NEAR[options.task])
        kept = {name: its for name, its in places.items() if name not in without}
        _write(network, names, kept, [chip for name in kept for chip in finders[name]()])


def _fit(task: str, names: Sequence[str], places: Mapping[str, _Place]) -> Callable[..., Floats]:
    objects = [Labelled(name, its.features, its.right) for name, its in places.items()]
    return fit_calibration(task, names, objects).calibration.probability


def _row(name: str, place: _Place, probability: Callable[..., Floats]) -> str:
    right, values = place.right, (place.mean, probability(place.features))
    rng = np.random.default_rng(0)
    # Of a single chip the objects are drawn.
    unit = place.chip if place.chips > 1 else np.arange(len(right))
    by_chip = [np.flatnonzero(unit == chip) for chip in np.unique(unit)]
    drawn = [
        np.concatenate([by_chip[i] for i in rng.integers(0, len(by_chip), len(by_chip))])
        for _ in range(_SAMPLES)
    ]

    def cell(figure: Callable[[Floats, Bools], float], of: Floats) -> str:
        spread = np.quantile([figure(of[s], right[s]) for s in drawn], [0.025, 0.975])
        return f"{figure(of, right):.3f} ({spread[0]:.3f} to {spread[1]:.3f})"

    def precision(of: Floats, of_right: Bools) -> float:
        return kept_at(of, of_right, _COVERAGE).precision

    cells = [
        name, str(place.chips), str(len(right)), f"{right.mean():.3f}",
        *(cell(calibration_error, of) for of in values),
        f"{right.mean():.3f}", *(cell(precision, of) for of in values),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _finders(
    options: argparse.Namespace, network: starters.Network
) -> Iterator[tuple[str, Callable[[], Sequence[Chip]]]]:
    """Yield the places, each with a function that finds its chips."""
    data = options.data
    if options.task == "roads":
        sets = starters.road_sets(options)
        image = data / "roads_sn3/RGB-PanSharpen_AOI_2_Vegas_img0.tif"
        label = data / "roads_sn3/AOI_2_Vegas_img0.geojson"
        sets["roads_sn3"] = None, starters.own(options, image, label, gsd=starters.ROAD_GSD)
    else:
        sets = {}
        vegas, rio = data / "buildings_sn2/AOI_2_Vegas_Train", data / "buildings_sn1/AOI_0_TEST"
        for name, images, labels in (
            ("buildings_sn2", vegas / "RGB-PanSharpen", vegas / "geojson/buildings"),
            ("buildings_sn1", rio / "3band", rio),
        ):
            gsd = starters.BUILDING_GSD
            sets[name] = None, starters.own(options, images, labels, gsd=gsd)
        yield "held out", lambda: _held_out(options, network)
        sets |= starters.building_sets(options)
    every = _EVERY.get(options.task, {})
    for name, (_, find) in sets.items():
        yield name, partial(_some, find, network, every.get(name, 1))


def _some(
    find: Callable[[starters.Network], Sequence[Chip]], network: starters.Network, step: int
) -> Sequence[Chip]:
    return find(network)[::step]


def _held_out(options: argparse.Namespace, network: starters.Network) -> list[Chip]:
    """Return the chips of the training places that the training of the starter held out."""
    names = network.files[0].held_out or frozenset()
    found = []
    for place, number in _HELD_OUT.items():
        images, labels, shift = starters.BUILDING_PLACES[place]
        data, gsd = options.data, starters.BUILDING_GSD
        find = starters.own(options, data / images, data / labels, gsd=gsd, shift=shift)
        found += [chip for chip in find(network) if f"set{number}-{chip.image_id}" in names]
    return found


def _measured(
    name: str,
    network: starters.Network,
    find: Callable[[], Sequence[Chip]],
    options: argparse.Namespace,
) -> _Place:
    """Map the chips of a place and measure the objects, unless WORK has them."""
    views = network.task.recipe.inference.tta
    path = options.work / f"{options.task}-{name.replace('/', '-')}-{views}.npz"
    if not path.exists():
        task = network.task
        cache = options.work / "cache"
        prepared = prepare_chips(find(), 3, cache, task.recipe.stretch, task).chips
        found = [_of_chip(network, chip) for chip in prepared]
        number = np.repeat(np.arange(len(found)), [len(right) for _, right, _ in found])
        features, right, mean = (np.concatenate(part) for part in zip(*found, strict=True))
        np.savez(path, features=features, right=right, mean=mean, chip=number, chips=len(found))
    with np.load(path) as saved:
        return _Place(
            saved["features"], saved["right"], saved["mean"], saved["chip"], int(saved["chips"])
        )


def _of_chip(network: starters.Network, chip: CachedChip) -> tuple[Floats, Bools, Floats]:
    """Return features, right or wrong, and mean probability of the objects of a chip."""
    maps, _ = starters.predicted_maps(network, chip)
    task = network.task
    if isinstance(task, RoadTask):
        graph = vectorize_roads(maps, task.recipe.task.vectorizer)
        true = [road.line for road in chip.payload]
        right = right_roads(true, [edge.line for edge in graph.edges], chip.metres_per_pixel)
        mean = np.array([edge.mean_probability for edge in graph.edges])
        return measure_roads(graph, maps), right, mean
    found = vectorize_buildings(maps, task.recipe.task.vectorizer.of(None))
    rows = [BuildingRow(building.polygon, building.score) for building in found]
    matches = match_buildings(true_buildings(chip), rows)
    counted = matches.counted
    features = measure_buildings(found, maps, task.confidence_features())
    mean = np.array([building.mean_probability for building in found], np.float64)
    return features[counted], (matches.taken >= 0)[counted], mean[counted]


def _write(
    network: starters.Network,
    names: Sequence[str],
    places: Mapping[str, _Place],
    chips: Sequence[Chip],
) -> None:
    """Write the calibration that comes with the starter, with its manifest."""
    objects = [Labelled(name, its.features, its.right) for name, its in places.items()]
    task, files = network.task.recipe.task.name, network.files
    fit = fit_calibration(task, names, objects)
    path = starter_weights(task) / CALIBRATION_FILE
    write_text(path, fit.calibration.model_dump_json(indent=1) + "\n")
    records = in_threads(record_images, chips)
    images = {chip.image_id: its for chip, its in zip(chips, records, strict=True)}
    facts = {
        "recipe": record_recipe(network.task.recipe, content=False),
        "member": None,
        "seeds": {},
        "stage": None,
        "epoch": None,
        "scores": {"right": fit.right, "calibration_error": fit.error},
        "data": record_data(images, None),
        "starts_from": tuple(in_threads(record_file, [file.path for file in files])),
        "skipped": {},
        # The machine does not matter to a fit, and its directories are nobody's business.
        "runs": (),
    }
    write_manifest(path, WeightsManifest, facts)
    print(f"{path}: {fit.count} {network.task.noun} of {len(places)} places")


if __name__ == "__main__":
    main()
