"""Move junctions to where their roads meet.

A skeleton shows a crossing as two T-junctions with a piece of road between them, which is longer
the more acute the crossing is. It dents the through road of a T-junction, and it lets two roads at
an acute angle meet too early. All of these errors lie within about one road width of the skeleton's
junctions. So road directions are measured outside that distance, and the junction is placed at the
point nearest to the straight continuations of all its roads.

The road map cannot tell whether two roads meet where they cross. The junction map can.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satmap.tasks.roads.vectorizer.evidence import Evidence
from satmap.tasks.roads.vectorizer.network import Ints, Line, Network, components

# Length of road, beyond the first road width, that determines an arm's direction, metres.
BRANCH_REACH = 8.0
# Number of samples along that length.
_SAMPLES = 4
# Largest deviation from a straight line of roads that cross or pass each other, degrees.
_STRAIGHT = 20.0


@dataclass(frozen=True)
class Branches:
    """Road ends, indexed by half-edge: 2e is the start of road e, 2e + 1 its end.

    Attributes:
        nodes: node of each road end, (h,).
        places: a place on the arm outside the distorted part of the skeleton, (h, 2).
        directions: unit vectors outwards, (h, 2).
        reach: length of road that the direction was measured on, metres, (h,).
    """

    nodes: Ints
    places: Line
    directions: Line
    reach: NDArray[np.float64]


def road_branches(network: Network, width: float) -> Branches:
    """Return all road ends of a network in metres; ``width`` is the width of a road."""
    half = np.arange(2 * len(network.counts))
    road, backwards = half >> 1, half % 2 == 1
    length = network.lengths[road]
    near = np.minimum(width, 0.4 * length)
    far = np.minimum(width + BRANCH_REACH, np.maximum(0.6 * length, length - width))
    way = near + np.linspace(0, 1, _SAMPLES)[:, None] * (far - near)
    at = np.where(backwards, length - way, way)
    places = network.places(np.tile(road, _SAMPLES), at.ravel()).reshape(_SAMPLES, -1, 2)
    step = places[_SAMPLES // 2 :].mean(axis=0) - places[: _SAMPLES // 2].mean(axis=0)
    step /= np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-9)[:, None]
    return Branches(network.ends.reshape(-1), places.mean(axis=0), step, far - near)


def straight_on(branches: Branches, one: Ints, other: Ints) -> NDArray[np.bool_]:
    """Return whether pairs of arms form one straight road, (k,)."""
    chord = branches.places[other] - branches.places[one]
    chord /= np.maximum(np.hypot(chord[:, 0], chord[:, 1]), 1e-9)[:, None]
    least = np.cos(np.radians(_STRAIGHT))
    leaves: NDArray[np.bool_] = (-branches.directions[one] * chord).sum(axis=1) >= least
    arrives: NDArray[np.bool_] = (branches.directions[other] * chord).sum(axis=1) >= least
    straight: NDArray[np.bool_] = np.logical_and(leaves, arrives)
    return straight


def cross(first: Line, second: Line) -> NDArray[np.float64]:
    """Return the cross products of vectors, (..., 2) -> (...)."""
    product: NDArray[np.float64] = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    return product


# Weight of the skeleton's junction relative to an arm. It holds junctions of nearly parallel roads.
_PRIOR = 0.03
# A link that exceeds the blur of a crossing by more than this is not a crossing, metres.
_TOUCH = 1.2
# Largest distance that a junction may move, in road widths beyond the length of its links.
_FARTHEST = 2.5


def resolve_junctions(
    network: Network, width: float, merge: float, junctions: Evidence | None
) -> Network:
    """Merge the nodes of one junction, move junctions to their place, and separate overpasses.

    Args:
        network: the network, metres.
        width: width of a road, metres.
        merge: junctions linked by less road are always merged, metres.
        junctions: evidence of the junction map, None if there is no informative one.
    """
    junction = network.degrees >= 3
    if not junction.any():
        return network
    branches = road_branches(network, width)
    linked = junction[network.ends].all(axis=1) & (network.ends[:, 0] != network.ends[:, 1])
    link = linked & (network.lengths < merge)
    link |= _crossings(network, branches, linked & ~link, width)
    group = components(len(network.nodes), network.ends[link])
    outer = junction[branches.nodes] & ~np.repeat(link, 2)
    old, new = _centres(network, group, link, branches, outer, width)
    places = np.where(junction[:, None], new[group], network.nodes)
    cut = _cut_lengths(network, branches, outer, new[group[branches.nodes]], width)
    passing = np.zeros(len(old), np.bool_)
    if junctions is not None:
        passing = ~junctions.shows_junction(new)
    return _rebuilt(
        network,
        group,
        places,
        link,
        cut,
        _passes(group, branches, outer, link, network.lengths, passing, width),
    )


def _crossings(
    network: Network, branches: Branches, candidates: NDArray[np.bool_], width: float
) -> NDArray[np.bool_]:
    """Return which roads are only the blur of two crossing roads, (m,).

    Both ends of such a road are T-junctions. Each arm continues straight in the opposite arm of the
    other end, and the road is no longer than the overlap of two roads of that width and angle.
    """
    found = np.zeros(len(candidates), np.bool_)
    ends = network.ends
    candidates = candidates & (network.degrees[ends] == 3).all(axis=1)
    roads = np.flatnonzero(candidates)
    if not len(roads):
        return found
    # The other two arms at either end of each candidate.
    order = np.argsort(branches.nodes, kind="stable")
    first = np.searchsorted(branches.nodes[order], ends[roads])
    three = order[first[..., None] + np.arange(3)]
    own = three >> 1 == roads[:, None, None]
    # Exclude roads that run beside another one between the same two nodes.
    single = (own.sum(axis=2) == 1).all(axis=1)
    other = np.take_along_axis(three, np.argsort(own, axis=2, kind="stable"), axis=2)[..., :2]
    found[roads[single]] = _crosses(network, branches, roads[single], other[single], width)
    return found


def _crosses(
    network: Network, branches: Branches, roads: Ints, other: Ints, width: float
) -> NDArray[np.bool_]:
    """Return whether the arms ``other``, (k, end, 2), of candidates cross, (k,)."""
    axis = network.nodes[network.ends[roads, 1]] - network.nodes[network.ends[roads, 0]]
    directions = branches.directions[other]
    side = cross(axis[:, None, None], directions) > 0
    # Sort the arms at either end into left and right; arms on the same side of the axis do not
    # cross.
    order = np.argsort(side, axis=2)
    sorted_sides = np.take_along_axis(side, order, axis=2)
    good = (~sorted_sides[:, :, 0] & sorted_sides[:, :, 1]).all(axis=1)
    other = np.take_along_axis(other, order, axis=2)
    for one, across in ((other[:, 0, 0], other[:, 1, 1]), (other[:, 0, 1], other[:, 1, 0])):
        good = good & straight_on(branches, one, across)
    directions = branches.directions[other]
    # Cosine of the angle between the arms of an end, for the end with the smaller angle.
    cosine = (directions[:, :, 0] * directions[:, :, 1]).sum(axis=2).max(axis=1)
    longest = 1.5 * _overlap(cosine, width) + width
    crosses: NDArray[np.bool_] = good & (network.lengths[roads] < longest)
    return crosses


def _centres(
    network: Network,
    group: Ints,
    link: NDArray[np.bool_],
    branches: Branches,
    outer: NDArray[np.bool_],
    width: float,
) -> tuple[Line, Line]:
    """Return each group's mean place, and the place nearest to all its arms' lines, (g, 2) each."""
    count = int(group.max()) + 1
    sizes = np.bincount(group, minlength=count)
    old = np.stack(
        [np.bincount(group, network.nodes[:, axis], minlength=count) / sizes for axis in (0, 1)],
        axis=1,
    )
    half = np.flatnonzero(outer)
    of = group[branches.nodes[half]]
    ux, uy = branches.directions[half].T
    px, py = (branches.places[half] - old[of]).T
    weight = np.clip(branches.reach[half] / BRANCH_REACH, 0.05, 1)
    # Sums of projections across each arm: the normal equations of the nearest place.
    across = uy * px - ux * py
    terms = uy * uy, -ux * uy, ux * ux, uy * across, -ux * across
    sums = [np.bincount(of, weight * term, minlength=count).astype(np.float64) for term in terms]
    xx, xy, yy, bx, by = sums[0] + _PRIOR, sums[1], sums[2] + _PRIOR, sums[3], sums[4]
    determinant = xx * yy - xy * xy
    shift = np.stack([yy * bx - xy * by, xx * by - xy * bx], axis=1) / determinant[:, None]
    linked = np.bincount(group[network.ends[link, 0]], network.lengths[link], minlength=count)
    limit = _FARTHEST * width + linked
    far = np.hypot(shift[:, 0], shift[:, 1]) > limit
    return old, old + np.where(far[:, None], 0, shift)


def _cut_lengths(
    network: Network, branches: Branches, outer: NDArray[np.bool_], centre: Line, width: float
) -> NDArray[np.float64]:
    """Return the length of each arm that is replaced by a straight line to its junction, (m, 2)."""
    start = network.nodes[branches.nodes]
    forward = ((centre - start) * branches.directions).sum(axis=1)
    length = np.repeat(network.lengths, 2)
    cut = np.minimum(np.maximum(width, forward + width / 2), 0.45 * length)
    return np.where(outer, cut, 0.0).reshape(-1, 2)


def _passes(
    group: Ints,
    branches: Branches,
    outer: NDArray[np.bool_],
    link: NDArray[np.bool_],
    lengths: NDArray[np.float64],
    passing: NDArray[np.bool_],
    width: float,
) -> list[tuple[int, int]]:
    """Return pairs of arms that continue in each other without meeting the other pair.

    Either one road passes over the other, or two roads that turn side by side touch. In the second
    case the skeleton links them by more than the blur of a crossing.
    """
    pairs: list[tuple[int, int]] = []
    of = group[branches.nodes]
    linked = np.bincount(of[::2][link], lengths[link], minlength=len(passing))
    for number in np.flatnonzero(passing & (np.bincount(of[outer], minlength=len(passing)) == 4)):
        a, *others = np.flatnonzero(outer & (of == number)).tolist()
        touching: list[tuple[int, int]] = []
        for b in others:
            c, d = (arm for arm in others if arm != b)
            one, other = np.array([a, c]), np.array([b, d])
            straight = bool(straight_on(branches, one, other).all())
            cosine = np.abs((branches.directions[a] * branches.directions[c]).sum())
            if straight and linked[number] <= float(_overlap(cosine, width)) + _TOUCH:
                pairs += [(a, b), (c, d)]
                break
            if branches.nodes[a] == branches.nodes[b] != branches.nodes[c] == branches.nodes[d]:
                touching = [(a, b), (c, d)]
        else:
            if linked[number] > _TOUCH:
                pairs += touching
    return pairs


def _overlap(cosine: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Return the length of road that a skeleton shows where two roads cross at an acute angle.

    It is measured along the bisector of the angle. It starts where a circle that touches the outer
    sides of both roads also touches the corner between them, and ends at the same place on the
    other side.
    """
    sine = np.sqrt(np.clip((1 - cosine) / 2, 1e-4, 1))
    overlap: NDArray[np.float64] = width * (1 - sine) / (sine * (1 + sine))
    return overlap


def _rebuilt(
    network: Network,
    group: Ints,
    places: Line,
    link: NDArray[np.bool_],
    cut: NDArray[np.float64],
    passes: list[tuple[int, int]],
) -> Network:
    """Cut the arms of junctions, and lead them to the junctions' new places."""
    kept = np.flatnonzero(~link)
    length = network.lengths
    road = np.repeat(np.arange(len(length)), network.counts)
    way = network.along - network.along[network.starts][road]
    inner = np.ones(len(road), np.bool_)
    inner[network.starts] = inner[network.starts + network.counts - 1] = False
    inner &= ~link[road] & (way > cut[road, 0] + 1e-6) & (way < length[road] - cut[road, 1] - 1e-6)

    nodes = [places]
    ends = group[network.ends]
    first_of = np.unique(group, return_index=True)[1]
    ends = first_of[ends]
    tips = places[network.ends]
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
        roads.append(kept)
        keys.append(length[kept] + 1 if side else np.full(len(kept), -1.0))
        points.append(tips[kept, side])
        moved = kept[cut[kept, side] > 0]
        at = length[moved] - cut[moved, 1] if side else cut[moved, 0]
        roads.append(moved)
        keys.append(at)
        points.append(network.places(moved, at))
    all_roads, all_points = np.concatenate(roads), np.concatenate(points)
    order = np.lexsort((np.concatenate(keys), all_roads))
    counts = np.bincount(all_roads, minlength=len(length))[kept]
    return Network(np.concatenate(nodes), ends[kept], all_points[order], counts).dissolve()
