"""Measure time and quality of the building vectoriser.

    PYTHONPATH=code:tests/helpers .venv/bin/python benchmarks/buildings.py

The script runs in one process on one thread. Chips are 900 x 900 pixels with 200 synthetic houses,
in rows and detached. Their body, border and contact maps are blurred and have smooth noise. Times
are medians of CPU time. satmap (polygons with a confidence) and a plain peer with the same
libraries take turns. The peer uses seeds, scikit-image's watershed on the whole chip, rasterio's
outlines one by one, Douglas-Peucker and the mean probability. Attached houses count as separated
if different buildings cover most of each.
"""

import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.buildings.settings import BORDER, BUILDING, CONTACT, BuildingSettings
from satmap.tasks.buildings.vectorizer.find_instances import find_instances
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from synthetic_blocks import Blocks, made_blocks, maps_of_labels, share_apart

_SIZE, _HOUSES, _ROUNDS = 900, 200, 9
_BLUR, _NOISE = 1.0, 0.07
_CHIPS = {"houses of 16 to 32 px": (16, 32), "houses of 20 to 50 px": (20, 50)}
_SIDES = ((9, 14), (14, 30), (25, 60), (60, 120))
_DEGREES = (0, 17, 45, 80)


def main() -> None:
    """Measure and print both tables."""
    cv2.setNumThreads(1)
    settings = BuildingSettings()
    print(f"{'ms per chip':28s}{'satmap':>8s}{'peer':>8s}{'ratio':>7s}  instances alone")
    for name, sides in _CHIPS.items():
        labels = made_blocks(3, _SIZE, 17, sides).labels
        labels = np.where(labels > _HOUSES, 0, labels)
        maps = maps_of_labels(labels, _BLUR, _NOISE)
        ours, theirs, instances = _times(
            partial(vectorize_buildings, maps, settings),
            partial(_peer, maps, settings),
            partial(find_instances, maps, settings),
        )
        print(f"{name:28s}{ours:8.1f}{theirs:8.1f}{theirs / ours:7.1f}{instances:8.1f}")

    print(f"\n{'attached houses separated, %':28s}{'exact':>10s}{'blurred':>10s}{'+ noise':>10s}")
    small = BuildingSettings(least_px=30)
    for sides in _SIDES:
        blocks = [made_blocks(seed, 600, degrees, sides) for seed, degrees in enumerate(_DEGREES)]
        row = (_apart(blocks, small, *kind) for kind in ((0, 0), (1, 0), (1, _NOISE)))
        print(f"{f'{sides[0]} to {sides[1]} px':28s}" + "".join(f"{100 * x:10.1f}" for x in row))


def _times(*works: Callable[[], object]) -> list[float]:
    """Return the median CPU milliseconds of each function; the functions take turns."""
    taken = np.empty((_ROUNDS, len(works)))
    for row in taken:
        for column, work in enumerate(works):
            began = time.process_time()
            work()
            row[column] = time.process_time() - began
    return (1e3 * np.median(taken, axis=0)).tolist()  # type: ignore[no-any-return]


def _apart(blocks: list[Blocks], settings: BuildingSettings, blur: float, noise: float) -> float:
    shares = [
        share_apart(b, find_instances(maps_of_labels(b.labels, blur, noise), settings))
        for b in blocks
    ]
    return float(np.mean(shares))


def _peer(maps: ProbabilityMaps, settings: BuildingSettings) -> list[tuple[shapely.Polygon, float]]:
    body = maps[BUILDING].astype(np.float32) / 255
    strength = body.copy()
    for name in (BORDER, CONTACT):
        strength *= 1 - maps[name].astype(np.float32) / 255
    seeds, count = ndimage.label(strength > settings.seed)
    sizes = ndimage.sum_labels(np.ones_like(body), seeds, np.arange(count + 1))
    seeds[(sizes < settings.seed_px)[seeds]] = 0
    labels: NDArray[np.int32] = watershed(-strength, seeds, mask=body > settings.low).astype(  # type: ignore[no-untyped-call]
        np.int32
    )
    found = []
    for geometry, value in rasterio.features.shapes(labels, labels > 0, connectivity=4):
        polygon = shapely.geometry.shape(geometry)
        if polygon.area >= settings.least_px:
            mean = float(body[labels == value].mean())
            simple = polygon.simplify(settings.simplify_px)
            found.append((simple, mean * float(np.sqrt(polygon.area))))
    return found


if __name__ == "__main__":
    main()
