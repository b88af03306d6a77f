"""Signals that end a process in good order."""

import subprocess
import sys
from pathlib import Path

# Sends itself SIGTERM while the pool starts its second worker, before the pool has recorded it. The
# signal goes to this thread: another one might receive it later, after the job was submitted.
_SIGNALLED = """
import signal
from multiprocessing.context import SpawnProcess
from satmap.runtime.termination import Terminated, raising_terminated
from satmap.runtime.workers import BoundedPool

def start(process):
    begin(process)
    started.append(process)
    if len(started) == 2:
        signal.raise_signal(signal.SIGTERM)

if __name__ == "__main__":
    begin, SpawnProcess.start = SpawnProcess.start, start
    started, done = [], []
    try:
        with raising_terminated(), BoundedPool(2, 4) as pool:
            for number in range(4):
                pool.submit(lambda future: done.append(future.result()), abs, number)
    except Terminated as error:
        print(done)
        raise SystemExit(error.status)
"""


def test_a_signal_during_the_start_of_a_worker_ends_the_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SIGNALLED)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "[0]\n", "")
