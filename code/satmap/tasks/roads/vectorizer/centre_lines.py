"""Centre lines of a road plane: the steps on pixels, for large images window by window.

Smooth and threshold (skeleton.py), thin (thinning.py), trace (trace.py), crop (border.py). Every
step on pixels looks only so far: blur and dilation by their kernels, small objects and holes by
their own size, thinning by twice its iterations. With a margin of that much a window's skeleton is
the image's, pixel for pixel, and the networks of all windows fit together (seams.py). The margin
is at most half a window: of squares wider than that, which no road is, the skeleton may differ.
"""

from dataclasses import dataclass
from math import ceil, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from satmap.rasters.scene import Box, MapSource, ProbabilityMap
from satmap.tasks.roads.settings import ROAD, RoadSettings
from satmap.tasks.roads.vectorizer.border import crop_network
from satmap.tasks.roads.vectorizer.lines import smooth_lines
from satmap.tasks.roads.vectorizer.network import Ints, Network
from satmap.tasks.roads.vectorizer.seams import in_order, pieces_within, stitched
from satmap.tasks.roads.vectorizer.skeleton import road_mask, smooth, thin_counting
from satmap.tasks.roads.vectorizer.trace import trace_skeleton

#: Width and height of a window, without its margin.
WINDOW_PX = 4096

# Staircases of pixels are evened out over so much road to either side.
_STAIRS_M = 0.4
# Margin for thinning; where roads or squares are so wide that it takes more, a window is done again
# with more, at most half the window.
_THINNING_PX = 64
# A small object or hole is at most so many times as long as a square of its area.
_LONGEST = 16
# Skeleton around a window that is traced with it: junctions across the seam, whole.
_TRACED_PX = 16


def centre_lines(maps: MapSource, settings: RoadSettings, window_px: int = WINDOW_PX) -> Network:
    """The road plane's centre lines as they come from the skeleton, in metres.

    Args:
        maps: with the road plane.
        settings: thresholds.
        window_px: largest width and height of a window.
    """
    scale = np.asarray(maps.metres_per_pixel, np.float64)
    margin = np.ceil(settings.border_m / scale).astype(int)
    x, y = margin.tolist()
    height, width = maps.shape
    padded = _Padded(maps[ROAD], Box(x, y, width, height), scale, settings)
    whole = padded.extent
    windows = whole.tiles(_even(whole.width, window_px), _even(whole.height, window_px))
    if len(windows) == 1:
        network = trace_skeleton(*padded.skeleton(whole))
    else:
        network = stitched(
            [pieces_within(trace_skeleton(*padded.skeleton(window)), window) for window in windows]
        )
    network = in_order(network)
    network = smooth_lines(network, max(1, round(_STAIRS_M / float(scale.mean()))))
    limit = np.array([width, height], np.float64)
    return crop_network(network, margin.astype(np.float64), limit, scale)


def _even(size: int, most: int) -> int:
    """Size of equal windows, none of them a sliver."""
    return ceil(size / ceil(size / most))


@dataclass(frozen=True)
class _Padded:
    """A road plane that goes on beyond the image's edges as it ends there.

    Attributes:
        road: the plane.
        image: where the image lies in it.
        scale: metres a pixel along x and y, (2,).
        settings: thresholds.
    """

    road: ProbabilityMap
    image: Box
    scale: NDArray[np.float64]
    settings: RoadSettings

    @property
    def extent(self) -> Box:
        """All of it."""
        image = self.image
        return Box(0, 0, image.width + 2 * image.left, image.height + 2 * image.top)

    def skeleton(self, window: Box) -> tuple[Ints, Ints]:
        """Rows and columns of the skeleton's pixels in a window and a little around it."""
        slack, most = _THINNING_PX, max(window.width, window.height) // 2
        wanted = window.grown(_TRACED_PX, _TRACED_PX)
        while True:
            margin = self._reach + slack
            around = self.extent.overlap(wanted.grown(margin, margin))
            assert around is not None
            rows, columns, iterations = thin_counting(self._mask(around))
            if around == self.extent or 2 * iterations <= slack or slack >= most:
                break
            slack = min(2 * iterations, most)
        rows, columns = rows + around.top, columns + around.left
        kept = (rows >= wanted.top) & (rows < wanted.bottom)
        kept &= (columns >= wanted.left) & (columns < wanted.right)
        return rows[kept], columns[kept]

    @property
    def _reach(self) -> int:
        """How far off a pixel of the plane can change one of the mask."""
        pixel, settings = float(self.scale.min()), self.settings
        blur, growth = ceil(2 * settings.smooth_m / pixel), 2 * round(settings.apart_m / pixel) + 1
        trifle = max(settings.object_m2, settings.hole_m2) / float(self.scale.prod())
        return blur + growth + ceil(min(trifle, _LONGEST * sqrt(trifle))) + 2

    def _mask(self, box: Box) -> NDArray[np.uint8]:
        """The road's pixels in a rectangle."""
        settings = self.settings
        x_m, y_m = self.scale.tolist()
        pixel_m2 = x_m * y_m
        seen = box.overlap(self.image)
        assert seen is not None
        above, left = seen.top - box.top, seen.left - box.left
        below, right = box.bottom - seen.bottom, box.right - seen.right
        part = self.road[seen.within(self.image)]
        padded = np.asarray(
            cv2.copyMakeBorder(part, above, below, left, right, cv2.BORDER_REPLICATE), np.uint8
        )
        # A road across a corner of the image goes on beyond both its edges, but not round it.
        for rows in (slice(0, above), slice(box.height - below, None)):
            for columns in (slice(0, left), slice(box.width - right, None)):
                padded[rows, columns] = 0
        return road_mask(
            smooth(padded, (settings.smooth_m / x_m, settings.smooth_m / y_m)),
            settings.low,
            settings.high,
            (settings.apart_m / x_m, settings.apart_m / y_m),
            settings.object_m2 / pixel_m2,
            settings.hole_m2 / pixel_m2,
        )
