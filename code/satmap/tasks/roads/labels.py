"""Road labels: GeoJSON of SpaceNet 3 and 5 as lines in pixels with speeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.cache import EncodedLabel, require_image_data
from satmap.data.chip import Chip
from satmap.data.chip_label import ChipLabel, is_chip_label
from satmap.errors import SatmapError
from satmap.io.geojson_reader import read_geojson
from satmap.tasks.losses import IGNORED_BIT
from satmap.tasks.roads.settings import RoadSettings, TargetSettings
from satmap.tasks.roads.targets import (
    CENTRE_BIT,
    CROSSING_UNKNOWN_BIT,
    DECK_UNKNOWN_BIT,
    JUNCTION_BIT,
    RoadLabel,
    rasterize_levels,
    rasterize_roads,
)
from satmap.vectors.georeference import Georeference
from satmap.vectors.levels import road_level
from satmap.vectors.speeds import label_speed_mph, speed_bin


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
                georeference.to_pixels(line.xy, collection.crs),
                label_speed_mph(line.properties),
                level=road_level(line.properties),
            )
            for line in collection.lines
        ]
    except ValueError as error:
        raise SatmapError(f"{path}: {error}.") from error


def clip_to_image(label: RoadLabel, width: int, height: int) -> list[RoadLabel]:
    """Return the parts of a road that lie inside the image."""
    inside = shapely.intersection(shapely.LineString(label.line), shapely.box(0, 0, width, height))
    parts = [part for part in shapely.get_parts(inside) if part.geom_type == "LineString"]
    if not parts:
        # The road only touches the image.
        return []
    return [
        replace(label, line=shapely.get_coordinates(part))
        for part in shapely.get_parts(shapely.line_merge(shapely.multilinestrings(parts)))
        if part.length > 0
    ]


def encode_roads(
    chip: Chip, image: NDArray[np.uint8], settings: TargetSettings, with_levels: bool = False
) -> EncodedLabel:
    """Read the roads of a chip and rasterize its target.

    Args:
        chip: an image and its label.
        image: uint8 (h, w, channels), as large as the image file.
        settings: widths in metres.
        with_levels: whether the network learns levels.

    Returns:
        ``target`` uint8 (h, w) from :func:`satmap.tasks.roads.targets.rasterize_roads`; with
        levels uint8 (h, w, 2), whose second byte is from
        :func:`satmap.tasks.roads.targets.rasterize_levels`. The payload is a list of (points, speed
        in mph), clipped to the image.

    Raises:
        SatmapError: the label is missing, unreadable or belongs to another place, or the image has
            no georeference or no data.
    """
    info = chip.image
    if chip.label is None:
        raise SatmapError(f"{info.path}: no label, so it cannot be trained with.")
    if is_chip_label(chip.label):
        return _encode_own(ChipLabel.read(chip.label), settings, with_levels)
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
    target = rasterize_roads(labels, size, metres, settings)
    if with_levels:
        target = np.dstack([target, rasterize_levels(labels, size, metres, settings)])
    return EncodedLabel(
        arrays={"target": target},
        payload=[(label.line.tolist(), label.speed_mph) for label in inside],
        count=len(inside),
        metres_per_pixel=metres,
    )


def read_true_roads(chip: Chip) -> tuple[list[NDArray[np.float64]], NDArray[np.bool_] | None]:
    """Return the lines of a chip's true roads, in pixels, and the pixels without complete labels.

    Raises:
        SatmapError: as :func:`encode_roads`.
    """
    info = chip.image
    if chip.label is None:
        raise SatmapError(f"{info.path}: no label to compare with.")
    if is_chip_label(chip.label):
        label = ChipLabel.read(chip.label)
        return [shapely.get_coordinates(line) for line in label.shapes.tolist()], label.ignored
    if info.georeference is None:
        raise SatmapError(f"{info.path}: no georeference, so its labels cannot be placed.")
    roads = read_road_labels(chip.label, info.georeference)
    inside = [part for road in roads for part in clip_to_image(road, info.width, info.height)]
    return [road.line for road in inside], None


def _encode_own(label: ChipLabel, settings: TargetSettings, with_levels: bool) -> EncodedLabel:
    """Draw the target of a chip that was cut from a user's images.

    Roads of a mask keep the width that they have there. A mask does not tell on which level a road
    is, or whether roads meet where they cross.
    """
    height, width = label.ignored.shape
    assert label.metres_per_pixel is not None, "chips for roads have a pixel size"
    lines, default = label.shapes.tolist(), RoadSettings().default_speed_mph
    speeds = label.speeds_mph or (default,) * len(lines)
    widths = label.widths_m or (np.nan,) * len(lines)
    levels = label.levels or (0,) * len(lines)
    roads = [
        RoadLabel(shapely.get_coordinates(line), speed, None if np.isnan(road_m) else road_m, level)
        for line, speed, road_m, level in zip(lines, speeds, widths, levels, strict=True)
    ]
    size = height, width
    target = rasterize_roads(roads, size, label.metres_per_pixel, settings)
    if label.mask is not None:
        junctions, centres = target & JUNCTION_BIT, target & CENTRE_BIT
        drawn = centres | np.uint8(speed_bin(default) + 1)
        target = (junctions | np.where(label.mask, drawn, 0)).astype(np.uint8)
    target[label.ignored] = IGNORED_BIT
    if with_levels:
        if label.mask is None:
            second = rasterize_levels(roads, size, label.metres_per_pixel, settings)
        else:
            second = np.full_like(target, CROSSING_UNKNOWN_BIT | DECK_UNKNOWN_BIT)
        target = np.dstack([target, second])
    inside = [part for road in roads for part in clip_to_image(road, width, height)]
    return EncodedLabel(
        arrays={"target": target},
        payload=[(road.line.tolist(), road.speed_mph) for road in inside],
        count=len(inside),
        metres_per_pixel=label.metres_per_pixel,
    )
