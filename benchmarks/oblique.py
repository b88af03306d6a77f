"""Measure seconds to paint a 900 x 900 tile of a synthetic city, at nadir and obliquely.

    .venv/bin/python benchmarks/oblique.py

The peer is the flat painter of the city of roads, which draws neither heights nor facades, on the
same number of pixels and bands. Both run in one process, one after the other, on one thread. Times
are CPU seconds.
"""

import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from synthcity.city import Land, make_scene, make_town
from synthcity.noise import Window
from synthcity.oblique import Site, render_image, through_atmosphere
from synthcity.paint import Grid, paint
from synthcity.spectra import draw_sensor
from synthcity.views import make_view_angles

_SIDE_PX, _PIXEL_M = 900, 0.5
_SIDE_M = _SIDE_PX * _PIXEL_M
_RUNS = 3
_BANDS = tuple(range(8))


def main() -> None:
    """Measure and print the table's rows."""
    cv2.setNumThreads(1)
    sensor = draw_sensor(np.random.default_rng(0))
    sun = sensor.shadow_per_m
    window, grid = Window(0, 0, _SIDE_PX, _SIDE_PX), Grid(_PIXEL_M, _PIXEL_M)
    land = Land(_SIDE_M, _SIDE_M, None, sun)
    random = np.random.default_rng(1)
    scene = make_scene(land, random).scene
    peer = _seconds(lambda: paint(scene, window, grid, sensor, 1, np.random.default_rng(2)))

    started = time.process_time()
    town = make_town(land, random)
    print(f"a town of {len(town.solids)} buildings, s: {time.process_time() - started:.2f}")

    def site() -> Site:
        return Site.of(town.ground, town.skyline, window, grid, sun, 1)

    tile = site()
    print(f"ground and sun of a tile, s: {_seconds(site):.2f}")
    for collect in make_view_angles(3, random):
        air = through_atmosphere(sensor, collect, _BANDS, 1.0)
        ours = _seconds(partial(render_image, tile, collect, air, _BANDS, np.random.default_rng(2)))
        print(
            f"{collect.angle:.0f} degrees, s: satmap {ours:.2f}, peer {peer:.2f}, "
            f"ratio {ours / peer:.1f}"
        )


def _seconds(work: Callable[[], object]) -> float:
    """Return the minimum CPU time of several runs, seconds."""
    times = []
    for _ in range(_RUNS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    main()
