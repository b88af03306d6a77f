"""Milliseconds, memory and quality of the road vectoriser.

    PYTHONPATH=code:tests .venv/bin/python benchmarks/vectorising.py [SHARED]

SHARED is the directory with the degraded masks, the real street layouts and the labels of Las
Vegas; without it only made data are used. One process, one thread. Times are medians, of the
vectoriser and of a plain peer side by side: the reference's recipe with the same libraries
(threshold, small objects and holes dropped, ``skeletonize`` at full resolution, a walk from
junction to junction, short spurs and components dropped, Douglas-Peucker), without its gap closing,
its speeds and its files. Degraded masks are made by ``tests/degraded_masks.py``: the settings were
tuned on seeds 0..23, seeds from 1000 on were kept aside, as were the shared masks.
"""

import argparse
import ctypes
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import remove_small_holes, remove_small_objects, skeletonize

from degraded_masks import METRES_PER_PIXEL, degraded_mask
from round_trips import RoundTrip, labelled_chips, made_city, vegas_labels
from satmap.metrics.apls import apls
from satmap.planes import ROAD, Planes
from satmap.roads.rows import to_rows
from satmap.roads.vectorize import vectorize
from satmap.submissions.roads_csv import RoadRow, read_roads_csv

_MASKS = 24
_HELD_OUT = 1000
_CITIES, _HELD_OUT_CITIES = (1, 2, 3), (101, 102, 103)
_ROUNDS = 5

Pixel = tuple[int, int]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", nargs="?", type=Path)
    shared = parser.parse_args().shared
    cv2.setNumThreads(1)
    city = list(made_city(_CITIES[0])) + list(made_city(_CITIES[1]))
    fixtures = _fixtures(shared / "fixtures/masks") if shared else []

    print(f"{'milliseconds a chip':32s}{'satmap':>8s}{'peer':>8s}{'ratio':>7s}")
    _times("made chips of 12 planes", [trip.planes for trip in city])
    if fixtures:
        _times("shared degraded masks", [planes for planes, _ in fixtures])
    rise = _rise(lambda: vectorize(city[0].planes))
    print(f"{'memory while vectorising':32s}{rise:6.0f} MB at most\n")

    print(f"{'APLS':32s}{'chips':>6s}{'length':>8s}{'time':>7s}{'worst':>7s}{'peer':>7s}")
    _masks("degraded masks, tuned on", map(_made, range(_MASKS)))
    _masks("degraded masks, held out", map(_made, range(_HELD_OUT, _HELD_OUT + _MASKS)))
    if fixtures:
        _masks("shared degraded masks", fixtures)
    for name, seeds in (("tuned on", _CITIES), ("held out", _HELD_OUT_CITIES)):
        _round_trips(f"made cities, {name}", [trip for s in seeds for trip in made_city(s)])
    if shared:
        _round_trips("roads_epfl", labelled_chips(shared / "data/roads_epfl"))
        _round_trips("roads_sn3", labelled_chips(shared / "data/roads_sn3"))
        vegas = shared / "fixtures/apls/AOI_2_Vegas_Train/spacenetroads"
        _round_trips("labels of Las Vegas", vegas_labels(vegas))


def _made(seed: int) -> tuple[Planes, tuple[RoadRow, ...]]:
    made = degraded_mask(seed)
    return _road_only(made.road), made.truth


def _fixtures(directory: Path) -> list[tuple[Planes, tuple[RoadRow, ...]]]:
    truth = read_roads_csv(directory / "truth_noded.csv")
    found = []
    for path in sorted(directory.glob("*.png")):
        mask = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
        rows = truth["AOI_7_Moscow_" + path.stem.rsplit("_", 1)[1]]
        found.append((_road_only(mask), tuple(rows)))
    return found


def _road_only(mask: NDArray[np.uint8]) -> Planes:
    return Planes((ROAD,), mask[None], (METRES_PER_PIXEL, METRES_PER_PIXEL))


def _times(name: str, chips: list[Planes]) -> None:
    ours = [_milliseconds(_rows, planes) for _ in range(_ROUNDS) for planes in chips]
    peers = [_milliseconds(_peer_rows, planes) for planes in chips]
    one, other = float(np.median(ours)), float(np.median(peers))
    print(f"{name:32s}{one:8.1f}{other:8.0f}{other / one:7.1f}")


def _rows(planes: Planes) -> list[RoadRow]:
    return to_rows(vectorize(planes))


def _peer_rows(planes: Planes) -> list[RoadRow]:
    return peer(planes[ROAD])


def _milliseconds(work: Callable[[Planes], object], planes: Planes) -> float:
    start = time.perf_counter()
    work(planes)
    return (time.perf_counter() - start) * 1e3


def _rise(work: Callable[[], object]) -> float:
    """Megabytes by which the process's memory rises above what it holds when work begins."""
    work()
    # What earlier work has left to the allocator would hide the rise.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = highest = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.0002):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        work()
    done.set()
    watcher.join()
    return (highest - before) / 1e6


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _masks(name: str, masks: Iterable[tuple[Planes, tuple[RoadRow, ...]]]) -> None:
    scores, peers = [], []
    for planes, truth in masks:
        scores.append(apls(truth, to_rows(vectorize(planes))).length.score)
        peers.append(apls(truth, _peer_rows(planes)).length.score)
    _print(name, scores, None, peers)


def _round_trips(name: str, trips: Iterable[RoundTrip]) -> None:
    lengths, times, peers = [], [], []
    for trip in trips:
        score = trip.score()
        assert score.time is not None
        lengths.append(score.length.score)
        times.append(score.time.score)
        rows = _peer_rows(trip.planes)
        peer_score = apls(trip.truth, rows, metres_per_pixel=trip.metres_per_pixel)
        peers.append(peer_score.length.score)
    _print(name, lengths, times, peers)


def _print(name: str, lengths: list[float], times: list[float] | None, peers: list[float]) -> None:
    timed = f"{np.mean(times):7.3f}" if times else " " * 7
    print(
        f"{name:32s}{len(lengths):6d}{np.mean(lengths):8.3f}{timed}"
        f"{min(lengths):7.3f}{np.mean(peers):7.3f}"
    )


# --- the peer -------------------------------------------------------------------------------------


def peer(road: NDArray[np.uint8]) -> list[RoadRow]:
    """Roads of a plane by the reference's recipe, in pixels, without times."""
    mask = remove_small_objects(road >= 0.3 * 255, max_size=299)
    mask = np.pad(remove_small_holes(mask, max_size=299), 6, mode="edge")
    skeleton = skeletonize(mask)[6:-6, 6:-6]  # type: ignore[no-untyped-call]
    lines = _walk(skeleton)
    ends: dict[Pixel, int] = {}
    for line in lines:
        for end in (line[0], line[-1]):
            ends[end] = ends.get(end, 0) + 1
    lines = [x for x in lines if len(x) >= 10 or min(ends[x[0]], ends[x[-1]]) > 1]
    labels, _ = ndimage.label(skeleton, np.ones((3, 3)))
    totals = np.bincount([labels[pixel] for line in lines for pixel in line])
    rows = []
    for line in lines:
        if totals[labels[line[0]]] >= 120:
            simple = shapely.simplify(shapely.LineString(line), 2)
            places = shapely.get_coordinates(simple)[:, ::-1] + 0.5
            rows.append(RoadRow(places, float("nan"), float("nan")))
    return rows


def _walk(skeleton: NDArray[np.bool_]) -> list[list[Pixel]]:
    """Paths of pixels from node to node; nodes have one neighbour or more than two."""
    pixels = set(zip(*(axis.tolist() for axis in np.nonzero(skeleton)), strict=True))
    around = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]

    def neighbours(pixel: Pixel) -> list[Pixel]:
        y, x = pixel
        return [(y + a, x + b) for a, b in around if (y + a, x + b) in pixels]

    links = {pixel: neighbours(pixel) for pixel in pixels}
    nodes = {pixel for pixel, near in links.items() if len(near) != 2}
    lines, seen = [], set()
    for node in sorted(nodes):
        for step in links[node]:
            if (node, step) in seen:
                continue
            line, here = [node, step], step
            while here not in nodes:
                before = line[-2]
                here = next(pixel for pixel in links[here] if pixel != before)
                line.append(here)
            seen.update({(node, step), (here, line[-2])})
            lines.append(line)
    return lines


if __name__ == "__main__":
    main()
