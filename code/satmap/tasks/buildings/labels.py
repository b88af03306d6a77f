"""Building labels: footprints in pixels from GeoJSON or COCO annotations, repaired if invalid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import rasterio.features
import shapely
import shapely.geometry
from numpy.typing import NDArray

from satmap.data.cache import EncodedLabel, require_image_data
from satmap.data.chip import Chip
from satmap.data.chip_label import ChipLabel, is_chip_label
from satmap.data.judgement import read_ignored
from satmap.data.layouts.mapping_challenge import outline, read_coco_annotations
from satmap.errors import SatmapError
from satmap.io.geojson_reader import read_geojson
from satmap.tasks.buildings.targets import draw_instances
from satmap.tasks.losses import IGNORED_BIT
from satmap.vectors.buildings import Polygons

# Labels with a smaller area are lines, square pixels.
_LEAST_AREA = 1e-3


@dataclass(frozen=True)
class BuildingLabels:
    """The labelled buildings of one image: valid polygons and multi-polygons, in pixels.

    They are clipped to the image. ``repaired`` is the number of polygons that were invalid.
    """

    outlines: Polygons
    repaired: int


def read_building_labels(chip: Chip) -> BuildingLabels:
    """Read the footprints of a chip.

    Raises:
        SatmapError: the chip has no label or no georeference; the label is not GeoJSON or COCO
            annotations, has features but no polygon, lies outside the image, or has coordinates
            that cannot be transformed.
    """
    if chip.label is None:
        raise SatmapError(f"{chip.image.path}: no label, so it cannot be trained with.")
    if is_chip_label(chip.label):
        found = ChipLabel.read(chip.label).shapes.tolist()
    elif chip.number is not None:
        rings = read_coco_annotations(chip.label).rings(chip.number)
        found = [outline(of_building) for of_building in rings]
    else:
        found = _read_geojson(chip)
    outlines, repaired = _repair(np.array(found, np.object_))
    if chip.ignored is not None:
        outlines = shapely.difference(outlines, shapely.union_all(_ignored(chip)))
    image = shapely.box(0, 0, chip.image.width, chip.image.height)
    inside, _ = _repair(shapely.intersection(outlines, image))
    if len(outlines) and not len(inside) and chip.ignored is None:
        raise SatmapError(
            f"{chip.label}: none of its {len(outlines)} buildings lies on {chip.image.path.name}. "
            "Check that label and image belong together and the label's coordinate system."
        )
    return BuildingLabels(inside, repaired)


def _ignored(chip: Chip) -> Polygons:
    """Return the polygons of a chip that training ignores, in pixels."""
    if chip.ignored is None or chip.image.georeference is None:
        return np.empty(0, np.object_)
    return read_ignored(chip.ignored, chip.image.georeference)


def trace_parts(mask: NDArray[np.bool_]) -> list[shapely.Geometry]:
    """Return the outlines of the connected parts of a mask (height, width), in pixels."""
    found = rasterio.features.shapes(mask.astype(np.uint8), mask=mask)
    return [shapely.geometry.shape(outline) for outline, _ in found]


def _repair(shapes: Polygons) -> tuple[Polygons, int]:
    """Return valid polygons and multi-polygons with an area, and the number of invalid shapes."""
    valid = shapely.is_valid(shapes)
    fixed = shapes.copy()
    # "structure" keeps loops of opposite orientation: a self-crossing building stays whole.
    fixed[~valid] = shapely.make_valid(shapes[~valid], method="structure", keep_collapsed=False)
    kept = [_polygonal(shape) for shape in fixed]
    # A line whose coordinates were rounded has an area, and would be drawn.
    areas = [shape for shape in kept if shape.area > _LEAST_AREA]
    return np.array(areas, np.object_), int((~valid).sum())


def _polygonal(shape: shapely.Geometry) -> shapely.Geometry:
    """Return only the polygons of a shape."""
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    parts = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _read_geojson(chip: Chip) -> list[shapely.Polygon]:
    info, label = chip.image, chip.label
    assert label is not None
    if info.georeference is None:
        raise SatmapError(
            f"{info.path}: no georeference, so its labels cannot be placed. "
            "Assign one, for example with `rio edit-info --crs EPSG:4326 --transform ...`."
        )
    collection = read_geojson(label)
    if collection.geometries and not collection.surfaces and collection.lines:
        raise SatmapError(
            f"{label}: none of its {collection.geometries} features is a polygon. "
            "Check that these are buildings."
        )
    polygons = np.array([surface.polygon for surface in collection.surfaces], np.object_)
    if not len(polygons):
        return []
    try:
        placed = info.georeference.to_pixels(shapely.get_coordinates(polygons), collection.crs)
    except ValueError as error:
        raise SatmapError(f"{label}: {error}.") from error
    return list(shapely.set_coordinates(polygons, placed))


def ignored_pixels(chip: Chip, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of a chip that training ignores, in an image of the given height and width.

    These are the ignored pixels of a user's own chip, and the polygons of a judgement.

    Raises:
        SatmapError: a file cannot be read.
    """
    height, width = shape
    ignored = np.zeros(shape, np.bool_)
    if chip.label is not None and is_chip_label(chip.label):
        known = ChipLabel.read(chip.label).ignored.astype(np.uint8)
        ignored |= cv2.resize(known, (width, height), interpolation=cv2.INTER_NEAREST) > 0
    scale = np.array([width / chip.image.width, height / chip.image.height])
    hidden = shapely.transform(_ignored(chip), lambda xy: xy * scale)
    if len(hidden):
        ignored |= draw_instances(hidden, shape) > 0
    return ignored


#: Draws a target, (h, w) or (h, w, bytes), from polygons and multi-polygons in pixels, given the
#: height and width.
Draw = Callable[[Polygons, tuple[int, int]], NDArray[Any]]


def encode_buildings(
    chip: Chip, image: NDArray[np.uint8], draw: Draw, ignored: int = IGNORED_BIT
) -> EncodedLabel:
    """Read the buildings of a chip and draw its ``target``.

    ``image``, uint8 (h, w, channels), is the network input, which may differ in size from the file;
    it is 0 in all channels where there is no data. In the target, or its first byte, these pixels
    are 0, and ignored pixels are ``ignored``. The payload is a list of hexadecimal WKB in
    pixels of the file.

    Raises:
        SatmapError: the label is missing, unreadable or of another place, or the image has no data.
    """
    labels = read_building_labels(chip)
    require_image_data(chip, image, len(labels.outlines), "buildings")
    height, width = image.shape[:2]
    scale = np.array([width / chip.image.width, height / chip.image.height])
    scaled = shapely.transform(labels.outlines, lambda xy: xy * scale)
    target = draw(scaled, (height, width))
    bits = target if target.ndim == 2 else target[..., 0]
    # Pixels without image data count as background.
    bits[~image.any(axis=2)] = 0
    bits[ignored_pixels(chip, (height, width))] = ignored
    return EncodedLabel(
        arrays={"target": target},
        payload=shapely.to_wkb(labels.outlines, hex=True).tolist(),
        count=len(labels.outlines),
        metres_per_pixel=chip.image.metres_per_pixel or (1.0, 1.0),
        repaired=labels.repaired,
    )
