"""Find places on the roads of a graph: at equal steps, at given lengths, nearest to points."""

from collections.abc import Sequence
from math import inf

import numpy as np
import shapely

from satmap.evaluation.metrics.apls_graph import LENGTH, AplsGraph, Positions, expand
from satmap.evaluation.metrics.shortest_paths import Floats, Ints
from satmap.submissions.roads_csv import RoadRow
from satmap.vectors.road_graph import RoadGraph

#: Distances below a millionth of a pixel may be rounding errors and count as zero.
EXACT_PX = 1e-6


#: Roads of one image: rows, arrays (n, 2) of x and y in pixels, or a graph.
Roads = Sequence[RoadRow] | Sequence[Floats] | RoadGraph


def road_rows(roads: Roads) -> list[RoadRow]:
    """Convert roads in any form to rows; bare lines have no length and no time.

    Raises:
        ValueError: a line is not of shape (n, 2), a coordinate not finite, a time negative.
    """
    rows = []
    for road in roads if isinstance(roads, Sequence) else roads.edges:
        if isinstance(road, np.ndarray | list | tuple):
            row = RoadRow(np.asarray(road, np.float64), np.nan, np.nan)
        else:
            line = np.asarray(road.line, np.float64)
            level = road.level if isinstance(road, RoadRow) else 0.0
            row = RoadRow(line, road.length_m, road.travel_time_s, level)
        if row.line.size and (row.line.ndim != 2 or row.line.shape[1] != 2):
            raise ValueError(f"a line must have shape (n, 2), got {row.line.shape}")
        if not np.isfinite(row.line).all():
            raise ValueError("a coordinate is not finite")
        if row.travel_time_s < 0 or row.travel_time_s == np.inf:
            raise ValueError(f"a travel time must be finite and >= 0, got {row.travel_time_s}")
        rows.append(row)
    return rows


def nearest_places(
    graph: AplsGraph, xy: Floats, limit_px: float, headings: Floats | None = None
) -> tuple[Ints, Positions]:
    """Find the places of a graph that are nearest to each point, up to a maximum distance.

    Args:
        graph: graph to search.
        xy: float64 (n, 2), the points.
        limit_px: maximum distance, pixels.
        headings: float64 (n, 2), a vector along the road of each point. Roads within 45 degrees of
            it take precedence over nearer roads that cross. A zero vector has no effect.

    Returns:
        int64 (m,), ascending, the index of the point that each place belongs to; and the m places.
        A point has several places if they are equally near.
    """
    reach = limit_px + EXACT_PX
    point, segment = graph.segment_tree.query(
        shapely.points(xy), predicate="dwithin", distance=reach
    )
    fraction, distance = graph.project(xy[point], segment)
    if headings is not None:
        along = graph.stops[segment] - graph.starts[segment]
        squared = np.sum(along**2, axis=1)
        ahead = np.abs(np.sum(along * headings[point], axis=1))
        across = ahead < np.sqrt(squared * np.sum(headings[point] ** 2, axis=1) / 2)
        # Ranks crossing roads behind all parallel ones, but still by distance among themselves.
        distance = distance + np.where(across, 2 * reach, 0)
    least = np.full(len(xy), inf)
    np.minimum.at(least, point, distance)
    keep = np.flatnonzero(distance <= least[point] + EXACT_PX)
    keep = keep[np.lexsort((segment[keep], point[keep]))]
    return point[keep], graph.at(segment[keep], fraction[keep])


def sample_roads(graph: AplsGraph, spacing_px: float) -> tuple[Positions, Floats]:
    """Sample places every ``spacing_px`` along the roads, edge by edge in the order of travel.

    Each sample lies in the middle of its share of the edge, so both directions give the same
    places. A ring without a junction is sampled as a whole from its leftmost point on, so its
    division into edges does not matter.

    Returns:
        The n places, and their x, y: float64 (n, 2).
    """
    strands = _strands(graph)
    edges = np.array([edge for strand in strands for edge, _ in strand])
    flipped = np.array([flip for strand in strands for _, flip in strand])
    strand_of = np.repeat(np.arange(len(strands)), [len(strand) for strand in strands])
    lengths = graph.totals[edges, LENGTH]
    strand_lengths = np.bincount(strand_of, lengths)
    before = np.cumsum(lengths) - lengths
    strand_before = before[np.searchsorted(strand_of, np.arange(len(strands)))]

    # Without the tolerance, a vertex on a line of 12.5 m could turn two samples into three.
    counts = np.floor(strand_lengths / spacing_px + 0.5 + EXACT_PX).astype(np.int64)
    strand, rank = expand(counts)
    way = (rank + 0.5) * strand_lengths[strand] / counts[strand]
    place = np.searchsorted(before, strand_before[strand] + way, side="right") - 1
    rest = np.clip(strand_before[strand] + way - before[place], 0, lengths[place])
    rest = np.where(flipped[place], lengths[place] - rest, rest)
    order = np.lexsort((rest, edges[place]))
    return places_at(graph, edges[place][order], rest[order])


def places_at(graph: AplsGraph, edge: Ints, length_px: Floats) -> tuple[Positions, Floats]:
    """Return the places at given lengths from the first ends of edges, and their x, y."""
    last = np.searchsorted(graph.segment_edge, edge, side="right") - 1
    edge_before = np.cumsum(graph.totals[:, LENGTH]) - graph.totals[:, LENGTH]
    before = edge_before[graph.segment_edge] + graph.segment_offset[:, LENGTH]
    segment = np.searchsorted(before, edge_before[edge] + length_px, side="right") - 1
    segment = np.clip(segment, np.searchsorted(graph.segment_edge, edge), last)
    rest = length_px - graph.segment_offset[segment, LENGTH]
    fraction = np.clip(rest / graph.segment_weight[segment, LENGTH], 0, 1)[:, None]
    start, stop = graph.starts[segment], graph.stops[segment]
    places = graph.at(segment, fraction)
    places.offset[:, LENGTH] = length_px
    return places, start + fraction * (stop - start)


def _strands(graph: AplsGraph) -> list[list[tuple[int, bool]]]:
    """Join the edges of each ring without a junction; every other edge is a strand by itself.

    A strand is a list of edges, each with whether the strand follows it backwards.
    """
    u, v = graph.ends.T
    part = graph.junction_component
    is_ring = np.ones(part.max() + 1, np.bool_)
    is_ring[part[np.bincount(graph.ends.ravel(), minlength=graph.junctions) != 2]] = False
    is_ring[part[u[u == v]]] = False
    in_ring = is_ring[part[u]]
    strands = [[(edge, False)] for edge in np.flatnonzero(~in_ring).tolist()]
    touching: dict[int, list[int]] = {}
    for edge in np.flatnonzero(in_ring).tolist():
        for junction in graph.ends[edge].tolist():
            touching.setdefault(junction, []).append(edge)
    # The leftmost vertex (uppermost among equals) is the same however the ring is cut.
    x, y = np.round(graph.node_xy[: graph.junctions], 6).T
    done = set()
    for junction in np.lexsort((y, x)).tolist():
        if junction not in touching or junction in done:
            continue
        here, edge = junction, touching[junction][0]
        strand = []
        while here not in done:
            done.add(here)
            backwards = int(graph.ends[edge, 0]) != here
            strand.append((edge, backwards))
            here = int(graph.ends[edge, 0 if backwards else 1])
            one, other = touching[here]
            edge = other if edge == one else one
        strands.append(strand)
    return strands
