"""Draw a submission or an export over its images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely

from satmap.data.chip import Chip
from satmap.data.imagery import read_stretched
from satmap.data.layouts.building_challenges import find_building_images
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.data.mosaic import find_layers, make_mosaics
from satmap.data.sources import find_sources
from satmap.errors import SatmapError
from satmap.io.progress import track
from satmap.report.misses import buildings_picture
from satmap.report.panels import Key, Panel, Picture, View, compose, write_picture
from satmap.report.road_overlay import side_by_side
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv
from satmap.submissions.coco_json import read_coco_results, read_coco_truth
from satmap.submissions.coco_masks import CocoMask
from satmap.submissions.formats import Format, detect
from satmap.submissions.result_format import find_format
from satmap.submissions.roads_csv import RoadRow, read_roads_csv
from satmap.submissions.vector_maps import buildings_in, read_map, roads_in

_FOUND = (255, 160, 0)

# Maps are drawn in parts of this size.
_PART_PX = 2048


def write_overlays(
    submission: Path, directories: Sequence[Path], pictures: Path, truth: Path | None = None
) -> list[Path]:
    """Draw a submission over every image of the directories.

    Roads are coloured by speed, beside the true roads or the plain image. Buildings are compared
    with the true ones, if given: the picture distinguishes found, missed and false buildings, and
    leaves out polygons too small for the building score.

    A vector file, such as an export of satmap, is drawn over any georeferenced rasters, which form
    one map. Large maps are drawn in parts.

    Args:
        submission: roads CSV, SpaceNet's buildings CSV, COCO results, a vector file, or a format of
            another package.
        directories: directories of the images; for a vector file also single rasters.
        pictures: directory for the PNG files, one per image, named like the image. Those of a map
            are ``map.png`` or, by row and column, ``map-0-1.png``.
        truth: roads CSV, buildings CSV or COCO annotations; for a vector file another vector file.

    Returns:
        The files written. Images that cannot be read are skipped.

    Raises:
        SatmapError: no image can be read, the submission has none of the images, or a file does not
            hold roads or buildings.
        CannotWriteError: a picture cannot be written.
    """
    if added := find_format(submission):
        return added.draw(submission, directories, pictures, truth)
    if detect(submission) is Format.VECTORS:
        return _write_map_overlays(submission, directories, pictures, truth)
    buildings = detect(submission) in (Format.BUILDINGS_CSV, Format.COCO_RESULTS)
    read: Callable[[Path], Mapping[str, Sequence[Any]]]
    read, find = (
        (_read_buildings, find_building_images) if buildings else (read_roads_csv, scan_roads)
    )
    predicted, true = read(submission), read(truth) if truth else None
    inventory = find(directories)
    where = ", ".join(map(str, inventory.directories))
    if not any(name in predicted for chip in inventory.chips for name in _names(chip)):
        raise SatmapError(f"{submission} has none of the images in {where}.")
    written = []
    for chip in track(inventory.chips, "drawing", len(inventory.chips)):
        try:
            image = read_stretched(chip.image, 2, 98, 3)
        except SatmapError:
            continue
        draw = _draw_buildings if buildings else _draw_roads
        written.append(pictures / f"{chip.image_id}.png")
        beside = None if true is None else _rows_of(chip, true)
        title = f"predicted: {chip.image_id}"
        write_picture(written[-1], draw(image, title, _rows_of(chip, predicted), beside))
    if not written:
        raise SatmapError(f"none of the images in {where} can be read.")
    return written


def _write_map_overlays(
    export: Path, sources: Sequence[Path], pictures: Path, truth: Path | None
) -> list[Path]:
    """Draw a vector file over rasters."""
    found = read_map(export)
    true = None if truth is None else read_map(truth)
    inside: Callable[..., list[Any]] = roads_in if found.lines else buildings_in
    draw: Callable[..., Picture] = _draw_roads if found.lines else _draw_buildings
    layers, faults = find_layers(find_sources(sources).sources, 3)
    layers = [replace(layer, stretch=layer.sample_stretch(2, 98)) for layer in layers]
    mosaics = (
        [m for m in make_mosaics(layers, None) if m.georeference is not None] if layers else []
    )
    if not mosaics:
        reason = next(iter(faults.values()), "They have no georeference.")
        raise SatmapError(
            f"{export} can only be drawn over rasters with a georeference, and there is none under "
            f"{', '.join(map(str, sources))}. {reason}"
        )
    (mosaic,) = mosaics
    boxes = mosaic.blocks(_PART_PX)
    written = []
    for box in track(boxes, "drawing", len(boxes)):
        georeference = mosaic.georeference_of(box)
        assert georeference is not None, "the mosaic has one"
        size = box.height, box.width
        rows = inside(found, georeference, size)
        beside = None if true is None else inside(true, georeference, size)
        part = f"-{box.top // _PART_PX}-{box.left // _PART_PX}" if len(boxes) > 1 else ""
        written.append(pictures / f"map{part}.png")
        image = np.ascontiguousarray(mosaic.read(box))
        write_picture(written[-1], draw(image, f"predicted: {export.name}", rows, beside))
    return written


def _names(chip: Chip) -> tuple[str, ...]:
    """Return the names that a file may use for a chip: its id, long id or number."""
    number = () if chip.number is None else (str(chip.number),)
    return (chip.image_id, chip.long_id, *number)


def _rows_of(chip: Chip, rows: Mapping[str, Sequence[Any]]) -> list[Any]:
    return list(next((rows[name] for name in _names(chip) if name in rows), ()))


def _draw_roads(
    image: Picture, title: str, rows: Sequence[RoadRow], true: Sequence[RoadRow] | None
) -> Picture:
    beside = ("image", ()) if true is None else ("truth", true)
    return side_by_side(image, [(title, rows), beside])


def _draw_buildings(
    image: Picture, title: str, rows: Sequence[BuildingRow], true: Sequence[BuildingRow] | None
) -> Picture:
    if true is not None:
        return buildings_picture(true, rows, title=title, image=image)
    view = View.of_image(image.shape)
    panel = view.ground(image)
    polygons = [row.polygon for row in rows]
    view.draw_polygons(panel, polygons, _FOUND, filling=0.2, thickness=2, casing=True)
    keys = [Key(f"buildings ({len(rows)})", _FOUND, "area")]
    return compose([title], [Panel(panel, "buildings", keys), Panel(view.ground(image), "image")])


def _read_buildings(path: Path) -> Mapping[str, Sequence[BuildingRow]]:
    """Read the buildings of a file, by image id or number."""
    match kind := detect(path):
        case Format.BUILDINGS_CSV:
            return read_buildings_csv(path)
        case Format.COCO_RESULTS:
            return {
                str(number): [BuildingRow(_polygon(found.mask), found.score) for found in results]
                for number, results in read_coco_results(path).items()
            }
        case Format.COCO_ANNOTATIONS:
            return {
                str(number): [BuildingRow(_polygon(building.mask)) for building in buildings]
                for number, buildings in read_coco_truth(path).buildings.items()
            }
    raise SatmapError(f"{path} is {kind}; buildings are in a CSV or a COCO file.")


def _polygon(mask: CocoMask) -> shapely.Geometry:
    """Return the outline of a mask along its pixel edges."""
    drawn = mask.pixels()
    shapes = rasterio.features.shapes(drawn, mask=drawn > 0)
    return shapely.union_all([shapely.geometry.shape(shape) for shape, _ in shapes])
