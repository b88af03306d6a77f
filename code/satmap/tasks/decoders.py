"""What turns probability maps into vectors, as worker processes see it. Nothing imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from satmap.rasters.probability_maps import ProbabilityMaps


class MapDecoder(Protocol):
    """Turns probability maps into vectors. It is sent to worker processes with every image."""

    def decode(self, prediction: ProbabilityMaps) -> Any:
        """The result of an image by itself."""

    def decode_file(
        self,
        path: Path,
        neighbours: Sequence[tuple[Path, int, int]] = (),
        *,
        check_scale: bool = False,
    ) -> Any:
        """The result of an image from a raster of its probability maps.

        Args:
            path: the raster.
            neighbours: the rasters around it and the column and row, in this image's pixels, of
                each one's first pixel. Files that do not exist are left out.
            check_scale: refuse a raster whose numbers are 0 and 1 instead of 0..255.

        Raises:
            SatmapError: the raster is missing or damaged, or does not hold probabilities.
        """
