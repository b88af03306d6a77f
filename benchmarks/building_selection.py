"""Compare the average precision of buildings for two kinds of confidence.

    PYTHONPATH=code:tests/helpers .venv/bin/python benchmarks/building_selection.py
    PYTHONPATH=code:tests/helpers .venv/bin/python benchmarks/building_selection.py \\
        ../shared/data/buildings_mapping_challenge/train WORK

Without arguments, the probability maps are synthetic: blurred and noisy houses, and weaker
distractors that look like houses (``tests/helpers/synthetic_blocks.py``). With the images of the
Mapping Challenge, the maps come from networks. For every seed, the recipe with a ResNet18 from
scratch is trained on each half of the images as by ``satmap train``, and predicts the other half as
by ``satmap predict --out-of-fold``. This takes a minute of CPU time per network. WORK keeps
networks and maps and reuses those of ``weight_maps.py``.

The selection model that rates a quarter of a network's images is fitted to the other three
quarters, so neither the network nor the model has seen the scored images. Three variants are
compared: the watershed's buildings rated by mean probability x square root of the area, the same
buildings rated by the model, and candidates of all thresholds selected and rated by the model. The
score is the challenge's own.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import rasterio.features
import torch
from numpy.typing import NDArray

from building_runs import half
from satmap.data.layouts.building_challenges import find_building_images
from satmap.data.layouts.mapping_challenge import ANNOTATIONS
from satmap.evaluation.metrics.coco_ap import score_coco
from satmap.rasters.map_files import open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.submissions.coco_json import Detection, write_coco_results
from satmap.tasks.buildings.labels import read_building_labels
from satmap.tasks.buildings.selection import (
    CandidateSample,
    SelectionModel,
    candidates_of,
    fit_selection,
)
from satmap.tasks.buildings.selection import sample as sample_of
from satmap.tasks.buildings.settings import BUILDING_FILE_MAPS, BuildingSettings
from satmap.tasks.buildings.targets import draw_instances
from satmap.tasks.buildings.vectorizer.polygons import exact_polygons
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.vectors.buildings import Building
from synthetic_blocks import made_blocks, maps_of_labels

_QUARTERS = 4
_MADE, _MADE_PX = 8, 220
_SETTINGS = BuildingSettings(least_px=30, seed=0.6, seed_px=10, least_iou=0)

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class _Case:
    """Images to find buildings in, by number.

    Attributes:
        truth: the challenge's annotations.
        labels: true buildings, 1..n.
        maps: out-of-fold probability maps.
        settings: settings of the vectoriser.
    """

    truth: str
    labels: Mapping[int, Labels]
    maps: Mapping[int, ProbabilityMaps]
    settings: BuildingSettings


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--halves", type=int, nargs="+", choices=(0, 1), default=[0, 1])
    options = parser.parse_args()
    if options.images and not options.work:
        parser.error("give WORK, a working directory, after the directory of images")
    torch.set_num_threads(1)
    print(
        f"{'AP at .5, AP, AR at .5':28s}{'watershed':>20s}{'rated by model':>20s}"
        f"{'candidates':>20s}"
    )
    for seed in options.seeds:
        if options.images:
            for fold in options.halves:
                case = _predicted(options.images, options.work, seed, fold)
                _show(f"seed {seed}, half {fold}", case)
        else:
            _show(f"seed {seed}", _made(seed))


def _show(name: str, case: _Case) -> None:
    cells = [_score(case, found) for found in _found(case)]
    print(f"{name:28s}" + "".join(f"{cell:>20s}" for cell in cells), flush=True)


def _made(seed: int) -> _Case:
    """Make synthetic houses and their probability maps, with weaker distractors."""
    labels, maps = {}, {}
    for chip in range(_MADE):
        rng = np.random.default_rng((seed, chip))
        number, angle = 100 * seed + chip, float(rng.uniform(0, 90))
        labels[chip] = made_blocks(number, _MADE_PX, angle, (10, 32), 0.7).labels
        others = made_blocks(number + 50, _MADE_PX, angle, (10, 40), 1.0).labels
        others[cv2.dilate((labels[chip] > 0).view(np.uint8), np.ones((5, 5))) > 0] = 0
        shown = maps_of_labels(labels[chip], 1.0, 0.1, number)
        doubtful = maps_of_labels(others, 2.0, 0.1, number).values * rng.uniform(0.5, 0.9)
        values = np.maximum(shown.values, doubtful.astype(np.uint8))
        maps[chip] = ProbabilityMaps(shown.names, values, shown.metres_per_pixel)
    return _Case(_annotation(labels), labels, maps, _SETTINGS)


def _annotation(labels: Mapping[int, Labels]) -> str:
    """Return COCO annotations of synthetic houses."""
    buildings: list[dict[str, object]] = []
    for image_id, its in labels.items():
        for polygon in exact_polygons(its):
            ring = np.array(polygon.exterior.coords)[:-1].ravel().tolist()
            buildings.append(
                {"id": len(buildings) + 1, "image_id": image_id, "category_id": 100, "iscrowd": 0,
                 "segmentation": [ring], "area": polygon.area, "bbox": [0, 0, 1, 1]}
            )  # fmt: skip
    images = [
        {"id": image_id, "file_name": f"{image_id}.png", "height": its.shape[0],
         "width": its.shape[1]}
        for image_id, its in labels.items()
    ]  # fmt: skip
    categories = [{"id": 100, "name": "building"}]
    return json.dumps({"images": images, "annotations": buildings, "categories": categories})


def _predicted(images: Path, work: Path, seed: int, fold: int) -> _Case:
    """Return the half of the images that a network has not seen, with its probability maps."""
    network = half(images, work, seed, fold, weighted=True)
    labels, maps = {}, {}
    for chip in find_building_images([images]).chips:
        raster = network.maps / f"{chip.image_id}.tif"
        if chip.number is not None and raster.exists():
            shape = chip.image.height, chip.image.width
            labels[chip.number] = draw_instances(read_building_labels(chip).outlines, shape)
            with open_map_file(raster, 1, BUILDING_FILE_MAPS) as mask:
                maps[chip.number] = mask.scene.at_once()
    truth = json.loads((images / ANNOTATIONS).read_text())
    truth["images"] = [image for image in truth["images"] if image["id"] in labels]
    truth["annotations"] = [its for its in truth["annotations"] if its["image_id"] in labels]
    return _Case(json.dumps(truth), labels, maps, network.recipe.task.vectorizer.of(None))


_Buildings = dict[int, list[Building]]


def _found(case: _Case) -> tuple[_Buildings, _Buildings, _Buildings]:
    """Return per image: watershed buildings, the same rated by a model, the model's selection."""
    ids = sorted(case.maps)
    quarter = {number: place % _QUARTERS for place, number in enumerate(ids)}
    samples = {i: sample_of(case.maps[i], case.labels[i], quarter[i], case.settings) for i in ids}
    models = [_fitted([samples[i] for i in ids if quarter[i] != q]) for q in range(_QUARTERS)]
    plain = {i: vectorize_buildings(case.maps[i], case.settings) for i in ids}
    rated, chosen = {}, {}
    for i in ids:
        model = models[quarter[i]]
        candidates = candidates_of(case.maps[i], case.settings)
        expected = model.expected_iou(candidates.features[candidates.layer == 0])
        # Both lists are in the order of the buildings' first pixels.
        pairs = zip(plain[i], expected.tolist(), strict=True)
        rated[i] = [replace(building, score=value) for building, value in pairs]
        chosen[i] = vectorize_buildings(case.maps[i], case.settings, model)
    return plain, rated, chosen


def _fitted(samples: list[CandidateSample]) -> SelectionModel:
    return fit_selection([its for its in samples if len(its.ious)]).model


def _score(case: _Case, found: _Buildings) -> str:
    sizes = {number: (its.shape[1], its.shape[0]) for number, its in case.labels.items()}
    detections = {
        number: [
            Detection(_drawn(building, case.labels[number].shape), (0, 0), building.score)
            for building in buildings
        ]
        for number, buildings in found.items()
    }
    with tempfile.TemporaryDirectory() as directory:
        annotation, results = Path(directory) / "annotation.json", Path(directory) / "results.json"
        annotation.write_text(case.truth)
        write_coco_results(results, detections, sizes)
        total = score_coco(annotation, results).total
    return f"{total['ap50']:.3f} {total['ap']:.3f} {total['ar50']:.3f}"


def _drawn(building: Building, shape: tuple[int, ...]) -> Bytes:
    drawn: Bytes = rasterio.features.rasterize([building.polygon], out_shape=shape, dtype="uint8")
    return drawn


if __name__ == "__main__":
    main()
