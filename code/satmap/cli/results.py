"""Commands that score, check and draw submissions."""

import argparse
import json
import sys
from pathlib import Path

from satmap.cli.commands import Commands, report_faults, report_warnings
from satmap.cli.options import (
    add_directories,
    add_images,
    add_least_confidence,
    add_units,
    count,
    metres,
    pixel_size,
)
from satmap.errors import SatmapError
from satmap.io.files import require_writable
from satmap.io.text import printable
from satmap.io.walk import require_directories
from satmap.submissions.output_checks import require_map_output


def add_score(commands: Commands) -> None:
    """Add ``score``."""
    score = commands.add("score", _score)
    score.value("truth TRUTH", Path, "truth, a file or directory")
    score.value(
        "proposal PROPOSAL",
        Path,
        "submission or map to score, a file or directory of the same kind as TRUTH",
    )
    score.flag("--json", "print one JSON object")
    score.flag("--per-image", "list every image in the table")
    score.flag("--topo", "also score roads by a second metric, TOPO")
    score.flag("--crossings", "also score where roads cross on different levels, and false turns")
    score.flag("--polygons", "also score the outlines of buildings")
    score.value("--plot DIR", Path, "draw the errors of the images with worst scores")
    score.value("--plots N", count, "number of pictures (default: %(default)s)", default=10)
    add_images(score, "images to draw on: rasters or directories, for --plot (default: white)")
    add_least_confidence(score)
    add_units(score)
    score.value(
        "--metres-per-pixel M",
        pixel_size,
        "pixel size in metres (default: %(default)s, as in the official road scorer)",
        default=0.31,
    )


def _score(options: argparse.Namespace) -> int:
    """Score a submission against the truth, by the metric of its challenge.

    Roads (CSV, vector files): APLS by length and by travel time. Buildings (CSV, vector files):
    SpaceNet's F1. COCO results against COCO annotations: average precision. Mask rasters in two
    directories or archives (.zip, .tgz): Jaccard index. The format is detected from the files.
    Vector files are satmap's exports and labels in .gpkg, .geojson, .fgb, .parquet, .shp, .osm and
    .osm.pbf, in any reference system; or a directory with one GeoJSON per image.

    If the roads or buildings of a vector file state their confidence, its calibration error and the
    precision by coverage are printed, too; else it is called uncalibrated.

    --plot draws found, missed and false objects, with --crossings also crossings and false turns,
    and the reliability of confidences. With --images objects are drawn over the imagery: that of
    the same name, or for vector files that at the same place.

    Examples:
      satmap score truth.csv out.csv --topo --crossings --per-image
      satmap score truth.csv buildings.csv --polygons
      satmap score labels.geojson roads.gpkg --plot pictures --images town.tif
    """
    from satmap.cli.checks import require_existing

    require_existing(options.truth, options.proposal, *options.images)
    if options.images and not options.plot:
        raise SatmapError("--images is for the pictures of --plot DIR, which is missing.")
    from satmap.evaluation.metrics.reliability import Reliability
    from satmap.evaluation.score import score_files
    from satmap.report.overlay import write_misses
    from satmap.report.panels import Units, write_picture
    from satmap.report.reliability import RELIABILITY_PICTURE, draw_reliability
    from satmap.report.table import score_table

    if options.plot:
        require_writable(options.plot / "picture.png")
    scoring = score_files(
        options.truth,
        options.proposal,
        metres_per_pixel=options.metres_per_pixel,
        with_topo=options.topo,
        with_crossings=options.crossings,
        with_polygons=options.polygons,
        least_confidence=options.least_confidence,
    )
    report_warnings(scoring.warnings)
    print(
        json.dumps(scoring.report.to_json(), indent=1)
        if options.json
        else score_table(scoring.report, images=options.per_image)
    )
    if options.plot:
        written = write_misses(
            options.plot, scoring, options.plots, options.images, Units(options.units)
        )
        if isinstance(scoring.report.confidence, Reliability):
            written.append(options.plot / RELIABILITY_PICTURE)
            write_picture(written[-1], draw_reliability(scoring.report.confidence))
        print(f"{len(written)} pictures in {options.plot}", file=sys.stderr)
    return 0


def add_check(commands: Commands) -> None:
    """Add ``check``."""
    check = commands.add("check", _check)
    check.value("submission OUT", Path, "submission or map to check")
    check.value(
        "directories DIR",
        Path,
        "directory of the images that a submission must contain, or that a map must lie on",
        nargs="*",
    )


def _check(options: argparse.Namespace) -> int:
    """Find problems that would get a submission rejected, with their line numbers.

    Reads the submissions of all challenges: roads CSV, buildings CSV, COCO results, and mask
    rasters in a directory or an archive (.zip, .tgz). With image directories, exactly their images
    must be in the submission. In vector files, such as satmap's exports, it finds invalid polygons,
    roads that do not meet at their node, and objects outside the images. The exit status is 1 if
    there is a problem.

    Examples:
      satmap check out.csv
      satmap check out.csv test/images
    """
    from satmap.cli.checks import require_existing

    require_existing(options.submission)
    from satmap.evaluation.check import check_files

    faults = check_files(options.submission, options.directories)
    for fault in faults:
        place = f":{fault.line}" if fault.line is not None else ""
        print(f"{options.submission}{place}: {printable(fault.message)}")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    print(f"{options.submission}: {count if faults else 'ok'}")
    return 1 if faults else 0


def add_overlay(commands: Commands) -> None:
    """Add ``overlay``."""
    overlay = commands.add("overlay", _overlay)
    overlay.value("submission OUT", Path, "submission or map to draw")
    overlay.value("pictures PICTURE_DIR", Path, "directory to write the pictures to")
    overlay.value("images IMAGES", Path, "raster, or directory of images", nargs="+")
    overlay.value("--truth TRUTH", Path, "truth to compare with, as for score")
    overlay.value(
        "--part M",
        metres,
        "draw large maps in parts of at most this side, in metres (default: %(default)s)",
        default=465.0,
    )
    add_least_confidence(overlay)
    add_units(overlay)


def _overlay(options: argparse.Namespace) -> int:
    """Draw the roads or buildings of a submission over its images.

    Roads are coloured by speed. With a truth, further panels show the true roads, and which roads
    are found, missed and false. Buildings and areas of masks are then drawn as found, missed or
    false, buildings with their intersection over union. Images may have any names: they are found
    by the ids of the submission, or for vector files, such as satmap's exports, by their place.

    Examples:
      satmap overlay out.csv pictures images/
      satmap overlay roads.gpkg pictures town.tif --truth labels.geojson --units mph
    """
    from satmap.cli.checks import require_existing

    require_existing(options.submission, *options.images, *filter(None, [options.truth]))
    from satmap.report.overlay import write_overlays
    from satmap.report.panels import Units

    pictures = write_overlays(
        options.submission,
        options.images,
        options.pictures,
        options.truth,
        Units(options.units),
        options.part,
        options.least_confidence,
    )
    print(f"{len(pictures)} pictures in {options.pictures}")
    return 0


def add_convert(commands: Commands) -> None:
    """Add ``convert``."""
    convert = commands.add("convert", _convert)
    convert.value(
        "maps MAPS", Path, "directory with one GeoJSON per image, or a vector file of all images"
    )
    convert.value("output OUT.csv", Path, "submission to write")
    add_directories(convert)
    add_least_confidence(convert)


def _convert(options: argparse.Namespace) -> int:
    """Convert roads or buildings from vector files to the challenge's CSV, in pixels of its images.

    Each file of a directory is named like its image. The features of a single file, such as an
    export of satmap, name their image in image_id; without it they are cut at the borders of the
    images. Images without objects get an empty row.

    Examples:
      satmap convert geojson/ out.csv test_images/
    """
    from satmap.cli.checks import require_existing

    require_existing(options.maps)
    require_directories(options.directories)
    require_map_output(options.output)
    if options.output.suffix.lower() != ".csv":
        raise SatmapError(f"{options.output}: the name of the submission must end in .csv.")
    from satmap.submissions.convert import convert_to_csv

    counts, faults = convert_to_csv(
        options.maps, options.output, options.directories, options.least_confidence
    )
    report_faults(faults, "written as empty")
    print(f"{options.output}: {len(counts)} images, {sum(counts.values())} objects")
    return 0 if len(faults) < len(counts) else 1
