"""Check the submissions of every challenge for problems that would get them rejected."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import rasterio

from satmap.data.layouts.mapping_challenge import ANNOTATIONS, PICTURE_SUFFIXES
from satmap.data.layouts.spacenet_buildings import building_image_ids
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import SatmapError
from satmap.io.gdal import driver_of
from satmap.io.walk import walk
from satmap.submissions.buildings_csv import check_buildings_csv
from satmap.submissions.coco_json import check_coco_results, read_coco_sizes
from satmap.submissions.fault import Fault
from satmap.submissions.formats import Format, detect
from satmap.submissions.mask_rasters import check_masks
from satmap.submissions.result_format import find_format
from satmap.submissions.roads_csv import check_roads_csv


def check_files(submission: Path, directories: Sequence[Path] = ()) -> list[Fault]:
    """Return the problems that would get a submission rejected, in whole or in part.

    Args:
        submission: file or directory in the format of any challenge.
        directories: directories of the test images. If given, the submission must cover exactly
            these images.

    Raises:
        SatmapError: the submission cannot be read, no challenge takes its format, or the
            directories hold no images of its challenge.
    """
    if added := find_format(submission):
        return added.check(submission, directories)
    match kind := detect(submission):
        case Format.ROADS_CSV:
            return _check_roads(submission, directories)
        case Format.BUILDINGS_CSV:
            ids = building_image_ids(directories) if directories else None
            return check_buildings_csv(submission, ids)
        case Format.COCO_RESULTS:
            sizes = _coco_images(directories) if directories else None
            return check_coco_results(submission, sizes)
        case Format.MASKS:
            return check_masks(submission, _raster_sizes(directories) if directories else None)
        case _:
            raise SatmapError(
                f"{submission} is {kind}, which no challenge takes. Give a roads or buildings CSV, "
                "a list of COCO results or a directory of mask rasters."
            )


def _check_roads(submission: Path, directories: Sequence[Path]) -> list[Fault]:
    expected: list[Collection[str] | None] = [None]
    if directories:
        # A file may use ids with or without the challenge's prefix, but not both.
        ids = scan_roads(directories).long_ids
        expected = [ids.keys(), ids.values()]
    return min((check_roads_csv(submission, images) for images in expected), key=len)


def _coco_images(directories: Sequence[Path]) -> dict[int, tuple[int, int]]:
    """Return width and height of the Mapping Challenge's images by id.

    Annotation files provide them; images without annotations are opened.
    """
    sizes: dict[int, tuple[int, int]] = {}
    for path in walk(directories):
        if path.name == ANNOTATIONS:
            sizes.update(read_coco_sizes(path))
        elif path.suffix.lower() in PICTURE_SUFFIXES and path.stem.isdecimal():
            sizes.setdefault(int(path.stem), _size(path))
    if not sizes:
        raise SatmapError(
            f"no images of the Mapping Challenge under {', '.join(map(str, directories))}. "
            f"Expected an {ANNOTATIONS}, or images named by number (000000000012.jpg)."
        )
    return sizes


def _raster_sizes(directories: Sequence[Path]) -> Mapping[str, tuple[int, int]]:
    """Return width and height of GeoTIFF images by file name without suffix."""
    paths = [path for path in walk(directories) if path.suffix.lower() in (".tif", ".tiff")]
    if not paths:
        raise SatmapError(f"no GeoTIFF images under {', '.join(map(str, directories))}.")
    return {path.stem: _size(path) for path in paths}


def _size(path: Path) -> tuple[int, int]:
    try:
        with rasterio.open(path, driver=driver_of(path)) as image:
            return image.width, image.height
    except rasterio.errors.RasterioError as error:
        raise SatmapError(f"{path}: cannot be read as an image ({error}).") from error
