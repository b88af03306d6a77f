"""Memory and overhead of ``satmap map``: one large scene, or many small chips.

    .venv/bin/python benchmarks/mapping.py --sizes 5000 10000 20000    # a scene, sides in pixels
    .venv/bin/python benchmarks/mapping.py --chips 1000                # chips of 32 px
    .venv/bin/python benchmarks/mapping.py --sizes 10000 --weights W --images DIR --workers 1

A scene is a tiled and deflated GeoTIFF of real images of one size, in random order, or of noise.
The network is small and untrained unless ``--weights`` names others. Printed are the peak memory of
all processes, and the CPU time beside the networks: reading, stretching, storing, vectorising with
``--workers`` processes, joining and exporting. CPU time does not depend on other programs on the
machine. The memory is the sum of the anonymous pages of all processes and the file pages of the
largest, which counts libraries once. With ``--repeat-window`` the networks compute only one window
of each size, and its maps are repeated: the memory and the work beside the networks stay the same,
and large scenes take minutes instead of hours.
"""

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Sequence
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
    parser.add_argument("--images", type=Path, help="directory of images (default: noise)")
    parser.add_argument("--weights", type=Path, help="networks (default: a small one)")
    parser.add_argument("--recipe", help="recipe of the weights (default: theirs)")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeat-window", action="store_true", help="predict only one window")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        weights = options.weights or _small_network(place / "weights")
        for size in options.sizes:
            scene = _scene(place / f"{size}.tif", size, options.images)
            seconds, network, peak, roads = _measured(weights, place, [scene], options)
            share = f"{100 * (seconds / max(network, 1e-9) - 1):.0f} % more, "
            print(
                f"{size} px: {peak / 1e9:.2f} GB, {roads} roads, {seconds:.0f} s, of these "
                f"{network:.0f} s in the networks: {'' if options.repeat_window else share}"
                f"{(seconds - network) / size**2 * 1e6:.3f} s per megapixel",
                flush=True,
            )
            scene.unlink()
        for kind in ("separate", "adjacent") if options.chips else ():
            chips = _chips(place / kind, options.chips, kind == "adjacent")
            seconds, network, peak, _ = _measured(weights, place, [chips], options)
            print(
                f"{options.chips} {kind} chips: {peak / 1e9:.2f} GB, "
                f"{(seconds - network) / options.chips * 1e3:.1f} ms each beside the networks",
                flush=True,
            )


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


def _measured(
    weights: Path, place: Path, sources: Sequence[Path], options: argparse.Namespace
) -> tuple[float, float, float, int]:
    """Map in another process.

    Returns:
        Its seconds, those in the networks, the peak memory in bytes, and the number of roads.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    request = MapRequest(
        (), place / "out.csv", weights, "cpu", options.recipe, workers=options.workers,
        sources=tuple(map(str, sources)), exports=(place / "out.gpkg",),
    )  # fmt: skip
    process = context.Process(target=_map, args=(request, options.repeat_window, sender))
    process.start()
    sender.close()
    peak = 0.0
    while not receiver.poll(0.2):
        if not process.is_alive():
            raise SystemExit("the map failed")
        found = _memory_of(process.pid or 0)
        peak = max(peak, sum(own for own, _ in found) + max((file for _, file in found), default=0))
    seconds, network, roads = receiver.recv()
    process.join()
    return seconds, network, peak, roads


def _map(request: MapRequest, repeat: bool, sender: Any) -> None:
    spent = [0.0]
    original: Callable[..., Any] = ensemble._average_window
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def timed(members: Any, image: Any, *arguments: Any) -> Any:
        started = _cpu_s()
        if repeat and image.shape in known:
            return known[image.shape].float()
        result = original(members, image, *arguments)
        if repeat:
            known[image.shape] = result.round().to(torch.uint8)
        spent[0] += _cpu_s() - started
        return result

    vars(ensemble)["_average_window"] = timed
    torch.set_num_threads(1)
    started = _cpu_s()
    done = map_sources(request)
    sender.send((_cpu_s() - started, spent[0], sum(done.images.values())))


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
