"""Joining free ends by the cheapest bridges, and leading them to the image's border.

Occluded roads (trees, shadows, bridges) leave gaps, and a route that breaks costs far more APLS
than one missing piece. All lengths and places are metres.
"""

from dataclasses import dataclass

import numpy as np

from satmap.roads.bridges import (
    SAME_PLACE,
    Bridges,
    Evidence,
    JoinRules,
    corner_bridges,
    free_ends,
    gap_bridges,
    tee_bridges,
)
from satmap.roads.clean import cut
from satmap.roads.trace import Line, Network, dissolve


@dataclass(frozen=True)
class _Link:
    """A bridge to build between two nodes, through places on its way."""

    start: int
    end: int
    via: tuple[Line, ...] = ()


def join_ends(network: Network, size: Line, rules: JoinRules, evidence: Evidence) -> Network:
    """Close gaps and T-junctions, the cheapest first, each free end once.

    Args:
        network: the network.
        size: width and height of the image, (2,).
        rules: reach and angle.
        evidence: mean probability along bridges.
    """
    ends = free_ends(network, size)
    if not len(ends.nodes):
        return network
    bridges = Bridges.together(
        [
            gap_bridges(network, ends, rules, evidence),
            corner_bridges(network, ends, rules),
            tee_bridges(network, ends, rules, evidence),
        ]
    )
    free = [True] * len(ends.nodes)
    links: list[_Link] = []
    hits: list[tuple[int, int, float]] = []
    order = np.lexsort((bridges.along, bridges.road, bridges.other, bridges.end, bridges.cost))
    for bridge in order.tolist():
        source, target = int(bridges.end[bridge]), int(bridges.other[bridge])
        if not free[source] or (target >= 0 and not free[target]):
            continue
        free[source] = False
        node = int(ends.nodes[source])
        if target >= 0:
            free[target] = False
            via = bridges.via[bridge]
            bend = () if np.isnan(via[0]) else (via,)
            links.append(_Link(node, int(ends.nodes[target]), bend))
        else:
            hits.append((node, int(bridges.road[bridge]), float(bridges.along[bridge])))
    return _build(network, links, hits)


def extend_to_border(network: Network, size: Line, reach: float, least: float) -> Network:
    """Lead free ends onto a border that they point at.

    Args:
        network: the network.
        size: width and height of the image, (2,).
        reach: farthest border.
        least: road that the connected part of an end must have.
    """
    ends = free_ends(network, size)
    lines, nodes = list(network.lines), network.nodes.copy()
    for end in np.flatnonzero(ends.parts >= least).tolist():
        node, road, direction = ends.nodes[end], ends.roads[end], ends.directions[end]
        limit = np.where(direction > 0, size, 0.0)
        travel = np.full(2, np.inf)
        np.divide(limit - nodes[node], direction, out=travel, where=direction != 0)
        axis = int(np.argmin(travel))
        if travel[axis] > reach:
            continue
        place = np.clip(nodes[node] + travel[axis] * direction, 0.0, size)
        # Sums round; on the border means exactly on it.
        place[axis] = limit[axis]
        nodes[node] = place
        at_start = network.ends[road, 0] == node
        pieces = [[place], lines[road]] if at_start else [lines[road], [place]]
        lines[road] = np.concatenate(pieces)
    return Network(nodes, network.ends, tuple(lines))


def _build(network: Network, links: list[_Link], hits: list[tuple[int, int, float]]) -> Network:
    """The network with ends linked to ends, and ends led to places on roads."""
    nodes, ends, lines = network.nodes.tolist(), network.ends.tolist(), list(network.lines)
    by_road: dict[int, list[tuple[float, int]]] = {}
    for node, road, along in hits:
        by_road.setdefault(road, []).append((along, node))
    for road, sources in sorted(by_road.items()):
        (start, end), line = network.ends[road].tolist(), network.lines[road]
        length = float(network.lengths[road])
        cuts: list[float] = []
        chain = [start]
        for along, source in sorted(sources):
            if along <= 0 or along >= length:
                links.append(_Link(source, start if along <= 0 else end))
                continue
            if not cuts or along - cuts[-1] >= SAME_PLACE:
                cuts.append(along)
                chain.append(len(nodes))
                nodes.append([0.0, 0.0])
            links.append(_Link(source, chain[-1]))
        pieces = cut(line, np.array(cuts))
        chain.append(end)
        for index, piece in enumerate(pieces[:-1]):
            nodes[chain[index + 1]] = piece[-1].tolist()
        lines[road], ends[road] = pieces[0], [chain[0], chain[1]]
        lines.extend(pieces[1:])
        ends.extend([chain[index], chain[index + 1]] for index in range(1, len(pieces)))
    place = np.array(nodes)
    lines.extend(np.stack([place[link.start], *link.via, place[link.end]]) for link in links)
    ends.extend([link.start, link.end] for link in links)
    return dissolve(Network(place, np.array(ends, np.int64), tuple(lines)))
