"""One run at a time trains a member into a directory of weights."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from satmap.errors import SatmapError

# The processes of a run that was killed end within moments; after that long it is another run.
_GRACE_S = 3.0


@contextlib.contextmanager
def sole_writer(stem: Path) -> Iterator[None]:
    """Hold a lock on a member's files, ``STEM.*``, while the block runs.

    Two runs that write the same files would leave weights of one and a state of the other. The lock
    is a record lock (``lockf``): it ends with the process, however that ends, is not inherited
    by data loaders' processes, and reaches across machines. File systems that have no locks go
    without.

    Raises:
        SatmapError: another run holds it, and keeps it.
    """
    path = stem.with_name(f".{stem.name}.lock")
    file = _locked(path, stem)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _locked(path: Path, stem: Path) -> IO[bytes] | None:
    deadline = time.monotonic() + _GRACE_S
    while True:
        file = path.open("ab")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            if time.monotonic() > deadline:
                raise SatmapError(
                    f"another run is training {stem.name} in {stem.parent}. Wait for it, or give "
                    "another --weights directory."
                ) from error
            time.sleep(0.05)
            continue
        except OSError:
            file.close()
            return None
        # Its last owner may have deleted it since.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()
