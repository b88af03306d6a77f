"""Decoder: from probability maps to road graphs, with neighbouring chips or the rest of a scene.

The evidence for a road that crosses the image's edge lies partly beyond that edge. It shows whether
a gap closes, how fast the road is, and whether its end is a dead end. So an image is vectorised
together with a margin of its surroundings, and the result is cropped. (XD_XD also cleaned
SpaceNet 5's chips across their borders, but only after vectorising each chip alone.) Sides without
a touching neighbour get no margin. Unknown parts of a margin have no roads. If they repeated the
border instead, a road along the border would become a wide square.

This module works without torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import shapely

from satmap.data.neighbours import ImageFootprint, Neighbour, find_neighbours
from satmap.rasters.map_files import MAX_VALUES_IN_MEMORY, open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, MapSource
from satmap.rasters.surroundings import read_surroundings, surrounded, with_margin
from satmap.tasks.calibration import read_calibration
from satmap.tasks.roads.measures import rate_roads
from satmap.tasks.roads.settings import ROAD_FILE_MAPS, RoadSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadGraph, line_length_m

# Width of the margin in metres: twice the reach of a bridge.
_MARGIN_M = 66.0


def margin_px(metres_per_pixel: tuple[float, float]) -> tuple[int, int]:
    """Return the width of the margin in whole pixels along x and y."""
    x, y = metres_per_pixel
    return ceil(_MARGIN_M / x), ceil(_MARGIN_M / y)


def crop_graph(graph: RoadGraph, box: Box, metres_per_pixel: tuple[float, float]) -> RoadGraph:
    """Crop a road graph to a rectangle and move it to the rectangle's pixels.

    Coordinates stay on the vectoriser's grid of 0.1 pixel. Roads keep their attributes; their
    lengths are measured again.
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
        edges.append(replace(edge, nodes=(start, stop), line=line, length_m=length))
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
        whole = with_margin(own, boxes, margin)
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
        calibration: file of the model that computes confidences; None to leave roads uncalibrated.
    """

    settings: RoadSettings
    metres_per_pixel: float
    calibration: Path | None = None

    def decode(self, prediction: ProbabilityMaps) -> RoadGraph:
        """Return the road graph of an image, ignoring its neighbours."""
        return self._rated(prediction)

    def _rated(self, maps: MapSource) -> RoadGraph:
        """Return the road graph of maps, with confidences if there is a calibration."""
        graph = vectorize_roads(maps, self.settings)
        if self.calibration is None:
            return graph
        return rate_roads(graph, maps, read_calibration(self.calibration))

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
        with open_map_file(path, self.metres_per_pixel, ROAD_FILE_MAPS) as file:
            margin = margin_px(file.scene.metres_per_pixel)
            around = read_surroundings(file, neighbours, ROAD_FILE_MAPS, margin)
            scene, box = surrounded(file.scene, around, margin)
            pixels = file.width * file.height
            in_windows = file.has_windows and len(file.names) * pixels > MAX_VALUES_IN_MEMORY
            graph = self._rated(scene if in_windows else scene.at_once())
            if scene.shape != file.scene.shape:
                graph = crop_graph(graph, box, scene.metres_per_pixel)
            if check_scale:
                file.check_scale()
        return graph
