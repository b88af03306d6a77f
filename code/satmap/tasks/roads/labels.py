"""Road labels: GeoJSON of SpaceNet 3 and 5 as lines in pixels with speeds."""

from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.cache import EncodedLabel, require_image_data
from satmap.data.chip import Chip
from satmap.errors import SatmapError
from satmap.io.geojson_reader import read_geojson
from satmap.tasks.roads.settings import TargetSettings
from satmap.tasks.roads.targets import RoadLabel, rasterize_roads
from satmap.vectors.georeference import Georeference
from satmap.vectors.speeds import label_speed_mph


def read_road_labels(path: Path, georeference: Georeference) -> list[RoadLabel]:
    """Read the roads of one image; points and polygons are ignored.

    Raises:
        SatmapError: the file is not GeoJSON, none of its features is a line, or its coordinates
            cannot be transformed to the image.
    """
    collection = read_geojson(path)
    if collection.geometries and not collection.lines:
        raise SatmapError(
            f"{path}: none of its {collection.geometries} features is a line. "
            "Check that the file holds roads."
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
    """Return the parts of a road that lie inside the image."""
    inside = shapely.intersection(shapely.LineString(label.line), shapely.box(0, 0, width, height))
    parts = [part for part in shapely.get_parts(inside) if part.geom_type == "LineString"]
    return [
        RoadLabel(shapely.get_coordinates(part), label.speed_mph)
        for part in shapely.get_parts(shapely.line_merge(shapely.multilinestrings(parts)))
        if part.length > 0
    ]


def encode_roads(chip: Chip, image: NDArray[np.uint8], settings: TargetSettings) -> EncodedLabel:
    """Read the roads of a chip and rasterize its target.

    ``image`` is uint8 (h, w, channels), as large as the image file.

    Returns:
        ``target`` uint8 (h, w) from :func:`satmap.tasks.roads.targets.rasterize_roads`. The payload
        is a list of (points, speed in mph), clipped to the image.

    Raises:
        SatmapError: the label is missing, unreadable or belongs to another place, or the image has
            no georeference or no data.
    """
    info = chip.image
    if chip.label is None:
        raise SatmapError(f"{info.path}: no label, so it cannot be trained with.")
    if info.georeference is None:
        raise SatmapError(
            f"{info.path}: no georeference, so its labels cannot be placed. "
            "Assign one, for example with `rio edit-info --crs EPSG:4326 --transform ...`."
        )
    labels = read_road_labels(chip.label, info.georeference)
    size = (info.height, info.width)
    inside = [part for label in labels for part in clip_to_image(label, info.width, info.height)]
    if labels and not inside:
        raise SatmapError(
            f"{chip.label}: none of its {len(labels)} roads lies on {info.path.name}. "
            "Check that label and image belong together and the label's coordinate system."
        )
    require_image_data(chip, image, len(inside), "roads")
    metres = info.georeference.metres_per_pixel
    return EncodedLabel(
        arrays={"target": rasterize_roads(labels, size, metres, settings)},
        payload=[(label.line.tolist(), label.speed_mph) for label in inside],
        count=len(inside),
        metres_per_pixel=metres,
    )
