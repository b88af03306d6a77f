"""The files that a prediction ends in, from its journal: one image in memory at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from satmap.errors import SatmapError
from satmap.exports import GEOGRAPHIC_SUFFIXES, SUFFIXES, ImageRoads, write_roads
from satmap.exports.image_roads import in_lon_lat
from satmap.files import remove_left_over_of, require_writable
from satmap.inference.journal import Journal
from satmap.inference.plan import Plan, Request
from satmap.provenance.manifest import manifest_path
from satmap.road_outputs import require_road_output


def require_outputs(request: Request) -> None:
    """Fail before the work rather than after it if something cannot be written.

    Raises:
        SatmapError: a format that is unknown, or two outputs in one file.
        CannotWriteError: a place that cannot be written to, or a file that holds something else.
    """
    for path in request.exports:
        if path.suffix.lower() not in SUFFIXES:
            raise SatmapError(
                f"{path}: the suffix names the format, and '{path.suffix}' is none of "
                f"{', '.join(SUFFIXES)}."
            )
        if path.resolve() == request.output.resolve():
            raise SatmapError(f"{path} cannot be both the submission and an export.")
    for path in (request.output, *request.exports):
        require_road_output(path)
    if request.planes:
        require_writable(request.planes / "planes.tif")


def sweep(plan: Plan, request: Request) -> None:
    """Delete what killed runs left half written where the output goes.

    The run's lock must be held: no other is writing these files.
    """
    rasters = (plan.raster(index, request.planes) for index in range(len(plan.places)))
    remove_left_over_of(
        [
            request.output,
            manifest_path(request.output),
            *request.exports,
            *(raster for raster in rasters if raster),
        ]
    )


def write_outputs(
    plan: Plan, request: Request, journal: Journal, faults: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """Write the submission and the exports.

    Args:
        plan: what was to be predicted.
        request: where to.
        journal: with what was found in all images but those at fault.
        faults: ids of the images that could not be predicted.

    Returns:
        How much was found by the id that stands in the file, every image; and what to know of the
        exports.

    Raises:
        CannotWriteError: an output cannot be written.
    """
    if request.planes:
        # What an earlier run knew of images that this one could not predict.
        for image_id in faults:
            (request.planes / f"{plan.ids[image_id]}.tif").unlink(missing_ok=True)
    keys = {
        plan.ids[place.chip.image_id]: place.key
        for place in plan.places
        if place.key in journal.finished
    }
    counts = plan.maps.write(request.output, list(plan.ids.values()), keys, journal)
    warnings: list[str] = []
    for path in request.exports:
        warnings += _export(path, (journal.found(key) for key in keys.values()))
    return counts, warnings


def _export(path: Path, roads: Iterator[ImageRoads]) -> list[str]:
    """Write the roads of the images that the format can hold; gives what to know of the others."""
    if path.suffix.lower() not in GEOGRAPHIC_SUFFIXES:
        write_roads(path, roads)
        return []
    faults: list[str] = []

    def placed() -> Iterator[ImageRoads]:
        for of_image in roads:
            try:
                in_lon_lat(of_image)
            except SatmapError as error:
                faults.append(str(error))
                continue
            yield of_image

    write_roads(path, placed())
    return [f"{path} lacks {len(faults)} images. {faults[0]}"] if faults else []
