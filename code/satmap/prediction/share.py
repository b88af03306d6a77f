"""Predict one process's share of the images: read, run networks and vectorise concurrently.

A thread reads the next images while the networks run, and worker processes write and vectorise
probability maps. All queues are short, and results are kept in the journal on disk, so memory does
not grow with the number of images.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import torch

from satmap.errors import SatmapError
from satmap.io.progress import Progress, track
from satmap.networks.ensemble import EnsembleMember
from satmap.prediction.decoding import DecodeQueue
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan, Request, Work
from satmap.rasters.map_files import map_writer
from satmap.rasters.map_store import MapStore, copy_maps, store_and_decode, store_maps
from satmap.runtime.device import DEVICE_ERRORS
from satmap.runtime.ranks import Ranks
from satmap.runtime.workers import BoundedPool, read_ahead
from satmap.tasks.base import PendingResult, PreparedImage, Task
from satmap.tasks.dense import DenseTask
from satmap.weights.members import require_area

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
) -> dict[int, str]:
    """Predict this process's share of ``work``, every n-th image for n processes.

    The results go to the journal of this process. ``members`` are the networks of the plan's files.

    Returns:
        Tile index to the reason, for images that could not be predicted.

    Raises:
        SatmapError: a file cannot be written, or the device fails.
        PeerError: another process has ended.
    """
    store = MapStore(request.output, plan.fingerprint)
    share = slice(ranks.rank, None, ranks.world)
    mine = work.to_predict[share]
    with BoundedPool(request.workers, request.workers * JOBS_PER_WORKER) as pool:
        queue = DecodeQueue(plan, store, pool, journal, set(work.to_predict))
        for index in work.to_decode[share]:
            queue.stored(index)
        note = f" (1 of {ranks.world} processes)" if ranks.world > 1 else ""
        windows = sum(map(plan.windows, mine))
        with Progress(f"predicting{note}", windows, "windows", shown=ranks.first) as progress:
            stage = _NetworkStage(queue, request.maps, members, device, progress)
            stage.predict(read_ahead(mine, stage.read, READ_AHEAD if request.workers else 0))
        # Images with neighbours in other processes' shares need the maps of those.
        ranks.wait()
        left = queue.decode_rest()
        for _ in track(left, "vectorising", queue.left) if ranks.first else left:
            pass
    return queue.faults


def launch_networks(image: PreparedImage, task: Task, device: torch.device) -> PendingResult:
    """Start the networks on an image. The device may still be computing when this returns."""
    return task.predict(image, device)


@dataclass
class _NetworkStage:
    """Runs the networks on the images of a share and passes the predictions to the workers."""

    queue: DecodeQueue
    maps: Path | None
    members: Sequence[EnsembleMember]
    device: torch.device
    progress: Progress

    def __post_init__(self) -> None:
        self.plan = self.queue.plan

    def read(self, index: int) -> PreparedImage | Exception:
        """Return the prepared image of a tile, or the error. Called in the reader thread."""
        chip = self.plan.tiles[index].chip
        try:
            fits = require_area(self.plan.files, chip.aoi)
            if self.plan.held_out is not None:
                held_out = [chip.image_id in images for images in self.plan.held_out]
                fits = [a and b for a, b in zip(fits, held_out, strict=True)]
            members = list(compress(self.members, fits))
            return self.plan.prepare(index, members)
        except Exception as error:
            return error

    def predict(self, images: Iterator[tuple[int, PreparedImage | Exception]]) -> None:
        """Predict images, and meanwhile decode those whose neighbours are already predicted."""
        launched: tuple[int, PreparedImage, PendingResult] | None = None
        try:
            for index, image in images:
                self.queue.decode_ready()
                end = self.progress.done + self.plan.windows(index)
                following = self._launched(index, image)
                # Blank windows and images that cannot be predicted count, too.
                self.progress.advance(end - self.progress.done)
                if launched is not None:
                    self._hand_on(*launched)
                launched = following
                # A GPU gets the next image before the host waits for this one. On a CPU the
                # prediction is finished already.
                if launched is not None and self.device.type != "cuda":
                    self._hand_on(*launched)
                    launched = None
        finally:
            if launched is not None:
                self._hand_on(*launched)
        self.queue.pool.finish()
        self.queue.decode_ready()
        self.queue.pool.finish()

    @contextlib.contextmanager
    def _faults_of(self, index: int) -> Iterator[None]:
        """Record an error in the block as the image's fault, unless the device fails."""
        try:
            yield
        except DEVICE_ERRORS as error:
            raise _device_failed(error) from error
        except Exception as error:
            self.queue.fail(index, error)
            self.queue.finished_with(index)

    def _launched(
        self, index: int, image: PreparedImage | Exception
    ) -> tuple[int, PreparedImage, PendingResult] | None:
        """Launch the networks. None if they fail, or if the prediction was written to a file."""
        task = self.plan.task
        with self._faults_of(index):
            if isinstance(image, Exception):
                raise image
            image = replace(image, on_window=self.progress.advance)
            if not (image.is_large and isinstance(task, DenseTask)):
                return index, image, launch_networks(image, task, self.device)
            self._predict_into_file(index, image, task)
        return None

    def _predict_into_file(self, index: int, image: PreparedImage, task: DenseTask) -> None:
        """Predict probability maps that do not fit into memory, strip by strip into a file."""
        tile = self.plan.tiles[index]
        with_neighbours = self._fits(index, image) or not tile.neighbours
        path = self.queue.store.path(tile.key if with_neighbours else f"{tile.key} alone")
        names = self.plan.recipe.map_names
        with map_writer(path, names, image.shape, image.info.georeference) as write:
            for strip in task.predict_strips(image, self.device):
                write(strip.top, strip.get())
                # Free hundreds of megabytes before the next strip is predicted.
                del strip

        def copied(_: None) -> None:
            self.queue.stored(index, None if with_neighbours else path)

        rasters = self.plan.rasters(index, self.maps)
        self._submit(index, image, copied, copy_maps, path, rasters)

    def _hand_on(self, index: int, image: PreparedImage, pending: PendingResult) -> None:
        """Wait for the prediction of an image and pass it to a worker."""
        with self._faults_of(index):
            prediction = pending.get()
        if index in self.queue.faults:
            return
        georeference, rasters = image.info.georeference, self.plan.rasters(index, self.maps)
        tile = self.plan.tiles[index]
        decode = self.plan.result_decoder(tile).decode

        def stored(_: None) -> None:
            self.queue.stored(index)

        def decoded(found: Any) -> None:
            self.queue.decoded(index, georeference, found)

        if not isinstance(self.plan.task, DenseTask):
            maps = self.plan.task.maps_of(prediction)
            arguments = maps, georeference, rasters, decode, prediction
            self._submit(index, image, decoded, store_and_decode, *arguments)
        # An RGB image that replaces a broken multispectral one may have another pixel grid. Its
        # maps do not fit to those of the neighbours.
        elif self._fits(index, image):
            path = self.queue.store.path(tile.key)
            self._submit(index, image, stored, store_maps, prediction, georeference, rasters, path)
        else:
            arguments = prediction, georeference, rasters, None, decode
            self._submit(index, image, decoded, store_maps, *arguments)

    def _submit(
        self,
        index: int,
        image: PreparedImage,
        handle: Callable[[Any], None],
        job: Callable[..., Any],
        *arguments: Any,
    ) -> None:
        """Submit a job on an image. ``handle`` gets its result, unless it fails."""

        def done(future: Future[Any]) -> None:
            if error := future.exception():
                self.queue.fail(index, error)
            else:
                if image.notes:
                    self.queue.journal.add_notes(self.plan.tiles[index].key, image.notes)
                handle(future.result())
            self.queue.finished_with(index)

        self.queue.pool.submit(done, job, *arguments)

    def _fits(self, index: int, image: PreparedImage) -> bool:
        """Return whether an image has neighbours and was predicted on its tile's pixel grid."""
        tile = self.plan.tiles[index]
        return bool(tile.neighbours) and image.shape == tile.shape


def _device_failed(error: Exception) -> SatmapError:
    """Return the error that ends the run: after a device failure the next image would fail too."""
    return SatmapError(
        f"the networks' device fails ({str(error).splitlines()[0]}). Finished work is kept. "
        "Check the device, or if memory is short lower `inference: {batch, window}` in the "
        "recipe, and run the same command again to resume."
    )
