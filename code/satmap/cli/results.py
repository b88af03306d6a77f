"""Commands that look into submissions."""

import argparse
import json
import sys
from pathlib import Path

from satmap.cli.commands import Commands, report_warnings
from satmap.cli.options import count, pixel_size
from satmap.io.files import require_writable
from satmap.io.text import printable


def add_score(commands: Commands) -> None:
    """Add ``score``."""
    score = commands.add("score", _score)
    score.add_argument("truth", type=Path, metavar="TRUTH")
    score.add_argument("proposal", type=Path, metavar="PROPOSAL")
    score.add_argument("--json", action="store_true", help="print one JSON object")
    score.add_argument("--images", action="store_true", help="list every image in the table")
    score.add_argument(
        "--topo", action="store_true", help="score roads by TOPO too, a second opinion"
    )
    score.add_argument(
        "--plot", type=Path, metavar="DIR", help="write pictures of what the worst images miss"
    )
    score.add_argument(
        "--plots", type=count, default=10, metavar="N", help="how many (default: %(default)s)"
    )
    score.add_argument(
        "--metres-per-pixel",
        type=pixel_size,
        default=0.31,
        metavar="M",
        help="pixel size (default: %(default)s, the official road scorer's)",
    )


def _score(options: argparse.Namespace) -> int:
    """Score a submission against the truth, by the metric of its challenge.

    Roads (CSV, GeoJSON): APLS by length and by travel time. Buildings (CSV, GeoJSON): SpaceNet's
    F1. COCO results against COCO annotations: average precision. Two directories of mask rasters:
    Jaccard index. The files say which; GeoJSON may be a directory with one file an image.
    """
    from functools import partial

    from satmap.evaluation.score import score_files
    from satmap.report.misses import draw_image, write_misses
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
        else score_table(scoring.report, images=options.images)
    )
    if options.plot:
        written = write_misses(
            options.plot,
            scoring.report.images,
            scoring.rank_by,
            partial(draw_image, scoring),
            options.plots,
        )
        print(f"{len(written)} pictures in {options.plot}", file=sys.stderr)
    return 0


def add_check(commands: Commands) -> None:
    """Add ``check``."""
    check = commands.add("check", _check)
    check.add_argument("submission", type=Path, metavar="OUT")
    check.add_argument("directories", type=Path, nargs="*", metavar="DIR")


def _check(options: argparse.Namespace) -> int:
    """Would the organisers accept the file? Names every fault with its line.

    Takes the submissions of all challenges: roads CSV, buildings CSV, COCO results, a directory of
    mask rasters. With directories, every image in them must appear and no other. Status 1 if there
    is a fault.
    """
    from satmap.cli.checks import check_results

    check_results(options.submission)
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
    overlay.add_argument("submission", type=Path, metavar="OUT.csv")
    overlay.add_argument("pictures", type=Path, metavar="PICTURE_DIR")
    overlay.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    overlay.add_argument("--truth", type=Path, metavar="TRUTH.csv", help="drawn beside")


def _overlay(options: argparse.Namespace) -> int:
    """Draw a submission over its images: roads by speed, the truth beside them, or buildings.

    Of buildings (CSV, COCO results) a truth tells apart what is found, missed and false.
    """
    from satmap.evaluation.result_format import find_format
    from satmap.report.building_overlay import write_building_overlays
    from satmap.report.road_overlay import write_overlays
    from satmap.submissions.formats import Format, detect

    if added := find_format(options.submission):
        pictures = added.draw(
            options.submission, options.directories, options.pictures, options.truth
        )
        print(f"{len(pictures)} pictures in {options.pictures}")
        return 0
    buildings = detect(options.submission) in (Format.BUILDINGS_CSV, Format.COCO_RESULTS)
    write = write_building_overlays if buildings else write_overlays
    pictures = write(options.submission, options.directories, options.pictures, options.truth)
    print(f"{len(pictures)} pictures in {options.pictures}")
    return 0
