"""Predict one process's share of the images: read, run networks and vectorise concurrently.

A thread reads the next images while the networks run, and worker processes write and vectorise
probability maps. All queues are short, and results are kept in the journal on disk, so memory does
not grow with the number of images.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from satmap.errors import SatmapError
from satmap.io.progress import track
from satmap.networks.ensemble import EnsembleMember
from satmap.prediction.decoding import DecodeQueue, Outcome
from satmap.prediction.images import prepare_image
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan, Request, Work
from satmap.prediction.worker_jobs import copy_maps, decode_maps, store_maps
from satmap.rasters.map_files import map_writer
from satmap.rasters.map_store import MapStore
from satmap.runtime.device import DEVICE_ERRORS
from satmap.runtime.ranks import Ranks
from satmap.runtime.workers import BoundedPool, read_ahead
from satmap.tasks.base import PendingResult, PreparedImage, Task
from satmap.tasks.dense import DenseTask

#: Number of images that are read before the networks need them.
READ_AHEAD = 2

#: Images per worker whose maps are in memory: one that the worker handles and one that waits.
JOBS_PER_WORKER = 2


def predict_rank_share(
    plan: Plan,
    work: Work,
    request: Request,
    ranks: Ranks,
    members: Sequence[EnsembleMember],
    device: torch.device,
    journal: Journal,
) -> Outcome:
    """Predict this process's share of the images and write the results to its journal.

    Args:
        plan: the whole prediction.
        work: what all processes still have to do.
        request: the outputs and the number of workers.
        ranks: the processes of the prediction.
        members: the networks of the plan's files, on the device.
        device: device of the networks.
        journal: the journal of this process.

    Raises:
        SatmapError: a file cannot be written, or the device fails.
        PeerError: another process has ended.
    """
    outcome = Outcome()
    store = MapStore(request.output, plan.fingerprint)
    mine = work.share(ranks)
    with BoundedPool(request.workers, request.workers * JOBS_PER_WORKER) as pool:
        queue = DecodeQueue(plan, work, store, pool, journal, outcome)
        for index in mine.to_decode:
            queue.stored(index)
        stage = _NetworkStage(
            plan, request.maps, members, device, store, pool, queue, journal, outcome
        )
        images = read_ahead(mine.to_predict, stage.read, READ_AHEAD if request.workers else 0)
        if ranks.first:
            share = f" (1 of {ranks.world} processes)" if ranks.world > 1 else ""
            images = track(images, f"predicting{share}", len(mine.to_predict))
        stage.predict(images)
        # Images with neighbours in other processes' shares need the maps of those.
        ranks.wait()
        left = queue.decode_rest()
        for _ in track(left, "vectorising", queue.left) if ranks.first else left:
            pass
    return outcome


def launch_networks(image: PreparedImage, task: Task, device: torch.device) -> PendingResult:
    """Start the networks on an image. The device may still be computing when this returns."""
    return task.predict(image, device)


class _NetworkStage:
    """Runs the networks on the images of a share and passes the predictions to the workers."""

    def __init__(
        self,
        plan: Plan,
        rasters: Path | None,
        members: Sequence[EnsembleMember],
        device: torch.device,
        store: MapStore,
        pool: BoundedPool,
        queue: DecodeQueue,
        journal: Journal,
        outcome: Outcome,
    ) -> None:
        self._plan = plan
        self._rasters_at = rasters
        self._members = members
        self._device = device
        self._store = store
        self._pool = pool
        self._queue = queue
        self._journal = journal
        self._outcome = outcome

    def read(self, index: int) -> PreparedImage | Exception:
        """Return the prepared image of a tile, or the error. Called in the reader thread."""
        members, chip = self._members, self._plan.tiles[index].chip
        if self._plan.held_out is not None:
            pairs = zip(members, self._plan.held_out, strict=True)
            members = [member for member, images in pairs if chip.image_id in images]
        try:
            return prepare_image(chip, members, self._plan.task)
        except Exception as error:
            return error

    def predict(self, images: Iterator[tuple[int, PreparedImage | Exception]]) -> None:
        """Predict images, and meanwhile decode those whose neighbours are already predicted."""
        launched: tuple[int, PreparedImage, PendingResult] | None = None
        try:
            for index, image in images:
                self._queue.decode_ready()
                following = self._launched(index, image)
                if launched is not None:
                    self._hand_on(*launched)
                launched = following
                # A GPU gets the next image before the host waits for this one. On a CPU the
                # prediction is finished already.
                if launched is not None and self._device.type != "cuda":
                    self._hand_on(*launched)
                    launched = None
        finally:
            if launched is not None:
                self._hand_on(*launched)
        self._pool.finish()
        self._queue.decode_ready()
        self._pool.finish()

    def _launched(
        self, index: int, image: PreparedImage | Exception
    ) -> tuple[int, PreparedImage, PendingResult] | None:
        """Launch the networks. None if they fail, or if the prediction was written to a file."""
        task = self._plan.task
        try:
            if isinstance(image, Exception):
                raise image
            if image.is_large and isinstance(task, DenseTask):
                self._predict_into_file(index, image, task)
                return None
            return index, image, launch_networks(image, task, self._device)
        except DEVICE_ERRORS as error:
            raise _device_failed(error) from error
        except Exception as error:
            self._fail(index, error)
            return None

    def _predict_into_file(self, index: int, image: PreparedImage, task: DenseTask) -> None:
        """Predict probability maps that do not fit into memory, strip by strip into a file."""
        tile, georeference = self._plan.tiles[index], image.info.georeference
        with_neighbours = self._fits(index, image) or not tile.neighbours
        path = self._store.path(tile.key if with_neighbours else f"{tile.key} alone")
        names = self._plan.recipe.map_names
        with map_writer(path, names, image.shape, georeference) as write:
            for strip in task.predict_strips(image, self._device):
                write(strip.top, strip.get())
                # Free hundreds of megabytes before the next strip is predicted.
                del strip

        def copied(future: Future[None]) -> None:
            if not self._is_sound(index, image, future):
                path.unlink(missing_ok=True)
            elif with_neighbours:
                self._queue.stored(index)
            else:
                self._queue.stored_without_neighbours(index, path)
            self._queue.finished_with(index)

        self._pool.submit(copied, copy_maps, path, self._rasters(index))

    def _hand_on(self, index: int, image: PreparedImage, pending: PendingResult) -> None:
        """Wait for the prediction of an image and pass it to a worker."""
        try:
            prediction = pending.get()
        except DEVICE_ERRORS as error:
            raise _device_failed(error) from error
        except Exception as error:
            self._fail(index, error)
            return
        georeference, rasters = image.info.georeference, self._rasters(index)
        tile = self._plan.tiles[index]

        def stored(future: Future[None]) -> None:
            if self._is_sound(index, image, future):
                self._queue.stored(index)
            self._queue.finished_with(index)

        def decoded(future: Future[Any]) -> None:
            if self._is_sound(index, image, future):
                self._queue.decoded(index, georeference, future)
            self._queue.finished_with(index)

        if not isinstance(self._plan.task, DenseTask):
            self._pool.submit(decoded, self._plan.result_decoder(tile).decode, prediction)
        # An RGB image that replaces a broken multispectral one may have another pixel grid. Its
        # maps do not fit to those of the neighbours.
        elif self._fits(index, image):
            paths = [*rasters, self._store.path(tile.key)]
            self._pool.submit(stored, store_maps, prediction, georeference, paths)
        else:
            decoder = self._plan.result_decoder(tile)
            self._pool.submit(decoded, decode_maps, prediction, georeference, rasters, decoder)

    def _fits(self, index: int, image: PreparedImage) -> bool:
        """Return whether an image has neighbours and was predicted on its tile's pixel grid."""
        tile = self._plan.tiles[index]
        return bool(tile.neighbours) and image.shape == tile.shape

    def _rasters(self, index: int) -> list[Path]:
        raster = self._plan.raster(index, self._rasters_at)
        return [raster] if raster else []

    def _is_sound(self, index: int, image: PreparedImage, future: Future[Any]) -> bool:
        error = future.exception()
        if error is not None:
            self._outcome.fail(index, error)
            return False
        if image.notes:
            self._journal.add_notes(self._plan.tiles[index].key, image.notes)
        return True

    def _fail(self, index: int, error: Exception) -> None:
        self._outcome.fail(index, error)
        self._queue.finished_with(index)


def _device_failed(error: Exception) -> SatmapError:
    """Return the error that ends the run: after a device failure the next image would fail too."""
    return SatmapError(
        f"the networks' device fails ({str(error).splitlines()[0]}). Finished work is kept. "
        "Check the device, or if memory is short lower `inference: {batch, window}` in the "
        "recipe, and run the same command again to resume."
    )
