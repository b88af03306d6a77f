"""Decoder of masks, importable without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satmap.rasters.map_files import open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box, Scene
from satmap.tasks.buildings.settings import BUILDING, BUILDING_FILE_MAPS
from satmap.tasks.buildings.vectorizer.tracing import at_least
from satmap.tasks.raster.masks import Mask
from satmap.vectors.georeference import Georeference


@dataclass(frozen=True)
class MaskDecoder:
    """Turns the footprint map of an image into its mask.

    Attributes:
        threshold: probability from which a pixel is building, 0..1.
        size: height and width of the image that ``georeference`` belongs to.
        georeference: position of the pixels, which the mask's file states; None if unknown.
    """

    threshold: float
    size: tuple[int, int]
    georeference: Georeference | None = None

    def decode(self, prediction: ProbabilityMaps) -> Mask:
        """Return the mask of an image."""
        return self._mask(Scene.of(prediction))

    def decode_file(
        self,
        path: Path,
        neighbours: Sequence[tuple[Path, int, int]] = (),
        *,
        check_scale: bool = False,
    ) -> Mask:
        """Return the mask of a raster of probability maps; neighbours do not matter."""
        # The pixel size does not matter.
        with open_map_file(path, 1, BUILDING_FILE_MAPS) as file:
            mask = self._mask(file.scene)
            if check_scale:
                file.check_scale()
            return mask

    def _mask(self, scene: Scene) -> Mask:
        width = scene.shape[1]

        def read(rows: slice) -> NDArray[np.bool_]:
            strip = Box(0, rows.start, width, rows.stop - rows.start)
            return at_least(scene.read(BUILDING, strip), self.threshold)

        # An image that replaces a broken one of the same chip may have other pixels.
        return Mask.of(read, scene.shape, self.georeference if scene.shape == self.size else None)
