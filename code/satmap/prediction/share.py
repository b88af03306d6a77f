"""A process's share of a prediction: reading, networks and vectorising, all at the same time.

A thread reads the next images while the networks are at work; worker processes write and vectorise
planes meanwhile. Every queue between them is short, so memory does not grow with the number of
images: of what is finished nothing stays but what the journal holds, on disk.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch

from satmap.errors import SatmapError
from satmap.io.progress import track
from satmap.prediction import decoding as map_jobs
from satmap.prediction.decoding import DecodeQueue, Outcome
from satmap.prediction.dense import EnsembleMember, Strip, predict_strips
from satmap.prediction.images import PreparedImage, prepare_image
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan, Request, Work
from satmap.rasters.map_files import map_writer
from satmap.rasters.map_store import MapStore
from satmap.rasters.probability_maps import ProbabilityMaps, resize_maps
from satmap.recipes.schema import Inference
from satmap.runtime.device import DEVICE_ERRORS
from satmap.runtime.ranks import Ranks
from satmap.runtime.workers import BoundedPool, read_ahead

#: Images that are read before the networks have time for them.
READ_AHEAD = 2

#: Images whose planes are in work, a worker: one that it works on and one that waits.
JOBS_A_WORKER = 2


def predict_rank_share(
    plan: Plan,
    work: Work,
    request: Request,
    ranks: Ranks,
    members: Sequence[EnsembleMember],
    device: torch.device,
    journal: Journal,
) -> Outcome:
    """Predict a process's share of the images into its journal.

    Args:
        plan: what is to be predicted.
        work: what is left to do, by all processes.
        request: where to, and with how many workers.
        ranks: which process this is.
        members: the networks of the plan's files, on the device.
        device: where to compute.
        journal: this process's.

    Raises:
        SatmapError: something cannot be written, or another process has ended.
    """
    outcome = Outcome()
    store = MapStore(request.output, plan.fingerprint)
    mine = work.share(ranks)
    with BoundedPool(request.workers, request.workers * JOBS_A_WORKER) as pool:
        queue = DecodeQueue(plan, work, store, pool, journal, outcome)
        for index in mine.to_decode:
            queue.stored(index)
        stage = _NetworkStage(
            plan, request.maps, members, device, store, pool, queue, journal, outcome
        )
        pictures = read_ahead(mine.to_predict, stage.read, READ_AHEAD if request.workers else 0)
        if ranks.first:
            whose = f" (1 of {ranks.world} processes)" if ranks.world > 1 else ""
            pictures = track(pictures, f"predicting{whose}", len(mine.to_predict))
        stage.see(pictures)
        # What lies beside other processes' images has to wait for those.
        ranks.wait()
        left = queue.decode_rest()
        for _ in track(left, "vectorising", queue.left) if ranks.first else left:
            pass
    return outcome


def launch_networks(
    picture: PreparedImage, settings: Inference, device: torch.device
) -> list[Strip]:
    """Launch the networks on a picture; its planes are there when they are asked for."""
    return list(predict_strips(picture.members, picture.pixels, settings, device, picture.category))


class _NetworkStage:
    """The planes of the images of a share, from images to files, workers and the tracer."""

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
        """The image of a tile, or what is wrong with it; in another thread."""
        members, chip = self._members, self._plan.tiles[index].chip
        if self._plan.held_out is not None:
            pairs = zip(members, self._plan.held_out, strict=True)
            members = [member for member, images in pairs if chip.image_id in images]
        try:
            return prepare_image(chip, members, self._plan.recipe)
        except Exception as error:
            return error

    def see(self, pictures: Iterator[tuple[int, PreparedImage | Exception]]) -> None:
        """Predict pictures, and vectorise those that have all around them by then."""
        launched: tuple[int, PreparedImage, list[Strip]] | None = None
        try:
            for index, picture in pictures:
                self._queue.decode_ready()
                following = self._launched(index, picture)
                if launched is not None:
                    self._hand_on(*launched)
                launched = following
                # A GPU has the next image before the host waits for this one; a CPU is done.
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
        self, index: int, picture: PreparedImage | Exception
    ) -> tuple[int, PreparedImage, list[Strip]] | None:
        """Launch the networks; None where that fails, or where the planes are in a file already."""
        try:
            if isinstance(picture, Exception):
                raise picture
            if picture.is_large:
                self._look_at_large(index, picture)
                return None
            return (
                index,
                picture,
                launch_networks(picture, self._plan.recipe.inference, self._device),
            )
        except DEVICE_ERRORS as error:
            raise _device_failed(error) from error
        except Exception as error:
            self._fail(index, error)
            return None

    def _look_at_large(self, index: int, picture: PreparedImage) -> None:
        """Predict planes that are too large to be held, into a file."""
        tile, georeference = self._plan.tiles[index], picture.info.georeference
        together = self._fits(index, picture) or not tile.neighbours
        path = self._store.path(tile.key if together else f"{tile.key} alone")
        settings = self._plan.recipe.inference
        with map_writer(path, self._plan.recipe.maps, picture.shape, georeference) as write:
            strips = predict_strips(
                picture.members, picture.pixels, settings, self._device, picture.category
            )
            for strip in strips:
                write(strip.top, strip.values.get())
                # Else it is held while the next one is predicted: hundreds of megabytes.
                del strip

        def copied(future: Future[None]) -> None:
            if not self._is_sound(index, picture, future):
                path.unlink(missing_ok=True)
            elif together:
                self._queue.stored(index)
            else:
                self._queue.stored_without_neighbours(index, path)
            self._queue.finished_with(index)

        self._pool.submit(copied, map_jobs.copy_maps, path, self._rasters(index))

    def _hand_on(self, index: int, picture: PreparedImage, strips: Sequence[Strip]) -> None:
        """Give the planes of a picture to a worker."""
        try:
            parts = [strip.values.get() for strip in strips]
        except DEVICE_ERRORS as error:
            raise _device_failed(error) from error
        except Exception as error:
            self._fail(index, error)
            return
        values = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        values = resize_maps(values, picture.shape)
        maps = ProbabilityMaps(self._plan.recipe.maps, values, picture.metres_per_pixel)
        georeference, rasters = picture.info.georeference, self._rasters(index)

        def kept(future: Future[None]) -> None:
            if self._is_sound(index, picture, future):
                self._queue.stored(index)
            self._queue.finished_with(index)

        def decoded(future: Future[Any]) -> None:
            if self._is_sound(index, picture, future):
                self._queue.decoded(index, georeference, future)
            self._queue.finished_with(index)

        # Planes of a stand-in on another grid cannot be laid beside the neighbours'.
        if self._fits(index, picture):
            paths = [*rasters, self._store.path(self._plan.tiles[index].key)]
            self._pool.submit(kept, map_jobs.store_maps, maps, georeference, paths)
        else:
            decoder = self._plan.decoder.for_image(self._plan.tiles[index].chip)
            self._pool.submit(decoded, map_jobs.decode_maps, maps, georeference, rasters, decoder)

    def _fits(self, index: int, picture: PreparedImage) -> bool:
        """Whether there is something around an image, on the grid on which it was seen."""
        tile = self._plan.tiles[index]
        return bool(tile.neighbours) and picture.shape == tile.shape

    def _rasters(self, index: int) -> list[Path]:
        raster = self._plan.raster(index, self._rasters_at)
        return [raster] if raster else []

    def _is_sound(self, index: int, picture: PreparedImage, future: Future[Any]) -> bool:
        error = future.exception()
        if error is not None:
            self._outcome.fail(index, error)
            return False
        if picture.notes:
            self._journal.add_notes(self._plan.tiles[index].key, picture.notes)
        return True

    def _fail(self, index: int, error: Exception) -> None:
        self._outcome.fail(index, error)
        self._queue.finished_with(index)


def _device_failed(error: Exception) -> SatmapError:
    """A fault of the run and not of an image: the next one would fare no better."""
    return SatmapError(
        f"the networks' device fails ({str(error).splitlines()[0]}). What is finished is kept: "
        "look at the device, or make `inference: {batch, window}` of the recipe smaller if memory "
        "is short, and start the same command again."
    )
