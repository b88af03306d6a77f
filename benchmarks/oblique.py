"""Measure seconds to paint a 900 x 900 tile of a synthetic city, at nadir and obliquely.

    .venv/bin/python benchmarks/oblique.py

The peer is the flat painter, which draws the same city without facades, on the same number of
pixels and bands. Both run in one process, one after the other, on one thread. Times
are CPU seconds.
"""

import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from synthcity.city import Land, build_city
from synthcity.noise import Grid, Window
from synthcity.oblique import Site, render_image, through_atmosphere
from synthcity.paint import paint
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
    window, grid = Window(0, 0, _SIDE_PX, _SIDE_PX), Grid(_PIXEL_M, _PIXEL_M)
    random = np.random.default_rng(1)
    started = time.process_time()
    city = build_city(Land(_SIDE_M, _SIDE_M, None, sensor.shadow_per_m), random)
    spent = time.process_time() - started
    print(f"a city of {len(city.solids)} buildings, s: {spent:.2f}")
    scene, noise = city.from_above, np.random.default_rng(2)
    peer = _seconds(lambda: paint(scene, window, grid, sensor, city.texture, noise))
    tile = Site.of(city, window, grid)
    print(f"ground and sun of a tile, s: {_seconds(lambda: Site.of(city, window, grid)):.2f}")
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
