"""The road graph: nodes in pixels, edges with their geometry, length and speed."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RoadEdge:
    """A road between two nodes.

    Attributes:
        nodes: indices of the start and end node; equal for a loop.
        line: float64 (n >= 2, 2), x = column and y = row in pixels, from the start node to the end.
        length_m: length along ``line``, metres.
        speed_mps: speed, metres a second, > 0.
        confidence: mean road probability along the line, 0..1.
    """

    nodes: tuple[int, int]
    line: NDArray[np.float64]
    length_m: float
    speed_mps: float
    confidence: float

    @property
    def travel_time_s(self) -> float:
        """Seconds from end to end."""
        return self.length_m / self.speed_mps


@dataclass(frozen=True)
class RoadGraph:
    """The roads of one image as an undirected multigraph: parallel edges and loops are kept.

    Attributes:
        nodes: float64 (n, 2), x = column and y = row in pixels.
        edges: the roads, each between two of ``nodes``.
    """

    nodes: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    edges: tuple[RoadEdge, ...] = ()


def line_length_m(line: NDArray[np.float64], metres_per_pixel: tuple[float, float]) -> float:
    """Length of a line in pixels, in metres; pixels may be wider than high."""
    steps = np.diff(line, axis=0) * np.asarray(metres_per_pixel)
    return float(np.hypot(steps[:, 0], steps[:, 1]).sum())
