"""Which images or masks are vectorised together with which others around them."""

from collections.abc import Sequence

from satmap.data.neighbours import Footprint, Neighbour, find_neighbours
from satmap.roads.box import Box
from satmap.roads.context import looked_at, widest_margin_px


def find_surroundings(footprints: Sequence[Footprint]) -> list[list[Neighbour]]:
    """For each image those that its roads are traced with, or that are traced with it.

    Those show in its margin (:func:`satmap.roads.context.surrounded`), which it has only on sides
    where another image touches it.

    Args:
        footprints: of all images.

    Returns:
        A list an image, nearest corner first. If one image is in the list of another, the other is
        in its list, too: each must be kept for the other.
    """
    sizes = [f.georeference.metres_per_pixel for f in footprints if f.georeference is not None]
    if not sizes:
        return [[] for _ in footprints]
    margin = widest_margin_px(sizes)
    near = find_neighbours(footprints, margin)
    pairs: set[tuple[int, int]] = set()
    for index, (footprint, others) in enumerate(zip(footprints, near, strict=True)):
        own = Box(0, 0, footprint.width, footprint.height)
        boxes = [_box(other, footprints) for other in others]
        whole = looked_at(own, boxes, margin)
        for other, box in zip(others, boxes, strict=True):
            shown = whole.overlap(box)
            if shown and own.overlap(shown) != shown:
                pairs |= {(index, other.image), (other.image, index)}
    return [[n for n in others if (index, n.image) in pairs] for index, others in enumerate(near)]


def _box(neighbour: Neighbour, footprints: Sequence[Footprint]) -> Box:
    _, width, height = footprints[neighbour.image]
    return Box(neighbour.column, neighbour.row, width, height)
