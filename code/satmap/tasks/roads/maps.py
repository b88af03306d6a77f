"""Roads from planes, into the journal and into the challenge's CSV."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from satmap.data.chip import Chip
from satmap.errors import SatmapError
from satmap.exports import GEOGRAPHIC_SUFFIXES, ImageRoads, write_roads
from satmap.prediction.journal import (
    Journal,
    RowsByImage,
    georeference_as_json,
    georeference_from_json,
)
from satmap.rasters.map_files import open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.submissions.roads_csv import rows_of_graph, write_roads_csv
from satmap.tasks.roads.tiles import roads_of_mask
from satmap.tasks.roads.vectorizer.settings import RoadSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.georeference import Georeference
from satmap.vectors.road_graph import RoadEdge, RoadGraph, roads_in_lon_lat


@dataclass(frozen=True)
class RoadDecoder:
    """See :class:`satmap.tasks.maps.Decoder`.

    Attributes:
        settings: of the vectoriser.
        metres_per_pixel: of planes without georeference.
    """

    settings: RoadSettings
    metres_per_pixel: float
    noun: ClassVar[str] = "roads"
    uses_neighbours: ClassVar[bool] = True

    def for_image(self, chip: Chip) -> "RoadDecoder":
        """All images have the same settings."""
        return self

    def vectorize(self, maps: ProbabilityMaps) -> RoadGraph:
        """The roads of an image by itself."""
        return vectorize_roads(maps, self.settings)

    def vectorize_stored(
        self, stored: Path, neighbours: Sequence[tuple[Path, int, int]]
    ) -> RoadGraph:
        """The roads of an image that go on in those around it."""
        there = [around for around in neighbours if around[0].exists()]
        with open_map_file(stored, self.metres_per_pixel) as mask:
            return roads_of_mask(mask, there, self.settings, self.metres_per_pixel)

    def record(
        self, chip: Chip, image_id: str, found: RoadGraph, georeference: Georeference | None
    ) -> ImageRoads:
        """The roads with the image that they are of."""
        return ImageRoads(image_id, found, georeference)

    def require_output(self, output: Path, exports: Sequence[Path], chips: Sequence[Chip]) -> None:
        """Refuse COCO results, which only buildings have.

        Raises:
            SatmapError: the output is named so.
        """
        if output.suffix.lower() == ".json":
            raise SatmapError(
                f"{output}: the submission of roads is a CSV file. Give a name that ends in .csv."
            )

    def write(
        self, output: Path, ids: Sequence[str], keys: Mapping[str, str], journal: Journal
    ) -> dict[str, int]:
        """Write the roads CSV."""
        rows = RowsByImage(ids, keys, lambda key: rows_of_graph(journal.found(key).graph))
        write_roads_csv(output, rows)
        return rows.counts

    def export(self, path: Path, images: Callable[[], Iterator[ImageRoads]]) -> list[str]:
        """Write the roads of the images that the format can hold."""
        if path.suffix.lower() not in GEOGRAPHIC_SUFFIXES:
            write_roads(path, images())
            return []
        faults: list[str] = []

        def placed() -> Iterator[ImageRoads]:
            for roads in images():
                try:
                    roads_in_lon_lat(roads)
                except SatmapError as error:
                    faults.append(str(error))
                    continue
                yield roads

        write_roads(path, placed())
        return faults

    def as_json(self, found: ImageRoads) -> list[Any]:
        """The roads as lists and numbers."""
        return [
            found.image_id,
            georeference_as_json(found.georeference),
            found.graph.nodes.tolist(),
            [
                [edge.nodes, edge.line.tolist(), edge.length_m, edge.speed_mps, edge.confidence]
                for edge in found.graph.edges
            ],
        ]

    def from_json(self, content: list[Any]) -> ImageRoads:
        """The roads as they were, to the last bit.

        Raises:
            ValueError, TypeError: it is no such record.
        """
        image_id, place, nodes, edges = content
        graph = RoadGraph(
            np.array(nodes, np.float64).reshape(-1, 2),
            tuple(
                RoadEdge((start, end), np.array(line), length_m, speed_mps, confidence)
                for (start, end), line, length_m, speed_mps, confidence in edges
            ),
        )
        return ImageRoads(image_id, graph, georeference_from_json(place))
