"""Probability maps in memory, surrounded by those of their neighbours."""

from collections.abc import Sequence

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, Scene
from satmap.rasters.surroundings import Surrounding, surrounded
from satmap.tasks.roads.tiles import margin_px


def with_surroundings(
    maps: ProbabilityMaps, neighbours: Sequence[tuple[ProbabilityMaps, int, int]]
) -> tuple[ProbabilityMaps, Box]:
    """Return maps with a margin filled from the neighbours, and the box of the image in them.

    Args:
        maps: maps of an image.
        neighbours: maps, and the column and row in the image of each one's first pixel.
    """
    around = []
    for other, column, row in neighbours:
        if other.names != maps.names:
            raise ValueError(f"a neighbour has maps {other.names}, the image {maps.names}")
        height, width = other.shape
        around.append(Surrounding(Box(column, row, width, height), Scene.of(other).read))
    scene, box = surrounded(Scene.of(maps), around, margin_px(maps.metres_per_pixel))
    return scene.at_once(), box
