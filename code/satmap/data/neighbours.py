"""Which images lie beside each other, by their georeferences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.vectors.georeference import Georeference

# Pixels of neighbours may differ by this share: over a margin of 200 pixels by 0.2 of one.
_SAME_SIZE = 1e-3


class ImageFootprint(NamedTuple):
    """Where an image lies.

    Attributes:
        georeference: None where the image has none.
        width, height: its size in pixels.
    """

    georeference: Georeference | None
    width: int
    height: int


class Neighbour(NamedTuple):
    """An image beside another.

    Attributes:
        image: which, an index.
        column, row: where its first pixel lies in the other's pixels.
    """

    image: int
    column: int
    row: int


def find_neighbours(
    footprints: Sequence[ImageFootprint], margin_px: tuple[int, int]
) -> list[list[Neighbour]]:
    """For each image those that lie on it or within a margin of it.

    Only images on like grids can be laid side by side pixel by pixel: of one reference system, with
    pixels of one size and no rotation.

    Args:
        footprints: of all images.
        margin_px: the margin along x and y, of small images at most their own size: else thousands
            of tiny ones would have hundreds of neighbours each.

    Returns:
        A list an image, nearest corner first; empty for images without georeference. If one image
        is in the list of another, the other is in its list, too.
    """
    placed = [
        index
        for index, footprint in enumerate(footprints)
        if footprint.georeference is not None and _is_upright(footprint.georeference)
    ]
    found: list[list[Neighbour]] = [[] for _ in footprints]
    if not placed:
        return found
    grids = [georeference for i in placed if (georeference := footprints[i].georeference)]
    pixel = np.array([(grid.transform.a, grid.transform.e) for grid in grids])
    corner = np.array([(grid.transform.c, grid.transform.f) for grid in grids])
    size = np.array([footprints[i][1:] for i in placed])
    systems = {crs: number for number, crs in enumerate({grid.crs for grid in grids})}
    system = np.array([systems[grid.crs] for grid in grids])

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


def _is_upright(georeference: Georeference) -> bool:
    return georeference.transform.b == georeference.transform.d == 0


def _boxes(first: NDArray[np.float64], last: NDArray[np.float64]) -> NDArray[np.object_]:
    """Rectangles by two opposite corners each, (n, 2) and (n, 2)."""
    boxes: NDArray[np.object_] = shapely.box(*np.minimum(first, last).T, *np.maximum(first, last).T)
    return boxes
