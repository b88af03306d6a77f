"""What a prediction has finished so far, so that a stopped run goes on where it was."""

import fcntl
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from satmap.errors import CannotWriteError
from satmap.submissions.roads_csv import RoadRow


class Journal:
    """An append-only file of finished images beside the output.

    Its first line is a fingerprint of weights and settings: another one starts it anew. A line cut
    off by a crash is passed over.
    """

    def __init__(self, output: Path, fingerprint: str) -> None:
        """Open the journal of ``output``; ``finished`` then holds what an earlier run did."""
        self.path = output.with_name(f".{output.name}.partial")
        self.finished: dict[str, list[RoadRow]] = {}
        key = hashlib.sha256(fingerprint.encode()).hexdigest()
        try:
            self._file = self.path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise CannotWriteError(
                f"{output} is being written by another run; wait for it or give another name."
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        whole = self._read(key)
        # Cut off what a crash left unfinished, so that new lines start on a line of their own.
        self._file.truncate(whole)
        if not whole:
            self._write(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, key: str, rows: Sequence[RoadRow]) -> None:
        """Note an image, under a key of its id and file, as finished."""
        content = [(row.line.tolist(), row.length_m, row.travel_time_s) for row in rows]
        self._write([key, content])
        self.finished[key] = list(rows)

    def remove(self) -> None:
        """Delete the file: the output is complete."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, record: object) -> None:
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CannotWriteError:
        return CannotWriteError(
            f"cannot write {self.path}: {error.strerror}. Choose another place for the output."
        )

    def _read(self, key: str) -> int:
        """Read what fits; gives the length in bytes of the part that is whole."""
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        whole = 0
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                if number == 0 and record != key:
                    return 0
                if number > 0:
                    image, content = record
                    rows = [RoadRow(np.array(xy), length, time) for xy, length, time in content]
                    self.finished[image] = rows
            except (ValueError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
        return whole
