"""Cut imagery for web maps: one picture for a file, or tiles on demand for the local server.

Pictures and tiles are in Web Mercator. Rasters of any size are read in windows, so memory stays
bounded. No tile may have to read many pixels. So :meth:`Imagery.prepare` writes reduced copies of
large rasters without overviews to a temporary file, and keeps one small picture of everything.
"""

import math
import os
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image

from satmap.data.layers import Layer
from satmap.data.sources import HALF_WORLD_M, WEB_MERCATOR, find_sources, opened
from satmap.errors import SatmapError
from satmap.io.geojson_reader import LON_LAT, project
from satmap.io.progress import track
from satmap.rasters.scene import Box
from satmap.report.imagery import rgb_layers

TILE_PX = 256

#: The deepest zoom level of tiles: pixels of 2 cm.
DEEPEST_ZOOM = 22

# A picture is read in blocks of this many pixels.
_BLOCK_PX = 512

# Tiles of small scales are cut from a picture with this part of the finest pixels along each side,
# within limits.
_OVERVIEW_PART = 1 / 5
_OVERVIEW_PX = 1024, 4096

# Larger rasters get reduced copies: halves of halves, until this many pixels remain.
_REDUCED_PX = 4096 * 4096
# Rows that are reduced at once.
_STRIP = 512

# Threads that read rasters.
_READERS = min(os.cpu_count() or 1, 4)

# Pictures are bent to the map's projection in squares of this many pixels.
_MESH_PX = 64
# Pixels that are read may be larger than those of the tile by this factor.
_TOO_LARGE = 1.2
# Pixels around a window that resampling needs.
_KERNEL_PX = 3

# Most tiles that are kept. One has about 20 kB.
_KEPT_TILES = 512

# Pictures in files: the longest side, its limit in bytes, and the part of the map's size that the
# imagery shows around the map.
_PICTURE_PX = 4096
_PICTURE_BYTES = 5_000_000
_MARGIN, _LEAST_MARGIN_M = 0.08, 60.0
_QUALITY = 82

Pixels = NDArray[np.uint8]


class Imagery:
    """Rasters with a georeference, as one image in Web Mercator."""

    def __init__(
        self,
        places: Sequence[str | Path],
        *,
        crs: str | None = None,
        zoom: int | None = None,
    ) -> None:
        """Find the rasters.

        Args:
            places: as for :func:`satmap.data.sources.find_sources`.
            crs: reference system of rasters that state none.
            zoom: zoom level of map tiles; None for all.

        Raises:
            SatmapError: there is no raster with a georeference, or none can be read.
        """
        names = ", ".join(map(str, places))
        layers = [layer for layer in rgb_layers(find_sources(places, crs=crs, zoom=zoom).sources)
                  if layer.georeference is not None]  # fmt: skip
        if not layers:
            raise SatmapError(
                f"no raster of {names} has a georeference, so none has a place on the map."
            )
        self._layers = tuple(sorted(layers, key=_pixel_m))
        self._copies: dict[int, _ReducedCopies] = {}
        self._crs = rasterio.crs.CRS.from_user_input(WEB_MERCATOR).to_wkt()
        self._cache: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        # Few tiles at a time bound the memory, however many are requested.
        self._readers = threading.Semaphore(_READERS)

    @cached_property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """West, south, east and north of the rasters, in metres of Web Mercator."""
        low, high = self._bounds_of_layers.reshape(-1, 2, 2).transpose(1, 0, 2)
        return (*low.min(axis=0).tolist(), *high.max(axis=0).tolist())

    @cached_property
    def _bounds_of_layers(self) -> NDArray[np.float64]:
        """West, south, east and north of each layer, in metres of Web Mercator."""
        found = []
        for layer in self._layers:
            assert layer.georeference is not None
            steps = np.linspace(0, 1, 9)
            x, y = (grid.ravel() for grid in np.meshgrid(steps * layer.width, steps * layer.height))
            places = layer.georeference.to_map(np.column_stack([x, y]))
            try:
                corners = project(places, layer.georeference.crs, self._crs)
            except ValueError as error:
                raise SatmapError(f"{layer.name}: its coordinates {error}.") from error
            found.append([*corners.min(axis=0), *corners.max(axis=0)])
        return np.array(found)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north of the rasters, in degrees."""
        west, south, east, north = self.bounds_m
        places = project(np.array([[west, south], [east, north]]), self._crs, LON_LAT)
        return (*places[0].tolist(), *places[1].tolist())

    def is_near(self, bounds: tuple[float, float, float, float]) -> bool:
        """Return whether some of the imagery lies within a map's west, south, east and north."""
        west, south, east, north = self.bounds
        return west <= bounds[2] and bounds[0] <= east and south <= bounds[3] and bounds[1] <= north

    @cached_property
    def pixel_m(self) -> float:
        """Size of the finest pixels, in metres of Web Mercator."""
        latitude = (self.bounds[1] + self.bounds[3]) / 2
        return _pixel_m(self._layers[0]) / max(math.cos(math.radians(latitude)), 0.05)

    @property
    def deepest_zoom(self) -> int:
        """The zoom level whose tiles have pixels at most as large as the finest ones."""
        zoom = math.ceil(math.log2(2 * HALF_WORLD_M / TILE_PX / self.pixel_m) - 0.1)
        return min(max(zoom, 0), DEEPEST_ZOOM)

    def read(
        self,
        west: float,
        north: float,
        metres: float,
        width: int,
        height: int,
        *,
        fast: bool = False,
    ) -> Pixels:
        """Read a rectangle of Web Mercator.

        Args:
            west: left border, metres.
            north: upper border, metres.
            metres: size of a pixel.
            width: pixels.
            height: pixels.
            fast: interpolate linearly, not by cubic splines.

        Returns:
            uint8 (height, width, 4): red, green, blue and alpha, which is 0 without data.
        """
        result = np.zeros((height, width, 4), np.uint8)
        corner = np.array([west + width * metres, north])
        bounds = self._bounds_of_layers
        near = (bounds[:, :2] < corner) & (bounds[:, 2:] > [west, north - height * metres])
        for number in np.flatnonzero(near.all(axis=1)).tolist():
            found = self._read_layer(number, west, north, metres, (width, height), fast)
            if found is not None:
                free = result[..., 3] == 0
                np.copyto(result, found, where=free[..., None])
                if free.sum() == (found[..., 3][free] > 0).sum():
                    break
        return result

    def _read_layer(
        self,
        number: int,
        west: float,
        north: float,
        metres: float,
        size: tuple[int, int],
        fast: bool,
    ) -> Pixels | None:
        """Read a rectangle of a layer as red, green, blue and alpha; None if nothing is there."""
        layer = self._layers[number]
        assert layer.georeference is not None
        columns, rows = map(_marks, size)
        x, y = np.meshgrid(columns, rows)
        places = np.column_stack([west + x.ravel() * metres, north - y.ravel() * metres])
        mesh = layer.georeference.to_pixels(places, self._crs)
        corners = mesh.reshape(*x.shape, 2)[[0, 0, -1, -1], [0, -1, -1, 0]]
        (a, b), (c, d) = corners[2] - corners[0], corners[3] - corners[1]
        ratio = math.sqrt(abs(a * d - b * c) / 2 / math.prod(size))
        copies = self._copies.get(number)
        # Pixels that are slightly too large are not seen, and much faster than too many.
        reduce = max(int(ratio * _TOO_LARGE), 1)
        if copies is not None:
            reduce = copies.nearest(reduce)
        mesh = mesh / reduce
        whole = np.ceil(np.array([layer.width, layer.height]) / reduce)
        low = np.maximum(np.floor(mesh.min(axis=0)) - _KERNEL_PX, 0)
        high = np.minimum(np.ceil(mesh.max(axis=0)) + _KERNEL_PX, whole)
        if (low >= high).any():
            return None
        left, top, right, bottom = (int(value) for value in (*low, *high))
        if copies is not None and reduce > 1:
            colours = copies.read(reduce, left, top, right, bottom)
        else:
            sides = (left, top, right - left, bottom - top)
            box = Box(*(value * reduce for value in sides))
            colours = layer.read_stretched(box, {}, reduce).transpose(1, 2, 0)
        alpha = colours.any(axis=2)
        if not alpha.any():
            return None
        image = Image.fromarray(np.dstack([colours, alpha * np.uint8(255)]))
        source = (mesh - low).reshape(*x.shape, 2)
        pieces = [
            (
                (columns[i], rows[j], columns[i + 1], rows[j + 1]),
                source[[j, j + 1, j + 1, j], [i, i, i + 1, i + 1]].ravel().tolist(),
            )
            for j in range(len(rows) - 1)
            for i in range(len(columns) - 1)
        ]
        way = Image.Resampling.BILINEAR if fast else Image.Resampling.BICUBIC
        found = np.array(image.transform(size, Image.Transform.MESH, pieces, way))
        # Half-transparent borders would show as seams between rasters.
        found[..., 3] = np.where(found[..., 3] > 127, 255, 0)
        return found

    def picture(
        self, bounds: tuple[float, float, float, float]
    ) -> tuple[bytes, list[list[float]]] | None:
        """Return the imagery around a map as WebP, in limited size.

        Args:
            bounds: west, south, east and north of the map, in degrees.

        Returns:
            The file, and its corners in degrees: upper left, upper right, lower right, lower left.
            None if there is no imagery there.
        """
        west, south, east, north = bounds
        (x0, y0), (x1, y1) = project(np.array([[west, south], [east, north]]), LON_LAT, self._crs)
        margin = max(_MARGIN * max(x1 - x0, y1 - y0), _LEAST_MARGIN_M)
        own = self.bounds_m
        x0, y0 = max(x0 - margin, own[0]), max(y0 - margin, own[1])
        x1, y1 = min(x1 + margin, own[2]), min(y1 + margin, own[3])
        if x0 >= x1 or y0 >= y1:
            return None
        pixels, metres = self._whole(x0, y0, x1, y1, _PICTURE_PX)
        content = _webp(pixels)
        while len(content) > _PICTURE_BYTES:
            image = Image.fromarray(pixels)
            pixels = np.asarray(image.resize((image.width * 3 // 4, image.height * 3 // 4)))
            content = _webp(pixels)
        x1, y0 = x0 + metres[0], y1 - metres[1]
        corners = project(np.array([[x0, y1], [x1, y1], [x1, y0], [x0, y0]]), self._crs, LON_LAT)
        return content, corners.tolist()

    def _whole(
        self, west: float, south: float, east: float, north: float, longest: int
    ) -> tuple[Pixels, tuple[float, float]]:
        """Read a rectangle with a limited number of pixels; also return its sides in metres."""
        metres = max(max(east - west, north - south) / longest, self.pixel_m)
        width, height = (max(math.ceil(side / metres), 1) for side in (east - west, north - south))
        pixels = np.zeros((height, width, 4), np.uint8)
        boxes = Box(0, 0, width, height).tiles(_BLOCK_PX, _BLOCK_PX)
        for box in track(boxes, "reading imagery", len(boxes)):
            pixels[box.top : box.bottom, box.left : box.right] = self.read(
                west + box.left * metres, north - box.top * metres, metres, box.width, box.height
            )
        return pixels, (width * metres, height * metres)

    @cached_property
    def _overview(self) -> list[tuple[Pixels, float]]:
        """All imagery in one picture and its halves, and the size of their pixels in metres."""
        west, south, east, north = self.bounds_m
        wanted = round(max(east - west, north - south) / self.pixel_m * _OVERVIEW_PART)
        longest = min(max(wanted, _OVERVIEW_PX[0]), _OVERVIEW_PX[1])
        pixels, sides = self._whole(west, south, east, north, longest)
        metres = sides[0] / pixels.shape[1]
        found = [(pixels, metres)]
        while max(pixels.shape) > 2 * TILE_PX:
            pixels, metres = np.asarray(Image.fromarray(pixels).reduce(2)), 2 * metres
            found.append((pixels, metres))
        return found

    def prepare(self) -> None:
        """Reduce large rasters, and read the overview from which tiles of small scales are cut."""
        for number, layer in enumerate(self._layers):
            if _needs_copies(layer):
                self._copies[number] = _ReducedCopies(layer)
        _ = self._overview

    def tile(self, zoom: int, x: int, y: int) -> bytes | None:
        """Return a tile of a web map as WebP; None if there is no imagery there.

        Safe to call from several threads. Recent tiles are kept.
        """
        side = 2 * HALF_WORLD_M / 2**zoom
        west, north = x * side - HALF_WORLD_M, HALF_WORLD_M - y * side
        own = self.bounds_m
        if west >= own[2] or west + side <= own[0] or north <= own[1] or north - side >= own[3]:
            return None
        key = zoom, x, y
        with self._lock:
            if (kept := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return kept
        with self._readers:
            # The coarsest picture that is fine enough.
            fine = [each for each in self._overview if side / TILE_PX >= 0.99 * each[1]]
            if fine:
                pixels = self._from_overview(*fine[-1], west, north, side)
            else:
                pixels = self.read(west, north, side / TILE_PX, TILE_PX, TILE_PX, fast=True)
            content = _webp(pixels, method=0)
        with self._lock:
            self._cache[key] = content
            while len(self._cache) > _KEPT_TILES:
                self._cache.popitem(last=False)
        return content

    def _from_overview(
        self, overview: Pixels, metres: float, west: float, north: float, side: float
    ) -> Pixels:
        """Cut a tile out of the overview."""
        left, top = (west - self.bounds_m[0]) / metres, (self.bounds_m[3] - north) / metres
        span = side / metres
        height, width = overview.shape[:2]
        # The part of the tile that the overview covers, in pixels of the tile.
        scale = TILE_PX / span
        x0, x1 = max(round(-left * scale), 0), min(round((width - left) * scale), TILE_PX)
        y0, y1 = max(round(-top * scale), 0), min(round((height - top) * scale), TILE_PX)
        tile = np.zeros((TILE_PX, TILE_PX, 4), np.uint8)
        if x0 >= x1 or y0 >= y1:
            return tile
        box = (
            max(left + x0 / scale, 0),
            max(top + y0 / scale, 0),
            min(left + x1 / scale, width),
            min(top + y1 / scale, height),
        )
        # Crop first: a whole overview takes long to convert.
        crop_x, crop_y = math.floor(box[0]), math.floor(box[1])
        part = Image.fromarray(
            overview[crop_y : math.ceil(box[3]) + 1, crop_x : math.ceil(box[2]) + 1]
        )
        inside = (box[0] - crop_x, box[1] - crop_y, box[2] - crop_x, box[3] - crop_y)
        small = part.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, inside)
        tile[y0:y1, x0:x1] = np.asarray(small)
        return tile


class _ReducedCopies:
    """Copies of a layer with a half, a quarter, ... of its pixels along each side, on the disk."""

    def __init__(self, layer: Layer) -> None:
        self._factors: dict[int, tuple[int, int, int]] = {}
        width, height, factor, offset = layer.width, layer.height, 1, 0
        while width * height > _REDUCED_PX // 4:
            width, height, factor = -(-width // 2), -(-height // 2), 2 * factor
            self._factors[factor] = height, width, offset
            offset += height * width * 3
        # The file has no name, so it goes with this process.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._file.truncate(offset)
        strips = range(0, layer.height, _STRIP)

        def reduce(top: int) -> None:
            box = Box(0, top, layer.width, min(_STRIP, layer.height - top))
            self._write(2, top // 2, layer.read_stretched(box, {}, 2).transpose(1, 2, 0))

        with ThreadPoolExecutor(_READERS) as pool:
            try:
                for _ in track(pool.map(reduce, strips), f"reducing {layer.name}", len(strips)):
                    pass
            except BaseException:
                # Ctrl-C must not wait for all strips.
                pool.shutdown(cancel_futures=True)
                raise
        for factor, (height, _, _) in self._factors.items():
            if 2 * factor not in self._factors:
                break
            for top in range(0, height, _STRIP):
                strip = self.read(
                    factor, 0, top, self._factors[factor][1], min(top + _STRIP, height)
                )
                self._write(2 * factor, top // 2, _halved(strip))

    def nearest(self, reduce: int) -> int:
        """Return the largest factor of a copy that is not above a number; 1 for the original."""
        return max((factor for factor in self._factors if factor <= reduce), default=1)

    def read(self, factor: int, left: int, top: int, right: int, bottom: int) -> Pixels:
        """Return a rectangle of a copy, uint8 (h, w, 3)."""
        return np.array(self._mapped(factor)[top:bottom, left:right])

    def _write(self, factor: int, top: int, rows: Pixels) -> None:
        self._mapped(factor)[top : top + len(rows)] = rows

    def _mapped(self, factor: int) -> "np.memmap[tuple[int, ...], np.dtype[np.uint8]]":
        # Mapped anew each time: pages that stay mapped would count as memory of this process.
        height, width, offset = self._factors[factor]
        return np.memmap(self._file, np.uint8, "r+", offset, (height, width, 3))


def _needs_copies(layer: Layer) -> bool:
    """Return whether tiles of a layer would read many pixels, and its copies fit on the disk."""
    if layer.width * layer.height <= _REDUCED_PX or any(x.is_remote for x in layer.sources):
        return False
    if shutil.disk_usage(tempfile.gettempdir()).free < 3 * layer.width * layer.height:
        return False
    try:
        for source in layer.sources:
            with opened(source) as file:
                if 2 not in file.overviews(1):
                    return True
    except SatmapError:
        return True
    return False


def _halved(pixels: Pixels) -> Pixels:
    """Return the means of 2 x 2 pixels, without those that have no data."""
    if pixels.any(axis=2).all():
        return np.asarray(Image.fromarray(pixels).reduce(2))
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0))).astype(np.uint16)
    quads = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, 3)
    count = np.maximum(quads.any(axis=4).sum(axis=(1, 3), dtype=np.uint16), 1)[..., None]
    halved: Pixels = ((quads.sum(axis=(1, 3), dtype=np.uint16) + count // 2) // count).astype(
        np.uint8
    )
    return halved


def _pixel_m(layer: Layer) -> float:
    assert layer.georeference is not None
    return layer.georeference.gsd_m


def _marks(size: int) -> list[int]:
    """Return the borders of squares along a side."""
    return [*range(0, size, _MESH_PX), size]


def _webp(pixels: Pixels, method: int = 4) -> bytes:
    buffer = BytesIO()
    if pixels[..., 3].all():
        pixels = pixels[..., :3]
    Image.fromarray(pixels).save(buffer, "WEBP", quality=_QUALITY, method=method)
    return buffer.getvalue()
