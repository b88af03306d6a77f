"""Write the output files of a prediction from its journal, with one image in memory at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

from satmap.io.files import remove_temporary_files_of
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan, Request
from satmap.provenance.manifest import manifest_path


def remove_leftovers(plan: Plan, request: Request) -> None:
    """Delete partly written files that killed runs left beside the outputs.

    The caller must hold the lock of the journal, so that no other run is writing these files.
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
        plan: what was predicted.
        request: the outputs.
        journal: holds the results of all images except those in ``faults``.
        faults: ids of the images that could not be predicted.

    Returns:
        Number of objects of every image, by its id in the file; and warnings about the exports.

    Raises:
        CannotWriteError: an output cannot be written.
    """
    if request.maps:
        # Delete maps that an earlier run wrote for images that this run could not predict.
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
