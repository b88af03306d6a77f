"""Pools of processes for work that is one image a job."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor

import cv2


def start_pool(workers: int) -> ProcessPoolExecutor:
    """So many processes of one thread each, which end with this one, however it ends."""
    # Not forked: OpenCV's and GDAL's threads and locks do not survive that.
    return ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )


def _start_worker() -> None:
    # As many workers as cores: one thread each. Ctrl-C reaches all processes, but one message will
    # do, the main process's.
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose main process was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
