"""Join the buildings of the blocks of a map into one list without duplicates or gaps.

Each block is vectorised with a margin of its neighbours and reports every building that touches its
own rectangle. So a building on a seam is found once in each of the blocks that it touches. Of the
copies, the one of the block that holds most of the building is kept. A building that reaches beyond
the margin is cut there; its copies are united.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import shapely
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from satmap.rasters.scene import Box
from satmap.rasters.surroundings import with_margin
from satmap.tasks.buildings.result_decoder import MARGIN_PX
from satmap.vectors.buildings import Building, Polygons

# Two buildings of different blocks are the same if they share this part of the smaller one. Of cut
# ones, only the parts that both blocks see are compared.
_SAME = 0.5
# A building whose outline ends this close to the end of the margin was cut there. Simplified
# outlines need not reach the end.
_CUT_PX = 2
# Tolerance for simplifying a joined building: where its copies meet, their outlines differ by less.
_SIMPLIFY_PX = 1
# Blocks this close may touch.
_NEAR_PX = 4


def join_blocks(
    blocks: Iterable[tuple[Box, Iterable[Building]]], margin: int = MARGIN_PX
) -> list[Building]:
    """Join the buildings of blocks.

    The result does not depend on the order of the blocks.

    Args:
        blocks: rectangle of each block in the map, and its buildings in pixels of the block.
        margin: pixels around a block that its buildings were found in.

    Returns:
        The buildings in pixels of the map, from top to bottom.
    """
    found: list[Building] = []
    block_of: list[int] = []
    places: list[Box] = []
    boxes: list[shapely.Polygon] = []
    for number, (box, buildings) in enumerate(
        sorted(blocks, key=lambda block: (block[0].top, block[0].left))
    ):
        places.append(box)
        boxes.append(_rectangle(box))
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
    seen = np.array([_rectangle(box) for box in _seen(places, boxes, margin)], np.object_)[block_of]
    groups = _groups_of_cut(polygons, own, seen, order)
    in_group = {index for group in groups for index in group}
    rank = {
        index: (index in in_group, float(shares[index]), found[index].score, -index)
        for pair in order
        for index in pair
    }
    # The best copies first, so that one that is dropped cannot suppress a third one.
    for one, other in sorted(order, key=lambda pair: max(rank[i] for i in pair), reverse=True):
        if not (keep[one] and keep[other]) or {one, other} <= in_group:
            continue
        shared = polygons[one].intersection(polygons[other]).area
        if shared > _SAME * min(polygons[one].area, polygons[other].area):
            keep[min((one, other), key=rank.__getitem__)] = False
    kept = [found[index] for index in np.flatnonzero(keep).tolist() if index not in in_group]
    kept += [_united([found[index] for index in group]) for group in groups]
    # A building that only reaches into a block was not found by the block that holds it.
    return sorted(kept, key=lambda b: (b.polygon.bounds[1], b.polygon.bounds[0], b.polygon.wkb))


def _rectangle(box: Box) -> shapely.Polygon:
    return shapely.box(box.left, box.top, box.right, box.bottom)


def _seen(places: Sequence[Box], boxes: Sequence[shapely.Polygon], margin_px: int) -> list[Box]:
    """Return what each block was vectorised from: its rectangle with its margin."""
    tree = shapely.STRtree(boxes)
    seen = []
    for box, rectangle in zip(places, boxes, strict=True):
        near = tree.query(rectangle.buffer(_NEAR_PX)).tolist()
        margin = with_margin(
            box.seen_from(box), [places[index].seen_from(box) for index in near],
            (margin_px, margin_px),
        )  # fmt: skip
        seen.append(Box(box.left + margin.left, box.top + margin.top, margin.width, margin.height))
    return seen


def _groups_of_cut(
    polygons: Polygons, own: Polygons, seen: Polygons, pairs: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """Find the copies of each building that at least one block has cut at the end of its margin.

    Args:
        polygons: buildings, (n,).
        own: rectangle of each one's block, (n,).
        seen: rectangle that this block was vectorised from, (n,).
        pairs: indices of buildings of different blocks that intersect.

    Returns:
        Indices of the copies, two or more of each building.
    """
    outer, inner, bounds = shapely.bounds(seen), shapely.bounds(own), shapely.bounds(polygons)
    is_cut = ((outer != inner) & (np.abs(bounds - outer) <= _CUT_PX)).any(axis=1)
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    either = is_cut[one] | is_cut[other]
    one, other = one[either], other[either]
    # Without the end of the margin, where other buildings may show as slivers.
    common = shapely.buffer(shapely.intersection(seen[one], seen[other]), -_CUT_PX)
    parts = shapely.intersection(polygons[one], common)
    others = shapely.intersection(polygons[other], common)
    smaller = np.minimum(shapely.area(parts), shapely.area(others))
    same = shapely.area(shapely.intersection(parts, others)) > _SAME * smaller
    one, other = one[same], other[same]
    graph = sparse.coo_array((np.ones(len(one)), (one, other)), shape=2 * (len(polygons),))
    _, group = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for index in np.union1d(one, other).tolist():
        members.setdefault(int(group[index]), []).append(index)
    return list(members.values())


def _united(copies: Sequence[Building]) -> Building:
    """Unite copies of a building; their scores and probabilities are weighted by area."""
    polygons = [copy.polygon for copy in copies]
    areas = shapely.area(polygons)
    whole = shapely.union_all(polygons).simplify(_SIMPLIFY_PX)

    def mean_of(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.average(known, weights=areas)) if len(known) == len(copies) else None

    confidence = mean_of([copy.confidence for copy in copies])
    mean = mean_of([copy.mean_probability for copy in copies])
    if mean is None:
        score = float(np.average([copy.score for copy in copies], weights=areas))
        return Building(whole, score, confidence=confidence)
    # The score without a model, of the whole area.
    return Building(whole, mean * math.sqrt(whole.area), mean, confidence)
