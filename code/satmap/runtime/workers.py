"""Pools of worker processes for jobs of one image each, and a thread that reads images ahead."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, ParamSpec, Self, TypeVar

import cv2

from satmap.errors import SatmapError
from satmap.runtime.resources import SHARED_MEMORY, SHARED_MEMORY_REMEDY, can_share_locks
from satmap.runtime.termination import SIGNALS, deferring_terminated, ignore_signals_in_worker

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def start_pool(workers: int) -> ProcessPoolExecutor:
    """Start a pool of single-threaded worker processes that end with this process.

    Raises:
        SatmapError: this many processes cannot share locks on this machine or in this container.
    """
    if not can_share_locks(workers):
        raise SatmapError(
            f"worker processes cannot be started: {SHARED_MEMORY} is full or missing. Give "
            f"`--workers 0`. {SHARED_MEMORY_REMEDY}"
        )
    return _Pool(workers, _Context(), initializer=_start_worker)


class _Pool(ProcessPoolExecutor):
    """A pool that always knows the workers that it has started.

    ``submit`` starts workers. One that a signal kept out of the pool's list would never end.
    """

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> "Future[Result]":
        """Submit a job; a signal raises :class:`~satmap.runtime.termination.Terminated` after."""
        with deferring_terminated():
            return super().submit(fn, *args, **kwargs)


class _Worker(SpawnProcess):
    """A process that starts with signals blocked, until it has installed its handlers."""

    def start(self) -> None:
        """Start the process. It inherits the blocked signals of this thread."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """Spawned, not forked: threads and locks of OpenCV and GDAL do not survive a fork."""

    Process = _Worker


def _start_worker() -> None:
    # There are as many workers as cores, so each uses one thread.
    cv2.setNumThreads(1)
    ignore_signals_in_worker()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone, even if the parent was killed.

    Otherwise a worker would wait forever for its next job.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class BoundedPool:
    """Pool of worker processes with a limited number of unfinished jobs.

    Results are handled in the thread that submits jobs, in no particular order. Without workers
    ``submit`` runs the job itself.
    """

    def __init__(self, workers: int, limit: int) -> None:
        """Start ``workers`` processes. At most ``limit`` jobs run, wait or are not handled yet."""
        self._pool = start_pool(workers) if workers else None
        self._limit = limit
        self._pending: dict[Future[Any], Callable[[Future[Any]], None]] = {}

    def submit(
        self,
        handle: Callable[[Future[Result]], None],
        job: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> None:
        """Submit a job, a picklable function, after waiting for a place below the limit.

        ``handle`` is called with the finished future, in this call or a later one.

        Raises:
            SatmapError: a worker was killed or cannot be started.
        """
        if self._pool is None:
            future: Future[Result] = Future()
            try:
                future.set_result(job(*arguments, **named))
            except Exception as error:
                future.set_exception(error)
            handle(future)
            return
        for future in [future for future in self._pending if future.done()]:
            self._handle(future)
        while len(self._pending) >= self._limit:
            self._handle_next()
        try:
            future = self._pool.submit(job, *arguments, **named)
        except (BrokenProcessPool, OSError) as error:
            raise _broken(error) from error
        self._pending[future] = handle

    def finish(self) -> None:
        """Wait for all jobs and handle them, including jobs that handlers submit meanwhile."""
        while self._pending:
            self._handle_next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is None:
            return
        # Keep the results of running jobs even if the run was stopped.
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
        # The handler of another job may have handled this one already.
        if handle is None:
            return
        if isinstance(error := future.exception(), BrokenProcessPool):
            raise _broken(error) from error
        handle(future)


def _broken(error: BaseException) -> SatmapError:
    return SatmapError(
        f"a worker process was killed or could not start ({error}). Most often memory is short: "
        "use fewer workers. Run the same command again to resume."
    )


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with the result of ``read``, in order.

    A thread reads up to ``ahead`` items before they are requested; 0 reads in this thread.
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


#: Runs a function on jobs and yields the results in order. Closing it early cancels the other jobs.
Runner = Callable[[Callable[[Any], Any], Iterable[Any]], Generator[Any]]


@contextlib.contextmanager
def working(workers: int) -> Generator[Runner]:
    """Provide a runner with ``workers`` processes; with 0 jobs run in this process.

    Raises:
        SatmapError: a process cannot be started, or was killed.
    """
    pool = start_pool(workers) if workers else None

    def run(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Generator[Any]:
        try:
            results = pool.map(function, jobs) if pool else map(function, jobs)
        except OSError as error:
            raise SatmapError(
                f"worker processes cannot be started ({error.strerror or error}); use fewer "
                "workers."
            ) from error
        yield from results

    try:
        yield run
    except BrokenProcessPool as error:
        raise SatmapError(
            "a worker process was killed or could not start. Most often memory is short: use "
            "fewer workers."
        ) from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
