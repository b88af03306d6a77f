"""Rasters on one pixel grid: find and sort them, read them, and stretch them to 8 bits.

Rasters that share a pixel grid, such as map tiles or the quarters of a scene, form a layer and are
read without resampling or seams. Each layer has one contrast stretch, computed from a sample of its
pixels.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from satmap.data.imagery import MS_BAND_ORDER, keeps_values
from satmap.data.sources import Source, opened, reason_of
from satmap.errors import SatmapError
from satmap.rasters.scene import Box
from satmap.vectors.georeference import Georeference, georeference_of

#: Offset in pixels by which rasters of one grid may differ, through rounded georeferences.
SAME_GRID_PX = 0.01
# A sample for the stretch has at most this many pixels: all, or windows spread over the layer.
_SAMPLE_PX = 4 << 20
_SAMPLE_WINDOWS = 64
# Rows that are stretched at once. The stretch needs several times the memory of the pixels.
_ROWS = 256


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
            cells = round(2 / SAME_GRID_PX)
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
