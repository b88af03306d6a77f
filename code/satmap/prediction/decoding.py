"""Decode stored probability maps, each image as soon as its neighbours are predicted."""

from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satmap.errors import CannotWriteError, error_text
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan
from satmap.rasters.map_store import MapStore
from satmap.runtime.workers import BoundedPool
from satmap.vectors.georeference import Georeference


@dataclass
class DecodeQueue:
    """Decodes the stored probability maps of a process's share and writes results to the journal.

    An image waits until all its neighbours are predicted. A process learns only at the end of its
    share which images the other processes have predicted. Images are indices into the plan's tiles.

    Attributes:
        unpredicted: images that no process is known to have predicted.
        faults: image to the reason, for images that could not be predicted.
    """

    plan: Plan
    store: MapStore
    pool: BoundedPool
    journal: Journal
    unpredicted: set[int]
    faults: dict[int, str] = field(default_factory=dict)
    # Images with stored maps, and how many neighbours of each are not predicted yet.
    _waiting: dict[int, int] = field(default_factory=dict)
    _waited_for: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    _ready: deque[tuple[int, Path]] = field(default_factory=deque)

    def fail(self, index: int, error: BaseException) -> None:
        """Record the error of an image.

        Raises:
            CannotWriteError: ``error`` is one; it concerns the whole run.
        """
        if isinstance(error, CannotWriteError):
            raise error
        self.faults[index] = error_text(error)

    def stored(self, index: int, alone: Path | None = None) -> None:
        """Queue an image whose maps are in the store, or in a file to be decoded alone."""
        if alone is not None:
            self._ready.append((index, alone))
            return
        around = {n.image for n in self.plan.tiles[index].neighbours} & self.unpredicted - {index}
        for other in around:
            self._waited_for[other].append(index)
        self._waiting[index] = len(around)
        self._release(index)

    def finished_with(self, index: int) -> None:
        """Release the images that wait for this one: its maps are stored, or it has failed."""
        self.unpredicted.discard(index)
        for other in self._waited_for.pop(index, ()):
            if other in self._waiting:
                self._waiting[other] -= 1
                self._release(other)

    def _release(self, index: int) -> None:
        if not self._waiting[index]:
            del self._waiting[index]
            self._ready.append((index, self.store.path(self.plan.tiles[index].key)))

    def decode_ready(self) -> None:
        """Submit all images that need not wait to the workers."""
        while self._ready:
            self._submit()

    def decode_rest(self) -> Iterator[None]:
        """Submit all remaining images, after all processes have predicted their share."""
        self.unpredicted.clear()
        for index in sorted(self._waiting):
            self._waiting[index] = 0
            self._release(index)
        while self._ready:
            self._submit()
            yield
        self.pool.finish()

    @property
    def left(self) -> int:
        """Number of images that are not submitted yet."""
        return len(self._waiting) + len(self._ready)

    def _submit(self) -> None:
        index, path = self._ready.popleft()
        tile = self.plan.tiles[index]
        with_neighbours = path == self.store.path(tile.key)
        neighbours = [
            (self.store.path(self.plan.tiles[n.image].key), n.column, n.row)
            for n in tile.neighbours
            if with_neighbours
        ]

        def done(future: Future[Any]) -> None:
            if error := future.exception():
                self.fail(index, error)
            else:
                self.decoded(index, tile.chip.image.georeference, future.result())
            if not tile.neighbours or not with_neighbours:
                path.unlink(missing_ok=True)

        self.pool.submit(done, self.plan.result_decoder(tile).decode_file, path, neighbours)

    def decoded(self, index: int, georeference: Georeference | None, found: Any) -> None:
        """Write the result of an image to the journal.

        Raises:
            CannotWriteError: the journal cannot be written.
        """
        tile = self.plan.tiles[index]
        image_id = self.plan.ids[tile.chip.image_id]
        record = self.plan.task.record(tile.chip, image_id, found, georeference)
        self.journal.add(tile.key, record)
