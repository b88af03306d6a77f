"""The roads of one raster of planes, with a look at what lies around it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from satmap.errors import SatmapError
from satmap.mask_files import MaskFile, open_mask
from satmap.roads.box import Box
from satmap.roads.context import Surrounding, crop, margin_px, surrounded
from satmap.roads.graph import RoadGraph
from satmap.roads.settings import RoadSettings
from satmap.roads.vectorize import vectorize

#: Rasters of more values than this, all bands together, are held in windows and not at once.
LARGEST = 128_000_000

# Neighbours are tried in parts of this width and height.
_PROBE_PX = 512


def roads_of_mask(
    mask: MaskFile,
    neighbours: Sequence[tuple[Path, int, int]],
    settings: RoadSettings | None,
    metres_per_pixel: float,
) -> RoadGraph:
    """The roads of an open raster, in its pixels.

    Args:
        mask: of planes.
        neighbours: the rasters around it, and at which of its columns and rows each one's first
            pixel lies. What cannot be read counts as absent.
        settings: of the vectoriser; None for its defaults.
        metres_per_pixel: of neighbours that do not say how large their pixels are.

    Raises:
        SatmapError: the raster is damaged, or its numbers are no probabilities.
    """
    with contextlib.ExitStack() as stack:
        around = _surroundings(mask, neighbours, metres_per_pixel, stack)
        scene, box = surrounded(mask.scene, around)
        in_windows = mask.has_windows and len(mask.names) * mask.width * mask.height > LARGEST
        graph = vectorize(scene if in_windows else scene.at_once(), settings)
    mask.check_scale()
    alone = scene.shape == mask.scene.shape
    return graph if alone else crop(graph, box, scene.metres_per_pixel)


def _surroundings(
    mask: MaskFile,
    neighbours: Sequence[tuple[Path, int, int]],
    metres_per_pixel: float,
    stack: contextlib.ExitStack,
) -> list[Surrounding]:
    """The neighbours that are sound and of the same kind, opened on the stack."""
    own = Box(0, 0, mask.width, mask.height)
    x, y = margin_px(mask.scene.metres_per_pixel)
    seen = own.grown(min(x, mask.width), min(y, mask.height))
    found = []
    for path, column, row in neighbours:
        try:
            other = stack.enter_context(open_mask(path, metres_per_pixel))
            box = Box(column, row, other.width, other.height)
            shared = seen.overlap(box)
            if other.names != mask.names or shared is None or shared == own.overlap(box):
                continue
            # What is damaged must not cost this mask too.
            for part in shared.seen_from(box).tiles(_PROBE_PX, _PROBE_PX):
                for name in other.names:
                    other.read(name, part)
        except SatmapError:
            continue
        found.append(Surrounding(box, other.read))
    return found
