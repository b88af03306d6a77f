"""Pools of worker processes for jobs of one image each, and a thread that reads images ahead."""

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
    """Start a pool of single-threaded worker processes that end with this process.

    Raises:
        SatmapError: this many processes cannot share locks on this machine or in this container.
    """
    if not can_share_locks(workers):
        raise SatmapError(
            f"worker processes cannot be started: {SHARED_MEMORY} is full or missing. Give "
            f"`--workers 0`. {SHARED_MEMORY_REMEDY}"
        )
    return ProcessPoolExecutor(workers, _Context(), initializer=_start_worker)


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
    end_with_parent()


def end_with_parent() -> None:
    """End this process as soon as its parent process is gone, even if the parent was killed.

    Otherwise a worker would wait forever for its next job.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
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
        """Start processes.

        Args:
            workers: number of processes; 0 runs jobs in this process.
            limit: maximum number of jobs that are running, waiting or not handled yet.
        """
        self._pool = start_pool(workers) if workers else None
        self._limit = limit
        self._pending: dict[Future[Any], Callable[[Future[Any]], None]] = {}

    @property
    def in_flight(self) -> int:
        """Number of jobs that are running, waiting or not handled yet."""
        return len(self._pending)

    def submit(
        self,
        handle: Callable[[Future[Result]], None],
        job: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> None:
        """Submit a job, after waiting until there are fewer jobs than the limit.

        Args:
            handle: called with the finished future, in this call or a later one.
            job: a picklable function.
            arguments: positional arguments of the job.
            named: keyword arguments of the job.

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
        """Handle all finished jobs, without waiting."""
        for future in [future for future in self._pending if future.done()]:
            self._handle(future)

    def finish(self) -> None:
        """Wait for all jobs and handle them, including jobs that handlers submit meanwhile."""
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
        "use fewer workers. Run the same command again to resume."
    )


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with the result of ``read``, in order; a thread reads ahead.

    Args:
        items: what to read.
        read: called once per item.
        ahead: number of items to read before they are requested; 0 reads in this thread.
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
    """Runs a function on a sequence of jobs and yields the results in order."""

    def __call__(
        self, function: Callable[[_Job], _Result], jobs: Sequence[_Job]
    ) -> Generator[_Result]:
        """Yield the result of each job. Closing the generator early cancels the remaining jobs."""


@contextlib.contextmanager
def working(workers: int) -> Generator[Runner]:
    """Provide a runner with ``workers`` processes; with 0 jobs run in this process.

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
                f"worker processes cannot be started ({error.strerror or error}); use fewer "
                "workers."
            ) from error
        try:
            for future in futures:
                yield future.result()
        finally:
            # The caller may stop early, for example at a time limit.
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
