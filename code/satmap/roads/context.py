"""Vectorising with what lies around: neighbouring chips, or the rest of a large scene.

A road that is cut by an image's edge is judged by half of what is there: its gap may close, its
speed be read and its end be told from a dead end only beyond the edge. So an image is vectorised
together with a margin of its surroundings and cropped afterwards (XD_XD cleaned SpaceNet 5's chips
across their borders too, but after vectorising them alone). Where nothing is known of the
surroundings the image's border is repeated, as if its roads went on straight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.planes import Planes
from satmap.roads.graph import RoadEdge, RoadGraph, line_length_m

#: How far beyond an image its roads are looked at: twice the reach of a bridge.
MARGIN_M = 66.0

Line = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels.

    Attributes:
        left, top: its first column and row.
        width, height: its size.
    """

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The column behind its last."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The row behind its last."""
        return self.top + self.height

    def grown(self, x: int, y: int) -> "Box":
        """The same with a margin on all sides."""
        return Box(self.left - x, self.top - y, self.width + 2 * x, self.height + 2 * y)

    def overlap(self, other: "Box") -> "Box | None":
        """What two rectangles share; None if that is nothing."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        width = min(self.right, other.right) - left
        height = min(self.bottom, other.bottom) - top
        return Box(left, top, width, height) if width > 0 and height > 0 else None

    def seen_from(self, other: "Box") -> "Box":
        """The same where the other's first pixel is column 0, row 0."""
        return Box(self.left - other.left, self.top - other.top, self.width, self.height)

    def tiles(self, width: int, height: int) -> list["Box"]:
        """The rectangle in parts of that size, those at its right and bottom smaller; by rows."""
        return [
            Box(left, top, min(width, self.right - left), min(height, self.bottom - top))
            for top in range(self.top, self.bottom, height)
            for left in range(self.left, self.right, width)
        ]

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and columns of an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, outer: "Box") -> tuple[slice, slice]:
        """Rows and columns of an array of ``outer``'s size that are this rectangle's."""
        rows = slice(self.top - outer.top, self.bottom - outer.top)
        return rows, slice(self.left - outer.left, self.right - outer.left)


def margin_px(metres_per_pixel: tuple[float, float]) -> tuple[int, int]:
    """``MARGIN_M`` in whole pixels along x and y."""
    x, y = (ceil(MARGIN_M / size) for size in metres_per_pixel)
    return x, y


def with_surroundings(planes: Planes, neighbours: Sequence[tuple[Planes, int, int]]) -> Planes:
    """Planes of an image with a margin (:func:`margin_px`) filled from its neighbours.

    Args:
        planes: of the image.
        neighbours: planes with the same names, and column and row of the image at which each one's
            first pixel lies. Of overlapping ones the first counts; the image itself always.
    """
    x, y = margin_px(planes.metres_per_pixel)
    height, width = planes.values.shape[1:]
    own = Box(0, 0, width, height)
    whole = own.grown(x, y)
    values = np.pad(planes.values, ((0, 0), (y, y), (x, x)), mode="edge")
    for other, column, row in reversed(neighbours):
        if other.names != planes.names:
            raise ValueError(f"a neighbour has planes {other.names}, the image {planes.names}")
        theirs = Box(column, row, other.values.shape[2], other.values.shape[1])
        if shared := whole.overlap(theirs):
            target, source = shared.within(whole), shared.within(theirs)
            values[(slice(None), *target)] = other.values[(slice(None), *source)]
    values[(slice(None), *own.within(whole))] = planes.values
    return Planes(planes.names, values, planes.metres_per_pixel)


def crop(graph: RoadGraph, box: Box, metres_per_pixel: tuple[float, float]) -> RoadGraph:
    """The roads within a rectangle, cut at its edges, in pixels of the rectangle.

    Coordinates are on the grid of 0.1 pixel, as the vectoriser's are. Roads keep their speed and
    confidence; lengths are those of the pieces.
    """
    corner = np.array((box.left, box.top), np.float64)
    edges_of = np.repeat(np.arange(len(graph.edges)), [len(edge.line) for edge in graph.edges])
    points = [edge.line for edge in graph.edges] or [np.empty((0, 2))]
    lines = shapely.linestrings(np.concatenate(points), indices=edges_of)
    # Unlike an intersection this leaves a line whole where it crosses itself.
    clipped = shapely.clip_by_rect(lines, box.left, box.top, box.right, box.bottom)
    parts, of_edge = shapely.get_parts(clipped, return_index=True)
    inside = shapely.covered_by(lines, shapely.box(box.left, box.top, box.right, box.bottom))
    pieces = [
        (edge.line - corner, edge)
        for edge, whole in zip(graph.edges, inside.tolist(), strict=True)
        if whole
    ]
    for part, index in zip(parts, of_edge.tolist(), strict=True):
        if inside[index] or part.geom_type != "LineString":
            continue
        line = np.round(shapely.get_coordinates(part) - corner, 1)
        line = line[np.append(True, (np.diff(line, axis=0) != 0).any(axis=1))]
        if len(line) >= 2:
            pieces.append((line, graph.edges[index]))
    return _rebuilt(pieces, metres_per_pixel)


def _rebuilt(
    pieces: Sequence[tuple[Line, RoadEdge]], metres_per_pixel: tuple[float, float]
) -> RoadGraph:
    """A graph of pieces of roads; ends at one place are one node."""
    if not pieces:
        return RoadGraph()
    ends = np.concatenate([line[[0, -1]] for line, _ in pieces])
    nodes, inverse = np.unique(np.round(ends, 1), axis=0, return_inverse=True)
    pairs = inverse.reshape(-1, 2).tolist()
    edges = []
    for (line, edge), (start, stop) in zip(pieces, pairs, strict=True):
        line = np.concatenate([nodes[[start]], line[1:-1], nodes[[stop]]])
        length = line_length_m(line, metres_per_pixel)
        edges.append(RoadEdge((start, stop), line, length, edge.speed_mps, edge.confidence))
    return RoadGraph(nodes, tuple(edges))
