"""Decoder: from the probability maps of an image to its road graph. It works without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from satmap.rasters.map_files import open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.roads.settings import ROAD_FILE_MAPS, RoadSettings
from satmap.tasks.roads.tiles import roads_of_file
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import RoadGraph


@dataclass(frozen=True)
class RoadDecoder:
    """Convert the probability maps of an image into its road graph.

    Attributes:
        settings: settings of the vectoriser.
        metres_per_pixel: pixel size of rasters without georeference.
    """

    settings: RoadSettings
    metres_per_pixel: float

    def decode(self, prediction: ProbabilityMaps) -> RoadGraph:
        """Return the road graph of an image, ignoring its neighbours."""
        return vectorize_roads(prediction, self.settings)

    def decode_file(
        self,
        path: Path,
        neighbours: Sequence[tuple[Path, int, int]] = (),
        *,
        check_scale: bool = False,
    ) -> RoadGraph:
        """Return the road graph of a raster, vectorised together with its neighbours.

        Args:
            path: raster of probability maps.
            neighbours: path of each neighbouring raster, and the column and row of its first pixel
                in the pixels of ``path``. Files that do not exist are skipped.
            check_scale: reject a raster with values 0 and 1 instead of 0..255.
        """
        beside = [neighbour for neighbour in neighbours if neighbour[0].exists()]
        with open_map_file(path, self.metres_per_pixel, ROAD_FILE_MAPS) as file:
            graph = roads_of_file(file, beside, self.settings, self.metres_per_pixel)
            if check_scale:
                file.check_scale()
        return graph
