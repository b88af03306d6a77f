"""Measure time, memory and quality of the road vectoriser.

    PYTHONPATH=code:tests/helpers .venv/bin/python benchmarks/vectorising.py [SHARED]

SHARED is the directory with the degraded masks, the real street layouts and the labels of Las
Vegas; without it only synthetic data are used. The script runs in one process on one thread. Times
are medians of the vectoriser and of a plain peer, which take turns. The peer is the reference's
recipe with the same libraries: threshold, removal of small objects and holes, ``skeletonize`` at
full resolution, a walk from junction to junction, removal of short spurs and components,
Douglas-Peucker. It has no gap closing, no speeds and no files. Degraded masks are made by
``tests/helpers/degraded_masks.py``, and the settings were tuned on its seeds 0..23. Nobody has
inspected the held-out seeds of masks and cities. The shared masks were inspected, but nothing was
fitted to them.

Scenes are one large degraded mask, repeated by mirroring and written as GeoTIFF. Each is vectorised
in its own process, and its memory excludes that of the imports. Chips side by side are pieces of
degraded masks, each vectorised alone and together with its neighbours; road ends are compared at
the borders between chips.
"""

import argparse
import ctypes
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.morphology import remove_small_holes, remove_small_objects, skeletonize

from degraded_masks import METRES_PER_PIXEL, degraded_mask
from round_trips import RoundTrip, labelled_chips, made_city, vegas_labels
from satmap.evaluation.metrics.apls import apls
from satmap.prediction.vectorize import vectorize_directory
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.recipes.schema import load_recipe
from satmap.submissions.roads_csv import RoadRow, read_roads_csv, rows_of_graph
from satmap.tasks.roads.settings import ROAD
from satmap.tasks.roads.task import RoadTask
from satmap.tasks.roads.tiles import crop_graph
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from surroundings import with_surroundings

_MASKS, _HELD_OUT_MASKS = range(24), range(7000, 7048)
_CITIES, _HELD_OUT_CITIES = range(1, 4), range(601, 613)
_ROUNDS = 5
_SCENES_PX = (1300, 5000, 10_000, 20_000)
_SCENE_SEED, _MIRRORED_PX = 1001, 4000
_STRIP_PX = 512
_SIDE_BY_SIDE, _CUT_PX, _PIECES_PX = range(1000, 1008), 2600, (650, 1300)
# Road ends of two chips that are farther apart on their border belong to different roads, pixels.
_MEET_PX = 3.0

Pixel = tuple[int, int]


def main() -> None:
    """Measure and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", nargs="?", type=Path)
    shared = parser.parse_args().shared
    cv2.setNumThreads(1)
    city = list(made_city(_CITIES[0])) + list(made_city(_CITIES[1]))
    fixtures = _fixtures(shared / "fixtures/masks") if shared else []

    print(f"{'milliseconds per chip':32s}{'satmap':>8s}{'peer':>8s}{'ratio':>7s}")
    _times("synthetic chips, 12 bands", [trip.maps for trip in city])
    if fixtures:
        _times("shared degraded masks", [maps for maps, _ in fixtures])
    rise = _rise(lambda: vectorize_roads(city[0].maps))
    print(f"{'memory while vectorising':32s}{rise:6.0f} MB at most\n")

    print(f"{'scene, pixels':32s}{'seconds':>8s}{'MB':>7s}{'roads':>8s}")
    for size in _SCENES_PX:
        _scene(size)

    print(
        f"\n{'chips side by side':32s}{'chips':>6s}{'APLS':>8s}{'worst':>7s}{'meet':>7s}{'px':>7s}"
    )
    for size in _PIECES_PX:
        _side_by_side(size)
    print()

    print(f"{'APLS':32s}{'chips':>6s}{'length':>8s}{'time':>7s}{'worst':>7s}{'peer':>7s}")
    _masks("degraded masks, tuned on", map(_made, _MASKS))
    _masks("degraded masks, held out", map(_made, _HELD_OUT_MASKS))
    if fixtures:
        _masks("shared degraded masks", fixtures)
    for name, seeds in (("tuned on", _CITIES), ("held out", _HELD_OUT_CITIES)):
        _round_trips(f"made cities, {name}", [trip for s in seeds for trip in made_city(s)])
    if shared:
        _round_trips("roads_epfl", labelled_chips(shared / "data/roads_epfl"))
        _round_trips("roads_sn3", labelled_chips(shared / "data/roads_sn3"))
        vegas = shared / "fixtures/apls/AOI_2_Vegas_Train/spacenetroads"
        _round_trips("labels of Las Vegas", vegas_labels(vegas))


def _made(seed: int) -> tuple[ProbabilityMaps, tuple[RoadRow, ...]]:
    made = degraded_mask(seed)
    return _road_only(made.road), made.truth


def _fixtures(directory: Path) -> list[tuple[ProbabilityMaps, tuple[RoadRow, ...]]]:
    truth = read_roads_csv(directory / "truth_noded.csv")
    found = []
    for path in sorted(directory.glob("*.png")):
        mask = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
        rows = truth["AOI_7_Moscow_" + path.stem.rsplit("_", 1)[1]]
        found.append((_road_only(mask), tuple(rows)))
    return found


def _road_only(mask: NDArray[np.uint8]) -> ProbabilityMaps:
    return ProbabilityMaps((ROAD,), mask[None], (METRES_PER_PIXEL, METRES_PER_PIXEL))


def _times(name: str, chips: list[ProbabilityMaps]) -> None:
    ours = [_milliseconds(_rows, maps) for _ in range(_ROUNDS) for maps in chips]
    peers = [_milliseconds(_peer_rows, maps) for maps in chips]
    one, other = float(np.median(ours)), float(np.median(peers))
    print(f"{name:32s}{one:8.1f}{other:8.0f}{other / one:7.1f}")


def _rows(maps: ProbabilityMaps) -> list[RoadRow]:
    return rows_of_graph(vectorize_roads(maps))


def _peer_rows(maps: ProbabilityMaps) -> list[RoadRow]:
    return peer(maps[ROAD])


def _milliseconds(work: Callable[[ProbabilityMaps], object], maps: ProbabilityMaps) -> float:
    start = time.perf_counter()
    work(maps)
    return (time.perf_counter() - start) * 1e3


def _rise(work: Callable[[], object]) -> float:
    """Return the rise of the process's memory while ``work`` runs, megabytes."""
    work()
    # Memory that the allocator kept from earlier work would hide the rise.
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


def _highest() -> int:
    """Return the peak memory of the process, bytes; getrusage would include the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _masks(name: str, masks: Iterable[tuple[ProbabilityMaps, tuple[RoadRow, ...]]]) -> None:
    scores, peers = [], []
    for maps, truth in masks:
        scores.append(apls(truth, rows_of_graph(vectorize_roads(maps))).length.score)
        peers.append(apls(truth, _peer_rows(maps)).length.score)
    _print(name, scores, None, peers)


def _round_trips(name: str, trips: Iterable[RoundTrip]) -> None:
    lengths, times, peers = [], [], []
    for trip in trips:
        score = trip.score()
        assert score.time is not None
        lengths.append(score.length.score)
        times.append(score.time.score)
        rows = _peer_rows(trip.maps)
        peer_score = apls(trip.truth, rows, metres_per_pixel=trip.metres_per_pixel)
        peers.append(peer_score.length.score)
    _print(name, lengths, times, peers)


def _print(name: str, lengths: list[float], times: list[float] | None, peers: list[float]) -> None:
    timed = f"{np.mean(times):7.3f}" if times else " " * 7
    print(
        f"{name:32s}{len(lengths):6d}{np.mean(lengths):8.3f}{timed}"
        f"{min(lengths):7.3f}{np.mean(peers):7.3f}"
    )


# --- scenes ---------------------------------------------------------------------------------------


def _scene(size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "masks" / "scene.tif"
        path.parent.mkdir()
        _write_scene(path, size)
        pool = multiprocessing.get_context("spawn").Pool(1)
        with pool:
            seconds, megabytes, roads = pool.apply(_vectorize_scene, (path.parent,))
    print(f"{f'{size} x {size}':32s}{seconds:8.1f}{megabytes:7.0f}{roads:8d}")


def _write_scene(path: Path, size: int) -> None:
    road = degraded_mask(_SCENE_SEED, _MIRRORED_PX).road
    mirrored = np.concatenate([np.arange(_MIRRORED_PX), np.arange(_MIRRORED_PX)[::-1]])
    place = np.resize(mirrored, size)
    shape = {"count": 1, "height": size, "width": size, "dtype": "uint8"}
    pixel = Affine(METRES_PER_PIXEL, 0, 4e5, 0, -METRES_PER_PIXEL, 6.17e6)
    profile = {"crs": "EPSG:32637", "transform": pixel, "compress": "deflate", "zlevel": 1}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as target:
        for top in range(0, size, _STRIP_PX):
            rows = place[top : top + _STRIP_PX]
            target.write(road[rows][:, place], 1, window=Window(0, top, size, len(rows)))


def _vectorize_scene(masks: Path) -> tuple[float, float, int]:
    """Vectorise a scene; return seconds, megabytes above the initial memory, number of roads."""
    cv2.setNumThreads(1)
    task = RoadTask(load_recipe("demo"))
    before = _resident()
    start = time.perf_counter()
    done = vectorize_directory(masks, masks.with_suffix(".csv"), task)
    seconds = time.perf_counter() - start
    assert not done.faults
    return seconds, (_highest() - before) / 1e6, sum(done.images.values())


# --- chips side by side ---------------------------------------------------------------------------


def _side_by_side(size: int) -> None:
    alone, together = [], []
    meetings: tuple[list[float], list[float]] = ([], [])
    for seed in _SIDE_BY_SIDE:
        made = degraded_mask(seed, _CUT_PX)
        chips = {(box.left, box.top): box for box in Box(0, 0, _CUT_PX, _CUT_PX).tiles(size, size)}
        maps = {place: _road_only(made.road[box.pixels]) for place, box in chips.items()}
        rows = {place: _rows(maps[place]) for place in chips}
        looked = {place: _vectorised_with_neighbours(place, maps) for place in chips}
        for place, box in chips.items():
            truth = _clipped(made.truth, box)
            alone.append(apls(truth, rows[place]).length.score)
            together.append(apls(truth, looked[place]).length.score)
        for proposal, distances in zip((rows, looked), meetings, strict=True):
            distances += _distances_at_borders(proposal, size)
    for name, scores, apart in zip(("alone", "together"), (alone, together), meetings, strict=True):
        near = np.array([distance for distance in apart if distance <= _MEET_PX])
        print(
            f"{f'{size} x {size} {name}':32s}{len(scores):6d}{np.mean(scores):8.3f}"
            f"{min(scores):7.3f}{len(near) / len(apart):7.3f}{near.mean():7.2f}"
        )


def _vectorised_with_neighbours(place: Pixel, maps: dict[Pixel, ProbabilityMaps]) -> list[RoadRow]:
    beside = [
        (maps[other], other[0] - place[0], other[1] - place[1]) for other in maps if other != place
    ]
    whole, box = with_surroundings(maps[place], beside)
    return rows_of_graph(crop_graph(vectorize_roads(whole), box, whole.metres_per_pixel))


def _clipped(rows: Iterable[RoadRow], box: Box) -> list[RoadRow]:
    """Return the roads within a rectangle, in its pixels."""
    corner = np.array((box.left, box.top))
    lines = [
        shapely.clip_by_rect(shapely.LineString(row.line), box.left, box.top, box.right, box.bottom)
        for row in rows
    ]
    return [
        RoadRow(
            shapely.get_coordinates(part) - corner, part.length * METRES_PER_PIXEL, float("nan")
        )
        for part in shapely.get_parts(lines)
        if part.geom_type == "LineString" and part.length > 0
    ]


def _distances_at_borders(rows: dict[Pixel, list[RoadRow]], size: int) -> list[float]:
    """Return the distance from each road end on a border to the nearest end of the other chip."""
    found = []
    for (left, top), own in rows.items():
        for axis, other in ((0, (left + size, top)), (1, (left, top + size))):
            if other not in rows:
                continue
            here = _ends_at(own, axis, size)
            there = _ends_at(rows[other], axis, 0)
            for one, two in ((here, there), (there, here)):
                if len(one) and len(two):
                    found += cKDTree(two).query(one)[0].tolist()
                else:
                    found += [np.inf] * len(one)
    return found


def _ends_at(rows: list[RoadRow], axis: int, limit: float) -> NDArray[np.float64]:
    """Return positions of road ends along a border of constant x (axis 0) or y (axis 1), (n, 1)."""
    ends = np.concatenate([np.empty((0, 2)), *(row.line[[0, -1]] for row in rows)])
    return np.unique(ends[np.abs(ends[:, axis] - limit) < 0.05, 1 - axis])[:, None]


# --- the peer -------------------------------------------------------------------------------------


def peer(road: NDArray[np.uint8]) -> list[RoadRow]:
    """Return the roads of a mask by the reference's recipe, in pixels, without times."""
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
    """Return pixel paths between nodes; a node has one neighbour or more than two."""
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
