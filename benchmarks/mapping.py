"""Memory and overhead of ``satmap map``, and of ``satmap predict`` for masks.

    .venv/bin/python benchmarks/mapping.py --sizes 5000 10000 20000    # a scene, sides in pixels
    .venv/bin/python benchmarks/mapping.py --chips 1000                # chips of 32 px
    .venv/bin/python benchmarks/mapping.py --sizes 10000 --weights W --images DIR --workers 1
    .venv/bin/python benchmarks/mapping.py --masks ../shared/data/open_cities/test --weights W

A scene is a tiled and deflated GeoTIFF of real images of one size, in random order, or of noise.
The network is small and untrained unless ``--weights`` names others. Printed are the peak memory of
all processes, and the CPU time beside the networks: reading, stretching, storing, vectorising with
``--workers`` processes, joining and exporting. CPU time does not depend on other programs on the
machine. The memory is the sum of the anonymous pages of all processes and the file pages of the
largest, which counts libraries once. With ``--masks`` networks of the task ``raster`` predict chips
to mask TIFFs. With ``--repeat-window`` the networks compute only one window of each size, and its
maps are repeated: the memory and the work beside the networks stay the same, and large scenes take
minutes instead of hours. The networks' time is then estimated from these windows, by pixels.
"""

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from satmap.networks import ensemble
from satmap.networks.unet import build_network
from satmap.prediction.map import MapRequest, map_sources
from satmap.prediction.outputs import PredictionReport
from satmap.prediction.run import predict
from satmap.recipes.schema import load_recipe
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights.network_files import save_weights

_PLACE = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
_CRS = "EPSG:32633"
_CHIP_PX = 32


def main() -> None:
    """Make the images and map them, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="sides of scenes, pixels")
    parser.add_argument("--chips", type=int, help="number of small chips")
    parser.add_argument("--masks", type=Path, help="directory of chips to predict to masks")
    parser.add_argument("--images", type=Path, help="directory of images (default: noise)")
    parser.add_argument("--weights", type=Path, help="networks (default: a small one)")
    parser.add_argument("--recipe", help="recipe of the weights (default: theirs)")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeat-window", action="store_true", help="predict only one window")
    options = parser.parse_args()
    if options.masks and not options.weights:
        parser.error("--masks needs --weights of the task raster")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        weights = options.weights or _small_network(place / "weights")
        for size in options.sizes:
            scene = _scene(place / f"{size}.tif", size, options.images)
            found = _measured(_mapping(weights, place, scene, options), options.repeat_window)
            print(
                f"{size} px: {found}, {found.beside / size**2 * 1e6:.3f} s per megapixel",
                flush=True,
            )
            scene.unlink()
        if options.masks:
            predicting = partial(
                predict, [options.masks], place / "masks", weights, "cpu", options.recipe,
                workers=options.workers,
            )  # fmt: skip
            found = _measured(predicting, options.repeat_window)
            count = len(list((place / "masks").iterdir()))
            print(f"{count} masks: {found}, {found.beside / count * 1e3:.1f} ms each")
        for kind in ("separate", "adjacent") if options.chips else ():
            placed = kind == "adjacent"
            chips = _chips(place / kind, options.chips, placed)
            mapping = _mapping(weights, place, chips, options, placed)
            found = _measured(mapping, options.repeat_window)
            each = found.beside / options.chips * 1e3
            print(f"{options.chips} {kind} chips: {found}, {each:.1f} ms each", flush=True)


def _small_network(directory: Path) -> Path:
    """Write an untrained ResNet18 with a narrow decoder, whose output is undecided nowhere."""
    recipe = load_recipe("demo")
    inference = recipe.inference.model_copy(update={"tta": 1})
    recipe = recipe.model_copy(update={"inference": inference})
    torch.manual_seed(3)
    network = build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16))
    metadata = {"recipe": recipe.model_dump_json(), "member": "a", "stage": "1", "epoch": "1"}
    save_weights(directory / "a.last.safetensors", network, metadata)
    return directory


def _scene(path: Path, size: int, images: Path | None) -> Path:
    rng = np.random.default_rng(0)
    tiles: list[NDArray[np.uint8]] = [rng.integers(1, 255, (3, 512, 512), np.uint8)]
    if images:
        tiles = []
        for file in sorted(images.iterdir()):
            with rasterio.open(file) as source:
                tiles.append(source.read((1, 2, 3)))
    height, width = tiles[0].shape[1:]
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "width": size, "height": size,
               "crs": _CRS, "transform": _PLACE, "tiled": True, "compress": "deflate", "zlevel": 1,
               "bigtiff": "if_safer"}  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for top in range(0, size, height):
            chosen = rng.integers(0, len(tiles), -(-size // width))
            strip = np.concatenate([tiles[index] for index in chosen], axis=2)[..., :size]
            rows = min(height, size - top)
            target.write(strip[:, :rows], window=Window(0, top, size, rows))
    return path


def _chips(directory: Path, count: int, adjacent: bool) -> Path:
    directory.mkdir()
    pixels = np.random.default_rng(0).integers(1, 255, (3, _CHIP_PX, _CHIP_PX), np.uint8)
    across = int(count**0.5)
    for number in range(count):
        row, column = divmod(number, across)
        transform = _PLACE @ Affine.translation(column * _CHIP_PX, row * _CHIP_PX)
        place: dict[str, Any] = {"crs": _CRS, "transform": transform} if adjacent else {}
        with rasterio.open(directory / f"{number}.tif", "w", driver="GTiff", dtype="uint8", count=3,
                           width=_CHIP_PX, height=_CHIP_PX, **place) as target:  # fmt: skip
            target.write(pixels)
    return directory


@dataclass(frozen=True)
class _Figures:
    """CPU seconds in the networks and beside them, peak memory in bytes, and number of objects."""

    network: float
    beside: float
    peak: float
    objects: int

    def __str__(self) -> str:
        return (
            f"{self.peak / 1e9:.2f} GB, {self.objects} objects, {self.network:.1f} s in the "
            f"networks, {self.beside:.1f} s beside them: "
            f"{self.beside / max(self.network, 1e-9):.1%} more"
        )


def _mapping(
    weights: Path, place: Path, source: Path, options: argparse.Namespace, placed: bool = True
) -> Callable[[], PredictionReport]:
    # Formats of maps need a georeference.
    exports = (place / "out.gpkg",) if placed else ()
    request = MapRequest(
        (), place / "out.csv", weights, "cpu", options.recipe, workers=options.workers,
        sources=(str(source),), exports=exports,
    )  # fmt: skip
    return partial(map_sources, request)


def _measured(job: Callable[[], PredictionReport], repeat: bool) -> _Figures:
    """Run a job in another process and measure it."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, repeat, sender))
    process.start()
    sender.close()
    peak = 0.0
    while not receiver.poll(0.2):
        if not process.is_alive():
            raise SystemExit("the prediction failed")
        found = _memory_of(process.pid or 0)
        peak = max(peak, sum(own for own, _ in found) + max((file for _, file in found), default=0))
    network, beside, objects = receiver.recv()
    process.join()
    return _Figures(network, beside, peak, objects)


def _run(job: Callable[[], PredictionReport], repeat: bool, sender: Any) -> None:
    spent, computed, all_pixels = 0.0, 0, 0
    original: Callable[..., Any] = ensemble._average_window
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def timed(members: Any, image: Any, *arguments: Any) -> Any:
        nonlocal spent, computed, all_pixels
        started, pixels = _cpu_s(), image.shape[0] * image.shape[1]
        all_pixels += pixels
        if repeat and image.shape in known:
            return known[image.shape].float()
        result = original(members, image, *arguments)
        if repeat:
            known[image.shape] = result.round().to(torch.uint8)
        spent += _cpu_s() - started
        computed += pixels
        return result

    vars(ensemble)["_average_window"] = timed
    torch.set_num_threads(1)
    started = _cpu_s()
    done = job()
    beside = _cpu_s() - started - spent
    sender.send((spent * all_pixels / max(computed, 1), beside, sum(done.images.values())))


def _cpu_s() -> float:
    """Return the CPU time of this process and its ended children; other programs do not count."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory_of(pid: int) -> list[tuple[int, int]]:
    """Return the bytes of anonymous and of file pages of a process and each descendant."""
    sizes = {}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssFile:", "RssShmem:")):
                sizes[line.split(":")[0]] = 1024 * int(line.split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    own = sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0), sizes.get("RssFile", 0)
    return [own, *(size for child in children for size in _memory_of(int(child)))]


if __name__ == "__main__":
    main()
