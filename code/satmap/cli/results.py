"""Commands that score, check and draw submissions."""

import argparse
import json
import sys
from pathlib import Path

from satmap.cli.commands import Commands, report_warnings
from satmap.cli.options import add_images, add_units, count, pixel_size
from satmap.errors import SatmapError
from satmap.io.files import require_writable
from satmap.io.text import printable


def add_score(commands: Commands) -> None:
    """Add ``score``."""
    score = commands.add("score", _score)
    score.value("truth TRUTH", Path, "truth, a file or directory")
    score.value(
        "proposal PROPOSAL",
        Path,
        "submission to score, a file or directory of the same kind as TRUTH",
    )
    score.flag("--json", "print one JSON object")
    score.flag("--per-image", "list every image in the table")
    score.flag("--topo", "also score roads by a second metric, TOPO")
    score.value("--plot DIR", Path, "draw the errors of the images with worst scores")
    score.value("--plots N", count, "number of pictures (default: %(default)s)", default=10)
    add_images(score, "images to draw on: rasters or directories, for --plot (default: white)")
    add_units(score)
    score.value(
        "--metres-per-pixel M",
        pixel_size,
        "pixel size in metres (default: %(default)s, as in the official road scorer)",
        default=0.31,
    )


def _score(options: argparse.Namespace) -> int:
    """Score a submission against the truth, by the metric of its challenge.

    Roads (CSV, GeoJSON): APLS by length and by travel time. Buildings (CSV, GeoJSON): SpaceNet's
    F1. COCO results against COCO annotations: average precision. Two directories of mask rasters:
    Jaccard index. The format is detected from the files. GeoJSON may be a directory with one file
    per image.

    --plot draws found, missed and false objects. With --images they are drawn over the imagery:
    that of the same name, or for GeoJSON that at the same place.

    Examples:
      satmap score truth.csv out.csv
      satmap score truth.csv out.csv --topo --per-image
      satmap score truth.geojson roads.geojson --plot pictures --images town.tif
    """
    from satmap.cli.checks import require_existing

    require_existing(options.truth, options.proposal, *options.images)
    if options.images and not options.plot:
        raise SatmapError("--images is for the pictures of --plot DIR, which is missing.")
    from satmap.evaluation.score import score_files
    from satmap.report.overlay import write_misses
    from satmap.report.panels import Units
    from satmap.report.table import score_table

    if options.plot:
        require_writable(options.plot / "picture.png")
    scoring = score_files(
        options.truth,
        options.proposal,
        metres_per_pixel=options.metres_per_pixel,
        with_topo=options.topo,
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
        print(f"{len(written)} pictures in {options.plot}", file=sys.stderr)
    return 0


def add_check(commands: Commands) -> None:
    """Add ``check``."""
    check = commands.add("check", _check)
    check.value("submission OUT", Path, "submission to check")
    check.value(
        "directories DIR",
        Path,
        "directory of the images that the submission must contain",
        nargs="*",
    )


def _check(options: argparse.Namespace) -> int:
    """Find problems that would get a submission rejected, with their line numbers.

    Reads the submissions of all challenges: roads CSV, buildings CSV, COCO results, and directories
    of mask rasters. With image directories, exactly their images must be in the submission. The
    exit status is 1 if there is a problem.

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
    overlay.value("submission OUT", Path, "submission to draw: CSV, GeoJSON, COCO results, masks")
    overlay.value("pictures PICTURE_DIR", Path, "directory to write the pictures to")
    overlay.value("images IMAGES", Path, "raster, or directory of images", nargs="+")
    overlay.value("--truth TRUTH", Path, "truth to compare with, as for score")
    add_units(overlay)


def _overlay(options: argparse.Namespace) -> int:
    """Draw the roads or buildings of a submission over its images.

    Roads are coloured by speed. With a truth, the true roads and the found, missed and false roads
    are beside them, and buildings are found, missed or false, with their intersection over union.
    Images of any names are found by the ids of the submission, and for GeoJSON by their place.

    Examples:
      satmap overlay out.csv pictures images/
      satmap overlay out.csv pictures images/ --truth truth.csv --units mph
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
    )
    print(f"{len(pictures)} pictures in {options.pictures}")
    return 0
