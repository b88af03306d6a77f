"""Decoder: from probability maps to road graphs, with neighbouring chips or the rest of a scene.

The evidence for a road that crosses the image's edge lies partly beyond that edge. It shows whether
a gap closes, how fast the road is, and whether its end is a dead end. So an image is vectorised
together with a margin of its surroundings, and the result is cropped. (XD_XD also cleaned
SpaceNet 5's chips across their borders, but only after vectorising each chip alone.) Sides without
a touching neighbour get no margin. Unknown parts of a margin have no roads. If they repeated the
border instead, a road along the border would become a wide square.

This module works without torch.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.neighbours import ImageFootprint, Neighbour, find_neighbours
from satmap.errors import SatmapError
from satmap.rasters.map_files import MAX_VALUES_IN_MEMORY, MapFile, open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, Scene
from satmap.tasks.roads.settings import ROAD_FILE_MAPS, RoadSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadEdge, RoadGraph, line_length_m

# Width of the margin in metres: twice the reach of a bridge.
_MARGIN_M = 66.0
# Gap between neighbours, caused by rounded georeferences, that is filled by repeating the border.
_SEAM_PX = 2
# Width and height of the parts in which neighbours are checked for damage.
_PROBE_PX = 512


def margin_px(metres_per_pixel: tuple[float, float]) -> tuple[int, int]:
    """Return the width of the margin in whole pixels along x and y."""
    x, y = metres_per_pixel
    return ceil(_MARGIN_M / x), ceil(_MARGIN_M / y)


class Surrounding(NamedTuple):
    """Rectangle of a neighbour in a scene's pixels, and a reader of its maps in its own pixels."""

    box: Box
    read: Callable[[str, Box], NDArray[np.uint8]]


def surrounded(scene: Scene, neighbours: Sequence[Surrounding]) -> tuple[Scene, Box]:
    """Extend a scene by a margin (:func:`margin_px`) filled from neighbours with the same maps.

    Where neighbours overlap, the first one counts, but never over the scene itself. The margin is 0
    where no neighbour covers it. Sides that no neighbour touches get no margin, because the
    vectoriser handles image edges itself.

    Returns:
        The larger scene, and the rectangle of the original scene in it.
    """
    height, width = scene.shape
    own = Box(0, 0, width, height)
    whole = _with_margin(own, [box for box, _ in neighbours], margin_px(scene.metres_per_pixel))

    def read(name: str, part: Box) -> NDArray[np.uint8]:
        box = part.seen_from(own.seen_from(whole))
        rows, columns = np.arange(box.top, box.bottom), np.arange(box.left, box.right)
        own_rows, own_columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
        left, top = int(own_columns[0]), int(own_rows[0])
        inside = Box(left, top, int(own_columns[-1]) - left + 1, int(own_rows[-1]) - top + 1)
        values = scene.read(name, inside)
        if inside == box:
            return values
        found: NDArray[np.uint8] = values[own_rows[:, None] - top, own_columns - left]
        found[abs(rows - own_rows) > _SEAM_PX] = 0
        found[:, abs(columns - own_columns) > _SEAM_PX] = 0
        for neighbour in reversed(neighbours):
            shared = box.overlap(neighbour.box)
            if shared and own.overlap(shared) != shared:
                part_of_neighbour = shared.seen_from(neighbour.box)
                found[shared.within(box)] = neighbour.read(name, part_of_neighbour)
        if shared := box.overlap(own):
            found[shared.within(box)] = values[shared.within(inside)]
        return found

    larger = Scene(scene.names, (whole.height, whole.width), scene.metres_per_pixel, read)
    return larger, own.seen_from(whole)


def _with_margin(own: Box, neighbours: Sequence[Box], margin: tuple[int, int]) -> Box:
    """Return an image's rectangle, grown by a margin on the sides that a neighbour touches.

    The margin is never larger than the image itself; otherwise tiny images would be almost all
    margin.
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
    """Crop a road graph to a rectangle and move it to the rectangle's pixels.

    Coordinates stay on the vectoriser's grid of 0.1 pixel. Roads keep their speed and confidence;
    their lengths are measured again.
    """
    corner = np.array((box.left, box.top), np.float64)
    points = np.concatenate([np.empty((0, 2)), *(edge.line for edge in graph.edges)])
    edges_of = np.repeat(np.arange(len(graph.edges)), [len(edge.line) for edge in graph.edges])
    lines = shapely.linestrings(points, indices=edges_of)
    # Unlike an intersection, this keeps a line whole where it crosses itself.
    clipped = shapely.clip_by_rect(lines, box.left, box.top, box.right, box.bottom)
    parts, of_edge = shapely.get_parts(clipped, return_index=True)
    inside = shapely.covered_by(lines, shapely.box(box.left, box.top, box.right, box.bottom))
    pieces = [(graph.edges[i].line - corner, graph.edges[i]) for i in np.flatnonzero(inside)]
    for part, index in zip(parts, of_edge.tolist(), strict=True):
        if inside[index] or part.geom_type != "LineString":
            continue
        line = np.round(shapely.get_coordinates(part) - corner, 1)
        line = line[np.append(True, (np.diff(line, axis=0) != 0).any(axis=1))]
        if len(line) >= 2:
            pieces.append((line, graph.edges[index]))
    if not pieces:
        return RoadGraph()
    # Ends at the same place become one node.
    ends = np.concatenate([line[[0, -1]] for line, _ in pieces])
    nodes, inverse = np.unique(np.round(ends, 1), axis=0, return_inverse=True)
    edges = []
    for (line, edge), (start, stop) in zip(pieces, inverse.reshape(-1, 2).tolist(), strict=True):
        line = np.concatenate([nodes[[start]], line[1:-1], nodes[[stop]]])
        length = line_length_m(line, metres_per_pixel)
        edges.append(RoadEdge((start, stop), line, length, edge.speed_mps, edge.confidence))
    return RoadGraph(nodes, tuple(edges))


def find_surroundings(footprints: Sequence[ImageFootprint]) -> list[list[Neighbour]]:
    """Return for each image the images that it must be kept together with.

    Two images belong together if one of them appears in the margin of the other
    (:func:`surrounded`). Only sides that another image touches have a margin.

    Returns:
        A list per image, nearest corner first. The relation is symmetric: if an image lists another
        one, the other one lists it too.
    """
    sizes = [f.georeference.metres_per_pixel for f in footprints if f.georeference is not None]
    if not sizes:
        return [[] for _ in footprints]
    margin = margin_px((min(x for x, _ in sizes), min(y for _, y in sizes)))
    near = find_neighbours(footprints, margin)
    pairs: set[tuple[int, int]] = set()
    for index, (footprint, others) in enumerate(zip(footprints, near, strict=True)):
        own = Box(0, 0, footprint.width, footprint.height)
        boxes = [Box(column, row, *footprints[image][1:]) for image, column, row in others]
        whole = _with_margin(own, boxes, margin)
        for other, box in zip(others, boxes, strict=True):
            shown = whole.overlap(box)
            if shown and own.overlap(shown) != shown:
                pairs |= {(index, other.image), (other.image, index)}
    return [[n for n in others if (index, n.image) in pairs] for index, others in enumerate(near)]


@dataclass(frozen=True)
class RoadDecoder:
    """Convert the probability maps of an image into its road graph.

    Attributes:
        settings: settings of the vectoriser.
        metres_per_pixel: pixel size of rasters without georeference.
    """

    settings: RoadSettings
    metres_per_pixel: float

    def decode(self, prediction: ProbabilityMaps) -> RoadGraph:
        """Return the road graph of an image, ignoring its neighbours."""
        return vectorize_roads(prediction, self.settings)

    def decode_file(
        self,
        path: Path,
        neighbours: Sequence[tuple[Path, int, int]] = (),
        *,
        check_scale: bool = False,
    ) -> RoadGraph:
        """Return the road graph of a raster, vectorised together with its neighbours.

        Args:
            path: raster of probability maps.
            neighbours: path of each neighbouring raster, and the column and row of its first pixel
                in the pixels of ``path``. Missing and unreadable files are skipped.
            check_scale: reject a raster with values 0 and 1 instead of 0..255.

        Raises:
            SatmapError: the raster is damaged, or its values are not probabilities.
        """
        beside = [neighbour for neighbour in neighbours if neighbour[0].exists()]
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_map_file(path, self.metres_per_pixel, ROAD_FILE_MAPS))
            around = self._surroundings(file, beside, stack)
            scene, box = surrounded(file.scene, around)
            pixels = file.width * file.height
            in_windows = file.has_windows and len(file.names) * pixels > MAX_VALUES_IN_MEMORY
            graph = vectorize_roads(scene if in_windows else scene.at_once(), self.settings)
            if scene.shape != file.scene.shape:
                graph = crop_graph(graph, box, scene.metres_per_pixel)
            if check_scale:
                file.check_scale()
        return graph

    def _surroundings(
        self,
        file: MapFile,
        neighbours: Sequence[tuple[Path, int, int]],
        stack: contextlib.ExitStack,
    ) -> list[Surrounding]:
        """Open the usable neighbours with the same maps; ``stack`` closes them."""
        own = Box(0, 0, file.width, file.height)
        x, y = margin_px(file.scene.metres_per_pixel)
        reach = own.grown(min(x, file.width), min(y, file.height))
        found = []
        for path, column, row in neighbours:
            try:
                other = stack.enter_context(
                    open_map_file(path, self.metres_per_pixel, ROAD_FILE_MAPS)
                )
                box = Box(column, row, other.width, other.height)
                shared = reach.overlap(box)
                if other.names != file.names or shared is None or shared == own.overlap(box):
                    continue
                # A damaged neighbour must not make this image fail, so read all that is needed of
                # it now.
                for part in shared.seen_from(box).tiles(_PROBE_PX, _PROBE_PX):
                    for name in other.names:
                        other.read(name, part)
            except SatmapError:
                continue
            found.append(Surrounding(box, other.read))
        return found
