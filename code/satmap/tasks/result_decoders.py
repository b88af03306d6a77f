"""Interfaces of decoders, which are pickled for worker processes. No torch is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from satmap.rasters.probability_maps import ProbabilityMaps


@dataclass(frozen=True)
class FittedModels:
    """Models beside the networks that were fitted to their mistakes (`satmap confidence`).

    Attributes:
        selection: file of the model that chooses among building candidates; None if there is none.
        calibration: file of the model that computes the probability that an object is right; None
            if the networks are uncalibrated.
    """

    selection: Path | None = None
    calibration: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the models that there are."""
        return tuple(path for path in (self.selection, self.calibration) if path)


#: No models: objects are uncalibrated.
NO_MODELS = FittedModels()


class ResultDecoder(Protocol):
    """Turns the prediction of one image into its result."""

    def decode(self, prediction: Any) -> Any:
        """Return the result of an image, such as a road graph."""


class MapDecoder(Protocol):
    """Turns probability maps into vectors."""

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

        Each neighbour is a raster with the column and row of its first pixel, in pixels of this
        image; files that do not exist are ignored. ``check_scale`` refuses a raster with values 0
        and 1 instead of 0..255.

        Raises:
            SatmapError: the raster is missing or damaged, or does not hold probabilities.
        """
