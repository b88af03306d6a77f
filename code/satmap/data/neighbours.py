"""Find adjacent images by their georeferences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.vectors.georeference import Georeference

# Largest relative difference of pixel sizes between neighbours: 0.2 pixels over 200 pixels.
_SAME_SIZE = 1e-3


class ImageFootprint(NamedTuple):
    """Position of an image, None if unknown, and its size in pixels."""

    georeference: Georeference | None
    width: int
    height: int


class Neighbour(NamedTuple):
    """Image that is adjacent to or overlaps a reference image.

    ``image`` is its index. ``column`` and ``row`` are those of its first pixel in the reference
    image's pixel grid.
    """

    image: int
    column: int
    row: int


def find_neighbours(
    footprints: Sequence[ImageFootprint], margin_px: tuple[int, int]
) -> list[list[Neighbour]]:
    """Find, for each image, the images that overlap it or lie within a margin of it.

    Only images on compatible grids can be joined pixel by pixel: the same coordinate reference
    system, the same pixel size and no rotation.

    Args:
        footprints: one per image.
        margin_px: margin along x and y in pixels. It is limited to the image's own size; otherwise
            thousands of tiny images would have hundreds of neighbours each.

    Returns:
        One list per image, nearest corner first; empty for images without georeference. The
        relation is symmetric: if A is in the list of B, B is in the list of A.
    """
    found: list[list[Neighbour]] = [[] for _ in footprints]
    grids = {
        index: grid
        for index, (grid, _, _) in enumerate(footprints)
        if grid is not None and grid.transform.b == grid.transform.d == 0
    }
    if not grids:
        return found
    placed = [*grids]
    pixel = np.array([(grid.transform.a, grid.transform.e) for grid in grids.values()])
    corner = np.array([(grid.transform.c, grid.transform.f) for grid in grids.values()])
    size = np.array([footprints[index][1:] for index in placed])
    systems = {crs: number for number, crs in enumerate({grid.crs for grid in grids.values()})}
    system = np.array([systems[grid.crs] for grid in grids.values()])

    margin = np.minimum(margin_px, size)
    tree = shapely.STRtree(_boxes(corner, corner + size * pixel))
    around = _boxes(corner - margin * pixel, corner + (size + margin) * pixel)
    here, there = tree.query(around, predicate="intersects")
    alike = (here != there) & (system[here] == system[there])
    alike &= np.isclose(pixel[here], pixel[there], rtol=_SAME_SIZE, atol=0).all(axis=1)
    pairs = np.stack([here[alike], there[alike]], axis=1)
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)

    here, there = pairs.T
    offset = np.rint((corner[there] - corner[here]) / pixel[here]).astype(np.int64)
    nearest_first = np.lexsort((there, (offset**2).sum(axis=1), here))
    rows = np.column_stack([pairs, offset])[nearest_first].tolist()
    for image, other, column, row in rows:
        found[placed[image]].append(Neighbour(placed[other], column, row))
    return found


def _boxes(first: NDArray[np.float64], last: NDArray[np.float64]) -> NDArray[np.object_]:
    """Build rectangles from two opposite corners each, (n, 2) and (n, 2)."""
    boxes: NDArray[np.object_] = shapely.box(*np.minimum(first, last).T, *np.maximum(first, last).T)
    return boxes
