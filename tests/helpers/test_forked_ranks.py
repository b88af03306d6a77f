"""Waiting for processes in tests always ends."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import forked_ranks
from forked_ranks import SERVER, finish, wait_until


class EndsUnseen:
    """Process that ends between two polls."""

    exitcode = 0
    sentinel = -1

    def __init__(self) -> None:
        self._looks = iter([True])

    def is_alive(self) -> bool:
        return next(self._looks, False)


def test_no_wait_for_processes_that_end_between_polls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait(sentinels: Sequence[int], timeout: float) -> None:
        assert sentinels, f"{timeout:.0f} s of waiting for nothing"

    monkeypatch.setattr(forked_ranks, "wait", wait)
    processes: list[Any] = [EndsUnseen(), EndsUnseen()]
    assert finish(processes) == [0, 0]


def ignore_termination(ready: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.touch()
    time.sleep(60)


def fail() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("others", [0, 1])
def test_processes_that_do_not_end_fail_the_test_and_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    ready = tmp_path / "ready"
    stubborn = SERVER.Process(target=ignore_termination, args=(ready,))
    processes = [stubborn, *(SERVER.Process(target=fail) for _ in range(others))]
    for process in processes:
        process.start()
    assert wait_until(ready.exists, stubborn.is_alive)
    monkeypatch.setattr(forked_ranks, "LIMIT_S", 1.0)
    monkeypatch.setattr(forked_ranks, "_ALONE_S", 0.5)
    monkeypatch.setattr(forked_ranks, "_TERMINATION_S", 0.5)
    with pytest.raises(pytest.fail.Exception, match="have not ended in time"):
        finish(processes)
    stubborn.join(10)
    assert stubborn.exitcode == -signal.SIGKILL


def test_the_remaining_process_is_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_ranks, "_ALONE_S", 0.5)
    processes = [SERVER.Process(target=fail), SERVER.Process(target=time.sleep, args=(60,))]
    for process in processes:
        process.start()
    assert finish(processes) == [3, -signal.SIGTERM]


def test_polling_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_until(lambda: True, lambda: False)
    assert not wait_until(lambda: False, lambda: False)
    monkeypatch.setattr(forked_ranks, "LIMIT_S", 0.05)
    with pytest.raises(pytest.fail.Exception, match="not reached within"):
        wait_until(lambda: False, lambda: True)
