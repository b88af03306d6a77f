"""Tests of memory limits and reuse."""

import subprocess
import sys

_FAULTS_OF_TWENTY_ARRAYS = """
import resource, sys
import numpy as np
from satmap.runtime.resources import reuse_memory

if sys.argv[1] == "reuse":
    reuse_memory()
np.ones(100_000_000, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(100_000_000, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(mode: str) -> int:
    command = [sys.executable, "-c", _FAULTS_OF_TWENTY_ARRAYS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_freed_arrays_are_reused() -> None:
    assert _page_faults("reuse") < 0.1 * _page_faults("default")
