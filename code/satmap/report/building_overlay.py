"""Draw predicted buildings over their image; with a truth, show what is found and missed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import rasterio.features
import shapely

from satmap.data.chip import Chip
from satmap.data.layouts.building_challenges import find_building_images
from satmap.errors import SatmapError
from satmap.report.misses import scored_buildings_picture
from satmap.report.overlay import draw_chips, rows_of
from satmap.report.panels import Key, Panel, Picture, View, compose
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv
from satmap.submissions.coco_json import read_coco_results, read_coco_truth
from satmap.submissions.coco_masks import CocoMask
from satmap.submissions.formats import Format, detect

_FOUND = (255, 160, 0)


def write_building_overlays(
    submission: Path, directories: Sequence[Path], pictures: Path, truth: Path | None = None
) -> list[Path]:
    """Draw a submission's buildings over every image of the directories.

    Args:
        submission: SpaceNet's CSV or COCO results.
        directories: directories of the images.
        pictures: directory for the PNG files, one per image, named like the image.
        truth: CSV or COCO annotations. If given, the picture distinguishes found, missed and false
            buildings, and leaves out polygons too small for the building score.

    Returns:
        The files written. Images that cannot be read are skipped.

    Raises:
        SatmapError: no image can be read, the submission has none of the images, or a file does
            not hold buildings.
        CannotWriteError: a picture cannot be written.
    """
    predicted = _read(submission)
    true = _read(truth) if truth else None

    def draw(chip: Chip, image: Picture) -> Picture:
        found, title = rows_of(chip, predicted), f"predicted: {chip.image_id}"
        if true is None:
            return _picture(image, found, title)
        return scored_buildings_picture(rows_of(chip, true), found, title=title, image=image)

    inventory = find_building_images(directories)
    return draw_chips(submission, predicted, inventory, pictures, draw)


def _picture(image: Picture, rows: Sequence[BuildingRow], title: str) -> Picture:
    """Draw the buildings over the image, beside the plain image."""
    view = View.of_image(image.shape)
    panel = view.ground(image)
    view.draw_polygons(
        panel, [row.polygon for row in rows], _FOUND, filling=0.2, thickness=2, casing=True
    )
    keys = [Key(f"buildings ({len(rows)})", _FOUND, "area")]
    return compose(
        [title], [Panel(panel, "buildings", keys), Panel(view.ground(image), "image", [])]
    )


def _read(path: Path) -> Mapping[str, Sequence[BuildingRow]]:
    """Read the buildings of a file, by image id or number.

    Raises:
        SatmapError: the file does not hold buildings.
    """
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
                str(number): [BuildingRow(_polygon(building.mask), 1.0) for building in buildings]
                for number, buildings in read_coco_truth(path).buildings.items()
            }
    raise SatmapError(f"{path} is {kind}; buildings are in a CSV or a COCO file.")


def _polygon(mask: CocoMask) -> shapely.Geometry:
    """Return the outline of a mask along its pixel edges."""
    drawn = mask.pixels()
    shapes = rasterio.features.shapes(drawn, mask=drawn > 0)
    return shapely.union_all([shapely.geometry.shape(shape) for shape, _ in shapes])
