"""Vectorise probability rasters on disk, from any network."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from satmap.data.chip import Chip
from satmap.data.imagery import ImageInfo
from satmap.data.neighbours import ImageFootprint
from satmap.data.view_angles import ViewAngle, view_angle_of_name
from satmap.errors import SatmapError, error_text
from satmap.io.progress import track
from satmap.prediction.journal import Journal
from satmap.prediction.outputs import PredictionReport
from satmap.rasters.map_files import find_map_files, open_map_file
from satmap.runtime.workers import BoundedPool
from satmap.submissions.output_checks import require_any_format, require_map_output
from satmap.tasks.dense import DenseTask
from satmap.tasks.result_decoders import NO_MODELS, FittedModels

# Rasters per worker that are being decoded or waiting.
_AHEAD = 2


def vectorize_directory(
    maps: Path,
    output: Path,
    task: DenseTask,
    *,
    workers: int = 0,
    view_angle: ViewAngle | None = None,
    crs: str | None = None,
    calibration: Path | None = None,
    least_confidence: float | None = None,
) -> PredictionReport:
    """Vectorise every probability raster under a directory and write one file.

    A raster is a PNG or GeoTIFF with the task's probability maps as bands: uint8, 0..255 for 0..1,
    or float, 0..1. NaN and pixels without data count as 0. The image id is read from a file name
    in the challenge's format; otherwise it is the name without its suffix.

    A raster that cannot be vectorised is reported and is empty in the file. Images are in natural
    order, and the bytes do not depend on ``workers``. Results are kept in a journal on disk, so
    memory does not grow with their number, and a stopped run resumes.

    Args:
        maps: directory, searched to any depth.
        output: the suffix is the format: the task's submission or one of its exports.
        task: decodes the maps and writes the file.
        workers: processes that vectorise; 0 uses this process.
        view_angle: off-nadir angle, for images whose names lack it.
        crs: reference system of an export, as for :meth:`satmap.tasks.base.Task.export`.
        calibration: file that confidences are computed with; None for none.
        least_confidence: leave out objects with a lower confidence; None to keep all.

    Raises:
        SatmapError: no rasters, two for one image, an unknown suffix, a worker that was killed, or
            a calibration for other objects.
        CannotWriteError: ``output`` cannot be written, or holds something else.
    """
    if workers < 0:
        raise ValueError(f"workers {workers}")
    require_any_format(task.recipe.task, output)
    require_map_output(output)
    paths = find_map_files(maps, task.image_id_of)
    metres = task.default_metres_per_pixel or 1.0
    chips, faults = _describe(paths, task, metres, view_angle)
    task.check_outputs(output, [*chips.values()])
    models = _models(task, calibration)
    neighbours = _find_neighbours(chips, task)
    with (
        Journal(output, _fingerprint(task, paths, view_angle, models), task) as journal,
        BoundedPool(workers, workers * _AHEAD) as pool,
    ):
        for name, chip in track(chips.items(), "vectorising", len(chips)):
            if name in faults or name in journal.finished:
                continue

            def done(future: Future[Any], name: str = name, chip: Chip = chip) -> None:
                error = future.exception()
                if error is None:
                    georeference = chip.image.georeference
                    journal.add(name, task.record(chip, name, future.result(), georeference))
                else:
                    faults[name] = error_text(error, chip.image.path)

            try:
                decode = task.result_decoder(chip, models).decode_file
            except SatmapError as error:
                faults[name] = str(error)
                continue
            pool.submit(done, decode, chip.image.path, neighbours[name], check_scale=True)
        pool.finish()
        keys = {name: name for name in paths if name in journal.finished}

        def found(key: str) -> Any:
            return task.keep_confident(journal.found(key), least_confidence)

        if output.suffix.lower() in task.export_suffixes:
            faults |= task.export(output, lambda: map(found, keys.values()), crs)
            exported = {name: key for name, key in keys.items() if name not in faults}
            counts = {name: task.count(found(key)) for name, key in exported.items()}
        else:
            counts = task.write(output, list(paths), keys, found)
        journal.remove()
    # Workers finish in any order.
    faults = {name: faults[name] for name in paths if name in faults}
    counts = {name: counts.get(name, 0) for name in paths}
    return PredictionReport(task.noun, counts, faults, _warnings(task, chips, faults))


def _models(task: DenseTask, calibration: Path | None) -> FittedModels:
    if calibration is None:
        return NO_MODELS
    if not calibration.is_file():
        raise SatmapError(f"{calibration} is not a file. Give the confidence.json of the networks.")
    found = task.find_calibration(calibration)
    if found is None:
        raise SatmapError(f"{calibration}: {task.noun} have no confidence.")
    return FittedModels(calibration=found)


def _describe(
    paths: Mapping[str, Path], task: DenseTask, metres: float, view_angle: ViewAngle | None
) -> tuple[dict[str, Chip], dict[str, str]]:
    """Describe every raster as a chip, and collect the problems of those that cannot be opened."""
    chips, faults = {}, {}
    for name, path in paths.items():
        width = height = 0
        georeference = None
        try:
            with open_map_file(path, metres, task.file_maps) as file:
                width, height, georeference = file.width, file.height, file.georeference
        except Exception as error:
            faults[name] = error_text(error, path)
        info = ImageInfo(path, "maps", width, height, 1, "uint8", georeference)
        angle = view_angle_of_name(name) or view_angle
        number = int(name) if name.isdecimal() and name.isascii() else None
        chips[name] = Chip(name, name, "", {"maps": info}, None, view_angle=angle, number=number)
    return chips, faults


def _find_neighbours(
    chips: Mapping[str, Chip], task: DenseTask
) -> dict[str, list[tuple[Path, int, int]]]:
    """Find for each raster its neighbours, with their first column and row in its pixels."""
    images = [chip.image for chip in chips.values()]
    footprints = [ImageFootprint(image.georeference, image.width, image.height) for image in images]
    return {
        name: [(images[other.image].path, other.column, other.row) for other in beside]
        for name, beside in zip(chips, task.find_neighbours(footprints), strict=True)
    }


def _warnings(
    task: DenseTask, chips: Mapping[str, Chip], faults: Mapping[str, str]
) -> tuple[str, ...]:
    unscaled = [
        name
        for name, chip in chips.items()
        if chip.image.georeference is None and name not in faults
    ]
    if task.default_metres_per_pixel is None or not unscaled:
        return ()
    return (
        f"{len(unscaled)} rasters without georeference, such as {unscaled[0]}, are assumed to have "
        f"{task.default_metres_per_pixel:g} m per pixel",
    )


def _fingerprint(
    task: DenseTask, paths: Mapping[str, Path], view_angle: ViewAngle | None, models: FittedModels
) -> str:
    """Return a digest that must match to reuse the finished images of a stopped run."""
    files = [
        [name, str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
        for name, path in paths.items()
        if path.is_file()
    ]
    fitted = [path.read_text(encoding="utf-8") for path in models.files]
    text = json.dumps([task.recipe.model_dump_json(), files, str(view_angle), fitted])
    return hashlib.sha256(text.encode()).hexdigest()
