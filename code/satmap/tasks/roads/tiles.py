"""Vectorising with what lies around: neighbouring chips, or the rest of a large scene.

A road that is cut by an image's edge is judged by half of what is there: its gap may close, its
speed be read and its end be told from a dead end only beyond the edge. So an image is vectorised
together with a margin of its surroundings and cropped afterwards (XD_XD cleaned SpaceNet 5's chips
across their borders too, but after vectorising them alone). A side that no neighbour touches gets
no margin, and where a margin is unknown it has no roads: a border repeated so far would make a
square of a road that runs along it.
"""

import contextlib
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.neighbours import ImageFootprint, Neighbour, find_neighbours
from satmap.errors import SatmapError
from satmap.rasters.map_files import MAX_VALUES_IN_MEMORY, MapFile, open_map_file
from satmap.rasters.scene import Box, Scene
from satmap.tasks.roads.settings import ROAD_FILE_MAPS, RoadSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadEdge, RoadGraph, line_length_m

#: How far beyond an image its roads are looked at: twice the reach of a bridge.
MARGIN_M = 66.0
# Neighbours touch for all their georeferences' rounding; so wide a seam repeats the border.
_SEAM_PX = 2

Line = NDArray[np.float64]


def margin_px(metres_per_pixel: tuple[float, float]) -> tuple[int, int]:
    """``MARGIN_M`` in whole pixels along x and y."""
    x, y = (ceil(MARGIN_M / size) for size in metres_per_pixel)
    return x, y


def widest_margin_px(sizes: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """``MARGIN_M`` in whole pixels of the smallest of several sizes along x and y."""
    return margin_px((min(x for x, _ in sizes), min(y for _, y in sizes)))


class Surrounding(NamedTuple):
    """A neighbour of a scene.

    Attributes:
        box: where it lies in the scene's pixels.
        read: as the scene's, in its own pixels.
    """

    box: Box
    read: Callable[[str, Box], NDArray[np.uint8]]


def surrounded(scene: Scene, neighbours: Sequence[Surrounding]) -> tuple[Scene, Box]:
    """A scene with a margin (:func:`margin_px`) filled from its neighbours.

    Sides that no neighbour touches get no margin: the vectoriser knows what to do at an image's
    edge.

    Args:
        scene: the scene.
        neighbours: with planes of the same names. Of overlapping ones the first counts, the scene
            itself always; where a side's margin has none it is 0.

    Returns:
        The larger scene, and where in it the scene lies.
    """
    height, width = scene.shape
    own = Box(0, 0, width, height)
    whole = looked_at(own, [box for box, _ in neighbours], margin_px(scene.metres_per_pixel))

    def read(name: str, part: Box) -> NDArray[np.uint8]:
        box = part.seen_from(own.seen_from(whole))
        rows, columns = np.arange(box.top, box.bottom), np.arange(box.left, box.right)
        own_rows, own_columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
        left, top = int(own_columns[0]), int(own_rows[0])
        seen = Box(left, top, int(own_columns[-1]) - left + 1, int(own_rows[-1]) - top + 1)
        values = scene.read(name, seen)
        if seen == box:
            return values
        found: NDArray[np.uint8] = values[own_rows[:, None] - top, own_columns - left]
        found[abs(rows - own_rows) > _SEAM_PX] = 0
        found[:, abs(columns - own_columns) > _SEAM_PX] = 0
        for neighbour in reversed(neighbours):
            shared = box.overlap(neighbour.box)
            if shared and own.overlap(shared) != shared:
                theirs = shared.seen_from(neighbour.box)
                found[shared.within(box)] = neighbour.read(name, theirs)
        if shared := box.overlap(own):
            found[shared.within(box)] = values[shared.within(seen)]
        return found

    larger = Scene(scene.names, (whole.height, whole.width), scene.metres_per_pixel, read)
    return larger, own.seen_from(whole)


def looked_at(own: Box, neighbours: Sequence[Box], margin: tuple[int, int]) -> Box:
    """An image with a margin, along x and y, on those sides where a neighbour touches it.

    Nothing looks farther than it is wide: tiny images would be all margin.
    """
    x, y = min(margin[0], own.width), min(margin[1], own.height)
    left, top, right, bottom = (
        size if any(side.overlap(box) for box in neighbours) else 0
        for size, side in (
            (x, Box(-_SEAM_PX - 1, 0, _SEAM_PX + 1, own.height)),
            (y, Box(0, -_SEAM_PX - 1, own.width, _SEAM_PX + 1)),
            (x, Box(own.width, 0, _SEAM_PX + 1, own.height)),
            (y, Box(0, own.height, own.width, _SEAM_PX + 1)),
        )
    )
    return Box(-left, -top, left + own.width + right, top + own.height + bottom)


def crop_graph(graph: RoadGraph, box: Box, metres_per_pixel: tuple[float, float]) -> RoadGraph:
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


def find_surroundings(footprints: Sequence[ImageFootprint]) -> list[list[Neighbour]]:
    """For each image those that its roads are traced with, or that are traced with it.

    Those show in its margin (:func:`satmap.tasks.roads.tiles.surrounded`), which it has only on
    sides where another image touches it.

    Args:
        footprints: of all images.

    Returns:
        A list an image, nearest corner first. If one image is in the list of another, the other is
        in its list, too: each must be kept for the other.
    """
    sizes = [f.georeference.metres_per_pixel for f in footprints if f.georeference is not None]
    if not sizes:
        return [[] for _ in footprints]
    margin = widest_margin_px(sizes)
    near = find_neighbours(footprints, margin)
    pairs: set[tuple[int, int]] = set()
    for index, (footprint, others) in enumerate(zip(footprints, near, strict=True)):
        own = Box(0, 0, footprint.width, footprint.height)
        boxes = [_box(other, footprints) for other in others]
        whole = looked_at(own, boxes, margin)
        for other, box in zip(others, boxes, strict=True):
            shown = whole.overlap(box)
            if shown and own.overlap(shown) != shown:
                pairs |= {(index, other.image), (other.image, index)}
    return [[n for n in others if (index, n.image) in pairs] for index, others in enumerate(near)]


def _box(neighbour: Neighbour, footprints: Sequence[ImageFootprint]) -> Box:
    _, width, height = footprints[neighbour.image]
    return Box(neighbour.column, neighbour.row, width, height)


# Neighbours are tried in parts of this width and height.
_PROBE_PX = 512


def roads_of_file(
    mask: MapFile,
    neighbours: Sequence[tuple[Path, int, int]],
    settings: RoadSettings | None,
    metres_per_pixel: float,
) -> RoadGraph:
    """The roads of an open raster, in its pixels.

    Args:
        mask: of planes.
        neighbours: the rasters around it, and at which of its columns and rows each one's first
            pixel lies. What cannot be read counts as absent.
        settings: of the vectoriser; None for its defaults.
        metres_per_pixel: of neighbours that do not say how large their pixels are.

    Raises:
        SatmapError: the raster is damaged, or its numbers are no probabilities.
    """
    with contextlib.ExitStack() as stack:
        around = _surroundings(mask, neighbours, metres_per_pixel, stack)
        scene, box = surrounded(mask.scene, around)
        in_windows = (
            mask.has_windows and len(mask.names) * mask.width * mask.height > MAX_VALUES_IN_MEMORY
        )
        graph = vectorize_roads(scene if in_windows else scene.at_once(), settings)
    alone = scene.shape == mask.scene.shape
    return graph if alone else crop_graph(graph, box, scene.metres_per_pixel)


def _surroundings(
    mask: MapFile,
    neighbours: Sequence[tuple[Path, int, int]],
    metres_per_pixel: float,
    stack: contextlib.ExitStack,
) -> list[Surrounding]:
    """The neighbours that are sound and of the same kind, opened on the stack."""
    own = Box(0, 0, mask.width, mask.height)
    x, y = margin_px(mask.scene.metres_per_pixel)
    seen = own.grown(min(x, mask.width), min(y, mask.height))
    found = []
    for path, column, row in neighbours:
        try:
            other = stack.enter_context(open_map_file(path, metres_per_pixel, ROAD_FILE_MAPS))
            box = Box(column, row, other.width, other.height)
            shared = seen.overlap(box)
            if other.names != mask.names or shared is None or shared == own.overlap(box):
                continue
            # What is damaged must not cost this mask too.
            for part in shared.seen_from(box).tiles(_PROBE_PX, _PROBE_PX):
                for name in other.names:
                    other.read(name, part)
        except SatmapError:
            continue
        found.append(Surrounding(box, other.read))
    return found
