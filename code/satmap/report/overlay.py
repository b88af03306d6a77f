"""Write pictures of a submission: of all images, or of those with the lowest scores."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import rasterio.features
import shapely

from satmap.errors import SatmapError
from satmap.evaluation.metrics.coco_ap import match_masks
from satmap.evaluation.metrics.figures import Figures
from satmap.evaluation.score import Scoring, Sides, are_roads, require_vectors, score_files
from satmap.io.progress import track
from satmap.io.text import natural_key
from satmap.report.imagery import Imagery
from satmap.report.panels import Floats, Ground, Picture, Units, View, write_picture
from satmap.report.pictures import (
    buildings_picture,
    mask_picture,
    road_errors_picture,
    roads_picture,
    score_line,
)
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv
from satmap.submissions.coco_json import CocoBuilding, CocoResult, CocoTruth, read_coco_results
from satmap.submissions.coco_masks import CocoMask
from satmap.submissions.formats import Format, detect
from satmap.submissions.mask_rasters import find_masks, read_mask
from satmap.submissions.result_format import find_format
from satmap.submissions.roads_csv import RoadRow, read_roads_csv
from satmap.submissions.vector_maps import read_building_maps, read_road_maps

# File systems allow 255 bytes; the names of temporary files are longer than the final ones.
_LONGEST_NAME = 200

#: Maps of whole places are drawn in parts of at most this side, metres.
PART_M = 465.0

# Distance up to which objects around a part are drawn, pixels.
_MARGIN_PX = 100.0


def write_misses(
    directory: Path,
    scoring: Scoring,
    worst: int = 10,
    images: Sequence[Path] = (),
    units: Units = Units.KMH,
) -> list[Path]:
    """Draw the errors of the images with the lowest scores; return the files, worst image first.

    The files are PNG and named like the images. Names that are too long are cut off and end in a
    checksum. Images without the figure that ranks them are left out.

    Args:
        directory: directory of the pictures.
        scoring: the score.
        worst: largest number of pictures.
        images: rasters or directories of them to draw on; without, the ground is white. An image
            that is not there is drawn on white, too.
        units: of lengths.

    Raises:
        SatmapError: a file cannot be written, results of this kind cannot be drawn, or none of the
            images can be found.
    """
    ranks = [
        (score, natural_key(image_id), image_id)
        for image_id, record in scoring.report.images.items()
        if (score := record.get(scoring.rank_by)) is not None
    ]
    chosen = [image_id for _, _, image_id in sorted(ranks)[:worst]]
    imagery = Imagery(images) if images else None
    if imagery and chosen and scoring.sides:
        _require_images(chosen, scoring.sides, imagery, images, "the score")
    written = []
    for image_id in track(chosen, "drawing", len(chosen)):
        ground = None
        if imagery and scoring.sides:
            ground = _ground(image_id, scoring.sides, imagery)
        path = directory / f"{_file_name(image_id)}.png"
        write_picture(path, draw_image(scoring, image_id, ground, units))
        written.append(path)
    return written


def draw_image(
    scoring: Scoring, image_id: str, ground: Ground | None = None, units: Units = Units.KMH
) -> Picture:
    """Draw what is found, missed and false in an image.

    Raises:
        SatmapError: results of this kind cannot be drawn.
    """
    if scoring.sides is None:
        raise SatmapError("results of this kind cannot be drawn; leave --plot out.")
    figures = scoring.report.images[image_id]
    if scoring.report.metric != "apls":
        metric = scoring.report.metric
        return _compared(metric, scoring.sides, image_id, figures, ground, units)
    return road_errors_picture(
        *_rows(scoring.sides, image_id),
        caption=[image_id, score_line(figures)],
        ground=ground,
        units=units,
        metres_per_pixel=scoring.sides.metres_per_pixel,
        with_crossings="crossings_f1" in figures,
    )


def write_overlays(
    submission: Path,
    directories: Sequence[Path],
    pictures: Path,
    truth: Path | None = None,
    units: Units = Units.KMH,
    part_m: float = PART_M,
    least_confidence: float | None = None,
) -> list[Path]:
    """Draw a submission over all of its images.

    Roads are coloured by speed, beside the plain image. With a truth, the true roads and the
    missed and false roads are beside them, and buildings and masks are compared with the true ones.

    Args:
        submission: roads or buildings as CSV or vector files, COCO results, a directory or archive
            of mask rasters, or a format of another package.
        directories: directories of the images, or rasters.
        pictures: directory for the PNG files, one per image, named like the image. Large maps in
            vector files are drawn in parts, named by row and column: ``map-0-1.png``.
        truth: as for :func:`satmap.evaluation.score.score_files`.
        units: of speeds and lengths.
        part_m: largest side of a part of a large map, metres.
        least_confidence: leave out objects with a lower confidence; None to keep all.

    Returns:
        The files written. Images that cannot be read are skipped.

    Raises:
        SatmapError: no image can be read, the submission has none of the images, or a file cannot
            be drawn.
        CannotWriteError: a picture cannot be written.
    """
    require_vectors(submission, least_confidence)
    if added := find_format(submission):
        return added.draw(submission, directories, pictures, truth)
    figures: Mapping[str, Figures] = {}
    if truth:
        scoring = score_files(truth, submission, least_confidence=least_confidence)
        metric, sides, figures = scoring.report.metric, scoring.sides, scoring.report.images
        assert sides is not None, "only formats of other packages have none"
    else:
        metric, sides = _read(submission, least_confidence)
    imagery = Imagery(directories)
    ids = sorted({str(key) for side in _both(sides) for key in side}, key=natural_key)
    ids = _require_images(ids, sides, imagery, directories, str(submission))
    written = []
    for image_id in track(ids, "drawing", len(ids)):
        scores = figures.get(image_id, {})
        for part, view, part_sides in _parts(sides, image_id, part_m):
            try:
                ground = _ground(image_id, sides, imagery, view)
            except SatmapError:
                continue
            written.append(pictures / f"{_file_name(image_id)}{part}.png")
            drawn = _overlay(metric, part_sides, image_id, scores, ground, units)
            write_picture(written[-1], drawn)
    if not written:
        where = ", ".join(map(str, directories))
        raise SatmapError(f"none of the images in {where} can be read.")
    return written


def _require_images(
    ids: Sequence[str],
    sides: Sides,
    imagery: Imagery,
    places: Sequence[Path],
    file: str,
) -> list[str]:
    """Return the ids that have an image.

    Raises:
        SatmapError: none has.
    """
    there = [image_id for image_id in ids if image_id in sides.grids or image_id in imagery]
    if not there:
        raise SatmapError(
            f"{file} has none of the images in {', '.join(map(str, places))}, for example "
            f"{ids[0] if ids else 'none'} and {imagery.ids[0]}."
        )
    return there


def _ground(
    image_id: str, sides: Sides, imagery: Imagery, view: View | None = None
) -> Ground | None:
    """Return the image to draw on; None if there is none. ``view`` is for vector files."""
    grid = sides.grids.get(image_id)
    if grid is None:
        return imagery.of(image_id)
    return imagery.under(grid, view or View.around(_points(sides, image_id)))


def _points(sides: Sides, image_id: str) -> Floats:
    """Return all vertices of an image's objects, float64 (n, 2)."""
    rows = [row for side in _rows(sides, image_id) for row in side]
    return np.concatenate([np.empty((0, 2)), *map(_vertices, rows)])


def _vertices(row: RoadRow | BuildingRow) -> Floats:
    return row.line if isinstance(row, RoadRow) else shapely.get_coordinates(row.polygon)


def _parts(sides: Sides, image_id: str, part_m: float) -> Iterator[tuple[str, View | None, Sides]]:
    """Split a large map without images of its own into parts of at most ``part_m`` metres.

    Yields:
        End of the file's name; the view of the part, None for the whole image; and the objects in
        the part or close to it. Parts without objects are left out.
    """
    if image_id not in sides.grids:
        yield "", None, sides
        return
    whole = View.around(_points(sides, image_id))
    columns, rows = (
        ceil(side * sides.metres_per_pixel / part_m) for side in (whole.width, whole.height)
    )
    if columns * rows == 1:
        yield "", whole, sides
        return
    width, height = whole.width / columns, whole.height / rows
    for row, column in np.ndindex(rows, columns):
        view = View(whole.left + column * width, whole.top + row * height, width, height)
        low = np.array([view.left, view.top]) - _MARGIN_PX
        high = low + np.array([width, height]) + 2 * _MARGIN_PX
        truth, proposal = (
            [
                each
                for each in side
                if (xy := _vertices(each)).size
                and (xy.max(axis=0) >= low).all()
                and (xy.min(axis=0) <= high).all()
            ]
            for side in _rows(sides, image_id)
        )
        if truth or proposal:
            true = None if sides.truth is None else {image_id: truth}
            part = replace(sides, truth=true, proposal={image_id: proposal})
            yield f"-{row}-{column}", view, part


def _rows(sides: Sides, image_id: str) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the objects of the truth and the proposal in an image."""
    truth, proposal = _both(sides)
    # The ids of COCO files are numbers.
    key = int(image_id) if isinstance(next(iter(proposal or truth), ""), int) else image_id
    return truth.get(key, ()), proposal.get(key, ())


def _both(sides: Sides) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """Return truth and proposal by image id; the truth is empty if there is none."""
    truth = sides.truth.buildings if isinstance(sides.truth, CocoTruth) else sides.truth
    return truth or {}, sides.proposal


def _overlay(
    metric: str,
    sides: Sides,
    image_id: str,
    figures: Figures,
    ground: Ground | None,
    units: Units,
) -> Picture:
    assert ground is not None, "only images that exist are drawn"
    if metric != "apls":
        return _compared(metric, sides, image_id, figures, ground, units)
    truth, proposal = _rows(sides, image_id)
    return roads_picture(
        proposal,
        None if sides.truth is None else truth,
        ground=ground,
        caption=list(filter(None, [image_id, score_line(figures)])),
        units=units,
        metres_per_pixel=sides.metres_per_pixel,
    )


def _compared(
    metric: str,
    sides: Sides,
    image_id: str,
    figures: Figures,
    ground: Ground | None,
    units: Units,
) -> Picture:
    """Draw buildings or masks, compared with the truth if there is one."""
    caption = list(filter(None, [image_id, score_line(figures)]))
    if metric == "jaccard":
        found = read_mask(sides.proposal[image_id])
        true = read_mask(sides.truth[image_id]) if sides.truth else None
        return mask_picture(true, found, caption=caption, ground=ground, units=units)
    truth, proposal = _rows(sides, image_id)
    matches = None
    if metric == "coco_ap":
        matches = match_masks(truth, proposal)
        truth, proposal = _outlines(truth), _outlines(proposal)
        if ground is None:
            width, height = sides.truth.sizes[int(image_id)]
            ground = Ground(View(0, 0, width, height))
    return buildings_picture(
        proposal,
        None if sides.truth is None else truth,
        caption=caption,
        ground=ground,
        units=units,
        matches=matches,
    )


def _read(submission: Path, least: float | None) -> tuple[str, Sides]:
    """Read a submission without truth; also returns the name of the metric of its kind."""
    match kind := detect(submission):
        case Format.ROADS_CSV:
            return "apls", Sides(None, read_roads_csv(submission))
        case Format.BUILDINGS_CSV:
            return "building_f1", Sides(None, read_buildings_csv(submission))
        case Format.COCO_RESULTS:
            return "coco_ap", Sides(None, read_coco_results(submission))
        case Format.MASKS:
            return "jaccard", Sides(None, find_masks(submission))
        case Format.VECTORS if are_roads(submission, submission):
            _, roads, grids = read_road_maps(submission, submission, Sides.metres_per_pixel, least)
            return "apls", Sides(None, roads, grids=grids)
        case Format.VECTORS:
            _, found, grids = read_building_maps(
                submission, submission, Sides.metres_per_pixel, least
            )
            return "building_f1", Sides(None, found, grids=grids)
    raise SatmapError(
        f"{submission} is {kind}, which can only be drawn with --truth. Without it satmap draws "
        "roads and buildings as CSV or vector files, COCO results, and mask rasters."
    )


def _outlines(objects: Sequence[CocoBuilding] | Sequence[CocoResult]) -> list[BuildingRow]:
    return [BuildingRow(_polygon(each.mask), getattr(each, "score", 1.0)) for each in objects]


def _polygon(mask: CocoMask) -> shapely.Geometry:
    """Return the outline of a mask along its pixel edges."""
    drawn = mask.pixels()
    shapes = rasterio.features.shapes(drawn, mask=drawn > 0)
    return shapely.union_all([shapely.geometry.shape(shape) for shape, _ in shapes])


def _file_name(image_id: str) -> str:
    """Return a valid file name for an id, which may contain slashes and have any length."""
    name = quote(image_id, safe=" ")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(image_id.encode()).hexdigest()[:16]
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"
