"""Drawn road masks, and short descriptions of the graphs that they become."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.roads.settings import ROAD
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadGraph

SCALE = (0.3, 0.3)
WIDTH = 14

Points = Sequence[tuple[float, float]]


def draw(
    *lines: Points, shape: tuple[int, int] = (400, 400), value: int = 255, width: int = WIDTH
) -> NDArray[np.uint8]:
    """Draw roads about ``width`` pixels wide; the centre of pixel (0, 0) is at (.5, .5)."""
    mask = np.zeros(shape, np.uint8)
    for line in lines:
        # Sixteenths of a pixel; OpenCV counts from pixel centres.
        points = np.round((np.array(line) - 0.5) * 16).astype(np.int32)
        cv2.polylines(mask, [points], False, value, width, shift=4)
    return mask


def graph_of(mask: NDArray[np.uint8], scale: tuple[float, float] = SCALE) -> RoadGraph:
    return vectorize_roads(ProbabilityMaps((ROAD,), mask[None], scale))


def degrees(graph: RoadGraph) -> list[int]:
    ends = np.array([edge.nodes for edge in graph.edges], np.int64).reshape(-1)
    return sorted(np.bincount(ends, minlength=len(graph.nodes)).tolist())


def total_m(graph: RoadGraph) -> float:
    return sum(edge.length_m for edge in graph.edges)
