"""Move the merge points of roads that meet at an acute angle.

A ramp that leaves a motorway at three degrees overlaps it for eighty metres. The skeleton joins
both roads where the overlap starts, so a route via the true merge point gets eighty metres too
short. The junction map shows the true place. The road map confirms it if the stem up to that place
is wider than one road.
"""

import numpy as np
import shapely

from satmap.tasks.roads.vectorizer.evidence import JUNCTION_SHOWN, Evidence
from satmap.tasks.roads.vectorizer.junctions import Branches, road_branches, straight_on
from satmap.tasks.roads.vectorizer.lines import cut_lines
from satmap.tasks.roads.vectorizer.network import Ints, Line, Network
from satmap.tasks.roads.vectorizer.speed import widths_at

# Largest angle between two merging roads, degrees.
_ACUTE = 30.0
# Length and step of the search for the merge point along the stem, metres.
_REACH, _STEP = 120.0, 1.0
# Smallest mean width of the first half of the way to the merge point, in road widths.
_WIDE = 1.15


def move_merge_points(
    network: Network, width: float, road: Evidence, junctions: Evidence | None
) -> Network:
    """Move junctions of two nearly parallel roads along their stem to where the maps show them.

    Args:
        network: the network, metres.
        width: width of a road, metres.
        road: evidence of the road map.
        junctions: evidence of the junction map, None if there is no informative one.
    """
    three = np.flatnonzero(network.degrees == 3)
    if junctions is None or not len(three):
        return network
    hidden = three[~junctions.shows_junction(network.nodes[three])]
    if not len(hidden):
        return network
    branches = road_branches(network, 2 * width)
    order = np.argsort(branches.nodes, kind="stable")
    first = np.searchsorted(branches.nodes[order], hidden)
    merges = []
    for node, halves in zip(hidden.tolist(), order[first[:, None] + np.arange(3)], strict=True):
        stem = _stem(branches, halves)
        if stem is None or len({half >> 1 for half in halves.tolist()}) < 3:
            continue
        way = _way_to_junction(network, stem, width, road, junctions)
        if way is not None:
            merges.append((node, stem, [h for h in halves.tolist() if h != stem], way))
    return _moved(network, merges, width) if merges else network


def _stem(branches: Branches, halves: Ints) -> int | None:
    """Return which of three arms continues both others, which are close together, or None."""
    least = np.cos(np.radians(_ACUTE))
    for place in range(3):
        others = np.delete(halves, place)
        acute = branches.directions[others[0]] @ branches.directions[others[1]] >= least
        if acute and straight_on(branches, np.repeat(halves[place], 2), others).all():
            return int(halves[place])
    return None


def _way_to_junction(
    network: Network, stem: int, width: float, road: Evidence, junctions: Evidence
) -> float | None:
    """Return the distance along the stem to the middle of the first junction shown, metres."""
    edge, backwards = stem >> 1, stem % 2 == 1
    length = float(network.lengths[edge])
    way = np.arange(_STEP, min(length, _REACH), _STEP)
    if len(way) < 2:
        return None
    edges = np.full(len(way), edge)
    places = network.places(edges, length - way if backwards else way)
    shown = junctions.at(places) >= JUNCTION_SHOWN
    if not shown.any():
        return None
    start = int(np.argmax(shown))
    stop = start + int(np.argmin(np.append(shown[start:], False)))
    if stop == len(way) and network.degrees[network.ends[edge, 1 - stem % 2]] > 1:
        # This is the junction at the stem's other end.
        return None
    middle = (start + stop) // 2
    steps = np.gradient(places[: middle + 2], axis=0)
    steps /= np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-9)[:, None]
    half = slice(0, middle // 2 + 1)
    wide = widths_at(road, places[half], steps[half]).mean() >= _WIDE * width
    return float(way[middle]) if wide else None


def _moved(
    network: Network, merges: list[tuple[int, int, list[int], float]], width: float
) -> Network:
    """Move junctions along their stems, and lead their arms to the new places."""
    lines, nodes = network.lines, network.nodes.copy()
    for node, stem, others, way in merges:
        line = _from_node(lines, stem)
        if way > shapely.LineString(line).length - width:
            continue
        _, shortened = cut_lines(line, np.array([way]))
        nodes[node] = shortened[0]
        _set(lines, stem, shortened)
        for half in others:
            arm = _from_node(lines, half)
            length = shapely.LineString(arm).length
            _, rest = cut_lines(arm, np.array([min(2 * width, 0.45 * length)]))
            _set(lines, half, np.concatenate([nodes[[node]], rest]))
    return Network.of_lines(nodes, network.ends, lines)


def _from_node(lines: list[Line], half: int) -> Line:
    return lines[half >> 1][::-1] if half % 2 else lines[half >> 1]


def _set(lines: list[Line], half: int, line: Line) -> None:
    lines[half >> 1] = line[::-1] if half % 2 else line
