"""Compare ensemble prediction with eight views: through files (the reference) and in satmap.

    .venv/bin/python benchmarks/prediction.py                      # a small case for two cores
    .venv/bin/python benchmarks/prediction.py --memory 10 1000     # peak memory by number of chips
    .venv/bin/python benchmarks/prediction.py --full               # twelve networks, 1300 px, a GPU
    .venv/bin/python benchmarks/prediction.py --single             # the one of sn5-roads-single

The reference's way uses the same networks, vectoriser and libraries. Each network predicts all
chips and writes the mean of its views as a twelve-band GeoTIFF. A merging step reads, averages and
writes them again. Then the chips are read and vectorised one by one. Our way is ``satmap predict``
(``predict`` in Python), which overlaps reading, networks and vectorising. Both use the same
precision and device. The networks are untrained, with outputs scaled so that there are roads. Each
chip is vectorised alone, as in the reference. The default ``task: {neighbours: true}``, which also
uses the neighbouring chips, takes more time and is not measured here.
"""

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import rasterio
import torch
from affine import Affine

from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.networks.ensemble import predict_maps
from satmap.networks.unet import build_network
from satmap.prediction.images import prepare_image
from satmap.prediction.run import predict
from satmap.rasters.map_files import read_map_file, write_maps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import DecoderSettings, Inference, Recipe, load_recipe
from satmap.runtime.device import pick_device
from satmap.runtime.resources import available_cores
from satmap.submissions.roads_csv import rows_of_graph, write_roads_csv
from satmap.tasks.base import task_of
from satmap.tasks.roads.settings import ROAD_FILE_MAPS, ROAD_MAPS
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.weights.members import choose, find_weights
from satmap.weights.network_files import save_weights

# The full ensemble: the recipe's four networks with three checkpoints each.
_FULL = ("inception_resnet_v2", "inception_resnet_v2", "dpn92", "dpn92") * 3

_NARROW = DecoderSettings(widths=(16, 16, 16, 16))

_METRES = 0.3


def main() -> None:
    """Make chips and networks, run both ways and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="twelve networks at 1300 px on a GPU")
    parser.add_argument("--single", action="store_true", help="sn5-roads-single at 1300 px")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--chips", type=int)
    parser.add_argument("--size", type=int, help="pixels a side")
    parser.add_argument("--views", type=int, choices=(1, 4, 8), help="8, with --single 1")
    parser.add_argument("--batch", type=int, help="views per forward pass")
    parser.add_argument("--workers", type=int, default=max(min(8, available_cores() - 1), 0))
    parser.add_argument("--ours-only", action="store_true", help="skip the reference's way")
    parser.add_argument("--memory", type=int, nargs="+", metavar="CHIPS", help="peaks only")
    options = parser.parse_args()
    encoders = _FULL if options.full else ("resnet18",) * options.networks
    decoder = DecoderSettings() if options.full else _NARROW
    if options.single:
        (member,) = load_recipe("sn5-roads-single").members
        encoders, decoder = (member.encoder,), member.decoder
    real = options.full or options.single
    size = options.size or (1300 if real else 64 if options.memory else 320)
    chips = options.chips or (64 if real else 8)
    views = options.views or (1 if options.single else 8)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        recipe = make_recipe(views, options.batch or (8 if options.full else 4))
        if options.memory:
            make_networks(place / "weights", encoders[:1], recipe, decoder)
            for count in options.memory:
                measure_memory(place / str(count), place / "weights", count, size, options.workers)
            return
        make_networks(place / "weights", encoders, recipe, decoder)
        make_chips(place / "images", chips, size)
        device = pick_device(options.device)
        # A warm-up run, so that one-time setup does not count.
        make_chips(place / "warm", 2, size)
        ours(place / "warm", place / "weights", place / "warm.csv", device, options.workers)
        seconds = ours(
            place / "images", place / "weights", place / "a.csv", device, options.workers
        )
        area = chips * (size * _METRES / 1000) ** 2
        print(
            f"{len(encoders)} networks x {views} views on {device}, {chips} chips of "
            f"{size} px, {options.workers} workers\n"
            f"ours: {seconds / chips:.3f} s per chip, {area / seconds * 60:.1f} km2 per minute"
        )
        if not options.ours_only:
            plain = through_files(place, device, recipe)
            print(
                f"through files: {plain / chips:.3f} s per chip, {area / plain * 60:.1f} km2 per "
                f"minute\nratio {plain / seconds:.2f}"
            )
        if device.type == "cuda":
            print(f"GPU memory {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB")


def make_recipe(views: int, batch: int) -> Recipe:
    """Return the demo's recipe with the given views and without neighbouring chips."""
    demo = load_recipe("demo")
    task = demo.task.model_copy(update={"neighbours": False})
    inference = Inference(tta=views, batch=batch)
    return demo.model_copy(update={"task": task, "inference": inference})


def make_networks(
    directory: Path, encoders: tuple[str, ...], recipe: Recipe, decoder: DecoderSettings
) -> None:
    """Make untrained networks, identical on every machine."""
    for number, encoder in enumerate(encoders):
        torch.manual_seed(number)
        network = build_network(encoder, 3, ROAD_MAPS, decoder.widths, decoder.kind)
        with torch.no_grad():
            network.head.weight *= 20
        metadata = {
            "recipe": recipe.model_dump_json(), "member": str(number), "stage": "1", "epoch": "1"
        }  # fmt: skip
        save_weights(directory / f"{number}.last.safetensors", network, metadata)


def make_chips(directory: Path, count: int, size: int) -> None:
    """Write chips of smooth noise, side by side in rows of ten."""
    directory.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(1, 255, (size // 16 + 2,) * 2 + (3,)).astype(np.uint8)
        pixels = np.maximum(cv2.resize(coarse, (size, size)), 1).transpose(2, 0, 1)
        row, column = divmod(number, 10)
        corner = 4e5 + column * size * _METRES, 6e6 - row * size * _METRES
        path = directory / f"SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip{number}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", count=3, height=size, width=size, dtype="uint8",
            crs="EPSG:32637", transform=Affine(_METRES, 0, corner[0], 0, -_METRES, corner[1]),
        ) as target:  # fmt: skip
            target.write(pixels)


def ours(images: Path, weights: Path, output: Path, device: torch.device, workers: int) -> float:
    """Return the seconds of ``satmap predict``, including the loading of networks."""
    started = time.perf_counter()
    predict([images], output, weights, device, workers=workers)
    return time.perf_counter() - started


def through_files(place: Path, device: torch.device, recipe: Recipe) -> float:
    """Return the seconds of the reference's way: networks, merge and vectoriser in sequence."""
    started = time.perf_counter()
    chips = scan_roads([place / "images"]).chips
    files, task = choose(find_weights(place / "weights"), recipe), task_of(recipe)
    for number, file in enumerate(files):
        members = task.load_ensemble([file], device)
        for chip in chips:
            picture = prepare_image(chip, members, task)
            values = predict_maps(members, picture.pixels, recipe.inference, device)
            maps = ProbabilityMaps(ROAD_MAPS, values, picture.metres_per_pixel)
            path = place / "single" / str(number) / f"{chip.image_id}.tif"
            write_maps(path, maps, picture.info.georeference)
    for chip in chips:
        total = np.zeros((len(ROAD_MAPS), chip.image.height, chip.image.width), np.float32)
        for number in range(len(files)):
            path = place / "single" / str(number) / f"{chip.image_id}.tif"
            total += read_map_file(path, _METRES, ROAD_FILE_MAPS)[0].values
        values = np.rint(total / len(files)).astype(np.uint8)
        maps = ProbabilityMaps(ROAD_MAPS, values, (_METRES, _METRES))
        write_maps(place / "merged" / f"{chip.image_id}.tif", maps, chip.image.georeference)
    rows = {}
    for chip in chips:
        merged = place / "merged" / f"{chip.image_id}.tif"
        maps, _ = read_map_file(merged, _METRES, ROAD_FILE_MAPS)
        rows[chip.image_id] = rows_of_graph(vectorize_roads(maps, recipe.task.vectorizer))
    write_roads_csv(place / "plain.csv", rows)
    return time.perf_counter() - started


def measure_memory(place: Path, weights: Path, chips: int, size: int, workers: int) -> None:
    """Print the peak memory of a prediction in its own process."""
    make_chips(place, chips, size)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(_peak, (place, weights, workers))
    print(f"{chips} chips of {size} px, {workers} workers: peak {peak / 1000:.0f} MB", flush=True)
    shutil.rmtree(place)


def _peak(images: Path, weights: Path, workers: int) -> int:
    """Run a prediction and return the peak memory of this process, kilobytes."""
    # Daemonic processes may not start pools, so this pool process pretends not to be one.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    predict([images], images.with_suffix(".csv"), weights, "cpu", workers=workers)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
