"""Count the crossings in real labels, and measure how scores and the vectoriser see them.

    PYTHONPATH=code:tests/helpers .venv/bin/python benchmarks/crossings.py [SHARED] [--osm FILE...]

SHARED is the directory with the labels of Las Vegas and the street layouts of ``roads_epfl``. FILEs
are extracts of OpenStreetMap (.osm, .osm.pbf). They are cut into chips as large as SpaceNet's. Two
synthetic cities are always included. The script takes three minutes of CPU time.

The first table counts crossings on different levels. In the second, each truth is compared with
two damaged copies of itself: one in which all crossings are joined to level junctions, and one
without a tenth of its edges. In the third, chips with crossings are drawn as exact maps and
vectorised back.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import shapely

from round_trips import made_city, of_labels
from satmap.evaluation.metrics.apls import METRES_PER_PIXEL, apls
from satmap.evaluation.metrics.apls_graph import build_graph
from satmap.evaluation.metrics.crossings import CrossingScore, find_crossings, score_crossings
from satmap.evaluation.metrics.topo import TopoScore, topo
from satmap.evaluation.metrics.turns import TurnScore, score_turns
from satmap.submissions.roads_csv import RoadRow, read_roads_csv, rows_of_graph
from satmap.submissions.vector_maps import read_road_maps
from satmap.tasks.roads.targets import RoadLabel
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads

_CHIP_PX = 1300
_CITIES = (1, 2)
_MISSING = 0.1
# Rounding errors of places on a road.
_ON_PX = 1e-3
_OSM = "OpenStreetMap"
# Travel times play no part here.
_SPEED_MPH = 25.0

Roads = list[RoadRow]
Chips = Mapping[str, Roads]


def main() -> None:
    """Measure and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", nargs="?", type=Path)
    parser.add_argument("--osm", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    labels: dict[str, Chips] = {}
    if options.shared:
        labels |= _shared_labels(options.shared)
    for file in options.osm:
        rows, _, _ = read_road_maps(file, file, METRES_PER_PIXEL)
        labels[f"{_OSM}, {file.name.split('.')[0]}"] = rows
    for seed in _CITIES:
        labels[f"synthetic city {seed}"] = {
            trip.name: list(trip.truth) for trip in made_city(seed, chips=9)
        }
    print("| labels | images | roads | crossings | of them borderline | order known |")
    print("|---|---|---|---|---|---|")
    for name, chips in labels.items():
        _count(name, chips)
    print("\n| labels | | APLS | TOPO F1 | crossing F1 | false-turn rate | lost routes |")
    print("|---|---|---|---|---|---|---|")
    vectorised: dict[str, Chips] = {}
    for name, images in labels.items():
        chips = images
        if name.startswith(_OSM):
            _damage(f"{name}, whole map", images)
            chips = _cut(next(iter(images.values())))
        if crossed := _with_crossings(chips):
            _damage(f"{name}, {len(crossed)} chips", crossed)
        # Labels without a crossing show whether the vectoriser makes false ones.
        vectorised[name] = crossed or {each: rows for each, rows in chips.items() if rows}
    print("\n| labels | chips | APLS | TOPO F1 | found | missed | false | crossing F1 "
          "| false turns | missed turns | lost routes |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, chips in vectorised.items():
        _vectorise(name, chips)


def _shared_labels(shared: Path) -> dict[str, Chips]:
    fixtures = shared / "fixtures/apls"
    vegas = fixtures / "AOI_2_Vegas_Train"
    maps = {
        "roads_sn3": shared / "data/roads_sn3/AOI_2_Vegas_img0.geojson",
        "roads_epfl": shared / "data/roads_epfl/AOI_90_Suburb_Train/geojson_roads_speed",
        "Las Vegas, SpaceNet": vegas / "spacenetroads",
        "Las Vegas, OpenStreetMap": vegas / "osm",
    }
    labels: dict[str, Chips] = {
        name: read_road_maps(path, path, METRES_PER_PIXEL)[0] for name, path in maps.items()
    }
    for path in sorted(fixtures.glob("*_truth.csv")):
        rows = read_roads_csv(path)
        labels[f"fixtures/apls, {path.name}"] = {each: list(rows[each]) for each in rows}
    return labels


def _count(name: str, chips: Chips) -> None:
    found = [find_crossings(rows) for rows in chips.values()]
    sums = [
        sum(map(len, chips.values())),
        sum(len(each.xy) for each in found),
        sum(int(each.borderline.sum()) for each in found),
        sum(int((each.above != 0).sum()) for each in found),
    ]
    print(f"| {name} | {len(chips)} | {' | '.join(map(str, sums))} |", flush=True)


def _cut(rows: Roads) -> Chips:
    """Cut a map into chips."""
    points = np.concatenate([row.line for row in rows])
    low, high = points.min(axis=0), points.max(axis=0)
    lines = np.array([shapely.LineString(row.line) for row in rows])
    tree = shapely.STRtree(lines)
    chips = {}
    for x, y in np.ndindex(*np.ceil((high - low) / _CHIP_PX).astype(int)):
        corner = low + np.array((x, y)) * _CHIP_PX
        box = shapely.box(*corner, *(corner + _CHIP_PX))
        near = np.sort(tree.query(box, predicate="intersects"))
        chips[f"{x}-{y}"] = [
            replace(rows[k], line=shapely.get_coordinates(part) - corner)
            for k, piece in zip(near, shapely.intersection(lines[near], box), strict=True)
            for part in shapely.get_parts(piece)
            if part.geom_type == "LineString" and part.length > 1
        ]
    return chips


def _with_crossings(chips: Chips) -> Chips:
    """Return the chips with a crossing that is not borderline."""
    return {name: rows for name, rows in chips.items() if not find_crossings(rows).borderline.all()}


def _joined(rows: Roads) -> Roads:
    """Return the roads with a vertex in common wherever two cross."""
    joined = [row.line for row in rows]
    for xy in find_crossings(rows).xy:
        point = shapely.Point(xy)
        for k, line in enumerate(joined):
            if shapely.LineString(line).distance(point) > _ON_PX:
                continue
            # A road that crosses itself is on the point twice.
            segments = shapely.linestrings(np.stack([line[:-1], line[1:]], axis=1))
            on = np.flatnonzero(shapely.distance(segments, point) <= _ON_PX)
            joined[k] = np.insert(line, on + 1, xy, axis=0)
    return [replace(row, line=line) for row, line in zip(rows, joined, strict=True)]


def _edges(rows: Roads) -> Roads:
    """Return the roads from junction to junction."""
    graph = build_graph(rows, np.inf)
    assert graph is not None
    edges = np.arange(len(graph.ends))
    begin = np.searchsorted(graph.segment_edge, [*edges, len(edges)])
    return [
        RoadRow(np.vstack([graph.starts[a:b], graph.stops[b - 1]]), np.nan, np.nan)
        for a, b in pairwise(begin)
    ]


def _thinned(rows: Roads) -> Roads:
    random = np.random.default_rng(0)
    return [row for row in _edges(rows) if random.random() >= _MISSING]


@dataclass
class _Sums:
    apls: list[float]
    topo: TopoScore
    crossings: CrossingScore
    turns: TurnScore


def _compare(pairs: Iterable[tuple[Sequence[RoadRow], Sequence[RoadRow]]]) -> _Sums:
    """Sum the scores of pairs of truth and proposal."""
    sums = _Sums([], TopoScore(), CrossingScore(), TurnScore())
    for truth, proposal in pairs:
        sums.apls.append(apls(truth, proposal).length.score)
        sums.topo += topo(truth, proposal)
        sums.crossings += score_crossings(truth, proposal)
        sums.turns += score_turns(truth, proposal)
    return sums


def _damage(name: str, chips: Chips) -> None:
    count = sum(int((~find_crossings(rows).borderline).sum()) for rows in chips.values())
    print(f"| {name} with {count} crossings | | | | | | |")
    for damage, damaged in (("all crossings joined", _joined), ("a tenth missing", _thinned)):
        sums = _compare((rows, damaged(rows)) for rows in chips.values())
        turns = sums.turns.figures()
        figures = [
            float(np.mean(sums.apls)),
            sums.topo.f1,
            sums.crossings.figures()["crossings_f1"],
            turns["false_turn_rate"],
            turns["lost_routes"],
        ]
        print(f"| | {damage} | {_cells(figures)} |", flush=True)


def _vectorise(name: str, chips: Chips) -> None:
    pairs = []
    for chip, rows in chips.items():
        trip = of_labels(
            chip,
            [RoadLabel(row.line, _SPEED_MPH) for row in rows],
            _size(rows),
            (METRES_PER_PIXEL, METRES_PER_PIXEL),
        )
        pairs.append((rows, rows_of_graph(vectorize_roads(trip.maps))))
    sums = _compare(pairs)
    counts, turns = sums.crossings, sums.turns.figures()
    figures = [counts.figures()["crossings_f1"]]
    figures += [turns[key] for key in ("false_turns", "missed_turns", "lost_routes")]
    print(
        f"| {name} | {len(chips)} | {_cells([float(np.mean(sums.apls)), sums.topo.f1])} "
        f"| {counts.found} | {counts.missed} | {counts.false} | {_cells(figures)} |",
        flush=True,
    )


def _size(rows: Roads) -> tuple[int, int]:
    """Return height and width of a chip that holds the roads, pixels."""
    corner = np.concatenate([row.line for row in rows]).max(axis=0)
    width, height = np.maximum(np.ceil(corner), _CHIP_PX).astype(int).tolist()
    return height, width


def _cells(figures: Sequence[float | None]) -> str:
    return " | ".join("-" if each is None else f"{each:.3f}" for each in figures)


if __name__ == "__main__":
    main()
