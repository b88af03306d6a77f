"""Journal of the finished images of a prediction, from which a stopped run resumes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from shapely.errors import ShapelyError

from satmap.errors import CannotWriteError
from satmap.io.files import exclusive_lock
from satmap.tasks.base import Task


class Journal:
    """Append-only file of finished images beside the output.

    The first line is a fingerprint of weights and settings. A journal with another fingerprint is
    emptied. A line cut off by a crash is ignored. Each process of a run writes and locks its own
    file. The first process writes the journal; the others write parts, which the first merges.

    Attributes:
        finished: key of each finished image to the position of its line in the file, in bytes.
        notes: key of an image, finished or not, to its warnings for the user.
    """

    def __init__(self, output: Path, fingerprint: str, task: Task, part: int = 0) -> None:
        """Open the journal of ``output``; ``finished`` then holds the images of an earlier run.

        Part 0 is the journal of the first process. Another process has a part of its own, which
        starts empty and is merged into the journal later.

        Raises:
            CannotWriteError: another run is writing the output, or the file cannot be written.
        """
        self._output = output
        self._task = task
        self.path = output.with_name(f".{output.name}.partial" + (f"-{part}" if part else ""))
        self.finished: dict[str, int] = {}
        self.notes: dict[str, list[str]] = {}
        key = hashlib.sha256(fingerprint.encode()).hexdigest()
        self._head = json.dumps(key).encode() + b"\n"
        with self._writing(), contextlib.ExitStack() as stack:
            stack.enter_context(self._locked(self.path))
            self._file = stack.enter_context(self.path.open("a+b"))
            if part:
                self._file.truncate(0)
                self._write(self._head)
            else:
                end = self._read()
                # Remove an unfinished line that a crash left, before new lines are appended.
                self._file.truncate(end)
                if not end:
                    self._write(self._head)
                self.merge_parts()
            # Keep the file open and locked until `close`.
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, key: str, found: Any) -> None:
        """Write the result of a finished image, under a key of its id and file."""
        line = json.dumps([key, self._task.as_json(found)]).encode() + b"\n"
        self.finished[key] = self._write(line)

    def add_notes(self, key: str, notes: Sequence[str]) -> None:
        """Write warnings about an image, which are kept until the output is complete."""
        line = json.dumps([key, {"notes": notes}]).encode() + b"\n"
        self._take(line, self._write(line))

    def found(self, key: str) -> Any:
        """Read the result of an image from the file."""
        self._file.seek(self.finished[key])
        return self._task.from_json(json.loads(self._file.readline())[1])

    def forget(self, key: str) -> None:
        """Treat an image as unfinished and without notes, until it is added again.

        The file keeps the earlier record, so a run that stops meanwhile forgets it again.
        """
        self.finished.pop(key, None)
        self.notes.pop(key, None)

    def merge_parts(self) -> None:
        """Append the parts of other processes to the journal and delete them.

        Raises:
            CannotWriteError: a process is still writing its part.
        """
        # A killed process may have left only its lock file, which is removed with the lock.
        found = self.path.parent.glob(f"{self.path.name}-*")
        for path in sorted({path.with_name(path.name.removesuffix(".lock")) for path in found}):
            if not path.name.removeprefix(f"{self.path.name}-").isdecimal():
                continue
            with self._writing(), self._locked(path):
                if path.exists():
                    self._merge_part(path)
                    path.unlink()

    def _merge_part(self, path: Path) -> None:
        with path.open("rb") as part:
            lines = part if part.readline() == self._head else ()
            for line in lines:
                if self._take(line, self._file.seek(0, os.SEEK_END)):
                    self._write(line)

    def close(self) -> None:
        """Close the file and unlock it for other processes."""
        # Closing retries a write that failed on a full disk. That error was reported already.
        with contextlib.suppress(OSError):
            self._open.close()

    def remove(self) -> None:
        """Delete the file, after the output is complete."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._open.close()

    def _locked(self, path: Path) -> contextlib.AbstractContextManager[None]:
        refusal = (
            f"{self._output} is being written by another run; wait for that run or give another "
            "output name."
        )
        return exclusive_lock(path, CannotWriteError(refusal))

    def _write(self, line: bytes) -> int:
        """Append a line; returns its position in the file."""
        with self._writing():
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            return place

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotWriteError(
                f"cannot write {self.path}: {error.strerror}. Choose another place for the output."
            ) from error

    def _read(self) -> int:
        """Read all complete lines; returns their length in bytes, 0 for another fingerprint."""
        self._file.seek(0)
        place = 0
        for number, line in enumerate(self._file):
            if number == 0:
                if line != self._head:
                    return 0
            elif not self._take(line, place):
                break
            place += len(line)
        return place

    def _take(self, line: bytes, place: int) -> bool:
        """Register the record of a line at ``place``; returns False for an incomplete record."""
        try:
            key, content = json.loads(line)
            is_note = isinstance(content, dict)
            found = list(map(str, content["notes"])) if is_note else self._task.from_json(content)
        except (ValueError, TypeError, KeyError, ShapelyError):
            return False
        if not line.endswith(b"\n"):
            return False
        if is_note:
            self.notes[str(key)] = found
        else:
            self.finished[str(key)] = place
        return True
