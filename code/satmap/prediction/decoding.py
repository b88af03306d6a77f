"""What is done with the planes of an image, in a worker process: nothing here loads a network."""

import shutil
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satmap.errors import CannotWriteError, SatmapError
from satmap.io.files import atomic_path
from satmap.prediction.journal import Journal
from satmap.prediction.plan import Plan, Work
from satmap.rasters.map_files import write_maps
from satmap.rasters.map_store import MapStore
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.runtime.workers import BoundedPool
from satmap.tasks.dense import MapDecoder
from satmap.vectors.georeference import Georeference


def store_maps(
    maps: ProbabilityMaps, georeference: Georeference | None, paths: Sequence[Path]
) -> None:
    """Write planes to files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        write_maps(path, maps, georeference)


def decode_maps(
    maps: ProbabilityMaps,
    georeference: Georeference | None,
    paths: Sequence[Path],
    decoder: MapDecoder,
) -> Any:
    """Write probability maps to files, and decode them as they are.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    store_maps(maps, georeference, paths)
    return decoder.decode(maps)


def copy_maps(stored: Path, paths: Sequence[Path]) -> None:
    """Copy planes from the store to other files.

    Raises:
        CannotWriteError: the disk is full or a directory not writable.
    """
    for path in paths:
        with atomic_path(path) as temporary:
            shutil.copyfile(stored, temporary)


def decode_stored(
    stored: Path, neighbours: Sequence[tuple[Path, int, int]], decoder: MapDecoder
) -> Any:
    """Decode probability maps in the store, together with those around them.

    Raises:
        SatmapError: the maps are gone, or damaged.
    """
    return decoder.decode_file(stored, neighbours)


@dataclass
class Outcome:
    """What became of a process's share of the images.

    Attributes:
        faults: by tile, why it could not be predicted.
    """

    faults: dict[int, str] = field(default_factory=dict)

    def fail(self, index: int, error: BaseException) -> None:
        """Note what is wrong with an image, unless it is a fault of the whole run.

        Raises:
            CannotWriteError: it is the error.
        """
        if isinstance(error, CannotWriteError):
            raise error
        # A fault that nobody has thought of still costs only one image.
        known = isinstance(error, SatmapError)
        self.faults[index] = str(error) if known else f"{type(error).__name__}: {error}"


class DecodeQueue:
    """The maps of the images of a share, from planes in the store into the journal.

    An image waits until no image around it is still to be seen, by any process; of those that
    other processes see, this one learns at the end.
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
        """Begin with nothing seen.

        Args:
            plan: what is to be predicted.
            work: what is left to do, by all processes.
            store: where planes are.
            pool: workers.
            journal: where maps go.
            outcome: where faults go.
        """
        self._plan = plan
        self._store = store
        self._pool = pool
        self._journal = journal
        self._outcome = outcome
        self._unseen = set(work.to_predict)
        # Images with stored planes, and how many around each are still to be seen.
        self._waiting: dict[int, int] = {}
        self._waited_for: dict[int, list[int]] = defaultdict(list)
        self._ready: deque[tuple[int, Path]] = deque()

    def stored(self, index: int) -> None:
        """An image of the share has its planes in the store, and is to be vectorised with others'
        around it."""
        around = {n.image for n in self._plan.tiles[index].neighbours} & self._unseen - {index}
        for other in around:
            self._waited_for[other].append(index)
        self._waiting[index] = len(around)
        self._release(index)

    def stored_without_neighbours(self, index: int, path: Path) -> None:
        """An image of the share has its planes in a file, and nothing around it counts."""
        self._ready.append((index, path))

    def finished_with(self, index: int) -> None:
        """Nobody needs to wait for an image any more: it is in the store, or never will be."""
        self._unseen.discard(index)
        for other in self._waited_for.pop(index, ()):
            if other in self._waiting:
                self._waiting[other] -= 1
                self._release(other)

    def _release(self, index: int) -> None:
        if not self._waiting[index]:
            del self._waiting[index]
            self._ready.append((index, self._store.path(self._plan.tiles[index].key)))

    def decode_ready(self) -> None:
        """Let workers vectorise what waits for nothing."""
        while self._ready:
            self._trace(*self._ready.popleft())

    def decode_rest(self) -> Iterator[int]:
        """Let workers vectorise everything, now that all processes have seen their share.

        Yields:
            Each tile once it is on its way.
        """
        self._unseen.clear()
        for index in sorted(self._waiting):
            self._waiting[index] = 0
            self._release(index)
        while self._ready:
            index, path = self._ready.popleft()
            self._trace(index, path)
            yield index
        self._pool.finish()

    @property
    def left(self) -> int:
        """How many wait."""
        return len(self._waiting) + len(self._ready)

    def _trace(self, index: int, path: Path) -> None:
        tile = self._plan.tiles[index]
        together = path == self._store.path(tile.key)
        neighbours = [
            (self._store.path(self._plan.tiles[n.image].key), n.column, n.row)
            for n in tile.neighbours
            if together
        ]

        def done(future: Future[Any]) -> None:
            self.decoded(index, tile.chip.image.georeference, future)
            if not tile.neighbours or not together:
                path.unlink(missing_ok=True)

        decoder = self._plan.decoder(tile)
        self._pool.submit(done, decode_stored, path, neighbours, decoder)

    def decoded(self, index: int, georeference: Georeference | None, future: Future[Any]) -> None:
        """Note what was found in an image, or its fault.

        Raises:
            CannotWriteError: something cannot be written.
        """
        error = future.exception()
        if error is not None:
            self._outcome.fail(index, error)
            return
        chip = self._plan.tiles[index].chip
        image_id = self._plan.ids[chip.image_id]
        found = self._plan.task.record(chip, image_id, future.result(), georeference)
        self._journal.add(self._plan.tiles[index].key, found)
