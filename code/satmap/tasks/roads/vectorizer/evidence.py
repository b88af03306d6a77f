"""What the probability planes say about places, roads and bridges."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satmap.rasters.scene import ProbabilityMap
from satmap.tasks.roads.vectorizer.network import Ints, Line, Network

# Between samples along a road, metres.
_SPACING = 2.0
# Samples along a bridge.
_BRIDGE_SAMPLES = 24
# A road whose probability is this share of the image's typical road is beyond doubt, and one so
# far below it is as doubtful as a road can be.
_CERTAIN, _DOUBTFUL = 0.95, 0.7
# A junction plane that knows so few of the places where three roads meet tells nothing.
_INFORMED = 0.5
JUNCTION_SHOWN = 0.3
# Around a junction its plane is sampled so far off, metres: our place may be off as well.
_AROUND = 1.0


@dataclass(frozen=True)
class Evidence:
    """A plane's probabilities at places in metres.

    Attributes:
        probability_map: (height, width), 0..255.
        scale: metres a pixel along x and y, (2,).
        low: probability that is road already, 0..1.
    """

    probability_map: ProbabilityMap
    scale: Line
    low: float

    def at(self, places: Line) -> NDArray[np.float64]:
        """Probability, 0..1, of places (..., 2); outside of the image that of its edge."""
        height, width = self.probability_map.shape
        pixels = (places / self.scale).astype(np.intp)
        rows, columns = pixels[..., 1].clip(0, height - 1), pixels[..., 0].clip(0, width - 1)
        values: NDArray[np.float64] = self.probability_map[rows, columns] / 255
        return values

    def between(self, starts: Line, stops: Line) -> tuple[NDArray[np.float64], ...]:
        """Evidence for bridges, (n, 2) to (n, 2).

        Roads that a bridge leaves, meets or crosses say nothing for it, so a bridge that runs along
        the flank of another road has no more evidence than one over open ground.

        Returns:
            Mean probability of what is not road yet, (n,), and how much of the bridge that is,
            metres, (n,).
        """
        share = np.linspace(0, 1, _BRIDGE_SAMPLES)[:, None]
        steps = stops - starts
        values = self.at(starts[:, None] + share * steps[:, None])
        open_ground = values < self.low
        count = open_ground.sum(axis=1)
        total = (values * open_ground).sum(axis=1)
        mean: NDArray[np.float64] = np.where(count, total / np.maximum(count, 1), 1.0)
        return mean, np.hypot(steps[:, 0], steps[:, 1]) * count / _BRIDGE_SAMPLES

    def doubt(self, network: Network, skip: float) -> NDArray[np.float64]:
        """How doubtful each road is beside the image's typical road, 0 certain .. 1, (m,).

        Args:
            network: the network.
            skip: metres left out at both ends, if a road is long enough: there lie other roads.
        """
        roads = np.arange(len(network.counts))
        owner, places = samples(network, roads, _SPACING, skip)
        values = self.at(places)
        typical = max(float(np.median(values)), 1 / 255) if len(values) else 1.0
        mean = np.bincount(owner, values) / np.bincount(owner)
        doubt: NDArray[np.float64] = (_CERTAIN - mean / typical) / (_CERTAIN - _DOUBTFUL)
        return doubt.clip(0, 1)

    def highest(self, network: Network) -> NDArray[np.float64]:
        """Highest probability along each road, (m,)."""
        owner, places = samples(network, np.arange(len(network.counts)), _SPACING, 0)
        highest = np.zeros(len(network.counts))
        np.maximum.at(highest, owner, self.at(places))
        return highest

    def shows_junction(self, places: Line) -> NDArray[np.bool_]:
        """Whether this, the junction plane, knows a junction at each of the places, (n,)."""
        offsets = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]) * _AROUND
        shown: NDArray[np.bool_] = self.at(places[:, None] + offsets).max(axis=1) >= JUNCTION_SHOWN
        return shown


def has_signal(junctions: Evidence, network: Network, merge: float) -> bool:
    """Whether a junction plane knows most of the places that it has to know.

    Where four roads meet, or three and three with less than ``merge`` metres between them, roads
    may pass or touch: if the plane shows nothing there, that speaks neither for it nor against it.
    """
    degrees = network.degrees
    linked = (degrees >= 3)[network.ends].all(axis=1) & (network.lengths < merge)
    sure = degrees == 3
    sure[network.ends[linked]] = False
    shown = np.zeros(len(degrees), np.bool_)
    shown[degrees >= 3] = junctions.shows_junction(network.nodes[degrees >= 3])
    hits, misses = int(shown.sum()), int((sure & ~shown).sum())
    return hits > 0 and hits >= _INFORMED * (hits + misses)


def samples(
    network: Network, roads: Ints, spacing: float, skip: float | NDArray[np.float64]
) -> tuple[Ints, Line]:
    """Places at equal steps along roads, each the middle of an equal part of its road.

    Args:
        network: the network.
        roads: which roads, (k,).
        spacing: largest step.
        skip: left out at the start and the end of each, (k, 2) or one for all; a third of the road
            at most.

    Returns:
        Position in ``roads`` of each sample's road, (s,), and the places, (s, 2).
    """
    lengths = network.lengths[roads]
    skipped = np.minimum(np.broadcast_to(skip, (len(roads), 2)), lengths[:, None] / 3)
    used = lengths - skipped.sum(axis=1)
    counts = np.maximum(np.ceil(used / spacing), 1).astype(np.int64)
    owner = np.repeat(np.arange(len(roads)), counts)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    distances = skipped[owner, 0] + (rank + 0.5) * (used / counts)[owner]
    return owner, network.places(roads[owner], distances)
