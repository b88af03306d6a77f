"""Join free ends by the cheapest bridges, and extend them to the image's border.

Occlusions (trees, shadows, bridges) leave gaps in roads, and an interrupted route costs far more
APLS than one missing piece. All lengths and places are in metres.
"""

from dataclasses import dataclass

import numpy as np
import shapely

from satmap.tasks.roads.vectorizer.bridges import (
    SAME_PLACE,
    Bridges,
    JoinRules,
    corner_bridges,
    free_ends,
    gap_bridges,
    tee_bridges,
)
from satmap.tasks.roads.vectorizer.lines import cut_lines
from satmap.tasks.roads.vectorizer.network import Line, Network


@dataclass(frozen=True)
class _Link:
    """A bridge to build between two nodes, through the places ``via``."""

    start: int
    end: int
    via: tuple[Line, ...] = ()


def join_ends(network: Network, size: Line, rules: JoinRules) -> Network:
    """Close gaps and T-junctions, cheapest first; each free end is used once.

    Args:
        network: the network.
        size: width and height of the image, (2,).
        rules: limits of reach, angle and evidence.
    """
    ends = free_ends(network, size)
    if not len(ends.nodes):
        return network
    bridges = Bridges.together(
        [
            gap_bridges(network, ends, rules),
            corner_bridges(network, ends, rules),
            tee_bridges(network, ends, rules),
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
    return _build(network, links, hits) if links or hits else network


def extend_to_border(network: Network, size: Line, rules: JoinRules) -> Network:
    """Extend free ends to the border that they point at.

    Args:
        network: the network.
        size: width and height of the image, (2,).
        rules: limits of reach and evidence.
    """
    ends = free_ends(network, size)
    direction = ends.directions
    limit = np.where(direction > 0, size, 0.0)
    travel = np.full(limit.shape, np.inf)
    np.divide(limit - ends.places, direction, out=travel, where=direction != 0)
    axis = travel.argmin(axis=1)
    way = travel.min(axis=1, initial=np.inf)
    reached = np.flatnonzero((ends.parts >= rules.least) & (way <= rules.bridge))
    stops = ends.places[reached] + way[reached, None] * direction[reached]
    shown = rules.road.between(ends.places[reached], stops)[0] >= rules.probability
    shown |= way[reached] <= rules.edge
    if not shown.any():
        return network
    nodes, points, counts = network.nodes.copy(), network.lines, network.counts.copy()
    for end, place in zip(reached[shown].tolist(), stops[shown].clip(0, size), strict=True):
        # Sums are rounded, but the place must be exactly on the border.
        place[axis[end]] = limit[end, axis[end]]
        node, road = ends.nodes[end], ends.roads[end]
        nodes[node] = place
        at_start = network.ends[road, 0] == node
        parts = [place[None], points[road]] if at_start else [points[road], place[None]]
        points[road] = np.concatenate(parts)
        counts[road] += 1
    return Network(nodes, network.ends, np.concatenate(points), counts)


def _crossed(links: list[_Link], nodes: list[list[float]]) -> list[_Link]:
    """Lead links that cross each other through a common node, which is appended to ``nodes``.

    A hidden crossing leaves four free ends. Each link crosses at most one other.
    """
    straight = [number for number, link in enumerate(links) if not link.via]
    ends = np.array([(links[number].start, links[number].end) for number in straight])
    lines = shapely.linestrings(np.array(nodes)[ends.reshape(-1, 2).astype(np.int64)])
    pairs = shapely.STRtree(lines).query(lines, predicate="crosses").T
    used: set[int] = set()
    parts: list[_Link] = []
    for one, other in pairs.tolist():
        if one < other and not used & {one, other}:
            used |= {one, other}
            place = lines[one].intersection(lines[other])
            for number in (one, other):
                link = links[straight[number]]
                parts += [_Link(link.start, len(nodes)), _Link(len(nodes), link.end)]
            nodes.append([place.x, place.y])
    gone = {straight[number] for number in used}
    return [link for number, link in enumerate(links) if number not in gone] + parts


def _build(network: Network, links: list[_Link], hits: list[tuple[int, int, float]]) -> Network:
    """Add links between ends, and lead ends to places on roads.

    Args:
        network: the network.
        links: bridges between nodes.
        hits: bridges to roads: node of the end, road, and distance along the road.
    """
    nodes, ends, lines = network.nodes.tolist(), network.ends.tolist(), network.lines
    by_road: dict[int, list[tuple[float, int]]] = {}
    for node, road, along in hits:
        by_road.setdefault(road, []).append((along, node))
    for road, sources in sorted(by_road.items()):
        (start, end), line = network.ends[road].tolist(), lines[road]
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
        pieces = cut_lines(line, np.array(cuts))
        chain.append(end)
        for index, piece in enumerate(pieces[:-1]):
            nodes[chain[index + 1]] = piece[-1].tolist()
        lines[road], ends[road] = pieces[0], [chain[0], chain[1]]
        lines.extend(pieces[1:])
        ends.extend([chain[index], chain[index + 1]] for index in range(1, len(pieces)))
    links = _crossed(links, nodes)
    place = np.array(nodes)
    lines.extend(np.stack([place[link.start], *link.via, place[link.end]]) for link in links)
    ends.extend([link.start, link.end] for link in links)
    return Network.of_lines(place, np.array(ends, np.int64), lines).dissolve()
