"""Time and memory of buildings as instances.

    .venv/bin/python benchmarks/instances.py speed
    .venv/bin/python benchmarks/instances.py voting
    .venv/bin/python benchmarks/instances.py memory WORK --weights DIR --images DIR [--side 10000]
    .venv/bin/python benchmarks/instances.py overfit WORK [--data ../shared/data] [--steps 200]

``speed`` times a tile of 650 x 650 pixels in ``cascade-buildings`` by stage, and as a ratio to
torchvision's Mask R-CNN with the same encoder, pyramid, widths of heads, proposals and number of
masks, in one run, one thread. The networks are untrained, so that no box is left out. ``voting``
merges 600 candidates of 150 made buildings. ``memory`` predicts a scene that repeats the images of
a directory with trained networks, such as those of ``instance_scores.py``, and prints the largest
memory of the process.
``overfit`` trains ``mnc-buildings`` from random weights on two chips of 128 pixels of SpaceNet 2,
and prints the F1 on these. Anchors are a quarter of the reference's, so that the buildings have
some, and the layers that classify boxes are narrower, so that a step takes less than a second.
"""

import argparse
import itertools
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import yaml
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from satmap.data.cache import prepare_chips
from satmap.data.crops import Geometry
from satmap.networks.cascade import CascadeNetwork
from satmap.networks.cascade_settings import CascadeSettings
from satmap.networks.encoders import Encoder, build_encoder
from satmap.prediction.run import predict
from satmap.recipes.schema import Recipe, load_recipe, parse_recipe
from satmap.runtime.resources import reuse_memory
from satmap.tasks.base import Batch, task_of
from satmap.tasks.building_instances.merge import Candidates, InstanceDecoder, vote

_TILE_PX = 650
_REPEATS = 2
# Chips of SpaceNet 2 with houses, and the corners of what is cut from them.
_CHIPS = ((1265, (100, 100)), (225, (100, 100)))


def main() -> None:
    """Print the table of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["speed", "voting", "memory", "overfit"])
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--recipe", default="cascade-buildings")
    parser.add_argument("--side", type=int, default=10000)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()
    if options.what == "speed":
        _speed(load_recipe(options.recipe))
    elif options.what == "voting":
        _voting()
    elif options.what == "memory":
        _memory(options.work, options.weights, options.images, options.side)
    else:
        _overfit(options.work, options.data, options.steps)


def _speed(recipe: Recipe) -> None:
    settings: CascadeSettings = recipe.task.network
    encoder = build_encoder(recipe.members[0].encoder, 3)
    ours = CascadeNetwork(encoder, settings).eval()
    theirs = _mask_rcnn(build_encoder(recipe.members[0].encoder, 3), settings).eval()
    image = torch.rand(1, 3, _TILE_PX, _TILE_PX)
    stages: dict[str, list[float]] = {}
    restore = [
        _timed(module, name, stages)
        for name, module in {
            "encoder": ours.encoder, "pyramid": ours.pyramid, "proposals": ours.proposals,
            "features of boxes": ours.align, "masks": ours.mask, "sharpened masks": ours.refine,
        }.items()
        if module is not None
    ]  # fmt: skip
    whole, reference = [], []
    with torch.inference_mode():
        for _ in range(_REPEATS):
            seconds, outputs = _seconds(lambda: ours(image))
            whole.append(seconds)
            found = len(outputs[0].scores)
            seconds, outputs = _seconds(lambda: theirs([image[0]]))
            reference.append(seconds)
            masks = len(outputs[0]["masks"])
    for handle in restore:
        handle()
    total, other = statistics.mean(whole), statistics.mean(reference)
    print(f"{found} masks of two rounds; Mask R-CNN {masks}\n\n| what | CPU s | ratio |")
    print("|---|---|---|")
    print(f"| Mask R-CNN | {other:.2f} | 1 |\n| cascade | {total:.2f} | {total / other:.2f} |")
    for name, times in stages.items():
        share = sum(times) / len(whole)
        print(f"| of which {name} | {share:.2f} | {share / other:.2f} |")


def _timed(module: nn.Module, name: str, stages: dict[str, list[float]]) -> Callable[[], None]:
    """Record the CPU seconds of a module's calls; returns a function that ends this."""
    began: list[float] = []
    before = module.register_forward_pre_hook(lambda *_: began.append(time.process_time()))
    after = module.register_forward_hook(
        lambda *_: stages.setdefault(name, []).append(time.process_time() - began.pop())
    )

    def end() -> None:
        before.remove()
        after.remove()

    return end


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call and its result."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


class _Backbone(nn.Module):
    """The encoder and pyramid of a cascade, for torchvision's Mask R-CNN."""

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.encoder, self.out_channels = encoder, width
        named = dict(zip(encoder.strides, encoder.channels, strict=True))
        self.strides = [stride for stride in encoder.strides if stride >= 4]
        self.pyramid = FeaturePyramidNetwork(
            [named[s] for s in self.strides], width, norm_layer=nn.BatchNorm2d
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = dict(zip(self.encoder.strides, self.encoder(images), strict=True))
        levels: dict[str, Tensor] = self.pyramid({str(s): found[s] for s in self.strides})
        return levels


def _mask_rcnn(encoder: Encoder, settings: CascadeSettings) -> MaskRCNN:
    width = settings.pyramid
    assert width is not None
    names = [str(stride) for stride in encoder.strides if stride >= 4]
    before, after = settings.proposals.test
    layers = (settings.mask_width,) * settings.mask_layers
    return MaskRCNN(
        _Backbone(encoder, width),
        num_classes=None,
        min_size=_TILE_PX,
        max_size=_TILE_PX,
        rpn_anchor_generator=AnchorGenerator(
            settings.anchors, (settings.ratios,) * len(settings.anchors)
        ),
        rpn_pre_nms_top_n_test=before,
        rpn_post_nms_top_n_test=after,
        box_roi_pool=MultiScaleRoIAlign(names, 7, settings.samples),
        box_head=TwoMLPHead(width * 49, settings.box_width),
        box_predictor=_Predictor(settings.box_width),
        box_score_thresh=0.0,
        box_nms_thresh=1.0,
        box_detections_per_img=after,
        mask_roi_pool=MultiScaleRoIAlign(names, settings.feature_px, settings.samples),
        mask_head=MaskRCNNHeads(width, layers, 1),
        mask_predictor=MaskRCNNPredictor(settings.mask_width, settings.mask_width, 2),
    )


class _Predictor(nn.Module):
    """Two classes and one move per class, as in torchvision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score, self.move = nn.Linear(width, 2), nn.Linear(width, 8)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(features), self.move(features)


def _voting() -> None:
    random = np.random.default_rng(0)
    start = random.uniform(0, 600, (150, 2))
    corners = np.concatenate([start, start + random.uniform(12, 50, (150, 2))], axis=1)
    boxes = np.repeat(corners, 4, axis=0) + random.normal(0, 1.5, (600, 4))
    y, x = np.mgrid[:56, :56] / 55 - 0.5
    mask = (255 / (1 + np.exp(20 * (np.hypot(x, y) - 0.45)))).astype(np.uint8)
    candidates = Candidates(
        boxes, random.uniform(0.3, 1, 600), np.repeat(mask[None], 600, 0), np.zeros(600, np.bool_)
    )
    settings = load_recipe("cascade-buildings").task.vectorizer
    whole = (0.0, 0.0, 650.0, 650.0)
    times: list[float] = []
    outlines: list[float] = []
    for _ in range(21):
        started = time.process_time()
        found = vote(candidates, np.ones(600), whole, settings, 0.3)
        voted = time.process_time()
        InstanceDecoder(settings, (650, 650), (1.0, 1.0)).decode(found)
        times.append(voted - started)
        outlines.append(time.process_time() - voted)
    print(
        f"600 candidates, {len(found)} buildings: voting {1000 * statistics.median(times):.0f} ms, "
        f"outlines with right angles {1000 * statistics.median(outlines):.0f} ms"
    )


def _memory(work: Path, weights: Path, images: Path, side: int) -> None:
    """Predict a scene that repeats real images, in windows."""
    scene = work / "scene" / "RGB-PanSharpen" / "RGB-PanSharpen_AOI_9_Made_img1.tif"
    scene.parent.mkdir(parents=True, exist_ok=True)
    _write_scene(scene, images, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    started = time.process_time()
    predict([work / "scene"], work / "out.csv", weights, "cpu")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    found = len((work / "out.csv").read_text().splitlines()) - 1
    print(
        f"{side} x {side} px, {found} buildings: {most:.2f} GB at most, {before:.2f} GB before; "
        f"{(time.process_time() - started) / (side / 1000) ** 2:.1f} CPU s per megapixel"
    )


def _write_scene(path: Path, images: Path, side: int) -> None:
    """Write a GeoTIFF that repeats the images of a directory, row by row."""
    names = itertools.cycle(sorted(images.iterdir()))
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8",
        "tiled": True, "compress": "deflate", "crs": "EPSG:32633",
        "transform": Affine(0.16, 0, 500000, 0, -0.16, 5000000),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as scene:
        top = 0
        while top < side:
            left, height = 0, 0
            while left < side:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotGeoreferencedWarning)
                    with rasterio.open(next(names)) as file:
                        pixels = file.read([1, 2, 3])[:, : side - top, : side - left]
                height = max(height, pixels.shape[1])
                scene.write(pixels, window=Window(left, top, pixels.shape[2], pixels.shape[1]))
                left += pixels.shape[2]
            top += height


def _overfit(work: Path, data: Path, steps: int) -> None:
    """Train the reference network on two small chips, and score it on them."""
    recipe = _small_reference()
    task, member = task_of(recipe), recipe.members[0]
    for number, (left, top) in _CHIPS:
        _cut(data / "buildings_sn2/AOI_2_Vegas_Train", number, left, top, work / "chips")
    found = task.find_images([work / "chips"])
    chips = prepare_chips(found.chips, 3, work / "cache", recipe.stretch, task).chips
    torch.manual_seed(0)
    network = task.build_network(member)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, steps, pct_start=0.1)
    crops = [task.crop(chip, Geometry((64.0, 64.0)), 128, 3) for chip in chips]
    tensors = {
        name: torch.from_numpy(value)
        if isinstance(value, np.ndarray)
        else [torch.from_numpy(each) for each in value]
        for name, value in task.collate(crops).items()
    }
    batch, started = Batch(tensors, chips), time.process_time()
    for step in range(steps + 1):
        if step % 50 == 0:
            network.eval()
            scored = [task.score_chip(network, chip, torch.device("cpu")) for chip in chips]
            scores = task.summarize(chips, scored)
            print(
                f"{step} steps, {time.process_time() - started:.0f} CPU s:",
                ", ".join(f"{name} {value:.2f}" for name, value in scores.items()),
                flush=True,
            )
        network.train()
        loss, _ = task.loss(
            network(*task.inputs(network, batch)), batch, member.losses, Tensor.clone
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        if step + 1 < steps:
            schedule.step()
    buildings = sum(len(boxes) for boxes in tensors["boxes"])
    print(f"{buildings} buildings of two chips")


def _small_reference() -> Recipe:
    """Return ``mnc-buildings`` for chips of 128 pixels, with one network."""
    content = yaml.safe_load(load_recipe("mnc-buildings").model_dump_json(exclude_unset=True))
    content["task"] |= {
        "input_px": None,
        "network": {
            "anchors": [[32, 64, 128]], "box_width": 256,
            "proposals": {"least_px": 4, "inside_only": False},
        },
    }  # fmt: skip
    content["members"] = [content["members"][0] | {"area": None, "pretrained": False}]
    return parse_recipe(yaml.safe_dump(content), "mnc-buildings")


def _cut(city: Path, number: int, left: int, top: int, to: Path) -> None:
    """Cut 128 x 128 pixels of a SpaceNet 2 chip; its label is copied as a whole."""
    name = f"RGB-PanSharpen_AOI_2_Vegas_img{number}.tif"
    window = rasterio.windows.Window(left, top, 128, 128)
    (to / "RGB-PanSharpen").mkdir(parents=True, exist_ok=True)
    with rasterio.open(city / "RGB-PanSharpen" / name) as source:
        profile = source.profile | {
            "width": 128, "height": 128, "transform": source.window_transform(window),
            "driver": "GTiff", "tiled": False,
        }  # fmt: skip
        with rasterio.open(to / "RGB-PanSharpen" / name, "w", **profile) as file:
            file.write(source.read(window=window))
    label = f"geojson/buildings/buildings_AOI_2_Vegas_img{number}.geojson"
    (to / label).parent.mkdir(parents=True, exist_ok=True)
    (to / label).write_bytes((city / label).read_bytes())


if __name__ == "__main__":
    main()
