"""Pools of processes for work that is one image a job, and a thread that reads ahead of it."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar

import cv2

from satmap.errors import SatmapError
from satmap.runtime.shared_memory import SHARED_MEMORY, SHARED_MEMORY_REMEDY, can_share_locks
from satmap.runtime.termination import SIGNALS, ignore_signals_in_worker

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def start_pool(workers: int) -> ProcessPoolExecutor:
    """So many processes of one thread each, which end with this one, however it ends.

    Raises:
        SatmapError: this machine, or its container, does not let so many processes share locks.
    """
    if not can_share_locks(workers):
        raise SatmapError(
            f"worker processes cannot be started: {SHARED_MEMORY} is full or not there. Give "
            f"`--workers 0`. {SHARED_MEMORY_REMEDY}"
        )
    return ProcessPoolExecutor(workers, _Context(), initializer=_start_worker)


class _Worker(SpawnProcess):
    """Deaf to signals from its first moment on, when it has no handlers yet but threads already."""

    def start(self) -> None:
        """Start it; it inherits what this thread does not hear."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """Not forked: OpenCV's and GDAL's threads and locks do not survive that."""

    Process = _Worker


def _start_worker() -> None:
    # As many workers as cores: one thread each.
    cv2.setNumThreads(1)
    ignore_signals_in_worker()
    end_with_parent()


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone, however that ended.

    A worker would wait for its next job for ever.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class BoundedPool:
    """Jobs in worker processes, of which only so many are in work at a time.

    What is done with a result happens in the thread that submits, in no particular order. Without
    workers a job is done when it is submitted.
    """

    def __init__(self, workers: int, limit: int) -> None:
        """Start processes.

        Args:
            workers: how many; 0 for none.
            limit: jobs in work or done and not handled yet, at most.
        """
        self._pool = start_pool(workers) if workers else None
        self._limit = limit
        self._pending: dict[Future[Any], Callable[[Future[Any]], None]] = {}

    @property
    def in_flight(self) -> int:
        """Jobs in work, or done and not handled yet."""
        return len(self._pending)

    def submit(
        self,
        handle: Callable[[Future[Result]], None],
        job: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> None:
        """Work on a job, as soon as there are fewer than the limit.

        Args:
            handle: called with the job's outcome once it is done, now or by a later call.
            job: a function that a process can be sent.
            arguments: of the job.
            named: of the job.

        Raises:
            SatmapError: a worker was killed or cannot be started.
        """
        if self._pool is None:
            handle(_done(job, *arguments, **named))
            return
        self.collect()
        while len(self._pending) >= self._limit:
            self._handle_next()
        try:
            future = self._pool.submit(job, *arguments, **named)
        except (BrokenProcessPool, OSError) as error:
            raise _broken(error) from error
        self._pending[future] = handle

    def collect(self) -> None:
        """Handle what is done, without waiting."""
        for future in [future for future in self._pending if future.done()]:
            self._handle(future)

    def finish(self) -> None:
        """Wait for all jobs and handle them; those that handling submits too."""
        while self._pending:
            self._handle_next()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        # Work that was paid for is kept also when the run is stopped.
        while self._pending:
            with contextlib.suppress(Exception):
                self._handle_next()
        self._pool.shutdown()

    def _handle_next(self) -> None:
        done, _ = wait_for(self._pending, return_when=FIRST_COMPLETED)
        for future in done:
            self._handle(future)

    def _handle(self, future: Future[Any]) -> None:
        handle = self._pending.pop(future, None)
        # Handling another one may have come to this one already.
        if handle is None:
            return
        if isinstance(error := future.exception(), BrokenProcessPool):
            raise _broken(error) from error
        handle(future)


def _done(job: Callable[..., Result], *arguments: Any, **named: Any) -> Future[Result]:
    future: Future[Result] = Future()
    try:
        future.set_result(job(*arguments, **named))
    except Exception as error:
        future.set_exception(error)
    return future


def _broken(error: BaseException) -> SatmapError:
    return SatmapError(
        f"a worker process was killed or could not start ({error}). Most often memory is short: "
        "use fewer workers. The same command goes on from here."
    )


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with what ``read`` makes of it, in order, in a thread that is ahead.

    Args:
        items: what to read.
        read: called once an item.
        ahead: items that may be read before they are asked for; 0 reads in this thread.
    """
    if not ahead:
        yield from ((item, read(item)) for item in items)
        return
    pending: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
        try:
            for item in items:
                pending.append((item, thread.submit(read, item)))
                if len(pending) > ahead:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            thread.shutdown(cancel_futures=True)


_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Runner(Protocol):
    """Runs a function on jobs and gives the results in order."""

    def __call__(
        self, function: Callable[[_Job], _Result], jobs: Sequence[_Job]
    ) -> Generator[_Result]:
        """Each job has its result; closed before the end it leaves the rest."""


@contextlib.contextmanager
def working(workers: int) -> Generator[Runner]:
    """So many processes that jobs run in, or with 0 this one.

    Raises:
        SatmapError: a process cannot be started, or was killed.
    """

    def run_here(function: Callable[[_Job], _Result], jobs: Sequence[_Job]) -> Generator[_Result]:
        yield from map(function, jobs)

    if not workers:
        yield run_here
        return
    pool = start_pool(workers)

    def run(function: Callable[[_Job], _Result], jobs: Sequence[_Job]) -> Generator[_Result]:
        try:
            futures = [pool.submit(function, job) for job in jobs]
        except OSError as error:
            raise SatmapError(
                f"worker processes cannot be started ({error.strerror or error}); use fewer."
            ) from error
        try:
            for future in futures:
                yield future.result()
        finally:
            # Left off in the middle when time is up.
            for future in futures:
                future.cancel()

    try:
        yield run
    except BrokenProcessPool as error:
        raise SatmapError(
            "a worker process was killed or could not start. Most often memory is short: use "
            "fewer workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
