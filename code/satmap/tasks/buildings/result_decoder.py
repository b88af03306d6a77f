"""Decoder of building probability maps, importable without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import shapely
from shapely.affinity import translate

from satmap.rasters.map_files import open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.surroundings import read_surroundings, surrounded
from satmap.tasks.buildings.confidence import ConfidenceModel, read_confidence_once
from satmap.tasks.buildings.settings import BUILDING_FILE_MAPS, BuildingSettings
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.vectors.buildings import Building

#: Buildings on the edge of a block are whole if they reach at most this far into its neighbours.
MARGIN_PX = 256


@dataclass(frozen=True)
class BuildingDecoder:
    """Turns the probability maps of an image into footprints.

    Attributes:
        settings: vectoriser settings for the view-angle category of the image.
        rating_model: file of the confidence model that selects and rates candidates; None to rate
            buildings by mean probability x square root of the area.
    """

    settings: BuildingSettings
    rating_model: Path | None = None

    def decode(self, prediction: ProbabilityMaps) -> list[Building]:
        """Return the buildings of an image."""
        return vectorize_buildings(prediction, self.settings, self._model())

    def decode_file(
        self,
        path: Path,
        neighbours: Sequence[tuple[Path, int, int]] = (),
        *,
        check_scale: bool = False,
    ) -> list[Building]:
        """Return the buildings of a raster.

        With neighbours, buildings that reach beyond the raster are complete.
        """
        margin = MARGIN_PX, MARGIN_PX
        # The vectoriser works in pixels, so any pixel size will do.
        with open_map_file(path, 1, BUILDING_FILE_MAPS) as file:
            around = read_surroundings(file, neighbours, BUILDING_FILE_MAPS, margin)
            scene, box = surrounded(file.scene, around, margin)
            found = vectorize_buildings(scene, self.settings, self._model())
            if check_scale:
                file.check_scale()
        if not around:
            return found
        own = shapely.box(box.left, box.top, box.right, box.bottom)
        return [
            replace(each, polygon=translate(each.polygon, -box.left, -box.top))
            for each in found
            if each.polygon.intersects(own)
        ]

    def _model(self) -> ConfidenceModel | None:
        return read_confidence_once(self.rating_model) if self.rating_model else None
