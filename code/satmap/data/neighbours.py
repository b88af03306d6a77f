"""Which images lie beside each other, by their georeferences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely

from satmap.data.georeference import Georeference

# Pixels of neighbours may differ by this share: over a margin of 200 pixels by 0.2 of one.
_SAME_SIZE = 1e-3


class Footprint(NamedTuple):
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
    footprints: Sequence[Footprint], margin_px: tuple[int, int]
) -> list[list[Neighbour]]:
    """For each image those that lie on it or within a margin of it.

    Only images on like grids can be laid side by side pixel by pixel: of one reference system, with
    pixels of one size and no rotation.

    Args:
        footprints: of all images.
        margin_px: the margin along x and y.

    Returns:
        A list an image, nearest corner first; empty for images without georeference.
    """
    placed = [
        index
        for index, footprint in enumerate(footprints)
        if footprint.georeference is not None and _is_upright(footprint.georeference)
    ]
    found: list[list[Neighbour]] = [[] for _ in footprints]
    boxes = shapely.box(*np.array([_bounds(footprints[i]) for i in placed]).reshape(-1, 4).T)
    tree = shapely.STRtree(boxes)
    for index in placed:
        here, width, height = footprints[index]
        assert here is not None
        transform = here.transform
        x, y = margin_px
        left, top = transform @ (-x, -y)
        right, bottom = transform @ (width + x, height + y)
        around = shapely.box(min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        for place in tree.query(around, predicate="intersects").tolist():
            other = placed[place]
            there = footprints[other].georeference
            assert there is not None
            if other == index or not _alike(here, there):
                continue
            corner = ~transform @ (there.transform.c, there.transform.f)
            found[index].append(Neighbour(other, round(corner[0]), round(corner[1])))
        found[index].sort(key=lambda n: (n.column**2 + n.row**2, n.image))
    return found


def _is_upright(georeference: Georeference) -> bool:
    return georeference.transform.b == georeference.transform.d == 0


def _alike(a: Georeference, b: Georeference) -> bool:
    sizes = np.array([(g.transform.a, g.transform.e) for g in (a, b)])
    return a.crs == b.crs and bool(np.allclose(sizes[0], sizes[1], rtol=_SAME_SIZE, atol=0))


def _bounds(footprint: Footprint) -> tuple[float, float, float, float]:
    georeference, width, height = footprint
    assert georeference is not None
    (left, top), (right, bottom) = (
        georeference.transform @ corner for corner in ((0, 0), (width, height))
    )
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)
