"""Extend an image's probability maps by a margin from the images around it."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.rasters.map_files import MapFile, open_map_file
from satmap.rasters.scene import Box, Scene

# Gap between neighbours, caused by rounded georeferences, that is filled by repeating the border.
_SEAM_PX = 2
# Width and height of the parts in which neighbours are read.
_PART_PX = 512


class Surrounding(NamedTuple):
    """Rectangle of a neighbour in a scene's pixels, and a reader of its maps in its own pixels."""

    box: Box
    read: Callable[[str, Box], NDArray[np.uint8]]


def surrounded(
    scene: Scene, neighbours: Sequence[Surrounding], margin: tuple[int, int]
) -> tuple[Scene, Box]:
    """Extend a scene by a margin (x, y) in pixels, filled from neighbours with the same maps.

    Where neighbours overlap, the first one counts, but never over the scene itself. The margin is 0
    where no neighbour covers it. Sides that no neighbour touches get no margin, because the
    vectorisers handle image edges themselves.

    Returns:
        The larger scene, and the rectangle of the original scene in it.
    """
    height, width = scene.shape
    own = Box(0, 0, width, height)
    whole = with_margin(own, [box for box, _ in neighbours], margin)
    around = own.grown(_SEAM_PX, _SEAM_PX)
    seams = (
        Box(around.left, around.top, around.width, _SEAM_PX),
        Box(around.left, height, around.width, _SEAM_PX),
        Box(around.left, 0, _SEAM_PX, height),
        Box(width, 0, _SEAM_PX, height),
    )

    def read(name: str, part: Box) -> NDArray[np.uint8]:
        box = part.seen_from(own.seen_from(whole))
        left, top = (
            min(max(at, 0), size - 1) for at, size in ((box.left, width), (box.top, height))
        )
        right, bottom = min(max(box.right, 1), width), min(max(box.bottom, 1), height)
        inside = Box(left, top, right - left, bottom - top)
        values = scene.read(name, inside)
        if inside == box:
            return values
        found = np.zeros((box.height, box.width), np.uint8)
        # Narrow gaps between the images are filled by repeating the border pixels of this one.
        for side in seams:
            if near := box.overlap(side):
                rows = np.arange(near.top, near.bottom).clip(top, bottom - 1) - top
                columns = np.arange(near.left, near.right).clip(left, right - 1) - left
                found[near.within(box)] = values[rows][:, columns]
        for neighbour in reversed(neighbours):
            shared = box.overlap(neighbour.box)
            if shared and own.overlap(shared) != shared:
                part_of_neighbour = shared.seen_from(neighbour.box)
                found[shared.within(box)] = neighbour.read(name, part_of_neighbour)
        if shared := box.overlap(own):
            found[shared.within(box)] = values[shared.within(inside)]
        return found

    larger = Scene(scene.names, (whole.height, whole.width), scene.metres_per_pixel, read)
    return larger, own.seen_from(whole)


def with_margin(own: Box, neighbours: Sequence[Box], margin: tuple[int, int]) -> Box:
    """Return an image's rectangle, grown by a margin on the sides that a neighbour touches.

    The margin is never larger than the image itself; otherwise tiny images would be almost all
    margin.
    """
    x, y = min(margin[0], own.width), min(margin[1], own.height)
    left, top, right, bottom = (
        size if any(side.overlap(box) for box in neighbours) else 0
        for size, side in (
            (x, Box(-_SEAM_PX - 1, 0, _SEAM_PX + 1, own.height)),
            (y, Box(0, -_SEAM_PX - 1, own.width, _SEAM_PX + 1)),
            (x, Box(own.width, 0, _SEAM_PX + 1, own.height)),
            (y, Box(0, own.height, own.width, _SEAM_PX + 1)),
        )
    )
    return Box(-left, -top, left + own.width + right, top + own.height + bottom)


def read_surroundings(
    file: MapFile,
    neighbours: Sequence[tuple[Path, int, int]],
    kinds: Mapping[int, tuple[str, ...]],
    margin: tuple[int, int],
) -> list[Surrounding]:
    """Read the margin of a raster from its usable neighbours, which have the same maps.

    Args:
        file: the raster.
        neighbours: rasters around it, each with the column and row of its first pixel in pixels of
            ``file``. Files that do not exist or are damaged are ignored.
        kinds: as for :func:`satmap.rasters.map_files.open_map_file`.
        margin: pixels along x and y that are needed of the neighbours.
    """
    own = Box(0, 0, file.width, file.height)
    reach = own.grown(min(margin[0], file.width), min(margin[1], file.height))
    found = []
    for path, column, row in neighbours:
        if not path.exists():
            continue
        # A damaged neighbour must not make this image fail, so read all that is needed of it now.
        # The pixel size of the neighbours is not used.
        with contextlib.suppress(SatmapError), open_map_file(path, 1.0, kinds) as other:
            box = Box(column, row, other.width, other.height)
            shared = reach.overlap(box)
            if other.names == file.names and shared and shared != own.overlap(box):
                found.append(_read_part(other, box, shared))
    return found


def _read_part(file: MapFile, box: Box, shared: Box) -> Surrounding:
    """Read the rectangle ``shared`` of a neighbour, whose own rectangle is ``box``, in parts."""
    inside = shared.seen_from(box)
    maps = {name: np.empty((inside.height, inside.width), np.uint8) for name in file.names}
    for part in inside.tiles(_PART_PX, _PART_PX):
        for name, values in maps.items():
            values[part.within(inside)] = file.read(name, part)
    return Surrounding(box, lambda name, part: maps[name][part.within(inside)])
