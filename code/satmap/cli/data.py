"""Commands that inspect images or make synthetic ones."""

import argparse
import json
from pathlib import Path

from satmap.cli.commands import Commands, report_faults
from satmap.cli.options import (
    add_cache,
    add_directories,
    add_judgement,
    add_sources,
    own_data,
)
from satmap.errors import SatmapError
from satmap.recipes.registry import task_names

# Recipes for small data that are not called small-TASK.
_SMALL = {"raster": "small-open-cities", "instances": "small-cascade"}


def add_inventory(commands: Commands) -> None:
    """Add ``inventory``."""
    inventory = commands.add("inventory", _inventory)
    add_sources(inventory)
    inventory.add_argument(
        "--task",
        choices=task_names(),
        default="roads",
        help="task that the images are for (default: roads)",
    )
    inventory.add_argument(
        "--recipe",
        help="recipe that will be trained, for its tiles and folds (default with --labels: that "
        "for small data, such as small-roads)",
    )
    add_cache(inventory, "with --labels or a recipe with tiles")
    add_judgement(inventory)


def _inventory(options: argparse.Namespace) -> int:
    """List areas, images, labels, bands and sizes, and what is missing.

    With --labels it checks your own images and labels: objects, ignored pixels, the offset between
    labels and images, and how validation data are held out. It cuts the images into chips in the
    cache, where `satmap train` finds them. With a --recipe that has tiles, it does the same with
    the scenes of a challenge.

    Examples:
      satmap inventory SpaceNet5/
      satmap inventory town.tif --labels osm.gpkg --task roads
      satmap inventory images/ --labels masks/ --task buildings
      satmap inventory train_tier_1/ --recipe my-tiles.yaml
      satmap inventory train_tier_2/ --judgement judged
    """
    from satmap.recipes.schema import default_recipe, load_recipe

    own = own_data(options)
    recipe = load_recipe(options.recipe) if options.recipe else None
    directories = [Path(source) for source in options.sources]
    if own is None and (recipe is None or recipe.tiles is None):
        found = (recipe or default_recipe(options.task)).task.find_images(directories)
        if options.judgement:
            from satmap.data.judgement import judged_inventory

            found = judged_inventory(found, options.judgement)
        print(found.summary())
        return 0
    from satmap.data.cache import default_cache
    from satmap.data.folds import describe_folds, split_chips
    from satmap.data.labelled import find_labelled
    from satmap.tasks.base import task_of

    task = task_of(recipe or load_recipe(_SMALL.get(options.task, f"small-{options.task}")))
    recipe, cache = task.recipe, options.cache or default_cache()
    inventory = find_labelled(directories, own, task, cache, options.judgement)
    print(inventory.summary())
    if options.recipe and recipe.folds_by:
        chips = [chip for chip in inventory.chips if chip.label is not None]
        folds = split_chips(chips, recipe.folds_by, recipe.folds, recipe.seed, inventory.duplicates)
        print(describe_folds(chips, folds))
    return 0


def add_audit(commands: Commands) -> None:
    """Add ``audit``."""
    audit = commands.add("audit", _audit)
    add_directories(audit)
    audit.value(
        "--validation DIR",
        Path,
        "directory of validation images; repeatable",
        action="append",
        default=[],
    )
    audit.value(
        "--bits",
        int,
        "most bits in which the hashes of near-duplicates differ (default: %(default)s)",
        choices=range(4),
        default=3,
    )
    audit.flag("--turned", "also find rotated and mirrored duplicates")
    audit.flag("--json", "print one JSON object with all paths")


def _audit(options: argparse.Namespace) -> int:
    """Find near-duplicate images within training and between training and validation.

    Images under DIR are for training unless they lie under a directory of --validation. They are
    compared by perceptual hashes, so compression, scaling and brightness make no difference.
    `train --audit` reads the output of --json and keeps near-duplicates in one fold.

    Examples:
      satmap audit train/ --validation validation/
      satmap audit train/ --turned --json > audit.json
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
    city.value("directory DIR", Path, "directory to write the city to")
    city.add_argument(
        "--layout",
        choices=("spacenet5", "spacenet4", "spacenet2", "coco"),
        default="spacenet5",
        help="spacenet5: roads; spacenet4: buildings from oblique view angles; spacenet2 and coco: "
        "buildings from above (default: %(default)s)",
    )
    city.value(
        "--chips",
        int,
        "number of training chips (default: 24, 4, 24 and 48, in the order of the layouts)",
    )
    city.value("--test-chips", int, "number of test chips (default: 6, 1, 6 and 12)")
    city.value(
        "--size", int, "height and width of a chip in pixels (default: 512, 900, 650 and 300)"
    )
    city.value(
        "--looks",
        int,
        "number of view angles per tile, for spacenet4 (default: all 27)",
        dest="view_angles",
    )
    city.add_argument(
        "--overpasses",
        choices=("none", "few", "many"),
        default="few",
        help="roads on different levels; few: bridges over a motorway; many: also cloverleaves, "
        "viaducts, tunnels, railway bridges and footbridges (default: %(default)s)",
    )
    city.value("--seed", int, "seed of the random city (default: %(default)s)", default=0)


def _make_city(options: argparse.Namespace) -> int:
    """Make a synthetic city: images, labels and truth in the layout of a challenge.

    Layouts: roads of SpaceNet 5; buildings of SpaceNet 4 (each tile from up to 27 view angles),
    SpaceNet 2 or the Mapping Challenge. Writes DIR/train, DIR/test and the truth of the test
    images, DIR/test_truth.csv.

    Examples:
      satmap make-city city
      satmap make-city city --layout spacenet4 --looks 3 --size 256 --chips 8
      satmap make-city city --overpasses many
    """
    from synthcity import BuildingLayout, CityError, make_building_city, make_city

    given = {
        key: value
        for key in ("chips", "test_chips", "size", "view_angles", "overpasses")
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
    demo.value("directory DIR", Path, "directory for maps, city, weights, submission and pictures")


def _demo(options: argparse.Namespace) -> int:
    """Map two real places; then train, predict and score on a synthetic city. Takes minutes.

    DIR/real/ gets the maps of the two places, for the browser and for a GIS. DIR/pictures/ shows
    the results of the synthetic city. Two CPU cores are enough.

    Examples:
      satmap demo demo
    """
    from satmap.demo import run_demo

    print(run_demo(options.directory))
    return 0
