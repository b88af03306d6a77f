"""Measure scoring times: a chip, a city, a thousand buildings, a file of a million rows.

    .venv/bin/python benchmarks/scoring.py

The peer for roads is ``plain_apls``, which follows the definition in plain Python. The peer for
buildings follows the challenge's own Python code, one comparison after the other. Both run on the
same data in the same process, one after the other.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# Set before numpy is imported, which reads it: all figures are for one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import shapely

from plain_apls import Road, plain_apls
from satmap.evaluation.metrics.apls import METRES_PER_PIXEL, MIDPOINT_M, apls
from satmap.evaluation.metrics.apls_graph import build_graph
from satmap.evaluation.metrics.building_f1 import match_buildings
from satmap.evaluation.metrics.crossings import score_crossings
from satmap.evaluation.metrics.turns import score_turns
from satmap.submissions.buildings_csv import BuildingRow
from satmap.submissions.roads_csv import RoadRow, check_roads_csv
from satmap.vectors.speeds import MPS_PER_MPH
from synthcity.network import make_roads

_CHIP_M = 1300 * METRES_PER_PIXEL
_ROWS = 1_000_000


def main() -> None:
    """Measure and print the rows of the table."""
    print("| what | size | plain, ms | satmap, ms | ratio |")
    print("|---|---|---|---|---|")
    score_chips()
    score_cities()
    score_levels()
    match_blocks()
    check_file()


def score_chips() -> None:
    """Measure APLS of chips with about 40 edges, both weights."""
    city = _streets(2 * _CHIP_M)
    chips = [_clip(city, x, y) for x in (0, _CHIP_M) for y in (0, _CHIP_M)]
    # The 40 longest streets of a synthetic city's chip, as many as a real chip has.
    chips = [sorted(chip, key=lambda row: -row.length_m)[:40] for chip in chips]
    pairs = [(chip, _redrawn(chip, seed)) for seed, chip in enumerate(chips)]
    ours = _best_ms(lambda: [apls(*pair) for pair in pairs]) / len(pairs)
    peer = _best_ms(lambda: [_plain(*pair) for pair in pairs], 1) / len(pairs)
    _print_row("APLS of a chip, both weights", "40 roads", peer, ours)


def score_cities() -> None:
    """Measure APLS of whole cities; print their compared nodes and their junctions."""
    for metres in (1350.0, 2600.0):
        truth = _streets(metres)
        proposal = _redrawn(truth, 1)
        graph = build_graph(truth, MIDPOINT_M / METRES_PER_PIXEL)
        assert graph is not None
        size = f"{graph.junctions} junctions, {len(graph.node_xy)} nodes"
        ours = _best_ms(partial(apls, truth, proposal))
        _print_row("APLS of a city, both weights", size, None, ours)


def score_levels() -> None:
    """Measure crossings and false turns of a city; print its roads from junction to junction."""
    truth = _grid(51)
    proposal = _redrawn(truth, 1)
    size = f"{len(truth):,} roads"
    ours = _best_ms(partial(score_crossings, truth, proposal))
    _print_row("crossings of a city", size, None, ours)
    ours = _best_ms(partial(score_turns, truth, proposal))
    _print_row("false turns of a city", size, None, ours)


def match_blocks() -> None:
    """Measure building F1 of a thousand buildings against a thousand."""
    truth, proposal = _blocks(1000)
    rows = [BuildingRow(polygon, 1 / (i + 1), str(i)) for i, polygon in enumerate(proposal)]
    true = [BuildingRow(polygon, 1.0, str(i)) for i, polygon in enumerate(truth)]
    ours = _best_ms(lambda: match_buildings(true, rows))
    peer = _best_ms(lambda: _plain_matches(truth, proposal), 1)
    _print_row("building F1 of an image", "1,000 x 1,000", peer, ours)


def check_file() -> None:
    """Measure the validator on a file of a million rows."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "million.csv")
        with path.open("w") as file:
            file.write("ImageId,WKT_Pix,length_m,travel_time_s\n")
            for i in range(_ROWS):
                line = ", ".join(f"{x:.2f} {y:.2f}" for x, y in random.uniform(0, 1300, (5, 2)))
                file.write(f'AOI_7_Moscow_chip{i // 100},"LINESTRING ({line})",1.000,1.000\n')
        seconds = _best_ms(lambda: check_roads_csv(path), 1) / 1000
    print(f"\nsatmap check, {_ROWS:,} rows of 5 points: {seconds:.0f} s")


def _streets(metres: float) -> list[RoadRow]:
    """Return the streets of a synthetic city with the given side in metres, in pixels."""
    random = np.random.default_rng(0)
    rows = []
    for edge in make_roads(metres, metres, random):
        line = np.asarray(edge.line.coords) / METRES_PER_PIXEL
        time_s = edge.line.length / (edge.speed_mph * MPS_PER_MPH)
        rows.append(RoadRow(line, edge.line.length, time_s))
    return rows


def _grid(size: int) -> list[RoadRow]:
    """Return ``size`` by ``size`` crossroads 100 m apart, and ten motorways over all streets."""
    lines = []
    along = np.linspace(0, 100, 11)
    for i, j in np.ndindex(size, size):
        street = np.stack([along, 0 * along], axis=1)
        lines += [street + np.array((100 * j, 100 * i))] * (j < size - 1)
        lines += [street[:, ::-1] + np.array((100 * j, 100 * i))] * (i < size - 1)
    far = 100.0 * size
    lines += [np.array([(-50, y), (far, y + far / 3)]) for y in np.linspace(33, far / 2, 10)]
    return [RoadRow(line / METRES_PER_PIXEL, 100.0, 10.0) for line in lines]


def _clip(rows: Sequence[RoadRow], x_m: float, y_m: float) -> list[RoadRow]:
    corner = np.array((x_m, y_m)) / METRES_PER_PIXEL
    window = shapely.box(*corner, *(corner + 1300))
    chip = []
    for row in rows:
        for part in shapely.get_parts(shapely.intersection(shapely.LineString(row.line), window)):
            if part.geom_type == "LineString" and part.length > 5:
                share = part.length * METRES_PER_PIXEL / row.length_m
                line = shapely.get_coordinates(part) - corner
                chip.append(RoadRow(line, row.length_m * share, row.travel_time_s * share))
    return chip


def _redrawn(rows: Sequence[RoadRow], seed: int) -> list[RoadRow]:
    """Return the streets as a network might draw them: moved, some missing, other speeds."""
    random = np.random.default_rng(seed)
    return [
        RoadRow(
            row.line + 3 * np.sin(row.line[:, ::-1] / 97 + seed),
            row.length_m,
            row.travel_time_s * random.uniform(0.7, 1.4),
        )
        for row in rows
        if random.random() > 0.08
    ]


def _plain(truth: Sequence[RoadRow], proposal: Sequence[RoadRow]) -> list[float]:
    def roads(rows: Sequence[RoadRow]) -> list[Road]:
        return [([(x, y) for x, y in row.line.tolist()], row.travel_time_s) for row in rows]

    return [
        plain_apls(roads(truth), roads(proposal), METRES_PER_PIXEL, weight)[2]
        for weight in ("length", "time")
    ]


def _blocks(count: int) -> tuple[list[shapely.Polygon], list[shapely.Polygon]]:
    """Return L-shaped buildings on a grid, slightly rotated, and a plausible prediction of them."""
    random = np.random.default_rng(0)
    truth, proposal = [], []
    for i in range(count):
        x, y = 30 * (i % 32), 30 * (i // 32)
        width, height = random.uniform(10, 24, 2)
        corners = [(0, 0), (width, 0), (width, height / 2), (width / 2, height / 2),
                   (width / 2, height), (0, height)]  # fmt: skip
        turn = random.uniform(-0.3, 0.3)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        building = np.array(corners) @ matrix.T + (x, y)
        truth.append(shapely.Polygon(building))
        outline = shapely.Polygon(building + random.normal(0, 2, 2)).buffer(random.uniform(-1, 1.5))
        proposal.append(outline)
    return truth, proposal


def _plain_matches(truth: Sequence[shapely.Polygon], proposal: Sequence[shapely.Polygon]) -> int:
    free = list(truth)
    taken = 0
    for polygon in proposal:
        shares = [polygon.intersection(t).area / polygon.union(t).area for t in free]
        if shares and max(shares) > 0.5:
            free.pop(int(np.argmax(shares)))
            taken += 1
    return taken


def _best_ms(work: Callable[[], object], times: int = 5) -> float:
    """Return the milliseconds of the fastest of several runs."""
    best = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best * 1000


def _print_row(what: str, size: str, peer: float | None, ours: float) -> None:
    other, ratio = ("-", "-") if peer is None else (f"{peer:.0f}", f"{peer / ours:.0f}")
    print(f"| {what} | {size} | {other} | {ours:.1f} | {ratio} |")


if __name__ == "__main__":
    main()
