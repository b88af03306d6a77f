"""What the road metrics take: rows of a submission, bare lines, or a road graph."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from satmap.submissions.roads_csv import RoadRow


class RoadLine(Protocol):
    """A road with its line: a row of a submission, an edge of a graph."""

    @property
    def line(self) -> NDArray[np.float64]:
        """float64 (n, 2), x and y in pixels."""

    @property
    def length_m(self) -> float:
        """Metres."""

    @property
    def travel_time_s(self) -> float:
        """Seconds; NaN where it is not known."""


class RoadMap(Protocol):
    """A graph with roads, such as :class:`satmap.roads.graph.RoadGraph`."""

    @property
    def edges(self) -> Sequence[RoadLine]:
        """Its roads."""


#: Roads of one image: rows, arrays (n, 2) of x and y in pixels, or a graph.
Roads = Sequence[RoadRow] | Sequence[NDArray[np.float64]] | RoadMap


def road_rows(roads: Roads) -> list[RoadRow]:
    """Roads in any form as rows; bare lines have no length and no time.

    Raises:
        ValueError: a line is not of shape (n, 2), a coordinate not finite, a time negative.
    """
    rows = []
    for road in roads if isinstance(roads, Sequence) else roads.edges:
        if isinstance(road, np.ndarray | list | tuple):
            row = RoadRow(np.asarray(road, np.float64), np.nan, np.nan)
        else:
            row = RoadRow(np.asarray(road.line, np.float64), road.length_m, road.travel_time_s)
        if row.line.size and (row.line.ndim != 2 or row.line.shape[1] != 2):
            raise ValueError(f"a line must have shape (n, 2), got {row.line.shape}")
        if not np.isfinite(row.line).all():
            raise ValueError("a coordinate is not finite")
        if row.travel_time_s < 0 or row.travel_time_s == np.inf:
            raise ValueError(f"a travel time must be finite and >= 0, got {row.travel_time_s}")
        rows.append(row)
    return rows
