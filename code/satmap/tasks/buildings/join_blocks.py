"""Join the buildings of the blocks of a map into one list without duplicates or gaps.

Each block is vectorised with a margin of its neighbours and reports every building that touches its
own rectangle. So a building on a seam is found once in each of the blocks that it touches. Of the
copies, the one of the block that holds most of the building is kept.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import shapely

from satmap.rasters.scene import Box
from satmap.vectors.buildings import Building

# Two buildings of different blocks are the same if they share this part of the smaller one.
_SAME = 0.5


def join_blocks(blocks: Iterable[tuple[Box, Iterable[Building]]]) -> list[Building]:
    """Join the buildings of blocks.

    The result does not depend on the order of the blocks.

    Args:
        blocks: rectangle of each block in the map, and its buildings in pixels of the block.

    Returns:
        The buildings in pixels of the map, from top to bottom.
    """
    found: list[Building] = []
    block_of: list[int] = []
    boxes = []
    for number, (box, buildings) in enumerate(
        sorted(blocks, key=lambda block: (block[0].top, block[0].left))
    ):
        boxes.append(shapely.box(box.left, box.top, box.right, box.bottom))
        moved = [
            replace(b, polygon=shapely.affinity.translate(b.polygon, box.left, box.top))
            for b in buildings
        ]
        touching = [b for b in moved if b.polygon.intersects(boxes[number])]
        found += touching
        block_of += [number] * len(touching)
    if not found:
        return []
    polygons = np.array([building.polygon for building in found], np.object_)
    own = np.array(boxes, np.object_)[block_of]
    shares = shapely.area(shapely.intersection(polygons, own)) / shapely.area(polygons)
    on_seam = np.flatnonzero(shares < 1)
    keep = np.ones(len(found), np.bool_)
    # Only buildings on seams can have copies; a copy may lie in its block entirely.
    tree = shapely.STRtree(polygons)
    pairs = tree.query(polygons[on_seam], predicate="intersects")
    order = sorted(
        {(min(a, b), max(a, b)) for a, b in zip(on_seam[pairs[0]].tolist(), pairs[1].tolist(),
         strict=True) if block_of[a] != block_of[b]}
    )  # fmt: skip
    rank = {
        index: (float(shares[index]), found[index].confidence, -index)
        for pair in order
        for index in pair
    }
    # The best copies first, so that one that is dropped cannot suppress a third one.
    for one, other in sorted(order, key=lambda pair: max(rank[i] for i in pair), reverse=True):
        if not (keep[one] and keep[other]):
            continue
        shared = polygons[one].intersection(polygons[other]).area
        if shared > _SAME * min(polygons[one].area, polygons[other].area):
            keep[min((one, other), key=rank.__getitem__)] = False
    kept = [found[index] for index in np.flatnonzero(keep).tolist()]
    # A building that only reaches into a block was not found by the block that holds it.
    return sorted(kept, key=lambda b: (b.polygon.bounds[1], b.polygon.bounds[0], b.polygon.wkb))
