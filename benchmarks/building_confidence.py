"""Average precision of buildings by two kinds of confidence, on planes of a small network.

    PYTHONPATH=code:tests .venv/bin/python benchmarks/building_confidence.py [SHARED]

Without SHARED the planes are made: houses, blurred and noisy, and beside them things that look like
houses, less surely (``tests/made_blocks.py``). With SHARED they are of networks and of the chips of
the Mapping Challenge there: for every seed two (ResNet18, light decoder, body and border) are
trained from scratch, each on one half of the 24 training chips, for ``--seconds`` of processor
time, and predict the other half.

The confidence model that rates a quarter of the chips is fitted to the other three quarters; no
network and no model has seen what it is scored on. Compared are the watershed's buildings by mean
probability x square root of the area, the same buildings by the model, and candidates of all
thresholds chosen and rated by the model. The score is the challenge's own.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import rasterio.features
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from made_blocks import made_blocks, planes_of_labels
from satmap.buildings.building import Building
from satmap.buildings.confidence import ConfidenceModel, Sample, candidates_of, fit_confidence
from satmap.buildings.confidence import sample as sample_of
from satmap.buildings.polygons import exact_polygons
from satmap.buildings.settings import BuildingSettings
from satmap.buildings.vectorize import vectorize
from satmap.metrics.coco_ap import score_coco
from satmap.models.unet import build_network
from satmap.planes import BORDER, BUILDING, Planes
from satmap.submissions.coco_json import Detection, read_coco_truth, write_coco_results

_SEEDS = (0, 1, 2)
_QUARTERS = 4
_MADE, _MADE_PX = 8, 220
_CROP, _BATCH, _RATE = 128, 8, 2e-3
_SETTINGS = BuildingSettings(least_px=30, seed=0.6, seed_px=10, least_iou=0)

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int32]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    print(
        f"{'AP at .5, AP, AR at .5':28s}{'watershed':>20s}{'rated by model':>20s}"
        f"{'candidates':>20s}"
    )
    for seed in _SEEDS:
        if options.shared:
            directory = options.shared / "data/buildings_mapping_challenge/train"
            truth = (directory / "annotation.json").read_text()
            labels = _true_labels(directory / "annotation.json")
            planes = _predicted(_images(directory / "images"), labels, seed, options.seconds)
        else:
            labels, planes = _made(seed)
            truth = _annotation(labels)
        cells = [_score(truth, found, labels) for found in _found(planes, labels)]
        print(f"{f'seed {seed}':28s}" + "".join(f"{cell:>20s}" for cell in cells), flush=True)


def _made(seed: int) -> tuple[dict[int, Labels], dict[int, Planes]]:
    """Houses, and planes that show other things, too, less surely."""
    labels, planes = {}, {}
    for chip in range(_MADE):
        rng = np.random.default_rng((seed, chip))
        number, angle = 100 * seed + chip, float(rng.uniform(0, 90))
        labels[chip] = made_blocks(number, _MADE_PX, angle, (10, 32), 0.7).labels
        others = made_blocks(number + 50, _MADE_PX, angle, (10, 40), 1.0).labels
        others[cv2.dilate((labels[chip] > 0).view(np.uint8), np.ones((5, 5))) > 0] = 0
        shown = planes_of_labels(labels[chip], 1.0, 0.1, number)
        doubtful = planes_of_labels(others, 2.0, 0.1, number).values * rng.uniform(0.5, 0.9)
        values = np.maximum(shown.values, doubtful.astype(np.uint8))
        planes[chip] = Planes(shown.names, values, shown.metres_per_pixel)
    return labels, planes


def _annotation(labels: Mapping[int, Labels]) -> str:
    """The annotations of made houses."""
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


def _images(directory: Path) -> dict[int, Bytes]:
    return {
        int(path.stem): np.asarray(cv2.imread(str(path)), np.uint8)
        for path in sorted(directory.iterdir())
    }


def _true_labels(truth: Path) -> dict[int, Labels]:
    labels = {}
    content = read_coco_truth(truth)
    for image_id, (width, height) in content.sizes.items():
        labels[image_id] = np.zeros((height, width), np.int32)
        for number, building in enumerate(content.buildings.get(image_id, ()), 1):
            mask = coco_mask.decode(building.mask.for_library())  # type: ignore[arg-type]
            labels[image_id][mask > 0] = number
    return labels


def _target(labels: Labels) -> NDArray[np.float32]:
    values = labels.astype(np.float32)
    square = np.ones((3, 3), np.uint8)
    border = (labels > 0) & (cv2.dilate(values, square) != cv2.erode(values, square))
    return np.stack([labels > 0, border]).astype(np.float32)


def _predicted(
    images: Mapping[int, Bytes], labels: Mapping[int, Labels], seed: int, seconds: float
) -> dict[int, Planes]:
    """Planes of every image by the network that has not seen it."""
    planes = {}
    for half in (0, 1):
        own = [image_id for image_id in images if image_id % 2 != half]
        network = _trained(own, images, labels, 2 * seed + half, seconds)
        for image_id in set(images) - set(own):
            with torch.no_grad():
                x = torch.from_numpy(images[image_id]).permute(2, 0, 1)[None].float() / 127.5 - 1
                values = torch.sigmoid(network(x))[0].numpy()
            drawn = np.rint(values * 255).astype(np.uint8)
            planes[image_id] = Planes((BUILDING, BORDER), drawn, (0.3, 0.3))
    return planes


def _trained(
    own: list[int],
    images: Mapping[int, Bytes],
    labels: Mapping[int, Labels],
    seed: int,
    seconds: float,
) -> torch.nn.Module:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = build_network("resnet18", 3, (BUILDING, BORDER), decoder_kind="light")
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE)
    targets = {image_id: _target(labels[image_id]) for image_id in own}
    began = time.process_time()
    while (spent := (time.process_time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 + np.cos(np.pi * spent)) / 2
        inputs: list[torch.Tensor] = []
        wanted: list[torch.Tensor] = []
        for image_id in rng.choice(own, _BATCH):
            height, width = labels[image_id].shape
            row, column = rng.integers(height - _CROP), rng.integers(width - _CROP)
            box = slice(row, row + _CROP), slice(column, column + _CROP)
            image, target = images[image_id][box].transpose(2, 0, 1), targets[image_id][:, *box]
            turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
            for array, into in ((image, inputs), (target, wanted)):
                turned = np.rot90(array, turns, (1, 2))
                turned = turned[..., ::-1] if mirrored else turned
                into.append(torch.from_numpy(np.ascontiguousarray(turned)).float())
        logits = network(torch.stack(inputs) / 127.5 - 1)
        y = torch.stack(wanted)
        p = torch.sigmoid(logits)
        shared, total = (p * y).sum((0, 2, 3)), (p + y).sum((0, 2, 3))
        loss = F.binary_cross_entropy_with_logits(logits, y) + (1 - 2 * shared / (total + 1)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


_Buildings = dict[int, list[Building]]


def _found(
    planes: Mapping[int, Planes], labels: Mapping[int, Labels]
) -> tuple[_Buildings, _Buildings, _Buildings]:
    """By image: the watershed's buildings, the same rated by a model, and the model's choice."""
    ids = sorted(planes)
    quarter = {image_id: place % _QUARTERS for place, image_id in enumerate(ids)}
    samples = {i: sample_of(planes[i], labels[i], quarter[i], _SETTINGS) for i in ids}
    models = [_fitted([samples[i] for i in ids if quarter[i] != q]) for q in range(_QUARTERS)]
    plain = {i: vectorize(planes[i], _SETTINGS) for i in ids}
    rated, chosen = {}, {}
    for i in ids:
        model = models[quarter[i]]
        candidates = candidates_of(planes[i], _SETTINGS)
        expected = model.expected_iou(candidates.features[candidates.layer == 0])
        # Both in the order of their first pixels.
        pairs = zip(plain[i], expected.tolist(), strict=True)
        rated[i] = [replace(building, confidence=value) for building, value in pairs]
        chosen[i] = vectorize(planes[i], _SETTINGS, model)
    return plain, rated, chosen


def _fitted(samples: list[Sample]) -> ConfidenceModel:
    return fit_confidence(samples).model


def _score(truth: str, found: _Buildings, labels: Mapping[int, Labels]) -> str:
    sizes = {image_id: (its.shape[1], its.shape[0]) for image_id, its in labels.items()}
    detections = {
        image_id: [
            Detection(_drawn(building, labels[image_id].shape), (0, 0), building.confidence)
            for building in buildings
        ]
        for image_id, buildings in found.items()
    }
    with tempfile.TemporaryDirectory() as directory:
        annotation, results = Path(directory) / "annotation.json", Path(directory) / "results.json"
        annotation.write_text(truth)
        write_coco_results(results, detections, sizes)
        total = score_coco(annotation, results).total
    return f"{total['ap50']:.3f} {total['ap']:.3f} {total['ar50']:.3f}"


def _drawn(building: Building, shape: tuple[int, ...]) -> Bytes:
    drawn: Bytes = rasterio.features.rasterize([building.polygon], out_shape=shape, dtype="uint8")
    return drawn


if __name__ == "__main__":
    main()
