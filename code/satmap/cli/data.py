"""Commands that look into images, or make some."""

import argparse
import json
from pathlib import Path

from satmap.cli.commands import Commands, report_faults
from satmap.errors import SatmapError
from satmap.recipes.registry import task_names


def add_inventory(commands: Commands) -> None:
    """Add ``inventory``."""
    inventory = commands.add("inventory", _inventory)
    inventory.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    inventory.add_argument(
        "--task",
        choices=task_names(),
        default="roads",
        help="what they are for (default: roads)",
    )


def _inventory(options: argparse.Namespace) -> int:
    """List what the directories hold: areas, images, labels, bands, sizes, what is missing."""
    from satmap.recipes.registry import find_task

    settings = find_task(options.task).settings_type()(name=options.task)
    print(settings.find_images(options.directories).summary())
    return 0


def add_audit(commands: Commands) -> None:
    """Add ``audit``."""
    audit = commands.add("audit", _audit)
    audit.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    audit.add_argument(
        "--validation",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="directory of validation images; repeatable",
    )
    audit.add_argument(
        "--bits",
        type=int,
        choices=range(4),
        default=3,
        help="in which hashes of near-duplicates differ at most (default: %(default)s)",
    )
    audit.add_argument(
        "--turned", action="store_true", help="turned and mirrored images are duplicates, too"
    )
    audit.add_argument("--json", action="store_true", help="print one JSON object with all paths")


def _audit(options: argparse.Namespace) -> int:
    """Find near-duplicate images within training and between training and validation.

    Images under DIR are for training unless they lie under a directory of --validation. They are
    compared by perceptual hashes, so that compression, scaling and brightness make no difference.
    What --json prints `train --audit` takes, which then keeps near-duplicates in one fold.
    """
    from satmap.data.audit import audit_images

    audit = audit_images(
        options.directories, options.validation, most_bits=options.bits, turned=options.turned
    )
    print(json.dumps(audit.to_json(), indent=1) if options.json else audit.summary())
    faults = {str(path): fault for path, fault in audit.faults.items()}
    report_faults(faults, "left out of the comparison")
    return 0 if len(faults) < audit.training + audit.validation else 1


def add_make_city(commands: Commands) -> None:
    """Add ``make-city``."""
    city = commands.add("make-city", _make_city)
    city.add_argument("directory", type=Path, metavar="DIR")
    city.add_argument(
        "--layout",
        choices=("spacenet5", "spacenet4", "spacenet2", "coco"),
        default="spacenet5",
        help="roads, oblique or near-nadir images of buildings (default: %(default)s)",
    )
    city.add_argument(
        "--chips", type=int, help="for training (default: by layout 24, 4, 24 and 48)"
    )
    city.add_argument("--test-chips", type=int, help="default: by layout 6, 1, 6 and 12")
    city.add_argument("--size", type=int, help="pixels a side (default: 512, 900, 650 and 300)")
    city.add_argument(
        "--looks",
        dest="view_angles",
        type=int,
        help="how many of SpaceNet 4's view angles (default: all 27)",
    )
    city.add_argument("--seed", type=int, default=0, help="another seed, another city")


def _make_city(options: argparse.Namespace) -> int:
    """Write a synthetic city: images, labels and truth in the layout of a challenge.

    Roads as in SpaceNet 5; buildings as in SpaceNet 4 (each tile from up to 27 view angles),
    SpaceNet 2 or the Mapping Challenge. Writes DIR/train and DIR/test, with the held-out truth in
    DIR/test_truth.csv.
    """
    from synthcity import BuildingLayout, CityError, make_building_city, make_city

    given = {
        key: value
        for key in ("chips", "test_chips", "size", "view_angles")
        if (value := getattr(options, key)) is not None
    }
    if "view_angles" in given and options.layout != BuildingLayout.SPACENET4:
        raise SatmapError(
            f"--looks is for --layout spacenet4; {options.layout} has one view angle."
        )
    try:
        if options.layout == "spacenet5":
            make_city(options.directory, seed=options.seed, **given)
        else:
            layout = BuildingLayout(options.layout)
            make_building_city(options.directory, layout, seed=options.seed, **given)
    except CityError as error:
        raise SatmapError(str(error)) from error
    print(f"{options.directory}: a synthetic city in the layout of {options.layout}")
    return 0


def add_demo(commands: Commands) -> None:
    """Add ``demo``."""
    demo = commands.add("demo", _demo)
    demo.add_argument("directory", type=Path, metavar="DIR")


def _demo(options: argparse.Namespace) -> int:
    """The whole way on a made city, with score and pictures, in minutes on two CPU cores."""
    from satmap.demo import run_demo

    print(run_demo(options.directory))
    return 0
