"""Read many rasters as one image: a mosaic in one reference system, at one pixel size, in 8 bits.

A mosaic resamples its layers (:mod:`satmap.data.layers`) to the grid of the map. A map that lies on
a layer's own grid gets that layer's pixels unchanged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from satmap.data.layers import SAME_GRID_PX, Layer
from satmap.data.sources import states_of
from satmap.errors import SatmapError
from satmap.rasters.scene import Box
from satmap.vectors.georeference import Georeference, georeference_of

Priority = Literal["finest", "first"]

# Sources whose pixel size differs by less from the networks' are read as they are.
_SAME_SIZE = 0.05
# Rasters form one map if its pixels have the same size in metres everywhere, within this part.
_SAME_SCALE = 0.05
# Pixels around a window that resampling needs.
_KERNEL_PX = 4
# Points per side of a rectangle that is projected to another reference system.
_SIDE_POINTS = 21


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
        low = np.floor(np.clip(bounds[:, :2], 0, None) + SAME_GRID_PX)
        high = np.ceil(np.minimum(bounds[:, 2:], (self.width, self.height)) - SAME_GRID_PX)
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
        left, top = np.floor(low + SAME_GRID_PX).astype(int).tolist()
        right, bottom = np.ceil(high - SAME_GRID_PX).astype(int).tolist()
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
    low = np.floor(np.concatenate(corners).min(axis=0) + SAME_GRID_PX).astype(int)
    high = np.ceil(np.concatenate(corners).max(axis=0) - SAME_GRID_PX).astype(int)
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
    near = max(abs(relative.c - whole.c), abs(relative.f - whole.f)) <= 2 * SAME_GRID_PX
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
