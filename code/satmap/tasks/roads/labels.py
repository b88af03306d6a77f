"""Road labels: GeoJSON of SpaceNet 3 and 5 as lines in pixels with speeds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.io.geojson_reader import read_geojson
from satmap.vectors.georeference import Georeference
from satmap.vectors.speeds import MPS_PER_MPH, label_speed_mph


@dataclass(frozen=True)
class RoadLabel:
    """One labelled road.

    Attributes:
        line: float64 (n >= 2, 2), x = column and y = row in pixels; may leave the image.
        speed_mph: > 0.
    """

    line: NDArray[np.float64]
    speed_mph: float

    @property
    def speed_mps(self) -> float:
        """Speed, metres a second."""
        return self.speed_mph * MPS_PER_MPH


def read_road_labels(path: Path, georeference: Georeference) -> list[RoadLabel]:
    """Read the roads of one image; points and polygons are passed over.

    Raises:
        SatmapError: not GeoJSON, none of its features is a line, or coordinates that cannot be
            brought to the image.
    """
    collection = read_geojson(path)
    if collection.geometries and not collection.lines:
        raise SatmapError(
            f"{path}: none of its {collection.geometries} features is a line. "
            "Check that these are roads."
        )
    try:
        return [
            RoadLabel(
                georeference.to_pixels(line.xy, collection.crs), label_speed_mph(line.properties)
            )
            for line in collection.lines
        ]
    except ValueError as error:
        raise SatmapError(f"{path}: {error}.") from error


def clip_to_image(label: RoadLabel, width: int, height: int) -> list[RoadLabel]:
    """The parts of a road that lie on the image."""
    inside = shapely.intersection(shapely.LineString(label.line), shapely.box(0, 0, width, height))
    parts = shapely.get_parts(inside)
    return [
        RoadLabel(shapely.get_coordinates(part), label.speed_mph)
        for part in shapely.get_parts(shapely.line_merge(shapely.multilinestrings(
            [part for part in parts if part.geom_type == "LineString"]
        )))
        if part.length > 0
    ]  # fmt: skip
