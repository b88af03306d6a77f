"""Read many rasters as one image: a mosaic in one reference system, at one pixel size, in 8 bits.

Rasters that share a pixel grid, such as map tiles or the quarters of a scene, form a layer and are
read without resampling or seams. Each layer has one contrast stretch, computed from a sample of its
pixels. A mosaic resamples its layers to the grid of the map. A map that lies on a layer's own grid
gets that layer's pixels unchanged.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from satmap.data.imagery import MS_BAND_ORDER, keeps_values
from satmap.data.sources import Source, opened, reason_of
from satmap.errors import SatmapError
from satmap.rasters.scene import Box
from satmap.vectors.georeference import Georeference, georeference_of

Priority = Literal["finest", "first"]

# Offset in pixels by which rasters of one grid may differ, through rounded georeferences.
_SAME_GRID_PX = 0.01
# Sources whose pixel size differs by less from the networks' are read as they are.
_SAME_SIZE = 0.05
# Rasters form one map if its pixels have the same size in metres everywhere, within this part.
_SAME_SCALE = 0.05
# A sample for the stretch has at most this many pixels: all, or windows spread over the layer.
_SAMPLE_PX = 4 << 20
_SAMPLE_WINDOWS = 64
# Rows that are stretched at once; the intermediate values take several times their memory.
_ROWS = 256
# Pixels around a window that resampling needs.
_KERNEL_PX = 4
# Points per side of a rectangle that is projected to another reference system.
_SIDE_POINTS = 21
# Suffixes of the files beside a raster or shapefile that GDAL reads with it; the last ones are also
# added to its whole name.
_SIDECARS = (
    ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".dbf", ".shx", ".cpg", ".aux.xml", ".ovr", ".msk",
)  # fmt: skip
_ADDED_SIDECARS = _SIDECARS[-3:]


@dataclass(frozen=True)
class Stretch:
    """Linear stretch of every band to 8 bits.

    Attributes:
        low: values that become 0, one per band.
        high: values that become 255.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, bands: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Stretch (bands, h, w) to uint8: 0 where ``valid`` (h, w) is false, else at least 1."""
        stretched = np.empty(bands.shape, np.uint8)
        dtype = bands.dtype
        for out, band, low, high in zip(stretched, bands, self.low, self.high, strict=True):
            if dtype.kind == "f":
                for row in range(0, band.shape[0], _ROWS):
                    rows = slice(row, row + _ROWS)
                    out[rows] = _scaled(band[rows], low, high)
                continue
            limits = np.iinfo(dtype)
            table = _scaled(np.arange(limits.min, limits.max + 1, dtype=dtype), low, high)
            # NumPy counts a negative index from the end, so the roll moves the entries of negative
            # values there.
            table = np.roll(table, limits.min)
            for row in range(0, band.shape[0], _ROWS):
                rows = slice(row, row + _ROWS)
                out[rows] = table[band[rows]]
        stretched *= valid
        return stretched


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Stretch ``low`` to ``high`` to 8 bits, 1 to 255. 0 stays free for pixels without data."""
    scale = 255 / (high - low) if high > low else 0.0
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(scale)
    levels: NDArray[np.uint8] = np.rint(np.clip(np.nan_to_num(scaled), 1, 255)).astype(np.uint8)
    return levels


@dataclass(frozen=True)
class Layer:
    """Rasters of one kind on one pixel grid.

    Attributes:
        sources: the rasters, first come first shown.
        boxes: the rectangle of each in the layer's pixels.
        bands: band numbers to read, one per channel.
        georeference: of the layer's pixels; None for an image without one.
        width, height: pixels.
        stretch: to 8 bits; None until it is known.
    """

    sources: tuple[Source, ...]
    boxes: tuple[Box, ...]
    bands: tuple[int, ...]
    georeference: Georeference | None
    width: int
    height: int
    stretch: Stretch | None = None

    @property
    def name(self) -> str:
        """The name of the first raster, and how many there are."""
        others = len(self.sources) - 1
        return self.sources[0].name + (f" and {others} others on its grid" if others else "")

    @cached_property
    def _tree(self) -> shapely.STRtree:
        corners = np.array([(b.left, b.top, b.right, b.bottom) for b in self.boxes], float)
        return shapely.STRtree(shapely.box(*corners.T))

    def read(
        self, box: Box, faults: dict[str, str], reduce: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a rectangle, 0 and invalid where no raster has data.

        Args:
            box: in the layer's pixels; it may reach beyond the layer.
            faults: gets the reason of each raster that cannot be read here, for example because it
                is truncated, by name. It counts as without data.
            reduce: pixels of the rectangle, along each axis, that become one of the result:
                averaged, or the nearest one of a palette. Those of the last row and column may be
                averages of fewer.

        Returns:
            Bands (channels, h, w) in the sources' type, and bool (h, w).
        """
        height, width = -(-box.height // reduce), -(-box.width // reduce)
        bands = np.zeros((len(self.bands), height, width), self.sources[0].dtype)
        valid = np.zeros((height, width), np.bool_)
        corner = shapely.box(box.left, box.top, box.right, box.bottom)
        for index in sorted(self._tree.query(corner).tolist()):
            shared = self.boxes[index].overlap(box)
            if shared is None:
                continue
            source, place = self.sources[index], self.boxes[index]
            targets, pieces = [], []
            for piece in _whole_pixels(shared.seen_from(box), reduce):
                rows = slice(piece.top // reduce, -(-piece.bottom // reduce))
                columns = slice(piece.left // reduce, -(-piece.right // reduce))
                targets.append((rows, columns))
                left, top = piece.left + box.left - place.left, piece.top + box.top - place.top
                pieces.append(Window(left, top, piece.width, piece.height))
            try:
                shapes = [(r.stop - r.start, c.stop - c.start) for r, c in targets]
                found = _read(source, self.bands, pieces, shapes)
            except SatmapError as error:
                faults.setdefault(source.name, reason_of(source.name, error))
                continue
            for (rows, columns), (values, has_data) in zip(targets, found, strict=True):
                free = has_data & ~valid[rows, columns]
                np.copyto(bands[:, rows, columns], values, where=free)
                valid[rows, columns] |= free
        return bands, valid

    def read_stretched(
        self, box: Box, faults: dict[str, str], reduce: int = 1
    ) -> NDArray[np.uint8]:
        """Read a rectangle in 8 bits, uint8 (channels, h, w), as :meth:`Stretch.apply` does."""
        bands, valid = self.read(box, faults, reduce)
        assert self.stretch is not None
        return self.stretch.apply(bands, valid)

    def _sample_stretch(self, low: float, high: float, faults: dict[str, str]) -> Stretch:
        """Compute the stretch that maps two percentiles of the valid pixels to 0 and 255.

        Unsigned pixels of 0 do not count, as in :func:`satmap.data.imagery.stretch`. ``faults`` are
        those of :meth:`read`.
        """
        if self.sources[0].dtype == "uint8" and keeps_values(256, low, high):
            return Stretch((0.0,) * len(self.bands), (255.0,) * len(self.bands))
        samples: list[list[NDArray[Any]]] = [[] for _ in self.bands]
        for box in self._sample_boxes():
            bands, valid = self.read(box, faults)
            for sample, band in zip(samples, bands, strict=True):
                values = band[valid]
                sample.append(values[values > 0] if values.dtype.kind == "u" else values)
        lows, highs = [], []
        for sample in samples:
            values = np.sort(np.concatenate(sample))
            if not len(values):
                lows.append(0.0)
                highs.append(0.0)
                continue
            ranks = np.ceil(np.array([low, high]) / 100 * len(values)).astype(int)
            bottom, top = values[np.clip(ranks - 1, 0, len(values) - 1)].astype(float).tolist()
            lows.append(bottom)
            highs.append(max(top, bottom + 1) if values.dtype.kind in "iu" else top)
        return Stretch(tuple(lows), tuple(highs))

    def sample_means(self) -> list[float]:
        """Return the mean of each stretched band, 0..255, from a sample of the pixels with data.

        The sample is an eighth of that for the stretch; without data the list is empty.
        """
        # Rasters that cannot be read are reported elsewhere.
        parts = [self.read_stretched(box, {}) for box in self._sample_boxes()[::8]]
        pixels = np.concatenate([part[:, part.any(axis=0)] for part in parts], axis=1)
        means: list[float] = pixels.mean(axis=1).tolist() if pixels.size else []
        return means

    def _sample_boxes(self) -> list[Box]:
        """Return whole rasters, or windows spread evenly over all of them."""
        if sum(box.width * box.height for box in self.boxes) <= _SAMPLE_PX:
            return list(self.boxes)
        side = math.isqrt(_SAMPLE_PX // _SAMPLE_WINDOWS)
        windows = [tile for box in self.boxes for tile in box.tiles(side, side)]
        chosen = np.linspace(0, len(windows) - 1, min(_SAMPLE_WINDOWS, len(windows)))
        return [windows[index] for index in np.unique(chosen.astype(int))]


@dataclass(frozen=True)
class Mosaic:
    """Layers resampled to one grid.

    Attributes:
        layers: most important first.
        georeference: of the grid; None for a single image without one, in its own pixels.
        width, height: pixels of the grid.
        metres_per_pixel: along x and y; None if not known.
    """

    layers: tuple[Layer, ...]
    georeference: Georeference | None
    width: int
    height: int
    metres_per_pixel: tuple[float, float] | None
    _placements: dict[int, "_Placement | None"] = field(default_factory=dict, repr=False)

    def blocks(self, side: int) -> dict[tuple[int, int, int], Box]:
        """Divide the rasters into blocks of at most ``side`` pixels.

        Returns:
            Number of the region, row and column of each block in the region, in this order, and the
            rectangle of the block that holds rasters.
        """
        found = {}
        for number, region in enumerate(self._regions):
            for tile in region.tiles(side, side):
                box = self.covered(tile)
                if box is not None:
                    row, column = (tile.top - region.top) // side, (tile.left - region.left) // side
                    found[number, row, column] = box
        return found

    @cached_property
    def _regions(self) -> list[Box]:
        """Rectangles around rasters that touch each other, from the top; none overlaps another."""
        bounds = shapely.bounds(self._footprints[0].geometries)
        low = np.floor(np.clip(bounds[:, :2], 0, None) + _SAME_GRID_PX)
        high = np.ceil(np.minimum(bounds[:, 2:], (self.width, self.height)) - _SAME_GRID_PX)
        while True:
            # Rectangles of joined rasters may touch others, so join again until none do.
            boxes = shapely.box(*(low - 1).T, *(high + 1).T)
            one, other = shapely.STRtree(boxes).query(boxes, predicate="intersects")
            pairs = csr_array((np.ones(len(one), bool), (one, other)), (len(boxes),) * 2)
            count, group = connected_components(pairs, directed=False)
            joined_low, joined_high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
            np.minimum.at(joined_low, group, low)
            np.maximum.at(joined_high, group, high)
            if count == len(boxes):
                break
            low, high = joined_low, joined_high
        corners = np.hstack([low, high - low]).astype(int).tolist()
        regions = [Box(*corner) for corner in corners]
        return sorted(regions, key=lambda box: (box.top, box.left))

    def covered(self, box: Box) -> Box | None:
        """Return the part of a rectangle that holds rasters; None if there are none."""
        tree, _ = self._footprints
        corners = shapely.box(box.left, box.top, box.right, box.bottom)
        near = tree.geometries[tree.query(corners, predicate="intersects")]
        shared = shapely.intersection(near, corners)
        shared = shared[shapely.area(shared) > 0]
        if not len(shared):
            return None
        low, high = np.split(shapely.total_bounds(shared), 2)
        # A fraction of a pixel too much comes from rounding.
        left, top = np.floor(low + _SAME_GRID_PX).astype(int).tolist()
        right, bottom = np.ceil(high - _SAME_GRID_PX).astype(int).tolist()
        whole = Box(0, 0, self.width, self.height)
        return Box(left, top, right - left, bottom - top).overlap(whole)

    @cached_property
    def _footprints(self) -> tuple[shapely.STRtree, NDArray[np.int64]]:
        """Outlines of all rasters in pixels of the grid, and the layer of each."""
        outlines = [self._footprint(layer, box) for layer in self.layers for box in layer.boxes]
        layer_of = np.repeat(np.arange(len(self.layers)), [len(x.boxes) for x in self.layers])
        return shapely.STRtree(outlines), layer_of

    @property
    def is_exact(self) -> bool:
        """Whether all pixels are read without resampling."""
        return all(_placement(layer.georeference, self.georeference) for layer in self.layers)

    def georeference_of(self, box: Box) -> Georeference | None:
        """Return the georeference of a rectangle of the grid."""
        if self.georeference is None:
            return None
        transform = self.georeference.transform @ Affine.translation(box.left, box.top)
        return replace(self.georeference, transform=transform)

    def identity(self, box: Box) -> str:
        """Identify the content of a rectangle of the grid.

        The text holds the place of the rectangle and its rasters, with their order, stretch and
        state of their files.
        """
        parts: list[Any] = [self.georeference_of(box), box.width, box.height]
        for index in self._near(box):
            layer, state = self._states[index]
            parts += [layer.stretch, layer.bands, state]
        return "\n".join(map(str, parts))

    @cached_property
    def _states(self) -> list[tuple[Layer, str]]:
        """Layer of each raster, and a text that differs when its file has changed."""
        return [
            (layer, f"{source} {[] if source.is_remote else states_of(source)}")
            for layer in self.layers
            for source in layer.sources
        ]

    def _near(self, box: Box) -> list[int]:
        """Return the rasters in a rectangle, in ascending order."""
        # A resampled raster may colour a pixel that it only touches.
        near = box.grown(1, 1)
        hit = self._footprints[0].query(shapely.box(near.left, near.top, near.right, near.bottom))
        return sorted(hit.tolist())

    def _footprint(self, layer: Layer, box: Box) -> shapely.Geometry:
        if self.georeference is None or layer.georeference is None:
            return shapely.box(box.left, box.top, box.right, box.bottom)
        ring = layer.georeference.to_map(_border(box))
        outline = shapely.Polygon(self.georeference.to_pixels(ring, layer.georeference.crs))
        return shapely.make_valid(outline)

    def read(self, box: Box, faults: dict[str, str]) -> NDArray[np.uint8]:
        """Read a rectangle of the grid, which may reach beyond it.

        Args:
            box: the rectangle.
            faults: gets the reason of each raster that cannot be read here, by name.

        Returns:
            uint8 (h, w, channels): 0 in all channels where there is no data, else at least 1.
        """
        _, layer_of = self._footprints
        channels = len(self.layers[0].bands)
        whole = np.zeros((channels, box.height, box.width), np.uint8)
        free: NDArray[np.bool_] = np.ones(whole.shape[1:], np.bool_)
        for index in np.unique(layer_of[self._near(box)]).tolist():
            found = self._read_layer(index, self.layers[index], box, faults)
            np.copyto(whole, found, where=free)
            free = np.logical_not(whole.any(axis=0))
            if not free.any():
                break
        return whole.transpose(1, 2, 0)

    def _read_layer(
        self, index: int, layer: Layer, box: Box, faults: dict[str, str]
    ) -> NDArray[np.uint8]:
        if index not in self._placements:
            self._placements[index] = _placement(layer.georeference, self.georeference)
        placement = self._placements[index]
        if placement is not None:
            found = layer.read_stretched(placement.to_layer(box), faults)
            return placement.turned(found)
        assert self.georeference is not None
        assert layer.georeference is not None
        result = np.zeros((len(layer.bands), box.height, box.width), np.uint8)
        border = self.georeference.to_map(_border(box))
        there = layer.georeference.to_pixels(border, self.georeference.crs)
        low, high = np.floor(there.min(axis=0)), np.ceil(there.max(axis=0))
        ratio = min((high - low) / (box.width, box.height))
        # Averaging whole pixels first is much faster than resampling with a wide kernel.
        reduce = max(int(ratio), 1)
        margin = math.ceil(_KERNEL_PX * max(ratio, 1)) + reduce
        left, top = ((low - margin) // reduce * reduce).astype(int).tolist()
        # Whole reduced pixels are read in one piece.
        right, bottom = (np.ceil((high + margin) / reduce) * reduce).astype(int).tolist()
        wanted = Box(left, top, right - left, bottom - top)
        shared = wanted.overlap(Box(0, 0, layer.width, layer.height).grown(margin, margin))
        if shared is None:
            return result
        values = layer.read_stretched(wanted, faults, reduce)
        if not values.any():
            return result
        rasterio.warp.reproject(
            values,
            result,
            src_transform=layer.georeference.transform
            @ Affine.translation(left, top)
            @ Affine.scale(reduce),
            src_crs=layer.georeference.crs,
            src_nodata=0,
            dst_transform=self.georeference.transform @ Affine.translation(box.left, box.top),
            dst_crs=self.georeference.crs,
            dst_nodata=0,
            resampling=Resampling.cubic,
        )
        # Interpolated bands may reach 0 one by one, but 0 means that there is no data.
        covered = result.any(axis=0)
        np.maximum(result, covered, out=result)
        return result


def state_of(path: Path) -> list[Any]:
    """Return size and time of a file and of the files beside it that GDAL reads with it.

    Raises:
        OSError: the file cannot be read.
    """
    beside = [path.with_suffix(suffix) for suffix in _SIDECARS]
    beside += [path.with_name(path.name + suffix) for suffix in _ADDED_SIDECARS]
    found = [(each, each.stat()) for each in (path, *filter(Path.is_file, beside))]
    return [(str(each.resolve()), stat.st_size, stat.st_mtime_ns) for each, stat in found]


def states_of(source: Source) -> list[Any]:
    """Return the states of a local raster and, if it is virtual, of the rasters that it shows.

    Raises:
        OSError, SatmapError: it cannot be read.
    """
    paths = {Path(source.path)}
    if source.driver == "VRT":
        with opened(source) as file:
            paths.update(map(Path, file.files))
    return [state for path in sorted(paths) for state in state_of(path)]


def stretched(
    layers: Iterable[Layer], low: float, high: float, faults: dict[str, str]
) -> list[Layer]:
    """Return layers with the stretch that maps two percentiles of a sample to 0 and 255.

    Layers of which nothing can be read are left out. ``faults`` gets the reason of each raster that
    cannot be read, by name.
    """
    ready = []
    for layer in layers:
        unread: dict[str, str] = {}
        stretch = layer._sample_stretch(low, high, unread)
        faults |= unread
        if not unread or any(stretch.high):
            ready.append(replace(layer, stretch=stretch))
    return ready


def find_layers(
    sources: Sequence[Source], channels: int, bands: Sequence[int] | None = None
) -> tuple[list[Layer], dict[str, str]]:
    """Sort rasters into layers of one grid, type and band order.

    Args:
        sources: in the user's order.
        channels: number of channels that the networks need.
        bands: band numbers to read, from 1; None for red, green, blue, or the first ones. Eight
            bands without names are taken for WorldView's, and an image of one band for grey.

    Returns:
        The layers in the order of their first raster, and the reason for each raster that cannot be
        used, by its name. Every raster without georeference is a layer of its own.
    """
    groups: dict[tuple[Any, ...], list[tuple[Source, Georeference | None]]] = {}
    faults: dict[str, str] = {}
    for number, source in enumerate(sources):
        try:
            order = _band_order(source, channels, bands)
            georeference = _georeference(source)
        except SatmapError as error:
            faults[source.name] = str(error)
            continue
        kind: tuple[Any, ...] = (source.dtype, order, source.palette)
        if georeference is None:
            kind = (*kind, number)
        else:
            phase = ~source.transform @ (0.0, 0.0)
            linear = [f"{value:.9e}" for value in (*source.transform[:2], *source.transform[3:5])]
            kind = (*kind, source.crs, *linear)
            # Rasters whose offsets modulo one pixel are almost equal belong to one grid. They may
            # fall into adjacent cells, so those are looked up too.
            cells = round(2 / _SAME_GRID_PX)
            column, row = (math.floor(value * cells) for value in phase)
            near = [
                (*kind, (column + x) % cells, (row + y) % cells)
                for x in (0, -1, 1) for y in (0, -1, 1)
            ]  # fmt: skip
            kind = next((known for known in near if known in groups), near[0])
        groups.setdefault(kind, []).append((source, georeference))
    return [_layer(members, kind[1]) for kind, members in groups.items()], faults


def _layer(members: Sequence[tuple[Source, Georeference | None]], bands: tuple[int, ...]) -> Layer:
    first, georeference = members[0]
    if georeference is None:
        whole = Box(0, 0, first.width, first.height)
        return Layer((first,), (whole,), bands, None, first.width, first.height)
    to_first = ~first.transform
    corners = [to_first @ (source.transform.c, source.transform.f) for source, _ in members]
    places = np.rint(np.array(corners)).astype(int)
    sizes = np.array([(source.width, source.height) for source, _ in members])
    left, top = places.min(axis=0).tolist()
    width, height = ((places + sizes).max(axis=0) - (left, top)).tolist()
    boxes = tuple(
        Box(x - left, y - top, w, h)
        for (x, y), (w, h) in zip(places.tolist(), sizes.tolist(), strict=True)
    )
    transform = first.transform @ Affine.translation(left, top)
    placed = Georeference(georeference.crs, transform, georeference.metres_per_pixel)
    return Layer(tuple(source for source, _ in members), boxes, bands, placed, width, height)


def make_mosaics(
    layers: Sequence[Layer], gsd: float | None, priority: Priority = "finest"
) -> list[Mosaic]:
    """Arrange layers into maps: one of all layers with a georeference, one of each without.

    The map takes the reference system of the first layer, and its pixels too if it is north-up and
    their size is about ``gsd``. Layers so far away that its pixels would be larger or smaller there
    become a further map.

    Args:
        layers: with their stretches, in the user's order.
        gsd: metres per pixel that the networks expect; None to keep the size of the first layer.
        priority: what to show where layers overlap: the finest, or the user's first.
    """
    left = [layer for layer in layers if layer.georeference is not None]
    mosaics = []
    while left:
        reference = left[0].georeference
        assert reference is not None
        grid = _north_up(reference, gsd)
        placed = [layer for layer in left if layer is left[0] or _has_scale_of(grid, layer)]
        chosen = set(map(id, placed))
        left = [layer for layer in left if id(layer) not in chosen]
        mosaics.append(arrange(placed, grid, priority))
    alone = [
        Mosaic((layer,), None, layer.width, layer.height, None)
        for layer in layers
        if layer.georeference is None
    ]
    return mosaics + alone


def arrange(layers: Sequence[Layer], grid: Georeference, priority: Priority = "finest") -> Mosaic:
    """Arrange layers with a georeference on a pixel grid.

    The origin of the grid moves by whole pixels to the upper left corner of the layers.
    """
    corners = []
    for layer in layers:
        assert layer.georeference is not None
        border = layer.georeference.to_map(_border(Box(0, 0, layer.width, layer.height)))
        corners.append(grid.to_pixels(border, layer.georeference.crs))
    # A fraction of a pixel too much comes from rounding.
    low = np.floor(np.concatenate(corners).min(axis=0) + _SAME_GRID_PX).astype(int)
    high = np.ceil(np.concatenate(corners).max(axis=0) - _SAME_GRID_PX).astype(int)
    width, height = (high - low).tolist()
    transform = grid.transform @ Affine.translation(*low.tolist())
    located = Georeference(grid.crs, transform, grid.metres_per_pixel)
    if priority == "finest":
        layers = sorted(layers, key=_size)
    return Mosaic(tuple(layers), located, width, height, grid.metres_per_pixel)


def _has_scale_of(grid: Georeference, layer: Layer) -> bool:
    """Return whether the grid, extended to the layer, has pixels of its nominal size there."""
    assert layer.georeference is not None
    border = layer.georeference.to_map(_border(Box(0, 0, layer.width, layer.height)))
    try:
        places = grid.to_pixels(border, layer.georeference.crs)
        # Far outside of where a projection is defined, it gives any numbers.
        back = layer.georeference.to_pixels(grid.to_map(places), grid.crs)
        if np.abs(back - layer.georeference.to_pixels(border, layer.georeference.crs)).max() > 1:
            return False
        for x, y in (places.min(axis=0), places.max(axis=0)):
            moved = grid.transform @ Affine.translation(x, y)
            there = georeference_of(rasterio.crs.CRS.from_wkt(grid.crs), moved, 0, 0)
            if there is None or any(
                abs(size / want - 1) > _SAME_SCALE
                for size, want in zip(there.metres_per_pixel, grid.metres_per_pixel, strict=True)
            ):
                return False
    except (SatmapError, ValueError):
        return False
    return True


def _size(layer: Layer) -> float:
    assert layer.georeference is not None
    return layer.georeference.gsd_m


def _north_up(reference: Georeference, gsd: float | None) -> Georeference:
    """Return a north-up grid at the place of another one, with pixels of ``gsd`` if given.

    If the pixel size suits and the grid is parallel to the map's axes, its pixels stay where they
    are and only their order changes.
    """
    transform, sizes = reference.transform, reference.metres_per_pixel
    may_stay = gsd is None or all(abs(size / gsd - 1) <= _SAME_SIZE for size in sizes)
    wanted = sizes if gsd is None or may_stay else (gsd, gsd)
    if may_stay and transform.b == transform.d == 0:
        turned = Affine(abs(transform.a), 0, transform.c, 0, -abs(transform.e), transform.f)
        return replace(reference, transform=turned)
    if may_stay and transform.a == transform.e == 0:
        turned = Affine(abs(transform.b), 0, transform.c, 0, -abs(transform.d), transform.f)
        return Georeference(reference.crs, turned, sizes[::-1])
    along_x = math.hypot(transform.a, transform.d) * wanted[0] / sizes[0]
    along_y = math.hypot(transform.b, transform.e) * wanted[1] / sizes[1]
    scaled = Affine(along_x, 0, transform.c, 0, -along_y, transform.f)
    return Georeference(reference.crs, scaled, wanted)


@dataclass(frozen=True)
class _Placement:
    """Place of a layer whose pixels coincide with those of the grid, perhaps flipped or turned.

    Attributes:
        to_grid: whole-numbered transform from pixels of the layer to those of the grid.
    """

    to_grid: Affine

    def to_layer(self, box: Box) -> Box:
        """Return a rectangle of the grid in pixels of the layer."""
        inverse = ~self.to_grid
        corners = [inverse @ (box.left, box.top), inverse @ (box.right, box.bottom)]
        low, high = np.rint(np.sort(corners, axis=0)).astype(int).tolist()
        return Box(low[0], low[1], high[0] - low[0], high[1] - low[1])

    def turned(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn pixels (bands, h, w) of the layer into the direction of the grid."""
        if self.to_grid.a == 0:
            values = values.transpose(0, 2, 1)
        down, right = self.to_grid.d + self.to_grid.e, self.to_grid.a + self.to_grid.b
        return values[:, :: int(down), :: int(right)]


def _placement(source: Georeference | None, grid: Georeference | None) -> _Placement | None:
    """Return the place of a layer in the grid; None if it must be resampled."""
    if source is None or grid is None:
        return _Placement(Affine.identity())
    if source.crs != grid.crs:
        return None
    relative = ~grid.transform @ source.transform
    whole = Affine(*map(round, relative[:6]))
    linear = np.abs(np.subtract(relative[:6], whole[:6]))[[0, 1, 3, 4]].max()
    near = max(abs(relative.c - whole.c), abs(relative.f - whole.f)) <= 2 * _SAME_GRID_PX
    # Pixels of the same size, perhaps flipped or turned by quarters.
    axes = tuple(abs(whole[index]) for index in (0, 1, 3, 4))
    is_turn = axes in ((1, 0, 0, 1), (0, 1, 1, 0))
    return _Placement(whole) if linear < 1e-6 and near and is_turn else None


def _border(box: Box) -> NDArray[np.float64]:
    """Return points along the border of a rectangle, float64 (n, 2)."""
    steps = np.linspace(0, 1, _SIDE_POINTS)[:-1]
    corners = np.array(
        [(box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom)]
    )
    sides = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    return np.concatenate([start + steps[:, None] * (stop - start) for start, stop in sides])


def _georeference(source: Source) -> Georeference | None:
    if not source.crs:
        return None
    crs = rasterio.crs.CRS.from_wkt(source.crs)
    return georeference_of(crs, source.transform, source.width, source.height)


def _band_order(source: Source, channels: int, bands: Sequence[int] | None) -> tuple[int, ...]:
    """Return the band for each channel of the networks.

    Raises:
        SatmapError: the raster has too few bands.
    """
    if source.palette:
        return (1, 2, 3)[:channels]
    if bands is not None:
        if len(bands) < channels or max(bands) > max(source.bands):
            raise SatmapError(
                f"bands {', '.join(map(str, bands))} do not fit: the networks need {channels} "
                f"bands and the raster has {len(source.bands)}."
            )
        return tuple(bands[:channels])
    if len(source.bands) == 1 and channels == 3:
        return (source.bands[0],) * 3
    if not source.colours and len(source.bands) == len(MS_BAND_ORDER):
        # Eight bands without names are WorldView's.
        return tuple(source.bands[band - 1] for band in MS_BAND_ORDER)[:channels]
    order = source.colours + tuple(b for b in source.bands if b not in source.colours)
    if len(order) < channels:
        raise SatmapError(
            f"{len(source.bands)} bands, but the networks need {channels}. Use networks for fewer "
            "bands, or images with more."
        )
    return order[:channels]


def _whole_pixels(box: Box, reduce: int) -> list[Box]:
    """Divide a rectangle where the reduced pixels that it covers only in part begin or end.

    Each part is then read at one scale, without a shift.
    """

    def cuts(start: int, stop: int) -> list[int]:
        inner = -(-start // reduce) * reduce, stop // reduce * reduce
        return sorted({start, stop, *(edge for edge in inner if start < edge < stop)})

    rows, columns = cuts(box.top, box.bottom), cuts(box.left, box.right)
    return [
        Box(left, top, right - left, bottom - top)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _read(
    source: Source,
    bands: tuple[int, ...],
    windows: Sequence[Window],
    shapes: Sequence[tuple[int, int]],
) -> list[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Read bands (n, *shape) of each window of a raster, and where they hold data."""
    with opened(source) as file:
        return [
            _read_window(file, source, bands, window, shape)
            for window, shape in zip(windows, shapes, strict=True)
        ]


def _read_window(
    file: rasterio.DatasetReader,
    source: Source,
    bands: tuple[int, ...],
    window: Window,
    shape: tuple[int, int],
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    resampling = Resampling.nearest if source.palette else Resampling.average
    wanted = (1,) if source.palette else tuple(dict.fromkeys(bands))
    read = file.read(wanted, window=window, out_shape=(len(wanted), *shape), resampling=resampling)
    if source.has_mask:
        valid = file.dataset_mask(window=window, out_shape=shape) > 0
    else:
        valid = np.ones(shape, np.bool_)
    if source.palette:
        colours = file.colormap(1)
        table = np.array([colours.get(index, (0, 0, 0, 0)) for index in range(256)], np.uint8)
        pixels = table[read[0]].transpose(2, 0, 1)
        return pixels[[band - 1 for band in bands]], valid & (pixels[3] > 0)
    if read.dtype.kind == "f":
        valid &= np.isfinite(read).all(axis=0)
    elif not source.is_lossy and not source.has_mask:
        # As in the challenges' images, black is no data where nothing else says so.
        valid &= read.any(axis=0)
    places = [wanted.index(band) for band in bands]
    return read[places], valid
