"""Commands that make maps of images, and make them again."""

import argparse
import json
from pathlib import Path

from satmap.cli.commands import Commands, report_faults, report_warnings
from satmap.cli.options import (
    add_images,
    add_maps,
    add_networks,
    add_view_angle,
    count,
    require_task,
    with_pixel_size,
)
from satmap.errors import SatmapError
from satmap.io.text import printable
from satmap.runtime.launched import is_first_rank, is_rank, local_processes
from satmap.runtime.resources import available_cores
from satmap.runtime.shared_memory import can_share_locks


def add_predict(commands: Commands) -> None:
    """Add ``predict``."""
    predict = commands.add("predict", _predict)
    predict.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    predict.add_argument("output", type=Path, metavar="OUT")
    predict.add_argument("--recipe", help="name or file (default: that of the weights)")
    add_networks(predict)
    predict.add_argument(
        "--probabilities",
        type=Path,
        metavar="DIR",
        help="write the averaged planes too, a GeoTIFF an image, for vectorize and tune",
    )
    predict.add_argument(
        "--export",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="write the roads as .geojson, .gpkg or .graphml too, buildings as .geojson or .gpkg; "
        "repeatable",
    )
    predict.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="processes that vectorise, for each that predicts; 0 works in the main one "
        "(default: by the cores)",
    )
    predict.add_argument(
        "--processes",
        type=count,
        metavar="N",
        help="that predict (default: one a visible GPU; without, one)",
    )
    predict.add_argument(
        "--out-of-fold",
        action="store_true",
        help="predict training images, each by the networks that did not train with it",
    )

    add_view_angle(predict)


def _predict(options: argparse.Namespace) -> int:
    """Predict the roads or buildings of every image and write the submission.

    Buildings go into SpaceNet's CSV, and into a list of COCO results where OUT ends in .json. All
    checkpoints of the recipe in the weights directory are averaged. An image that cannot be read
    has an empty row and is reported at the end. Started again after an interruption the run goes on
    with the next image. All visible GPUs are used, one process each; on several machines start it
    with torchrun. The file is the same however many processes and workers there are.
    """
    from satmap.cli.checks import check_prediction

    check_prediction(
        options.directories, options.output, options.weights, options.recipe, options.export
    )
    from satmap.runtime.device import visible_gpus

    processes = 1 if is_rank() else options.processes or visible_gpus(options.device) or 1
    if processes > 1:
        from satmap.runtime.launcher import launch

        return launch(options.arguments, processes)
    # Seconds of imports, which are the ranks' to do and not their launcher's.
    from satmap.prediction.run import predict

    workers = options.workers
    if workers is None:
        workers = _default_vectorizers(local_processes())
    done = predict(
        options.directories,
        options.output,
        options.weights,
        options.device,
        options.recipe,
        maps=options.probabilities,
        exports=options.export,
        out_of_fold=options.out_of_fold,
        workers=workers,
        command=options.arguments,
        view_angle=options.nadir,
    )
    if not is_first_rank():
        return 0
    report_warnings(done.warnings)
    report_faults(done.faults, "written as empty")
    found = sum(done.images.values())
    print(f"{options.output}: {len(done.images)} images, {found} {done.noun}")
    return 0 if len(done.faults) < len(done.images) else 1


def add_vectorize(commands: Commands) -> None:
    """Add ``vectorize``."""
    vectorize = commands.add("vectorize", _vectorize)
    vectorize.add_argument("maps", type=Path, metavar="MAPS")
    vectorize.add_argument("output", type=Path, metavar="OUT")
    add_maps(vectorize, "that of the recipe, else roads")
    vectorize.add_argument(
        "--recipe", help="name or file whose vectoriser's settings count (default: the defaults)"
    )
    add_view_angle(vectorize)


def _vectorize(options: argparse.Namespace) -> int:
    """Turn probability rasters into roads or buildings, whatever network they are from.

    A mask is a PNG or GeoTIFF named like its image, with one band, the road, or the twelve planes
    of `predict --probabilities`: uint8, 0..255, or float, 0..1. OUT's suffix is the format: .csv
    (the challenge's), .geojson, .gpkg or .graphml. A mask that cannot be vectorised is empty in OUT
    and is reported at the end.

    With --task buildings a mask has one to three bands: the body, the border, the ground between
    two; OUT is SpaceNet's CSV, .geojson or .gpkg, or COCO results where it ends in .json and masks
    have numbers as names.
    """
    from satmap.cli.checks import check_maps
    from satmap.io.files import require_map_output
    from satmap.recipes.schema import load_recipe

    check_maps(options.maps)
    require_map_output(options.output)
    if options.recipe:
        require_task(load_recipe(options.recipe), options.task)
    from satmap.prediction.vectorize import vectorize_directory
    from satmap.tasks.base import default_task, task_of
    from satmap.tasks.dense import DenseTask

    if options.recipe:
        recipe = require_task(load_recipe(options.recipe), options.task)
        task = task_of(with_pixel_size(recipe, options.metres_per_pixel))
    else:
        task = default_task(options.task or "roads")
        task = task_of(with_pixel_size(task.recipe, options.metres_per_pixel))
    if not isinstance(task, DenseTask):
        raise SatmapError(f"{task.noun} are not made of probability maps.")
    done = vectorize_directory(
        options.maps, options.output, task, workers=options.workers, view_angle=options.nadir
    )
    report_warnings(done.warnings)
    report_faults(done.faults, "left empty")
    print(f"{options.output}: {len(done.images)} images, {sum(done.images.values())} {task.noun}")
    return 0 if len(done.faults) < len(done.images) else 1


def add_verify(commands: Commands) -> None:
    """Add ``verify``."""
    verify = commands.add("verify", _verify)
    verify.add_argument("file", type=Path, metavar="OUT.csv|WEIGHTS")
    add_images(verify, "the submission's images (default: where its manifest says)")
    verify.add_argument(
        "--weights", type=Path, metavar="DIR", help="its weights (default: likewise)"
    )
    verify.add_argument(
        "--truth",
        type=Path,
        metavar="TRUTH",
        help="compare scores by it, where bytes cannot be the same",
    )
    verify.add_argument(
        "--device", default="auto", help="auto (what it was made on), cpu, cuda, cuda:1, ..."
    )
    for option in ("--processes", "--workers"):
        verify.add_argument(option, type=count, metavar="N", help="as predict takes them")
    verify.add_argument("--json", action="store_true", help="print one JSON object")


def _verify(options: argparse.Namespace) -> int:
    """Does a file come from what its manifest names? Makes a submission again to find out.

    OUT.csv: the checksums of submission, weights and images, then the prediction once more, into a
    temporary directory. On the same kind of machine it must give the same bytes, on another scores
    within 0.001. WEIGHTS: a weight file or a directory of them, by checksum and manifest. Status 1
    if not.
    """
    for path in (options.file, options.weights, options.truth, *options.images):
        if path is not None and not path.exists():
            raise SatmapError(f"{path} does not exist.")
    if options.file.is_dir() or options.file.suffix == ".safetensors":
        from satmap.evaluation.verify import verify_weights

        files = verify_weights(options.file)
        if options.json:
            print(json.dumps({str(file): faults for file, faults in files.items()}, indent=1))
        else:
            for file, faults in files.items():
                print("\n".join(f"{file}: {printable(fault)}" for fault in faults or ["verified"]))
        return 1 if any(files.values()) else 0

    from satmap.evaluation.verify import Sources, verify_submission

    sources = Sources(
        directories=tuple(options.images),
        weights=options.weights,
        truth=options.truth,
        device=options.device,
        processes=options.processes,
        workers=options.workers,
    )
    found = verify_submission(options.file, sources)
    print(json.dumps(found.to_json(), indent=1) if options.json else found.report())
    return 0 if found.passed else 1


def _default_vectorizers(processes: int) -> int:
    """Processes that vectorise for each of several that predict, which have a core themselves."""
    workers = min(8, max(available_cores() // processes - 1, 0))
    return workers if can_share_locks(workers) else 0
