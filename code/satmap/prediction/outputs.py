"""The files that a prediction ends in, from its journal: one image in memory at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

from satmap.io.files import remove_temporary_files_of
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan, Request
from satmap.provenance.manifest import manifest_path


def remove_leftovers(plan: Plan, request: Request) -> None:
    """Delete what killed runs left half written where the output goes.

    The run's lock must be held: no other is writing these files.
    """
    rasters = (plan.raster(index, request.maps) for index in range(len(plan.tiles)))
    remove_temporary_files_of(
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
    if request.maps:
        # What an earlier run knew of images that this one could not predict.
        for image_id in faults:
            (request.maps / f"{plan.ids[image_id]}.tif").unlink(missing_ok=True)
    keys = {
        plan.ids[tile.chip.image_id]: tile.key
        for tile in plan.tiles
        if tile.key in journal.finished
    }
    counts = plan.task.write(request.output, list(plan.ids.values()), keys, journal.found)

    def images() -> Iterator[Any]:
        return (journal.found(key) for key in keys.values())

    problems = {path: plan.task.export(path, images) for path in request.exports}
    return counts, [
        f"{path} lacks {len(lacking)} images. {next(iter(lacking.values()))}"
        for path, lacking in problems.items()
        if lacking
    ]
