"""Evidence of the probability maps for places, roads and bridges."""

from dataclasses import dataclass

import numpy as np

from satmap.rasters.scene import ProbabilityMap
from satmap.tasks.roads.vectorizer.network import Bools, Floats, Ints, Network, members, norm

# Spacing of samples along a road, metres.
_SPACING = 2.0
# Number of samples along a bridge.
_BRIDGE_SAMPLES = 24
# A road's doubt falls from 1 to 0 between the ratios _DOUBTFUL and _CERTAIN of its probability to
# that of the image's typical road.
_CERTAIN, _DOUBTFUL = 0.95, 0.7
# A junction map is informative if it shows at least this share of the places where three roads
# meet.
_INFORMED = 0.5
JUNCTION_SHOWN = 0.3
# The junction map is also sampled this far around a place, in metres, because the place may be off.
_AROUND = 1.0


@dataclass(frozen=True)
class Evidence:
    """Probabilities of a map at places in metres.

    Attributes:
        probability_map: (height, width), 0..255.
        scale: metres per pixel along x and y, (2,).
        low: smallest probability that counts as road, 0..1.
    """

    probability_map: ProbabilityMap
    scale: Floats
    low: float

    @property
    def size(self) -> Floats:
        """Width and height of the image in metres, (2,)."""
        return np.array(self.probability_map.shape[::-1]) * self.scale

    def at(self, places: Floats) -> Floats:
        """Return the probability, 0..1, at places (..., 2); outside the image, that of its edge."""
        height, width = self.probability_map.shape
        pixels = (places / self.scale).astype(np.intp)
        rows, columns = pixels[..., 1].clip(0, height - 1), pixels[..., 0].clip(0, width - 1)
        return np.asarray(self.probability_map[rows, columns] / 255)

    def between(self, starts: Floats, stops: Floats) -> tuple[Floats, ...]:
        """Return the evidence for straight bridges between places, (n, 2) each.

        Only open ground counts. Roads that a bridge leaves, meets or crosses do not support it, so
        a bridge along the side of another road has no more evidence than one over open ground.

        Returns:
            Mean probability of the open ground, (n,), 1 if there is none, and its length in metres,
            (n,).
        """
        share = np.linspace(0, 1, _BRIDGE_SAMPLES)[:, None]
        steps = stops - starts
        values = self.at(starts[:, None] + share * steps[:, None])
        open_ground = values < self.low
        count = open_ground.sum(axis=1)
        total = (values * open_ground).sum(axis=1)
        mean = np.where(count, total / np.maximum(count, 1), 1.0)
        return mean, norm(steps) * count / _BRIDGE_SAMPLES

    def along(self, network: Network, skip: float = 0) -> tuple[Ints, Floats]:
        """Sample the probability along all roads; return each sample's road and value, (s,) each.

        At both ends of a road that is long enough, ``skip`` metres are left out, because other
        roads lie there.
        """
        owner, places = samples(network, np.arange(len(network.counts)), _SPACING, skip)
        return owner, self.at(places)

    def doubt(self, network: Network, skip: float) -> Floats:
        """Return how doubtful each road is compared to the image's typical road, (m,), 0..1."""
        owner, values = self.along(network, skip)
        typical = max(float(np.median(values)), 1 / 255) if len(values) else 1.0
        mean = np.bincount(owner, values) / np.bincount(owner)
        return np.clip((_CERTAIN - mean / typical) / (_CERTAIN - _DOUBTFUL), 0, 1)

    def shows_junction(self, places: Floats) -> Bools:
        """Return whether the map, a junction map, shows a junction at each place, (n,)."""
        offsets = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]) * _AROUND
        return np.asarray(self.at(places[:, None] + offsets).max(axis=1) >= JUNCTION_SHOWN)


def has_signal(junctions: Evidence, network: Network, merge: float) -> bool:
    """Return whether a junction map shows most of the junctions that it should show.

    Places where four roads meet, or three and three with less than ``merge`` metres between them,
    do not count as misses, because the roads may pass or touch there.
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
    network: Network, roads: Ints, spacing: float, skip: float | Floats
) -> tuple[Ints, Floats]:
    """Sample places along roads, (k,), each in the middle of an equal part of its road.

    The parts are at most ``spacing`` long. ``skip`` is the length to leave out at the start and the
    end of each road, (k, 2), or one value for all; at most a third of the road each.

    Returns:
        For each sample, the position of its road in ``roads``, (s,), and its place, (s, 2).
    """
    lengths = network.lengths[roads]
    skipped = np.minimum(np.broadcast_to(skip, (len(roads), 2)), lengths[:, None] / 3)
    used = lengths - skipped.sum(axis=1)
    counts = np.maximum(np.ceil(used / spacing), 1).astype(np.int64)
    owner, rank = members(counts)
    distances = skipped[owner, 0] + (rank + 0.5) * (used / counts)[owner]
    return owner, network.places(roads[owner], distances)
