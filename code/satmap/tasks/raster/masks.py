"""Building masks as results of images: threshold, joining of blocks, outlines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.rasters.scene import Box
from satmap.submissions.mask_rasters import MaskFile, encode_mask, open_mask, read_mask
from satmap.tasks.buildings.vectorizer.polygons import clipped, exact_polygons, simplify_outlines
from satmap.tasks.buildings.vectorizer.tracing import connected
from satmap.vectors.buildings import Polygons
from satmap.vectors.georeference import Georeference

# Number of pixels in which outlines are traced at a time, and the least number of rows.
_TRACED_PIXELS, _TRACED_ROWS = 1 << 24, 256


@dataclass(frozen=True)
class Mask:
    """Mask of an image.

    Attributes:
        tiff: content of the mask's file, as in the submission.
        shape: height and width.
        count: number of building pixels.
    """

    tiff: bytes
    shape: tuple[int, int]
    count: int

    @classmethod
    def of(
        cls,
        read: Callable[[slice], NDArray[np.bool_]],
        shape: tuple[int, int],
        georeference: Georeference | None = None,
    ) -> "Mask":
        """Make a mask; the arguments are those of :func:`encode_mask`."""
        count = 0

        def counted(rows: slice) -> NDArray[np.bool_]:
            nonlocal count
            values = read(rows)
            count += int(np.count_nonzero(values))
            return values

        return cls(encode_mask(counted, shape, georeference), shape, count)

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "Mask":
        """Make a mask without buildings."""
        return cls.of(lambda rows: np.zeros((rows.stop - rows.start, shape[1]), np.bool_), shape)

    @property
    def file(self) -> MaskFile:
        """The mask as a file in memory."""
        return MaskFile(Path("mask.TIF"), PurePosixPath("mask.TIF"), self.tiff)

    def pixels(self) -> NDArray[np.bool_]:
        """Return the whole mask, bool (h, w)."""
        return read_mask(self.file)


@dataclass(frozen=True)
class ImageMask:
    """Mask of an image with its id in the output and its position, if known."""

    image_id: str
    mask: Mask
    georeference: Georeference | None = None


def join_masks(
    size: tuple[int, int], blocks: Sequence[tuple[Box, Mask]], georeference: Georeference | None
) -> Mask:
    """Join the masks of a map's blocks, with only some rows of the map in memory.

    ``size`` is the map's height and width. Each block has a box, its place in the map. Pixels that
    no block covers are 0.
    """

    def read(rows: slice) -> NDArray[np.bool_]:
        strip = Box(0, rows.start, size[1], rows.stop - rows.start)
        values = np.zeros((strip.height, strip.width), np.bool_)
        for box, mask in blocks:
            if shared := strip.overlap(box):
                within, columns = shared.within(box)
                with open_mask(mask.file) as raster:
                    values[shared.within(strip)] = raster.read(within)[:, columns]
        return values

    return Mask.of(read, size, georeference)


def outlines_of(mask: Mask, simplify_px: float) -> Polygons:
    """Return the outlines of the 4-connected parts of a mask, in pixels, from top to bottom.

    The mask is traced in strips, and parts are united where strips meet. Outlines are simplified as
    in :func:`simplify_outlines`.
    """
    height, width = mask.shape
    rows = max(_TRACED_PIXELS // width, _TRACED_ROWS)
    whole: list[shapely.Polygon] = []
    cut: list[shapely.Polygon] = []
    with open_mask(mask.file) as raster:
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            labels = connected(raster.read(slice(top, bottom))).labels
            down = np.array([0, top])
            found = shapely.transform(exact_polygons(labels), lambda xy, by=down: xy + by)
            bounds = shapely.bounds(found).reshape(-1, 4)
            on_seam = ((bounds[:, 1] == top) & (top > 0)) | (
                (bounds[:, 3] == bottom) & (bottom < height)
            )
            whole += found[~on_seam].tolist()
            cut += found[on_seam].tolist()
    whole += shapely.get_parts(shapely.union_all(cut)).tolist()
    whole.sort(key=lambda polygon: (polygon.bounds[1], polygon.bounds[0], polygon.wkb))
    exact = np.array(whole, np.object_)
    return clipped(simplify_outlines(exact, simplify_px), exact, mask.shape)
