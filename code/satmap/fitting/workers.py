"""Jobs of a fit, in processes or in this one, which may be left off when time is up."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from satmap.errors import SatmapError
from satmap.runtime.workers import start_pool

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Run(Protocol):
    """Runs a function on jobs and gives the results in order."""

    def __call__(
        self, function: Callable[[_Job], _Result], jobs: Sequence[_Job]
    ) -> Generator[_Result]:
        """Each job has its result; closed before the end it leaves the rest."""


@contextlib.contextmanager
def working(workers: int) -> Generator[Run]:
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
