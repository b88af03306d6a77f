"""Measure how fast tiles are read from a scene, cut with their labels, and read from the cache.

    PYTHONPATH=code:tests .venv/bin/python benchmarks/scene_tiles.py SCENE.tif LABELS.geojson \
        --peer OTHER_ENVIRONMENT/bin/python

The tiles have 1024 pixels at web-mercator zoom 19. The peer is rio-tiler in an environment of its
own. It opens the scene once and reads the same tiles, with its default (nearest neighbour) and with
cubic resampling, which satmap uses. Both take turns. CPU time is measured, which other processes do
not disturb.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from building_recipes import BUILDING_RECIPE
from satmap.data.cache import prepare_chip
from satmap.data.chip import Chip
from satmap.data.imagery import RGB, read_info
from satmap.data.inventory import Inventory
from satmap.data.layers import find_layers, stretched
from satmap.data.scenes import cut_scenes, make_grid
from satmap.data.sources import read_source
from satmap.recipes.schema import TileSettings, parse_recipe
from satmap.tasks.base import task_of

_ZOOM = 19
_TILES = 6
_TURNS = 2

_PEER = """
import json, sys, time
from rio_tiler.io import Reader
path, zoom, tiles, method = json.load(sys.stdin)
with Reader(path) as scene:
    read = lambda x, y: scene.tile(
        x, y, zoom, tilesize=1024, resampling_method=method, reproject_method=method
    ).array
    read(*tiles[0])
    started = time.process_time()
    for tile in tiles:
        read(*tile)
    print((time.process_time() - started) / len(tiles))
"""


def main() -> None:
    """Measure and print the rows of the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scene", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--peer", help="Python with rio-tiler")
    options = parser.parse_args()
    layers, _ = find_layers([read_source(str(options.scene))], 3)
    started = time.process_time()
    (layer,) = stretched(layers, 2, 98, {})
    print(f"stretch of the scene: {time.process_time() - started:.2f} s")
    grid = make_grid(layer, TileSettings(zoom=_ZOOM))
    # The tiles in the middle are full of data.
    keys = sorted(grid.tiles)[len(grid.tiles) // 4 :][:_TILES]
    ours = []
    peers: dict[str, list[float]] = {"nearest": [], "cubic": []}
    for _ in range(_TURNS):
        ours.append(_seconds(lambda: [grid.mosaic.read(grid.tiles[key], {}) for key in keys]))
        if options.peer:
            for method, times in peers.items():
                request = json.dumps([str(options.scene), _ZOOM, keys, method])
                done = subprocess.run(
                    [options.peer, "-c", _PEER], input=request, text=True, check=True,
                    stdout=subprocess.PIPE,
                )  # fmt: skip
                times.append(float(done.stdout))
    read = float(np.median(ours)) / len(keys)
    print(f"reading from the scene: {1 / read:.1f} tiles per second")
    for method, times in peers.items():
        if times:
            peer = float(np.median(times))
            print(f"  rio-tiler, {method}: {1 / peer:.1f}, ratio {peer / read:.2f}")
    with tempfile.TemporaryDirectory() as directory:
        _measure_cache(options.scene, options.labels, Path(directory), read)


def _measure_cache(scene: Path, labels: Path, directory: Path, read: float) -> None:
    """Cut and prepare all tiles, and read them from the cache."""
    task = task_of(parse_recipe(f"{BUILDING_RECIPE}\ntiles: {{zoom: {_ZOOM}}}", "test"))
    chip = Chip("scene", "scene", "area", {RGB: read_info(scene, RGB)}, labels, scene="scene")
    found = Inventory((chip,), {}, (), (), {}, (), ())
    started = time.process_time()
    tiles = cut_scenes(found, task, 3, directory).chips
    cut = (time.process_time() - started) / len(tiles)
    print(f"cutting with labels and their offset: {1 / cut:.1f} tiles per second")
    started = time.process_time()
    ready = [prepare_chip(tile, directory / "ready", task.recipe.stretch, task) for tile in tiles]
    prepared = (time.process_time() - started) / len(tiles)
    print(f"targets and prepared chips: {1 / prepared:.1f} tiles per second")
    cached = _seconds(lambda: [each.read()[0].sum() for each in ready]) / len(ready)
    print(f"whole tiles from the cache: {1 / cached:.0f} per second, ratio {read / cached:.0f}")


def _seconds(work: Callable[[], object]) -> float:
    work()
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
