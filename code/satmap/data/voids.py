"""Find voids: large white or black parts at the border of images, where there is no image.

Orthophotos often have such parts. Black pixels there count as data if the file says so, or if it is
compressed with loss.
"""

import math

import cv2
import numpy as np
import rasterio.features
import shapely
import shapely.geometry
from numpy.typing import NDArray
from rasterio.windows import Window

from satmap.data.mosaic import Mosaic
from satmap.data.own_labels import Shapes, rasterize_polygons
from satmap.data.sources import Source, opened
from satmap.errors import SatmapError
from satmap.rasters.scene import Box

# A void reaches the border of the image. Its pixels are at least this bright, or as close to black.
# It is at least this wide in an overview with sides of at most _OVERVIEW_PX.
_WHITE, _VOID_PX, _OVERVIEW_PX = 252, 5, 1024
# Least share of the image that a void covers. White roofs are common, black ground is not.
_WHITE_SHARE, _BLACK_SHARE = 0.03, 0.001
# Side of the square by which a void is dilated, because blurred pixels at its edge belong to it.
_WHITE_EDGE, _BLACK_EDGE = 9, 3
# Least share of its pixels that are exactly 255 or 0. Compression changes those at the edges.
_PURE = 0.95
# If labels cover a larger share of it, it is a roof.
_LABELLED = 0.5


def find_voids(
    mosaic: Mosaic, shapes: Shapes, mask: Source | None, unread: dict[str, str]
) -> Shapes:
    """Find large white or black parts at the border of the rasters.

    Args:
        mosaic: the rasters.
        shapes: labels in pixels of the mosaic; what their polygons cover is no void.
        mask: labels as a raster; None for vector labels.
        unread: gets the reasons of :meth:`Layer.read`.

    Returns:
        Polygons in pixels of the mosaic.
    """
    labels = shapes[shapely.get_dimensions(shapes) == 2]
    found: list[shapely.Geometry] = []
    for layer in mosaic.layers:
        if layer.sources[0].dtype != "uint8":
            continue
        reduce = math.ceil(max(layer.width, layer.height) / _OVERVIEW_PX)
        bands, valid = layer.read(Box(0, 0, layer.width, layer.height), unread, reduce)
        void = _find_white(bands, valid, _WHITE_SHARE, _WHITE_EDGE)
        void |= _find_white(255 - bands, valid, _BLACK_SHARE, _BLACK_EDGE)
        outlines = [
            shapely.transform(shapely.geometry.shape(outline), lambda xy, r=reduce: xy * r)
            for outline, _ in rasterio.features.shapes(void.astype(np.uint8), mask=void)
        ]
        if layer.georeference is not None and mosaic.georeference is not None:
            source, grid = layer.georeference, mosaic.georeference
            outlines = [
                shapely.transform(
                    outline, lambda xy, s=source, g=grid: g.to_pixels(s.to_map(xy), s.crs)
                )
                for outline in outlines
            ]
        found += [
            each for each in outlines if _labelled_share(mosaic, labels, mask, each) <= _LABELLED
        ]
    return np.array(found, np.object_)


def _find_white(
    bands: NDArray[np.uint8], valid: NDArray[np.bool_], share: float, edge: int
) -> NDArray[np.bool_]:
    """Find the white voids of an image; for black voids pass the inverted image.

    Args:
        bands: the image, uint8 (bands, h, w).
        valid: where it has data, bool (h, w).
        share: least share of the image that a void covers.
        edge: side of the square by which voids are dilated.

    Returns:
        bool (h, w).
    """
    white = (bands >= _WHITE).all(axis=0) & valid
    least = max(share * valid.sum(), 1)
    if white.sum() < least:
        return np.zeros_like(valid)
    kernel = np.ones((_VOID_PX, _VOID_PX), np.uint8)
    # Beyond the border, the void continues.
    solid = cv2.morphologyEx(
        np.pad(white.astype(np.uint8), _VOID_PX, mode="edge"), cv2.MORPH_OPEN, kernel
    )[_VOID_PX:-_VOID_PX, _VOID_PX:-_VOID_PX]
    _, parts, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=4)
    outside = np.pad(~valid, 1, constant_values=True).astype(np.uint8)
    beside = cv2.dilate(outside, np.ones((3, 3), np.uint8))[1:-1, 1:-1] > 0
    areas = stats[:, cv2.CC_STAT_AREA]
    pure = np.bincount(parts[(bands == 255).all(axis=0)], minlength=len(areas))
    large = (areas >= least) & (pure >= _PURE * areas)
    wanted = np.flatnonzero(large & np.isin(np.arange(len(stats)), parts[beside]))
    void = np.isin(parts, wanted[wanted > 0]).astype(np.uint8)
    return np.asarray(cv2.dilate(void, np.ones((edge, edge), np.uint8))) > 0


def _labelled_share(
    mosaic: Mosaic, labels: Shapes, mask: Source | None, outline: shapely.Geometry
) -> float:
    """Return the share of a polygon, in pixels of the mosaic, that polygons or a mask cover."""
    left, top, right, bottom = np.rint(outline.bounds).astype(int).tolist()
    whole = Box(0, 0, mosaic.width, mosaic.height)
    box = Box(left, top, right - left, bottom - top).overlap(whole)
    if box is None or (mask is None and not len(labels)):
        return 0.0
    reduce = math.ceil(max(box.width, box.height) / _OVERVIEW_PX)
    shape = -(-box.height // reduce), -(-box.width // reduce)
    if mask is None:
        labelled = rasterize_polygons(labels, box, reduce)
    else:
        window = Window(box.left, box.top, box.width, box.height)
        try:
            with opened(mask) as file:
                labelled = file.read(mask.bands[0], window=window, out_shape=shape) > 0
        except SatmapError:
            # Cutting the chips reports it.
            return 0.0
    inside = rasterize_polygons(np.array([outline], np.object_), box, reduce)
    return float(labelled[inside].mean()) if inside.any() else 0.0
