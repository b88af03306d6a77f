"""How wide roads are in the road plane, measured across their centre lines."""

import numpy as np
from numpy.typing import NDArray

from satmap.roads.evidence import Evidence, samples
from satmap.roads.network import Ints, Line, Network

# Sides are looked at so far, in such steps, metres.
_WIDEST, _STEP = 12.0, 0.5
# A pixel is road from this probability on.
_ROAD = 0.5
# Between measurements along a road, and what is left out at a junction, metres.
_SPACING, _SKIP = 8.0, 8.0


def widths_at(road: Evidence, places: Line, directions: Line) -> NDArray[np.float64]:
    """Width of the road at places on centre lines, metres.

    Args:
        road: the road plane.
        places: (n, 2), metres.
        directions: unit vectors along the centre lines, (n, 2).

    Returns:
        From the last road pixel on one side to the last on the other, (n,); 0 where the place is
        no road.
    """
    normals = np.stack([-directions[:, 1], directions[:, 0]], axis=1)
    offsets = np.arange(_STEP / 2, _WIDEST, _STEP)
    width = np.zeros(len(places))
    for side in (-1, 1):
        across = side * offsets[:, None, None] * normals
        inside = np.logical_and.accumulate(road.at(places + across) >= _ROAD, axis=0)
        width += _STEP * inside.sum(axis=0)
    return width


def road_widths(network: Network, road: Evidence) -> NDArray[np.float64]:
    """Mean width of each road away from its ends, metres, (m,)."""
    count = len(network.counts)
    owner, places = samples(network, np.arange(count), _SPACING, _SKIP)
    return np.bincount(
        owner, widths_at(road, places, _directions(network, owner, places)), minlength=count
    ) / np.bincount(owner, minlength=count)


def _directions(network: Network, owner: Ints, places: Line) -> Line:
    """Directions of roads at samples: from the sample before to the one behind."""
    first = np.append(True, owner[1:] != owner[:-1])
    last = np.append(first[1:], True)
    index = np.arange(len(owner))
    step = places[np.where(last, index, index + 1)] - places[np.where(first, index, index - 1)]
    # A road with a single sample has only its ends.
    alone = first & last
    line_ends = network.nodes[network.ends[owner[alone]]]
    step[alone] = line_ends[:, 1] - line_ends[:, 0]
    return step / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-9)[:, None]
