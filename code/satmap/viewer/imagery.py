"""Cut imagery for web maps: one picture for a file, or tiles on demand for the local server.

Rasters of any size are read in windows by :mod:`satmap.data.mosaic`, so memory stays bounded.
Pictures and tiles are in Web Mercator.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from satmap.data.mosaic import Mosaic
from satmap.data.sources import HALF_WORLD_M, WEB_MERCATOR, find_sources
from satmap.errors import SatmapError
from satmap.io.geojson_reader import LON_LAT, project
from satmap.io.progress import track
from satmap.rasters.scene import Box
from satmap.report.imagery import rgb_layers
from satmap.vectors.georeference import Georeference

TILE_PX = 256

#: The deepest zoom level of tiles: pixels of 2 cm.
DEEPEST_ZOOM = 22

# A picture is read in blocks of this many pixels.
_BLOCK_PX = 512

# Tiles of small scales are cut from a picture with this part of the finest pixels along each side,
# within limits. Other tiles then read few pixels of the rasters.
_OVERVIEW_PART = 1 / 5
_OVERVIEW_PX = 1024, 4096

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
        self._layers = tuple(
            sorted(layers, key=lambda layer: layer.georeference.gsd_m if layer.georeference else 0)
        )
        self._crs = rasterio.crs.CRS.from_user_input(WEB_MERCATOR).to_wkt()
        self._cache: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        # Two tiles at a time bound the memory, however many are requested.
        self._readers = threading.Semaphore(2)

    @cached_property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """West, south, east and north of the rasters, in metres of Web Mercator."""
        corners = []
        for layer in self._layers:
            assert layer.georeference is not None
            steps = np.linspace(0, 1, 9)
            x, y = (grid.ravel() for grid in np.meshgrid(steps * layer.width, steps * layer.height))
            places = layer.georeference.to_map(np.column_stack([x, y]))
            try:
                corners.append(project(places, layer.georeference.crs, self._crs))
            except ValueError as error:
                raise SatmapError(f"{layer.name}: its coordinates {error}.") from error
        points = np.concatenate(corners)
        return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())

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
        finest = self._layers[0]
        assert finest.georeference is not None
        latitude = (self.bounds[1] + self.bounds[3]) / 2
        return finest.georeference.gsd_m / max(math.cos(math.radians(latitude)), 0.05)

    @property
    def deepest_zoom(self) -> int:
        """The zoom level whose tiles have pixels at most as large as the finest ones."""
        zoom = math.ceil(math.log2(2 * HALF_WORLD_M / TILE_PX / self.pixel_m) - 0.1)
        return min(max(zoom, 0), DEEPEST_ZOOM)

    def read(self, west: float, north: float, metres: float, width: int, height: int) -> Pixels:
        """Read a rectangle of Web Mercator.

        Args:
            west: left border, metres.
            north: upper border, metres.
            metres: size of a pixel.
            width: pixels.
            height: pixels.

        Returns:
            uint8 (height, width, 4): red, green, blue and alpha, which is 0 without data.
        """
        transform = Affine(metres, 0, west, 0, -metres, north)
        grid = Georeference(self._crs, transform, (metres, metres))
        mosaic = Mosaic(self._layers, grid, width, height, None)
        colours = mosaic.read(Box(0, 0, width, height), {})
        alpha = np.where(colours.any(axis=2), 255, 0).astype(np.uint8)
        return np.dstack([colours, alpha])

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
    def _overview(self) -> tuple[Pixels, float]:
        """All imagery in one picture of limited size, and the size of its pixels in metres."""
        west, south, east, north = self.bounds_m
        wanted = round(max(east - west, north - south) / self.pixel_m * _OVERVIEW_PART)
        longest = min(max(wanted, _OVERVIEW_PX[0]), _OVERVIEW_PX[1])
        pixels, sides = self._whole(west, south, east, north, longest)
        return pixels, sides[0] / pixels.shape[1]

    def prepare(self) -> None:
        """Read the overview from which tiles of small scales are cut."""
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
            overview, metres = self._overview
            if side / TILE_PX >= 0.99 * metres:
                pixels = self._from_overview(overview, metres, west, north, side)
            else:
                pixels = self.read(west, north, side / TILE_PX, TILE_PX, TILE_PX)
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


def _webp(pixels: Pixels, method: int = 4) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=_QUALITY, method=method)
    return buffer.getvalue()
