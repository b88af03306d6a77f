"""Decoder of building probability maps, importable without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import shapely
from shapely.affinity import translate

from satmap.rasters.map_files import open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import MapSource
from satmap.rasters.surroundings import read_surroundings, surrounded
from satmap.tasks.buildings.measures import rate_buildings
from satmap.tasks.buildings.selection import read_selection_once
from satmap.tasks.buildings.settings import BUILDING_FILE_MAPS, BuildingSettings
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tasks.calibration import read_calibration
from satmap.tasks.result_decoders import NO_MODELS, FittedModels
from satmap.vectors.buildings import Building

#: Buildings on the edge of a block are whole if they reach at most this far into its neighbours.
MARGIN_PX = 256


@dataclass(frozen=True)
class BuildingDecoder:
    """Turns the probability maps of an image into footprints.

    Attributes:
        settings: vectoriser settings for the view-angle category of the image.
        models: the selection model that chooses and rates candidates; without one, buildings are
            rated by mean probability x square root of the area. And the calibration; without one,
            buildings have no confidence.
    """

    settings: BuildingSettings
    models: FittedModels = NO_MODELS

    def decode(self, prediction: ProbabilityMaps) -> list[Building]:
        """Return the buildings of an image."""
        return self._rated(prediction)

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
            found = self._rated(scene)
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

    def _rated(self, maps: MapSource) -> list[Building]:
        """Return the buildings of maps, with confidences if there is a calibration."""
        selection, calibration = self.models.selection, self.models.calibration
        model = read_selection_once(selection) if selection else None
        found = vectorize_buildings(maps, self.settings, model)
        if calibration is None:
            return found
        return rate_buildings(found, maps, read_calibration(calibration))
