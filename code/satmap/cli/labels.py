"""Commands for labels."""

import argparse
from pathlib import Path

from satmap.cli.commands import Commands, report_faults
from satmap.cli.options import (
    add_networks,
    add_sources,
    own_data,
    positive_number,
    share,
)
from satmap.io.files import require_writable


def add_labels_actions(commands: Commands) -> None:
    """Add ``labels`` and its actions."""
    actions = commands.group("labels", "Judge labels by the predictions of trained networks.")
    judge = actions.add("judge", _labels_judge)
    # It measures the shifts itself.
    add_sources(judge, shift=False)
    add_networks(judge)
    judge.value(
        "--output OUT",
        Path,
        "directory to write (default: %(default)s); an older judgement is replaced",
        default=Path("judgement"),
    )
    judge.value(
        "--drop J",
        share,
        "drop tiles whose labels have a lower Jaccard index (default: %(default)g)",
        default=0.15,
    )
    judge.value(
        "--ignore J",
        share,
        "ignore buildings with a lower Jaccard index (default: %(default)g)",
        default=0.25,
    )
    judge.value(
        "--certain P",
        share,
        "ignore predicted buildings without a label if their mean probability is at least this "
        "(default: %(default)g)",
        default=0.8,
    )
    judge.value(
        "--least-area M2",
        positive_number,
        "smallest predicted building without label to ignore, square metres (default: %(default)g)",
        default=12.0,
    )
    judge.value("--cache DIR", Path, "directory of prepared chips (default: as in train)")


def _labels_judge(options: argparse.Namespace) -> int:
    """Move shifted labels of buildings, and find tiles and buildings with wrong labels.

    The networks in --weights must predict probability maps of buildings. Those that have not
    learned from a tile predict it. The labels are moved to where they fit the predictions best; the
    shift may vary within a scene. Then the Jaccard index of each tile and building with the
    prediction decides whether a training keeps it, or leaves it out. `train --judgement OUT` reads
    the result.

    OUT gets report.md (a table by place, with pictures), labels/ (the moved labels, in the layout
    of the source), ignored/ (polygons that the loss ignores, with the reason) and judgement.json.

    Examples:
      satmap labels judge train_tier_2/ --weights tier1 --output judged
      satmap labels judge town.tif --labels osm.gpkg --weights trained --output judged
    """
    from satmap.data.judgement import JUDGEMENT, Thresholds
    from satmap.errors import SatmapError

    own = own_data(options)
    thresholds = Thresholds(
        drop=options.drop, ignore=options.ignore, certain=options.certain,
        least_m2=options.least_area,
    )  # fmt: skip
    output: Path = options.output
    require_writable(output / JUDGEMENT) if output.is_dir() else require_writable(output)
    if output.is_dir() and any(output.iterdir()) and not (output / JUDGEMENT).is_file():
        raise SatmapError(
            f"{output} is not empty and holds no judgement. Give another --output directory."
        )
    # These imports take seconds.
    from satmap.data.cache import default_cache
    from satmap.judging.run import judge
    from satmap.runtime.device import pick_device

    judgement, summary = judge(
        [Path(source) for source in options.sources],
        own,
        options.weights,
        pick_device(options.device),
        thresholds,
        output,
        options.cache or default_cache(),
    )
    report_faults(judgement.skipped, "not judged", "images or tiles")
    print(f"{summary}\n{output / 'report.md'}")
    return 0
