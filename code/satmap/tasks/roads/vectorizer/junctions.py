"""Move junctions to where their roads meet.

A skeleton shows a crossing as two T-junctions with a piece of road between them, which is longer
the more acute the crossing is. It dents the through road of a T-junction, and it lets two roads at
an acute angle meet too early. All of these errors lie within about one road width of the skeleton's
junctions. So road directions are measured outside that distance, and the junction is placed at the
point nearest to the straight continuations of all its roads.

The road map cannot tell whether two roads meet where they cross. The junction map can.

A ramp that leaves a motorway at three degrees overlaps it for eighty metres. The skeleton joins
both roads where the overlap starts, so a route via the true merge point gets eighty metres too
short. The junction map shows the true place. The road map confirms it if the stem up to that place
is wider than one road.
"""

from dataclasses import dataclass

import numpy as np
import shapely

from satmap.tasks.roads.vectorizer.evidence import JUNCTION_SHOWN, Evidence
from satmap.tasks.roads.vectorizer.lines import cut_lines
from satmap.tasks.roads.vectorizer.network import (
    Bools,
    Floats,
    Ints,
    Network,
    components,
    cross,
    norm,
    unit,
)
from satmap.tasks.roads.vectorizer.speed import widths_at

# Length of road, beyond the first road width, that determines an arm's direction, metres.
_BRANCH_REACH = 8.0
# Number of samples along that length.
_SAMPLES = 4
# Largest deviation from a straight line of roads that cross or pass each other, degrees.
_STRAIGHT = 20.0
# Weight of the skeleton's junction relative to an arm. It holds junctions of nearly parallel roads.
_PRIOR = 0.03
# A link that exceeds the blur of a crossing by more than this is not a crossing, metres.
_TOUCH = 1.2
# Largest distance that a junction may move, in road widths beyond the length of its links.
_FARTHEST = 2.5
# Largest angle between two merging roads, degrees.
_ACUTE = 30.0
# Length and step of the search for the merge point along the stem, metres.
_REACH, _STEP = 120.0, 1.0
# Smallest mean width of the first half of the way to the merge point, in road widths.
_WIDE = 1.15


@dataclass(frozen=True)
class Branches:
    """Road ends, indexed by half-edge: 2e is the start of road e, 2e + 1 its end.

    Attributes:
        places: a place on the arm outside the distorted part of the skeleton, (h, 2).
        directions: unit vectors outwards, (h, 2).
        reach: length of road that the direction was measured on, metres, (h,).
    """

    places: Floats
    directions: Floats
    reach: Floats

    def straight_on(self, one: Ints, other: Ints) -> Bools:
        """Return whether pairs of arms form one straight road, (k,)."""
        chord = unit(self.places[other] - self.places[one])
        leaves = (-self.directions[one] * chord).sum(axis=1)
        arrives = (self.directions[other] * chord).sum(axis=1)
        return np.asarray(np.minimum(leaves, arrives) >= np.cos(np.radians(_STRAIGHT)))


def road_branches(network: Network, width: float) -> Branches:
    """Return all road ends of a network in metres; ``width`` is the width of a road."""
    half = np.arange(2 * len(network.counts))
    length = network.lengths[half >> 1]
    near = np.minimum(width, 0.4 * length)
    far = np.minimum(width + _BRANCH_REACH, np.maximum(0.6 * length, length - width))
    way = near + np.linspace(0, 1, _SAMPLES)[:, None] * (far - near)
    at = np.where(half % 2, length - way, way)
    places = network.places(np.tile(half >> 1, _SAMPLES), at.ravel()).reshape(_SAMPLES, -1, 2)
    step = places[_SAMPLES // 2 :].mean(axis=0) - places[: _SAMPLES // 2].mean(axis=0)
    return Branches(places.mean(axis=0), unit(step), far - near)


def resolve_junctions(
    network: Network, width: float, merge: float, junctions: Evidence | None
) -> Network:
    """Merge the nodes of one junction, move junctions to their place, and separate overpasses.

    Junctions linked by less than ``merge`` metres of road are always merged. ``width`` is that of a
    road in metres. ``junctions`` is None without an informative junction map.
    """
    junction = network.degrees >= 3
    if not junction.any():
        return network
    branches = road_branches(network, width)
    linked = junction[network.ends].all(axis=1) & ~network.loops
    link = linked & (network.lengths < merge)
    link |= _crossings(network, branches, linked & ~link, width)
    group = components(len(network.nodes), network.ends[link])
    outer = junction[network.origins] & ~np.repeat(link, 2)
    new = _centres(network, group, link, branches, outer, width)
    places = np.where(junction[:, None], new[group], network.nodes)
    # Length of each arm that is replaced by a straight line to its junction.
    way = new[group[network.origins]] - network.nodes[network.origins]
    forward = (way * branches.directions).sum(axis=1)
    cut = np.maximum(width, forward + width / 2).clip(max=0.45 * np.repeat(network.lengths, 2))
    cut = np.where(outer, cut, 0.0).reshape(-1, 2)
    passes = []
    if junctions is not None:
        passing = ~junctions.shows_junction(new)
        passes = _passes(network, group, branches, outer, link, passing, width)
    return _rebuilt(network, group, places, link, cut, passes)


def _crossings(network: Network, branches: Branches, candidates: Bools, width: float) -> Bools:
    """Return which roads are only the blur of two crossing roads, (m,).

    Both ends of such a road are T-junctions. Each arm continues straight in the opposite arm of the
    other end, and the road is no longer than the overlap of two roads of that width and angle.
    """
    ends = network.ends
    roads = np.flatnonzero(candidates & (network.degrees[ends] == 3).all(axis=1))
    # The other two arms at either end of each candidate.
    three = network.leaving(ends[roads], 3)
    own = three >> 1 == roads[:, None, None]
    other = np.take_along_axis(three, np.argsort(own, axis=2, kind="stable"), axis=2)[..., :2]
    # Exclude roads that run beside another one between the same two nodes.
    single = (own.sum(axis=2) == 1).all(axis=1)
    roads, other = roads[single], other[single]
    axis = network.nodes[ends[roads, 1]] - network.nodes[ends[roads, 0]]
    side = cross(axis[:, None, None], branches.directions[other]) > 0
    # Sort the arms at either end into left and right; arms on the same side of the axis do not
    # cross.
    order = np.argsort(side, axis=2)
    side, other = (np.take_along_axis(array, order, axis=2) for array in (side, other))
    good = (~side[:, :, 0] & side[:, :, 1]).all(axis=1)
    for one, across in ((other[:, 0, 0], other[:, 1, 1]), (other[:, 0, 1], other[:, 1, 0])):
        good &= branches.straight_on(one, across)
    directions = branches.directions[other]
    # Cosine of the angle between the arms of an end, for the end with the smaller angle.
    cosine = (directions[:, :, 0] * directions[:, :, 1]).sum(axis=2).max(axis=1)
    good &= network.lengths[roads] < 1.5 * _overlap(cosine, width) + width
    found = np.zeros(len(candidates), np.bool_)
    found[roads[good]] = True
    return found


def _centres(
    network: Network, group: Ints, link: Bools, branches: Branches, outer: Bools, width: float
) -> Floats:
    """Return the place nearest to the lines of all arms of each group, (g, 2)."""
    count = int(group.max()) + 1
    sums = [np.bincount(group, coordinate, minlength=count) for coordinate in network.nodes.T]
    old = np.stack(sums, axis=1) / np.bincount(group, minlength=count)[:, None]
    half = np.flatnonzero(outer)
    of = group[network.origins[half]]
    ux, uy = branches.directions[half].T
    px, py = (branches.places[half] - old[of]).T
    weight = np.clip(branches.reach[half] / _BRANCH_REACH, 0.05, 1)
    # Sums of projections across each arm: the normal equations of the nearest place.
    across = uy * px - ux * py
    terms = uy * uy, ux * ux, -ux * uy, uy * across, -ux * across
    matrix = np.array([np.bincount(of, weight * term, minlength=count) for term in terms])
    matrix[:2] += _PRIOR
    xx, yy, xy, bx, by = matrix
    determinant = xx * yy - xy * xy
    shift = np.stack([yy * bx - xy * by, xx * by - xy * bx], axis=1) / determinant[:, None]
    linked = np.bincount(group[network.ends[link, 0]], network.lengths[link], minlength=count)
    far = norm(shift) > _FARTHEST * width + linked
    return old + np.where(far[:, None], 0, shift)


def _passes(
    network: Network,
    group: Ints,
    branches: Branches,
    outer: Bools,
    link: Bools,
    passing: Bools,
    width: float,
) -> list[tuple[int, int]]:
    """Return pairs of arms that continue in each other without meeting the other pair.

    Either one road passes over the other, or two roads that turn side by side touch. In the second
    case the skeleton links them by more than the blur of a crossing.
    """
    pairs: list[tuple[int, int]] = []
    nodes = network.origins
    of = group[nodes]
    linked = np.bincount(of[::2][link], network.lengths[link], minlength=len(passing))
    for number in np.flatnonzero(passing & (np.bincount(of[outer], minlength=len(passing)) == 4)):
        a, *others = np.flatnonzero(outer & (of == number)).tolist()
        touching: list[tuple[int, int]] = []
        for b in others:
            c, d = (arm for arm in others if arm != b)
            straight = branches.straight_on(np.array([a, c]), np.array([b, d])).all()
            cosine = np.abs((branches.directions[a] * branches.directions[c]).sum())
            if straight and linked[number] <= _overlap(cosine, width) + _TOUCH:
                pairs += [(a, b), (c, d)]
                break
            if nodes[a] == nodes[b] != nodes[c] == nodes[d]:
                touching = [(a, b), (c, d)]
        else:
            if linked[number] > _TOUCH:
                pairs += touching
    return pairs


def _overlap(cosine: Floats, width: float) -> Floats:
    """Return the length of road that a skeleton shows where two roads cross at an acute angle.

    It is measured along the bisector of the angle. It starts where a circle that touches the outer
    sides of both roads also touches the corner between them, and ends at the same place on the
    other side.
    """
    sine = np.sqrt(np.clip((1 - cosine) / 2, 1e-4, 1))
    return np.asarray(width * (1 - sine) / (sine * (1 + sine)))


def _rebuilt(
    network: Network,
    group: Ints,
    places: Floats,
    link: Bools,
    cut: Floats,
    passes: list[tuple[int, int]],
) -> Network:
    """Cut the arms of junctions, and lead them to the junctions' new places."""
    kept = np.flatnonzero(~link)
    length, road, way = network.lengths, network.roads, network.way
    inner = np.ones(len(road), np.bool_)
    inner[network.starts] = inner[network.stops] = False
    inner &= ~link[road] & (way > cut[road, 0] + 1e-6) & (way < length[road] - cut[road, 1] - 1e-6)

    nodes, tips = [places], places[network.ends]
    ends = np.unique(group, return_index=True)[1][group[network.ends]]
    for number, (one, other) in enumerate(passes):
        # The node of two passing arms lies where the first one is cut, away from the crossing.
        side = cut[one >> 1, one % 2]
        at = length[one >> 1] - side if one % 2 else side
        place = network.places(np.array([one >> 1]), np.array([at]))[0]
        nodes.append(place[None])
        for half in (one, other):
            ends[half >> 1, half % 2] = len(places) + number
            tips[half >> 1, half % 2] = place
    roads, keys, points = [road[inner]], [way[inner]], [network.points[inner]]
    for side in (0, 1):
        moved = kept[cut[kept, side] > 0]
        at = length[moved] - cut[moved, 1] if side else cut[moved, 0]
        roads += [kept, moved]
        keys += [length[kept] + 1 if side else np.full(len(kept), -1.0), at]
        points += [tips[kept, side], network.places(moved, at)]
    all_roads, all_points = np.concatenate(roads), np.concatenate(points)
    order = np.lexsort((np.concatenate(keys), all_roads))
    counts = np.bincount(all_roads, minlength=len(length))[kept]
    return Network(np.concatenate(nodes), ends[kept], all_points[order], counts).dissolve()


def move_merge_points(
    network: Network, width: float, road: Evidence, junctions: Evidence | None
) -> Network:
    """Move junctions of two nearly parallel roads along their stem to where the maps show them.

    ``width`` is that of a road in metres. ``junctions`` is None without an informative map.
    """
    three = np.flatnonzero(network.degrees == 3)
    if junctions is None or not len(three):
        return network
    hidden = three[~junctions.shows_junction(network.nodes[three])]
    branches = road_branches(network, 2 * width)
    lines, nodes = network.lines, network.nodes.copy()
    for node, halves in zip(hidden.tolist(), network.leaving(hidden, 3), strict=True):
        stem = _stem(branches, halves)
        if stem is None or len(np.unique(halves >> 1)) < 3:
            continue
        way = _way_to_junction(network, stem, width, road, junctions)
        # A half-edge with an odd number runs against its line.
        order = -1 if stem % 2 else 1
        line = lines[stem >> 1][::order]
        if way is None or way > shapely.LineString(line).length - width:
            continue
        _, shortened = cut_lines(line, np.array([way]))
        nodes[node] = shortened[0]
        lines[stem >> 1] = shortened[::order]
        for half in halves[halves != stem].tolist():
            order = -1 if half % 2 else 1
            arm = lines[half >> 1][::order]
            length = shapely.LineString(arm).length
            _, rest = cut_lines(arm, np.array([min(2 * width, 0.45 * length)]))
            lines[half >> 1] = np.concatenate([nodes[[node]], rest])[::order]
    return Network.of_lines(nodes, network.ends, lines)


def _stem(branches: Branches, halves: Ints) -> int | None:
    """Return which of three arms continues both others, which are close together, or None."""
    least = np.cos(np.radians(_ACUTE))
    for stem in halves.tolist():
        others = halves[halves != stem]
        acute = branches.directions[others[0]] @ branches.directions[others[1]] >= least
        if acute and branches.straight_on(np.repeat(stem, 2), others).all():
            return int(stem)
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
    places = network.places(np.full(len(way), edge), length - way if backwards else way)
    shown = junctions.at(places) >= JUNCTION_SHOWN
    if not shown.any():
        return None
    start = int(np.argmax(shown))
    stop = start + int(np.argmin(np.append(shown[start:], False)))
    if stop == len(way) and network.degrees[network.ends[edge, 1 - stem % 2]] > 1:
        # This is the junction at the stem's other end.
        return None
    middle = (start + stop) // 2
    steps = unit(np.gradient(places[: middle + 2], axis=0))
    half = slice(0, middle // 2 + 1)
    wide = widths_at(road, places[half], steps[half]).mean() >= _WIDE * width
    return float(way[middle]) if wide else None
