"""Scenes: planes too large to be held in memory, read window by window.

The steps on pixels go through windows anyway (centre_lines.py). The steps on the network ask for
the probability at places all over the scene, again and again, so the two planes they ask are kept,
small enough: in tiles, of which only a limited number is open and the others are deflated. Of the
speeds only the places on the finished roads are ever read.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from satmap.rasters.probability_maps import ProbabilityMaps


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels.

    Attributes:
        left, top: its first column and row.
        width, height: its size.
    """

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The column behind its last."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The row behind its last."""
        return self.top + self.height

    def grown(self, x: int, y: int) -> "Box":
        """The same with a margin on all sides."""
        return Box(self.left - x, self.top - y, self.width + 2 * x, self.height + 2 * y)

    def overlap(self, other: "Box") -> "Box | None":
        """What two rectangles share; None if that is nothing."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        width = min(self.right, other.right) - left
        height = min(self.bottom, other.bottom) - top
        return Box(left, top, width, height) if width > 0 and height > 0 else None

    def seen_from(self, other: "Box") -> "Box":
        """The same where the other's first pixel is column 0, row 0."""
        return Box(self.left - other.left, self.top - other.top, self.width, self.height)

    def tiles(self, width: int, height: int) -> list["Box"]:
        """The rectangle in parts of that size, those at its right and bottom smaller; by rows."""
        return [
            Box(left, top, min(width, self.right - left), min(height, self.bottom - top))
            for top in range(self.top, self.bottom, height)
            for left in range(self.left, self.right, width)
        ]

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and columns of an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, outer: "Box") -> tuple[slice, slice]:
        """Rows and columns of an array of ``outer``'s size that are this rectangle's."""
        rows = slice(self.top - outer.top, self.bottom - outer.top)
        return rows, slice(self.left - outer.left, self.right - outer.left)


# Width and height of a tile.
_TILE = 512
# Scenes are read in strips as high as a tile and at most so wide: files are stored in rows or in
# tiles of that size or less.
_STRIP = 32 * _TILE
# Bytes of the tiles of a plane that stay open.
_OPEN_BYTES = 256 << 20

Ints = NDArray[np.int64]


class ProbabilityMap(Protocol):
    """One plane: an array (height, width) of 0..255, or what can be asked like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width."""

    def __getitem__(self, index: tuple[Any, Any], /) -> NDArray[np.uint8]:
        """Pixels by slices of rows and columns, or by arrays of both."""


class PackedMap:
    """A plane in tiles; what is empty or repeats itself takes little memory."""

    def __init__(self, height: int, width: int, open_bytes: int) -> None:
        """An empty plane.

        Args:
            height: its size,
            width: in pixels.
            open_bytes: bytes of tiles that are kept as they are; further ones are deflated.
        """
        self.shape = (height, width)
        self._free = open_bytes
        # By row and column of tiles; no entry where all is 0.
        self._tiles: dict[tuple[int, int], NDArray[np.uint8] | bytes] = {}

    def fill(self, box: Box, values: NDArray[np.uint8]) -> None:
        """Set a rectangle of whole tiles, the plane's last row and column of tiles as they are."""
        for part in box.tiles(_TILE, _TILE):
            tile = values[part.within(box)]
            if not tile.any():
                continue
            key = part.top // _TILE, part.left // _TILE
            if self._free >= tile.nbytes:
                self._free -= tile.nbytes
                self._tiles[key] = tile.copy()
            else:
                self._tiles[key] = zlib.compress(tile.tobytes(), 1)

    def __getitem__(self, index: tuple[Any, Any]) -> NDArray[np.uint8]:
        """Pixels by slices of rows and columns, or by arrays of both."""
        if isinstance(index[0], slice):
            return self._rectangle(*index)
        rows, columns = np.broadcast_arrays(*index)
        shape, found = rows.shape, np.zeros(rows.size, np.uint8)
        rows, columns = rows.ravel(), columns.ravel()
        per_row = self.shape[1] // _TILE + 1
        for number, here in _grouped(rows // _TILE * per_row + columns // _TILE):
            key = divmod(number, per_row)
            if key in self._tiles:
                found[here] = self._tile(key)[rows[here] % _TILE, columns[here] % _TILE]
        return found.reshape(shape)

    def _rectangle(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        box = Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        found = np.zeros((box.height, box.width), np.uint8)
        for row in range(box.top // _TILE, (box.bottom - 1) // _TILE + 1):
            for column in range(box.left // _TILE, (box.right - 1) // _TILE + 1):
                tile = Box(column * _TILE, row * _TILE, _TILE, _TILE)
                shared = tile.overlap(box)
                if shared and (row, column) in self._tiles:
                    found[shared.within(box)] = self._tile((row, column))[shared.within(tile)]
        return found

    def _tile(self, key: tuple[int, int]) -> NDArray[np.uint8]:
        tile = self._tiles[key]
        if not isinstance(tile, bytes):
            return tile
        width = min(_TILE, self.shape[1] - key[1] * _TILE)
        return np.frombuffer(zlib.decompress(tile), np.uint8).reshape(-1, width)


@dataclass(frozen=True)
class Scene:
    """The probability planes of a large image.

    Attributes:
        names: one name a plane, such as ``road``.
        shape: height and width, pixels.
        metres_per_pixel: size of a pixel along x and along y.
        read: gives the pixels of a plane within a rectangle of the image, uint8 (height, width),
            0..255 for 0..1.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    metres_per_pixel: tuple[float, float]
    read: Callable[[str, Box], NDArray[np.uint8]]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> ProbabilityMap:
        """A whole map, read once and kept in compressed tiles."""
        if name not in self._packed:
            packed = self._packed[name] = PackedMap(*self.shape, _OPEN_BYTES)
            for strip in strips(self.shape):
                packed.fill(strip, self.read(name, strip))
        return self._packed[name]

    @cached_property
    def _packed(self) -> dict[str, PackedMap]:
        return {}

    def at(self, names: Sequence[str], rows: Ints, columns: Ints) -> NDArray[np.uint8]:
        """Values of some planes at pixels: rows and columns (...) -> (names, ...)."""
        found = np.zeros((len(names), rows.size), np.uint8)
        all_strips = strips(self.shape)
        per_row = -(-self.shape[1] // _STRIP)
        flat_rows, flat_columns = rows.ravel(), columns.ravel()
        for number, here in _grouped(flat_rows // _TILE * per_row + flat_columns // _STRIP):
            strip = all_strips[number]
            within = flat_rows[here] - strip.top, flat_columns[here] - strip.left
            for index, name in enumerate(names):
                found[index, here] = self.read(name, strip)[within]
        return found.reshape(len(names), *rows.shape)

    def at_once(self) -> ProbabilityMaps:
        """All planes, read."""
        height, width = self.shape
        whole = Box(0, 0, width, height)
        values = np.stack([self.read(name, whole) for name in self.names])
        return ProbabilityMaps(self.names, values, self.metres_per_pixel)

    @classmethod
    def of(cls, maps: ProbabilityMaps) -> "Scene":
        """Planes in memory as a scene."""
        return cls(
            maps.names,
            maps.shape,
            maps.metres_per_pixel,
            lambda name, box: maps[name][box.pixels],
        )


#: What the vectoriser takes.
MapSource = ProbabilityMaps | Scene


def strips(shape: tuple[int, ...]) -> list[Box]:
    """A scene in rectangles that files give at once, and that are whole tiles; row after row."""
    height, width = shape
    return Box(0, 0, width, height).tiles(_STRIP, _TILE)


def _grouped(numbers: Ints) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each number that occurs, ascending, and where."""
    order = np.argsort(numbers, kind="stable")
    ascending = numbers[order]
    first = np.flatnonzero(np.diff(ascending, prepend=-1))
    yield from zip(ascending[first].tolist(), np.split(order, first[1:]), strict=False)
