"""Planes in memory with those of their neighbours around them."""

from collections.abc import Sequence

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, Scene
from satmap.tasks.roads.tiles import Surrounding, surrounded


def with_surroundings(
    maps: ProbabilityMaps, neighbours: Sequence[tuple[ProbabilityMaps, int, int]]
) -> tuple[ProbabilityMaps, Box]:
    """Planes with a margin filled from their neighbours, and where in it the image lies.

    Args:
        maps: of an image.
        neighbours: planes, and column and row of the image at which each one's first pixel lies.
    """
    around = []
    for other, column, row in neighbours:
        if other.names != maps.names:
            raise ValueError(f"a neighbour has planes {other.names}, the image {maps.names}")
        height, width = other.shape
        around.append(Surrounding(Box(column, row, width, height), Scene.of(other).read))
    scene, box = surrounded(Scene.of(maps), around)
    return scene.at_once(), box
