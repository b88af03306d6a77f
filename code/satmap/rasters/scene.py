"""Scenes: probability maps too large for memory, read window by window.

Pixel operations go through windows anyway (centre_lines.py). Operations on the road network read
probabilities all over the scene again and again. The two maps that they need are therefore kept in
memory, in tiles: a limited number uncompressed, the others deflated. Speed maps are read only at
the finished roads.
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
        left, top: first column and row.
        width, height: size in pixels.
    """

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The column after the last."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The row after the last."""
        return self.top + self.height

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Shapely takes them."""
        return self.left, self.top, self.right, self.bottom

    def grown(self, x: int, y: int) -> "Box":
        """Return the box with a margin of ``x`` columns and ``y`` rows on each side."""
        return Box(self.left - x, self.top - y, self.width + 2 * x, self.height + 2 * y)

    def overlap(self, other: "Box") -> "Box | None":
        """Return the intersection with another box; None if it is empty."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        width = min(self.right, other.right) - left
        height = min(self.bottom, other.bottom) - top
        return Box(left, top, width, height) if width > 0 and height > 0 else None

    def seen_from(self, other: "Box") -> "Box":
        """Return the box relative to the first pixel of ``other``."""
        return Box(self.left - other.left, self.top - other.top, self.width, self.height)

    def tiles(self, width: int, height: int) -> list["Box"]:
        """Split the box into tiles, row by row; those at the right and bottom may be smaller."""
        return [
            Box(left, top, min(width, self.right - left), min(height, self.bottom - top))
            for top in range(self.top, self.bottom, height)
            for left in range(self.left, self.right, width)
        ]

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Slices of the rows and columns of the box in an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, outer: "Box") -> tuple[slice, slice]:
        """Return slices of the rows and columns of the box in an array that covers ``outer``."""
        return self.seen_from(outer).pixels


# Width and height of a tile.
_TILE = 512
# Maximum width of the strips in which scenes are read. Strips are as high as a tile, because files
# are stored in rows or in tiles of at most that size.
_STRIP = 32 * _TILE
# Bytes of a map's tiles that stay uncompressed.
_OPEN_BYTES = 256 << 20

Ints = NDArray[np.int64]


class ProbabilityMap(Protocol):
    """A probability map: an array (height, width) of 0..255, or an object indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width."""

    def __getitem__(self, index: tuple[Any, Any], /) -> NDArray[np.uint8]:
        """Pixels by slices of rows and columns, or by arrays of both."""


class PackedMap:
    """A map in compressed tiles; empty and repetitive areas take little memory."""

    def __init__(self, height: int, width: int, open_bytes: int) -> None:
        """Create an empty map. Tiles beyond ``open_bytes`` bytes are deflated."""
        self.shape = (height, width)
        self._free = open_bytes
        # By row and column of tiles; tiles of zeros have no entry.
        self._tiles: dict[tuple[int, int], NDArray[np.uint8] | bytes] = {}

    def fill(self, box: Box, values: NDArray[np.uint8]) -> None:
        """Set a rectangle of whole tiles; tiles at the map's right and bottom may be smaller."""
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
        shape, values = rows.shape, np.zeros(rows.size, np.uint8)
        rows, columns = rows.ravel(), columns.ravel()
        per_row = self.shape[1] // _TILE + 1
        for number, here in _grouped(rows // _TILE * per_row + columns // _TILE):
            key = divmod(number, per_row)
            if key in self._tiles:
                values[here] = self._tile(key)[rows[here] % _TILE, columns[here] % _TILE]
        return values.reshape(shape)

    def _rectangle(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        box = Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        values = np.zeros((box.height, box.width), np.uint8)
        for row in range(box.top // _TILE, (box.bottom - 1) // _TILE + 1):
            for column in range(box.left // _TILE, (box.right - 1) // _TILE + 1):
                tile = Box(column * _TILE, row * _TILE, _TILE, _TILE)
                shared = tile.overlap(box)
                if shared and (row, column) in self._tiles:
                    values[shared.within(box)] = self._tile((row, column))[shared.within(tile)]
        return values

    def _tile(self, key: tuple[int, int]) -> NDArray[np.uint8]:
        tile = self._tiles[key]
        if not isinstance(tile, bytes):
            return tile
        width = min(_TILE, self.shape[1] - key[1] * _TILE)
        return np.frombuffer(zlib.decompress(tile), np.uint8).reshape(-1, width)


@dataclass(frozen=True)
class Scene:
    """Probability maps of a large image.

    Attributes:
        names: one name per map, such as ``road``.
        shape: height and width, pixels.
        metres_per_pixel: size of a pixel along x and along y.
        read: returns the pixels of a map within a rectangle of the image, uint8 (height, width),
            0..255 for 0..1.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    metres_per_pixel: tuple[float, float]
    read: Callable[[str, Box], NDArray[np.uint8]]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> ProbabilityMap:
        """Return a whole map, read once and kept in compressed tiles."""
        if name not in self._packed:
            packed = self._packed[name] = PackedMap(*self.shape, _OPEN_BYTES)
            for strip in strips(self.shape):
                packed.fill(strip, self.read(name, strip))
        return self._packed[name]

    @cached_property
    def _packed(self) -> dict[str, PackedMap]:
        return {}

    def at(self, names: Sequence[str], rows: Ints, columns: Ints) -> NDArray[np.uint8]:
        """Return values of some maps at pixels: rows and columns (...) -> (names, ...)."""
        values = np.zeros((len(names), rows.size), np.uint8)
        all_strips = strips(self.shape)
        per_row = -(-self.shape[1] // _STRIP)
        flat_rows, flat_columns = rows.ravel(), columns.ravel()
        for number, here in _grouped(flat_rows // _TILE * per_row + flat_columns // _STRIP):
            strip = all_strips[number]
            within = flat_rows[here] - strip.top, flat_columns[here] - strip.left
            for index, name in enumerate(names):
                values[index, here] = self.read(name, strip)[within]
        return values.reshape(len(names), *rows.shape)

    def at_once(self) -> ProbabilityMaps:
        """Read all maps."""
        height, width = self.shape
        whole = Box(0, 0, width, height)
        values = np.empty((len(self.names), height, width), np.uint8)
        for target, name in zip(values, self.names, strict=True):
            target[...] = self.read(name, whole)
        return ProbabilityMaps(self.names, values, self.metres_per_pixel)

    @classmethod
    def of(cls, maps: ProbabilityMaps) -> "Scene":
        """Wrap maps in memory as a scene."""
        return cls(
            maps.names,
            maps.shape,
            maps.metres_per_pixel,
            lambda name, box: maps[name][box.pixels],
        )


#: Input of the vectorisers.
MapSource = ProbabilityMaps | Scene


def strips(shape: tuple[int, ...]) -> list[Box]:
    """Split a scene into strips of whole tiles that files can read efficiently, row by row."""
    height, width = shape
    return Box(0, 0, width, height).tiles(_STRIP, _TILE)


def _grouped(numbers: Ints) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each distinct number, in ascending order, and its indices."""
    order = np.argsort(numbers, kind="stable")
    ascending = numbers[order]
    first = np.flatnonzero(np.diff(ascending, prepend=-1))
    yield from zip(ascending[first].tolist(), np.split(order, first[1:]), strict=False)
