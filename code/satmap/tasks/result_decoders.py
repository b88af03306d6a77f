"""Interface of decoders, for worker processes. This module does not import torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from satmap.rasters.probability_maps import ProbabilityMaps


class MapDecoder(Protocol):
    """Turns probability maps into vectors. It is pickled for worker processes with every image."""

    def decode(self, prediction: ProbabilityMaps) -> Any:
        """Decode the maps of an image without neighbours."""

    def decode_file(
        self,
        path: Path,
        neighbours: Sequence[tuple[Path, int, int]] = (),
        *,
        check_scale: bool = False,
    ) -> Any:
        """Decode a raster of an image's probability maps.

        Args:
            path: the raster.
            neighbours: the rasters around it, each with the column and row of its first pixel, in
                pixels of this image. Files that do not exist are ignored.
            check_scale: whether to refuse a raster with values 0 and 1 instead of 0..255.

        Raises:
            SatmapError: the raster is missing or damaged, or does not hold probabilities.
        """
