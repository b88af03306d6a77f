"""Clean a road network; all lengths and coordinates are in metres.

In metres, every rule holds for images of any resolution, even if pixels are not square. Pruning
repeats until nothing changes (CRESI). It removes the shortest spur of each junction first, so that
the fork at a road's end loses one prong and not both. Roads that are doubtful compared to the
image's other roads must be longer to be kept.
"""

import numpy as np

from satmap.tasks.roads.vectorizer.border import on_border
from satmap.tasks.roads.vectorizer.evidence import Evidence
from satmap.tasks.roads.vectorizer.network import Network

# A doubtful spur must be this many times as long as a certain one.
_DOUBTFUL_SPUR = 4.0
# Length that a certain component needs, as a share of what a doubtful one needs.
_CERTAIN_PART = 0.25
# The same shares for certain and doubtful components that leave the image, because they continue
# outside.
_CERTAIN_LEAVING, _DOUBTFUL_LEAVING = 0.04, 0.5


def drop_short_loops(network: Network, below: float) -> Network:
    """Drop loops and duplicate parallel roads that enclose less than a road's width.

    Loops shorter than ``below`` are dropped. So are all but the shortest of parallel roads, if they
    are shorter than half of ``below``.
    """
    lengths = network.lengths
    low, high = np.sort(network.ends, axis=1).T
    order = np.lexsort((lengths, high, low))
    repeated = np.zeros(len(lengths), np.bool_)
    repeated[order[1:]] = (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
    drop = (network.loops & (lengths < below)) | (repeated & (lengths < below / 2))
    return network.keep(~drop).dissolve() if drop.any() else network


def prune_spurs(network: Network, below: float, skip: float, evidence: Evidence) -> Network:
    """Drop dead ends that leave a junction and are shorter than ``below``, shortest first.

    The limit is higher for doubtful spurs. It is halved for spurs that end on the image's border,
    because they continue outside. The first ``skip`` metres of a spur lie inside the other road and
    say nothing about the spur.
    """
    doubtful = _DOUBTFUL_SPUR * below
    while True:
        degrees, lengths, ends = network.degrees, network.lengths, network.ends
        free = degrees[ends] == 1
        dead = (free.sum(axis=1) == 1) & (degrees[ends].max(axis=1, initial=0) > 2)
        if not (dead & (lengths < doubtful)).any():
            return network
        needed = below + (doubtful - below) * evidence.doubt(network, skip)
        leaves = (free & on_border(network.nodes, evidence.size)[ends]).any(axis=1)
        spurs = np.flatnonzero(dead & (lengths < np.where(leaves, needed / 2, needed)))
        if not len(spurs):
            return network
        roots = np.where(free[spurs, 0], ends[spurs, 1], ends[spurs, 0])
        order = spurs[np.lexsort((lengths[spurs], roots))]
        _, shortest = np.unique(np.sort(roots), return_index=True)
        keep = np.ones(len(ends), np.bool_)
        keep[order[shortest]] = False
        network = network.keep(keep).dissolve()


def drop_components(network: Network, below: float, evidence: Evidence) -> Network:
    """Drop connected components with too little road.

    A doubtful component needs ``below`` metres, a certain one a quarter. Components that leave the
    image need less, because they continue outside.
    """
    of_road, lengths = network.components, network.lengths
    total = np.bincount(of_road, lengths)
    doubt = np.bincount(of_road, lengths * evidence.doubt(network, 0)) / np.maximum(total, 1e-9)
    leaving = on_border(network.nodes, evidence.size)[network.ends].any(axis=1)
    leaves = np.bincount(of_road, leaving) > 0
    certain = np.where(leaves, _CERTAIN_LEAVING, _CERTAIN_PART)
    doubtful = np.where(leaves, _DOUBTFUL_LEAVING, 1.0)
    small = total < below * (certain + (doubtful - certain) * doubt)
    return network.keep(~small[of_road]).dissolve() if small.any() else network


def drop_unlikely(network: Network, least: float, evidence: Evidence) -> Network:
    """Drop connected components whose probability stays below ``least`` everywhere (hysteresis)."""
    highest = np.zeros(len(network.nodes))
    owner, values = evidence.along(network)
    np.maximum.at(highest, network.components[owner], values)
    kept = highest[network.components] >= least
    return network if kept.all() else network.keep(kept).dissolve()
