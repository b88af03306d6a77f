"""The arms of junctions: where roads run once they have left a junction's blur."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satmap.roads.network import Ints, Line, Network

# Road beyond the first road's width that gives an arm's direction, metres.
LOOK = 8.0
# Samples of it.
_SAMPLES = 4
# Roads cross, or pass each other, only if they are this straight, degrees.
_STRAIGHT = 20.0


@dataclass(frozen=True)
class Arms:
    """Road ends, by half-edge: 2e is the start of road e, 2e + 1 its end.

    Attributes:
        nodes: the node of each, (h,).
        places: a place on the arm beyond the junction's blur, (h, 2).
        directions: unit vectors outwards, (h, 2).
        reach: metres of road that the direction was taken from, (h,).
    """

    nodes: Ints
    places: Line
    directions: Line
    reach: NDArray[np.float64]


def road_arms(network: Network, width: float) -> Arms:
    """All road ends of a network, metres; roads are ``width`` wide."""
    half = np.arange(2 * len(network.counts))
    road, backwards = half >> 1, half % 2 == 1
    length = network.lengths[road]
    near = np.minimum(width, 0.4 * length)
    far = np.minimum(width + LOOK, np.maximum(0.6 * length, length - width))
    way = near + np.linspace(0, 1, _SAMPLES)[:, None] * (far - near)
    at = np.where(backwards, length - way, way)
    places = network.places(np.tile(road, _SAMPLES), at.ravel()).reshape(_SAMPLES, -1, 2)
    step = places[_SAMPLES // 2 :].mean(axis=0) - places[: _SAMPLES // 2].mean(axis=0)
    step /= np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-9)[:, None]
    return Arms(network.ends.reshape(-1), places.mean(axis=0), step, far - near)


def straight_on(arms: Arms, one: Ints, other: Ints) -> NDArray[np.bool_]:
    """Whether pairs of arms are one straight road, (k,)."""
    chord = arms.places[other] - arms.places[one]
    chord /= np.maximum(np.hypot(chord[:, 0], chord[:, 1]), 1e-9)[:, None]
    least = np.cos(np.radians(_STRAIGHT))
    leaves: NDArray[np.bool_] = (-arms.directions[one] * chord).sum(axis=1) >= least
    arrives: NDArray[np.bool_] = (arms.directions[other] * chord).sum(axis=1) >= least
    straight: NDArray[np.bool_] = np.logical_and(leaves, arrives)
    return straight


def cross(first: Line, second: Line) -> NDArray[np.float64]:
    """Cross products of vectors, (..., 2) -> (...)."""
    product: NDArray[np.float64] = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    return product
