"""Commands that predict, vectorise probability maps and verify submissions."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from satmap.cli.commands import Commands, report_faults, report_warnings
from satmap.cli.options import (
    add_cache,
    add_crs,
    add_directories,
    add_images,
    add_least_confidence,
    add_maps,
    add_networks,
    add_processes,
    add_reading,
    add_view_angle,
    count,
    require_task,
    value_range,
    with_pixel_size,
)
from satmap.errors import SatmapError
from satmap.io.files import require_writable
from satmap.io.text import printable
from satmap.io.walk import require_directories
from satmap.recipes.registry import task_names
from satmap.runtime.launched import is_first_rank, is_rank, local_processes
from satmap.runtime.resources import available_cores, can_share_locks
from satmap.submissions.output_checks import require_any_format, require_map_output

if TYPE_CHECKING:
    from satmap.prediction.outputs import PredictionReport


# Formats of exports, for the help.
_FORMATS = ".gpkg, .geojson, .fgb, .parquet, .shp.zip, .osm or .osm.pbf, roads also .graphml"


def add_predict(commands: Commands) -> None:
    """Add ``predict``."""
    predict = commands.add("predict", _predict)
    add_directories(predict)
    predict.value(
        "output OUT",
        Path,
        "submission to write: .csv, or for buildings also .json (COCO results); for masks a "
        "directory, .zip or .tgz",
    )
    predict.add_argument(
        "--recipe", help="name of a recipe or .yaml file (default: that of the weights)"
    )
    add_networks(predict)
    predict.value(
        "--probabilities DIR",
        Path,
        "also write the averaged probability maps, one GeoTIFF per image, for vectorize and tune",
    )
    predict.value(
        "--export PATH",
        Path,
        f"also write the roads or buildings as {_FORMATS}; repeatable",
        action="append",
        default=[],
    )
    add_crs(predict)
    add_processes(predict)
    predict.flag(
        "--out-of-fold", "predict training images, each by the networks whose training held it out"
    )
    add_cache(predict, "with --out-of-fold and a recipe with tiles")
    add_view_angle(predict)
    add_least_confidence(predict)


def _predict(options: argparse.Namespace) -> int:
    """Predict the roads or buildings of every image and write the submission.

    DIR holds a challenge's images; for any other images use `satmap map`. Buildings are written as
    SpaceNet's CSV, or as COCO results if OUT ends in .json. Masks (task raster) are one .TIF per
    image, in the directory OUT or in an archive if OUT ends in .zip or .tgz. The predictions of all
    checkpoints of the recipe are averaged. An image that cannot be read gets an empty row or mask
    and is reported at the end. After an interruption the same command resumes with the next image.
    satmap uses all visible GPUs, with one process each; on several machines use torchrun. OUT does
    not depend on the number of processes and workers.

    Examples:
      satmap predict test/ out.csv --weights weights
      satmap predict test/ out.json --weights weights --export buildings.gpkg
      satmap predict test/ masks.zip --weights weights
      satmap predict train/ fold.csv --out-of-fold --probabilities maps
    """
    from satmap.cli.checks import check_prediction

    check_prediction(options)
    if (status := _launched(options)) is not None:
        return status
    # These imports take seconds; a launching process does not need them.
    from satmap.prediction.run import predict

    done = predict(
        options.directories,
        options.output,
        options.weights,
        options.device,
        options.recipe,
        maps=options.probabilities,
        exports=options.export,
        out_of_fold=options.out_of_fold,
        cache=options.cache,
        workers=_vectorizers(options),
        command=options.arguments,
        view_angle=options.nadir,
        crs=options.crs,
        least_confidence=options.least_confidence,
    )
    if not is_first_rank():
        return 0
    return _report(options.output, done, "written as empty")


def _launched(options: argparse.Namespace) -> int | None:
    """Start the processes that predict and return their exit status; None in such a process."""
    from satmap.runtime.device import visible_gpus

    processes = 1 if is_rank() else options.processes or visible_gpus(options.device) or 1
    if processes == 1:
        return None
    from satmap.runtime.launcher import launch

    return launch(options.arguments, processes)


def _vectorizers(options: argparse.Namespace) -> int:
    """Return the number of processes that vectorise, by default by the number of cores."""
    if options.workers is not None:
        workers: int = options.workers
        return workers
    return _default_vectorizers(local_processes())


def _report(output: Path, done: "PredictionReport", outcome: str) -> int:
    """Print the result of a command and return the exit status."""
    report_warnings(done.warnings)
    report_faults(done.faults, outcome)
    print(f"{output}: {len(done.images)} images, {sum(done.images.values())} {done.noun}")
    return 0 if len(done.faults) < len(done.images) else 1


def add_map(commands: Commands) -> None:
    """Add ``map``."""
    map_ = commands.add("map", _map)
    map_.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="raster, directory of rasters or of map tiles, list of rasters (.txt), STAC item "
        "collection (.json), or address of a GeoTIFF (https://, http://, s3://)",
    )
    map_.value(
        "output OUT",
        Path,
        f"map to write; its suffix is the format: {_FORMATS}, or .csv. Images without georeference "
        "need .csv or .graphml, which hold pixels. Masks: .zip, .tgz, or a directory. OUT.html is "
        "an interactive map for the browser, with OUT.gpkg beside it",
    )
    map_.value(
        "--export PATH", Path, "also write this format; repeatable", action="append", default=[]
    )
    add_crs(map_)
    map_.add_argument(
        "--task",
        choices=task_names(),
        help="what to map (default: that of the weights; needed for a starter network)",
    )
    map_.add_argument(
        "--recipe", help="name of a recipe or .yaml file (default: that of the weights)"
    )
    add_networks(map_, starters=True)
    add_reading(map_, "metres per pixel for the networks (default: that of the training images)")
    map_.value(
        "--stretch LOW,HIGH",
        value_range,
        "values that become black and white (default: percentiles of a sample of each source)",
    )
    map_.add_argument(
        "--priority",
        choices=("finest", "first"),
        default="finest",
        help="which source to use where several overlap (default: %(default)s)",
    )
    map_.add_argument(
        "--views",
        type=int,
        choices=(1, 4, 8),
        help="views of the image to average: 1 is fastest (default: that of the recipe)",
    )
    add_processes(map_)
    add_view_angle(map_)
    add_least_confidence(map_)


def _map(options: argparse.Namespace) -> int:
    """Map any images: GeoTIFF, VRT, JPEG, PNG, WebP, JPEG 2000, MBTiles, map tiles.

    Without --weights, satmap uses the starter network of the --task: roads in aerial images of
    about 1 m per pixel, or buildings in aerial and drone images of 0.15 to 0.3 m (docs/models/).
    All images with a georeference become one map, without seams. Images without one are mapped
    separately, in pixels. Images are resampled to the pixel size that the networks were trained
    with. A raster or a part of it that cannot be read is left out and reported at the end. The exit
    status is then 1, and the same command maps only what is missing. After an interruption the same
    command resumes.

    Examples:
      satmap map town.tif roads.gpkg --task roads
      satmap map town.tif roads.html --task roads
      satmap map town.tif buildings.gpkg --task buildings
      satmap map town.tif roads.gpkg --weights weights --export roads.osm --crs EPSG:2154
      satmap map tiles/ https://example.org/scene.tif buildings.geojson --zoom 19 --weights weights
    """
    from satmap.cli.checks import check_mapping

    page = options.output if options.output.suffix.lower() == ".html" else None
    if page is not None:
        require_writable(page)
        options.output = page.with_suffix(".gpkg")
    check_mapping(options)
    if (status := _launched(options)) is not None:
        return status
    from satmap.prediction.map import MapRequest, map_sources

    request = MapRequest(
        directories=(),
        output=options.output,
        weights=options.weights,
        device=options.device,
        recipe_name=options.recipe,
        exports=tuple(options.export),
        workers=_vectorizers(options),
        command=tuple(options.arguments),
        view_angle=options.nadir,
        sources=tuple(options.sources),
        bands=options.bands,
        source_crs=options.source_crs,
        zoom=options.zoom,
        priority=options.priority,
        stretch=options.stretch,
        gsd=options.gsd,
        crs=options.crs,
        views=options.views,
        least_confidence=options.least_confidence,
    )
    done = map_sources(request)
    if not is_first_rank():
        return 0
    report_warnings(done.warnings)
    report_faults(done.faults, "not or only partly mapped", "rasters or blocks")
    if done.unfinished:
        print(
            "satmap: to map them, too, remove the causes and run the same command again. It only "
            f"maps what is missing. Finished work is kept in .{options.output.name}.*"
            " beside the output.",
            file=sys.stderr,
        )
    print(f"{options.output}: {sum(done.images.values())} {done.noun}")
    if page is not None and any(done.images.values()):
        _write_page(page, options)
    return 1 if done.unfinished else 0


def _write_page(page: Path, options: argparse.Namespace) -> None:
    """Write the map of ``map`` for the browser, with the imagery that it was made from."""
    from satmap.viewer.data import read_results
    from satmap.viewer.imagery import Imagery
    from satmap.viewer.page import write_page

    imagery = Imagery(options.sources, crs=options.source_crs, zoom=options.zoom)
    write_page(page, read_results([options.output]), imagery)
    print(f"{page}: open it in a browser")


def add_vectorize(commands: Commands) -> None:
    """Add ``vectorize``."""
    vectorize = commands.add("vectorize", _vectorize)
    vectorize.value("maps MAPS", Path, "directory of probability rasters, searched to any depth")
    vectorize.value("output OUT", Path, "file to write; its suffix is the format")
    add_maps(vectorize, "that of the recipe, else roads")
    vectorize.add_argument(
        "--recipe",
        help="name of a recipe or .yaml file with the vectoriser's settings (default: the default "
        "settings)",
    )
    add_crs(vectorize)
    add_view_angle(vectorize)
    vectorize.value(
        "--confidence FILE",
        Path,
        "calibration of the networks that made the rasters (confidence.json beside their weights; "
        "default: roads and buildings are uncalibrated)",
    )
    add_least_confidence(vectorize)


def _vectorize(options: argparse.Namespace) -> int:
    """Turn probability rasters of any network into roads or buildings.

    A raster is a PNG or GeoTIFF named like its image, uint8 (0..255) or float (0..1), with one band
    (road) or the twelve bands of `predict --probabilities`. The suffix of OUT is the format: .csv
    (the challenge's), or one of those of `predict --export`. A raster that cannot be vectorised is
    empty in OUT and is reported at the end.

    With --task buildings a raster has one to three bands: building, border, and contact (the
    ground between two buildings). OUT is SpaceNet's CSV, one of the formats of `predict --export`,
    or COCO results if it ends in .json and the rasters have numbers as names. With --task raster
    OUT is a directory or an archive (.zip, .tgz) of masks, or an export of their outlines.

    Examples:
      satmap vectorize maps/ roads.geojson
      satmap vectorize maps/ buildings.gpkg --task buildings
    """
    from satmap.recipes.schema import default_recipe, load_recipe

    require_directories([options.maps])
    require_map_output(options.output)
    if options.recipe:
        recipe = require_task(load_recipe(options.recipe), options.task)
    else:
        recipe = default_recipe(options.task or "roads")
    require_any_format(recipe.task, options.output)
    if options.least_confidence is not None and options.confidence is None:
        raise SatmapError(
            "--least-confidence: without the calibration of the networks that made the rasters "
            "(--confidence FILE), roads and buildings are uncalibrated."
        )
    from satmap.prediction.vectorize import vectorize_directory
    from satmap.tasks.base import task_of
    from satmap.tasks.dense import DenseTask

    task = task_of(with_pixel_size(recipe, options.metres_per_pixel))
    if not isinstance(task, DenseTask):
        raise SatmapError(f"the task {recipe.task.name} has no probability maps to vectorise.")
    done = vectorize_directory(
        options.maps,
        options.output,
        task,
        workers=options.workers,
        view_angle=options.nadir,
        crs=options.crs,
        calibration=options.confidence,
        least_confidence=options.least_confidence,
    )
    return _report(options.output, done, "left empty")


def add_verify(commands: Commands) -> None:
    """Add ``verify``."""
    verify = commands.add("verify", _verify)
    verify.value("file OUT.csv|WEIGHTS", Path, "submission, weight file or directory of weights")
    add_images(verify, "directories of the images (default: those in the manifest)")
    verify.value("--weights DIR", Path, "directory of weights (default: that in the manifest)")
    verify.value(
        "--truth TRUTH", Path, "truth to compare scores with, if the bytes cannot be the same"
    )
    verify.add_argument(
        "--device",
        default="auto",
        help="auto (the kind in the manifest), cpu, cuda, cuda:1, ... (default: %(default)s)",
    )
    for option in ("--processes", "--workers"):
        verify.add_argument(option, type=count, metavar="N", help="as for predict")
    verify.flag("--json", "print one JSON object")


def _verify(options: argparse.Namespace) -> int:
    """Verify that a file comes from the inputs in its manifest.

    OUT.csv: checks the checksums of submission, weights and images, and repeats the prediction in a
    temporary directory. On the same kind of machine the bytes must be the same, on another kind the
    scores must agree within 0.001. WEIGHTS: checks a weight file, or a directory of them, against
    checksums and manifests. The exit status is 1 if a check fails.

    Examples:
      satmap verify out.csv
      satmap verify out.csv --images test/ --truth truth.csv
      satmap verify weights/
    """
    for path in (options.file, options.weights, options.truth, *options.images):
        if path is not None and not path.exists():
            raise SatmapError(f"{path} does not exist.")
    from satmap.provenance.manifest import manifest_path

    # A directory of masks has a manifest beside it, one of weights a manifest per file in it.
    is_output = manifest_path(options.file).exists()
    if options.file.suffix == ".safetensors" or (options.file.is_dir() and not is_output):
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
    """Return the number of vectorising workers per predicting process, which needs a core too."""
    workers = min(8, max(available_cores() // processes - 1, 0))
    return workers if can_share_locks(workers) else 0
