"""TOPO, a complement to APLS: compares the roads reachable from the same place on two maps.

This is the holes-and-marbles metric (Biagioni and Eriksson 2012, "Inferring road maps from global
positioning system traces: survey and comparative evaluation"), at the scale used for aerial images
(He et al. 2020, Sat2Graph). Both maps are sampled every 5 m. Each sample of the truth is a seed.
From a seed, every road of the truth is followed for up to 150 m. We call this a ride. It puts a
hole at each sample. A second ride starts at the nearest place of the proposal, within 4 m, and puts
a marble at each sample of the proposal. A marble falls into one hole within 4 m. Recall is the
share of holes filled and precision the share of marbles in a hole, over all seeds.

The literature differs in details. Here:

- A seed without a proposed road within 4 m counts: its holes stay empty. (Others leave these seeds
  out of the average and report their share separately.)
- A sample of the proposal without a road of the truth within 4 m is a seed too: all marbles of its
  ride miss. With seeds on the truth alone, false roads that no ride reaches would cost nothing.
- Of equally near places, on an overpass or a road drawn twice, the seed takes the one whose ride
  agrees best, so that a map always matches itself.
- Holes and marbles are matched one to one, as many as possible, whatever their roads' direction.
- Sums go over seeds, so long roads in dense networks weigh more than isolated roads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from satmap.evaluation.metrics.apls import METRES_PER_PIXEL
from satmap.evaluation.metrics.apls_graph import LENGTH, AplsGraph, Positions, build_graph, expand
from satmap.evaluation.metrics.road_samples import (
    EXACT_PX,
    Roads,
    nearest_places,
    road_rows,
    sample_roads,
)
from satmap.evaluation.metrics.shortest_paths import Ints
from satmap.submissions.roads_csv import RoadRow

SPACING_M = 5.0
TOPO_SNAP_M = 4.0
RIDE_M = 150.0

# Rides processed at a time, times the number of roads; bounds memory on maps of whole cities.
_RIDES_BY_ROADS = 500_000


@dataclass(frozen=True)
class TopoScore:
    """Holes and marbles of one image; for many, use ``sum(scores, TopoScore())``.

    Attributes:
        matched: marbles that fell into a hole, over all seeds.
        holes: samples of the truth reached by its rides.
        marbles: samples of the proposal reached by its rides.
    """

    matched: int = 0
    holes: int = 0
    marbles: int = 0

    def __add__(self, other: "TopoScore") -> "TopoScore":
        return TopoScore(
            self.matched + other.matched, self.holes + other.holes, self.marbles + other.marbles
        )

    @property
    def precision(self) -> float:
        """Share of marbles in a hole; without marbles 1 if there are no holes, else 0."""
        return self.matched / self.marbles if self.marbles else float(not self.holes)

    @property
    def recall(self) -> float:
        """Share of holes with a marble; without holes 1 if there are no marbles, else 0."""
        return self.matched / self.holes if self.holes else float(not self.marbles)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 for two empty maps, 0 if only one is empty."""
        total = self.holes + self.marbles
        return 2 * self.matched / total if total else 1.0


def topo(truth: Roads, proposal: Roads, *, metres_per_pixel: float = METRES_PER_PIXEL) -> TopoScore:
    """Compute the TOPO score of one image, of roads in pixels: rows, arrays (n, 2), or a graph.

    The order and direction of the rows do not matter, nor do vertices that split a road. Lines of
    fewer than two points are ignored, and edges shorter than 2.5 m have no sample.
    ``metres_per_pixel`` converts the 5 m between samples, the matching distance of 4 m and the
    150 m of a ride to pixels.
    """
    if not metres_per_pixel > 0:
        raise ValueError(f"metres_per_pixel must be positive, got {metres_per_pixel}")
    a, b = (_ride_map(road_rows(roads), metres_per_pixel) for roads in (truth, proposal))
    snap_px = TOPO_SNAP_M / metres_per_pixel
    if a is None or b is None:
        return TopoScore(0, a.reached(a.samples) if a else 0, b.reached(b.samples) if b else 0)
    seed, places = nearest_places(b.graph, a.xy, snap_px)
    lonely_seeds = np.setdiff1d(np.arange(len(a.xy)), seed)
    lonely = np.setdiff1d(np.arange(len(b.xy)), nearest_places(a.graph, b.xy, snap_px)[0])
    unmatched_holes = a.reached(a.samples.take(lonely_seeds))
    score = TopoScore(0, unmatched_holes, b.reached(b.samples.take(lonely)))
    close = a.tree.query_ball_tree(b.tree, snap_px + EXACT_PX)
    counts = np.array([len(partners) for partners in close], np.int64)
    partners = np.array([p for partners in close for p in partners], np.int64)
    trials = [
        _ride_both(a, b, a.samples.take(seed[part]), places.take(part), counts, partners)
        for part in _parts(len(seed), max(len(a.graph.ends), len(b.graph.ends)))
    ]
    if not trials:
        return score
    matched, holes, marbles = np.concatenate(trials, axis=1)
    # A seed may have several equally near places; keep the one whose ride agrees best.
    agreement = 2 * matched / np.maximum(holes + marbles, 1)
    order = np.lexsort((-matched, -agreement, seed))
    best = order[np.unique(seed[order], return_index=True)[1]]
    return score + TopoScore(
        int(matched[best].sum()), int(holes[best].sum()), int(marbles[best].sum())
    )


class _RideMap:
    """A road map for rides: a graph without midpoints, and samples of its roads sorted by edge."""

    def __init__(self, graph: AplsGraph, metres_per_pixel: float) -> None:
        self.graph = graph
        self.samples, self.xy = sample_roads(graph, SPACING_M / metres_per_pixel)
        self.tree = KDTree(self.xy)
        self._ride_px = RIDE_M / metres_per_pixel + EXACT_PX
        self._between = graph.between[LENGTH]
        edges = np.arange(len(graph.ends))
        self._first = np.searchsorted(self.samples.edge, edges)
        self._count = np.searchsorted(self.samples.edge, edges, side="right") - self._first

    def ride(self, seeds: Positions) -> tuple[Ints, Ints]:
        """Return the samples reached from each of ``seeds``: seed and sample, int64 (k,) each."""
        ends, totals = self.graph.ends, self.graph.totals[:, LENGTH]
        u, v = ends[seeds.edge].T
        head = seeds.offset[:, LENGTH]
        tail = totals[seeds.edge] - head
        to_junction = np.minimum(head[:, None] + self._between[u], tail[:, None] + self._between[v])
        to_ends = to_junction[:, ends]
        reached = to_ends.min(axis=2) <= self._ride_px
        reached[np.arange(len(head)), seeds.edge] = True
        seed, edge = np.nonzero(reached)
        pair, rank = expand(self._count[edge])
        seed, sample = seed[pair], self._first[edge[pair]] + rank
        here = self.samples.offset[sample, LENGTH]
        on = self.samples.edge[sample]
        way = np.minimum(to_ends[seed, on, 0] + here, to_ends[seed, on, 1] + totals[on] - here)
        # The path along the seed's own edge need not pass either end.
        along = np.where(seeds.edge[seed] == on, np.abs(head[seed] - here), inf)
        within = np.minimum(way, along) <= self._ride_px
        return seed[within], sample[within]

    def reached(self, seeds: Positions) -> int:
        """Count the samples that the rides from ``seeds`` reach, summed over seeds."""
        parts = _parts(len(seeds.edge), len(self.graph.ends))
        return sum(len(self.ride(seeds.take(part))[0]) for part in parts)


def _ride_map(roads: Sequence[RoadRow], metres_per_pixel: float) -> _RideMap | None:
    """Build a map for rides; None if it has no sample."""
    graph = build_graph(roads, inf)
    ride_map = _RideMap(graph, metres_per_pixel) if graph else None
    return ride_map if ride_map and len(ride_map.xy) else None


def _parts(rides: int, roads: int) -> Iterator[Ints]:
    """Yield the indices of rides in parts that fit into memory."""
    size = max(1, _RIDES_BY_ROADS // max(roads, 1000))
    for begin in range(0, rides, size):
        yield np.arange(begin, min(begin + size, rides))


def _ride_both(
    a: _RideMap, b: _RideMap, seeds: Positions, places: Positions, counts: Ints, partners: Ints
) -> Ints:
    """Ride from seeds in ``a`` and from their places in ``b``.

    ``counts`` is the number of samples of ``b`` close to each sample of ``a``, and ``partners`` has
    these samples, concatenated. Returns matched marbles, holes and marbles of each ride, int64
    (3, n).
    """
    rides = len(seeds.edge)
    hole_ride, hole = a.ride(seeds)
    marble_ride, marble = b.ride(places)
    # All rides are matched at once: holes and marbles of different rides have no link.
    row, rank = expand(counts[hole])
    partner = partners[(np.cumsum(counts) - counts)[hole[row]] + rank]
    keys = marble_ride * len(b.xy) + marble
    wanted = hole_ride[row] * len(b.xy) + partner
    column = np.searchsorted(keys, wanted)
    column[column == len(keys)] = 0
    there = keys[column] == wanted if len(keys) else np.zeros(len(wanted), np.bool_)
    row, column = row[there], column[there]
    links = csr_array((np.ones(len(row), np.bool_), (row, column)), shape=(len(hole), len(marble)))
    filled = maximum_bipartite_matching(links, perm_type="column") >= 0
    found = hole_ride[filled], hole_ride, marble_ride
    return np.stack([np.bincount(ride, minlength=rides) for ride in found])
