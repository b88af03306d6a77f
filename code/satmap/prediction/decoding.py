"""Decode stored probability maps, each image as soon as its neighbours are predicted."""

from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satmap.errors import CannotWriteError, error_text
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan, Work
from satmap.prediction.worker_jobs import decode_file
from satmap.rasters.map_store import MapStore
from satmap.runtime.workers import BoundedPool
from satmap.vectors.georeference import Georeference


@dataclass
class Outcome:
    """Images of a process's share that could not be predicted.

    Attributes:
        faults: tile index to the reason.
    """

    faults: dict[int, str] = field(default_factory=dict)

    def fail(self, index: int, error: BaseException) -> None:
        """Record the error of an image.

        Raises:
            CannotWriteError: ``error`` is one; it concerns the whole run.
        """
        if isinstance(error, CannotWriteError):
            raise error
        self.faults[index] = error_text(error)


class DecodeQueue:
    """Decodes the stored probability maps of a process's share and writes results to the journal.

    An image waits until all its neighbours are predicted. A process learns only at the end of its
    share which images the other processes have predicted.
    """

    def __init__(
        self,
        plan: Plan,
        work: Work,
        store: MapStore,
        pool: BoundedPool,
        journal: Journal,
        outcome: Outcome,
    ) -> None:
        """Start with no image predicted.

        Args:
            plan: what is to be predicted.
            work: what all processes still have to do.
            store: stored probability maps.
            pool: workers that decode.
            journal: receives the results.
            outcome: receives the errors.
        """
        self._plan = plan
        self._store = store
        self._pool = pool
        self._journal = journal
        self._outcome = outcome
        self._unpredicted = set(work.to_predict)
        # Images with stored maps, and how many neighbours of each are not predicted yet.
        self._waiting: dict[int, int] = {}
        self._waited_for: dict[int, list[int]] = defaultdict(list)
        self._ready: deque[tuple[int, Path]] = deque()

    def stored(self, index: int) -> None:
        """Queue an image whose maps are in the store, to be decoded with its neighbours."""
        around = {n.image for n in self._plan.tiles[index].neighbours} & self._unpredicted - {index}
        for other in around:
            self._waited_for[other].append(index)
        self._waiting[index] = len(around)
        self._release(index)

    def stored_without_neighbours(self, index: int, path: Path) -> None:
        """Queue an image whose maps are in the file ``path``, to be decoded without neighbours."""
        self._ready.append((index, path))

    def finished_with(self, index: int) -> None:
        """Release the images that wait for this one: its maps are stored, or it has failed."""
        self._unpredicted.discard(index)
        for other in self._waited_for.pop(index, ()):
            if other in self._waiting:
                self._waiting[other] -= 1
                self._release(other)

    def _release(self, index: int) -> None:
        if not self._waiting[index]:
            del self._waiting[index]
            self._ready.append((index, self._store.path(self._plan.tiles[index].key)))

    def decode_ready(self) -> None:
        """Submit all images that need not wait to the workers."""
        while self._ready:
            self._submit(*self._ready.popleft())

    def decode_rest(self) -> Iterator[int]:
        """Submit all remaining images, after all processes have predicted their share.

        Yields:
            The index of each tile after it was submitted.
        """
        self._unpredicted.clear()
        for index in sorted(self._waiting):
            self._waiting[index] = 0
            self._release(index)
        while self._ready:
            index, path = self._ready.popleft()
            self._submit(index, path)
            yield index
        self._pool.finish()

    @property
    def left(self) -> int:
        """Number of images that are not submitted yet."""
        return len(self._waiting) + len(self._ready)

    def _submit(self, index: int, path: Path) -> None:
        tile = self._plan.tiles[index]
        with_neighbours = path == self._store.path(tile.key)
        neighbours = [
            (self._store.path(self._plan.tiles[n.image].key), n.column, n.row)
            for n in tile.neighbours
            if with_neighbours
        ]

        def done(future: Future[Any]) -> None:
            self.decoded(index, tile.chip.image.georeference, future)
            if not tile.neighbours or not with_neighbours:
                path.unlink(missing_ok=True)

        decoder = self._plan.result_decoder(tile)
        self._pool.submit(done, decode_file, decoder, path, neighbours)

    def decoded(self, index: int, georeference: Georeference | None, future: Future[Any]) -> None:
        """Write the result of an image to the journal, or record its error.

        Raises:
            CannotWriteError: the journal or the maps cannot be written.
        """
        error = future.exception()
        if error is not None:
            self._outcome.fail(index, error)
            return
        chip = self._plan.tiles[index].chip
        image_id = self._plan.ids[chip.image_id]
        found = self._plan.task.record(chip, image_id, future.result(), georeference)
        self._journal.add(self._plan.tiles[index].key, found)
