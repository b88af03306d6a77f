"""Centre lines of a road map: the steps on pixels, window by window for large images.

The steps are smoothing and thresholding, thinning (skeleton.py), tracing (trace.py) and cropping
(border.py). Every step on pixels has a limited reach: blur and dilation that of their kernels,
small objects and holes their own size, thinning twice the number of its iterations. With a margin
of that size, the skeleton of a window equals that of the image pixel by pixel, and the networks of
all windows fit together (trace.py). The margin is at most half a window, so the skeleton may differ
in squares wider than that, but no road is that wide.
"""

from dataclasses import dataclass
from math import ceil, sqrt

import cv2
import numpy as np

from satmap.rasters.scene import Box, MapSource, ProbabilityMap
from satmap.tasks.roads.settings import ROAD, RoadSettings
from satmap.tasks.roads.vectorizer.border import crop_network
from satmap.tasks.roads.vectorizer.lines import smooth_lines
from satmap.tasks.roads.vectorizer.network import Floats, Ints, Network
from satmap.tasks.roads.vectorizer.skeleton import Mask, road_mask, thin
from satmap.tasks.roads.vectorizer.trace import in_order, pieces_within, stitched, trace_skeleton

#: Width and height of a window, without its margin.
WINDOW_PX = 4096

# Length of road on either side over which pixel staircases are smoothed.
_STAIRS_M = 0.4
# Margin for thinning. Windows with wider roads or squares are repeated with a larger margin, at
# most half the window.
_THINNING_PX = 64
# Longest small object or hole, in side lengths of a square of the same area.
_LONGEST = 16
# Skeleton around a window that is traced with it, so that junctions across the seam are complete.
_TRACED_PX = 16


def centre_lines(maps: MapSource, settings: RoadSettings, window_px: int = WINDOW_PX) -> Network:
    """Return the road map's centre lines from its skeleton, in metres.

    Windows are at most ``window_px`` wide and high.
    """
    scale = np.asarray(maps.metres_per_pixel, np.float64)
    margin = np.ceil(settings.border_m / scale)
    height, width = maps.shape
    image = Box(int(margin[0]), int(margin[1]), width, height)
    padded = _Padded(maps[ROAD], image, scale, settings)
    whole = padded.extent
    windows = whole.tiles(_even(whole.width, window_px), _even(whole.height, window_px))
    network = in_order(
        stitched([pieces_within(trace_skeleton(*padded.skeleton(part)), part) for part in windows])
    )
    network = smooth_lines(network, max(1, round(_STAIRS_M / float(scale.mean()))))
    return crop_network(network, margin, np.array([width, height]), scale)


def _even(size: int, most: int) -> int:
    """Return the size of equal windows of at most ``most`` pixels that cover ``size`` pixels."""
    return ceil(size / ceil(size / most))


@dataclass(frozen=True)
class _Padded:
    """A road map padded by repeating its border.

    ``image`` is the rectangle of the image in the padded map. ``scale`` is the number of metres per
    pixel along x and y, (2,).
    """

    road: ProbabilityMap
    image: Box
    scale: Floats
    settings: RoadSettings

    @property
    def extent(self) -> Box:
        """Rectangle of the padded map."""
        image = self.image
        return Box(0, 0, image.width + 2 * image.left, image.height + 2 * image.top)

    def skeleton(self, window: Box) -> tuple[Ints, Ints]:
        """Return rows and columns of the skeleton's pixels in a window and slightly around it."""
        slack, limit = _THINNING_PX, max(window.width, window.height) // 2
        wanted = window.grown(_TRACED_PX, _TRACED_PX)
        while True:
            margin = self._reach + slack
            around = self.extent.overlap(wanted.grown(margin, margin))
            assert around is not None
            rows, columns, iterations = thin(self._mask(around))
            if around == self.extent or 2 * iterations <= slack or slack >= limit:
                break
            slack = min(2 * iterations, limit)
        rows, columns = rows + around.top, columns + around.left
        kept = (rows >= wanted.top) & (rows < wanted.bottom)
        kept &= (columns >= wanted.left) & (columns < wanted.right)
        return rows[kept], columns[kept]

    @property
    def _reach(self) -> int:
        """Largest distance in pixels at which a value of the map can affect the mask."""
        pixel, settings = float(self.scale.min()), self.settings
        blur, growth = ceil(2 * settings.smooth_m / pixel), 2 * round(settings.apart_m / pixel) + 1
        area = max(settings.object_m2, settings.hole_m2) / float(self.scale.prod())
        return blur + growth + ceil(min(area, _LONGEST * sqrt(area))) + 2

    def _mask(self, box: Box) -> Mask:
        """Return the road mask in a rectangle of the padded map."""
        inside = box.overlap(self.image)
        assert inside is not None
        above, left = inside.top - box.top, inside.left - box.left
        below, right = box.bottom - inside.bottom, box.right - inside.right
        part = self.road[inside.within(self.image)]
        padded = np.asarray(
            cv2.copyMakeBorder(part, above, below, left, right, cv2.BORDER_REPLICATE), np.uint8
        )
        # A road across a corner of the image continues beyond both edges, but not around the
        # corner.
        for rows in (slice(0, above), slice(box.height - below, None)):
            for columns in (slice(0, left), slice(box.width - right, None)):
                padded[rows, columns] = 0
        return road_mask(padded, self.settings, self.scale)
