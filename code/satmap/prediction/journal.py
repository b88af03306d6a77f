"""What a prediction has finished so far, so that a stopped run goes on where it was."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from shapely.errors import ShapelyError

from satmap.errors import CannotWriteError
from satmap.io.files import exclusive_lock


class RecordCodec(Protocol):
    """How what is found in an image becomes JSON, and again itself, to the last bit."""

    def as_json(self, found: Any) -> list[Any]:
        """A list of what JSON knows."""

    def from_json(self, content: list[Any]) -> Any:
        """What it was.

        Raises:
            ValueError, TypeError: it is no such list.
            shapely.errors.ShapelyError: likewise.
        """


class Journal:
    """An append-only file of finished images beside the output.

    Its first line is a fingerprint of weights and settings: another one starts it anew. A line cut
    off by a crash is passed over. Each process of a run writes and locks a file of its own: the
    first the journal, the others parts of it, which the first takes in.

    Attributes:
        path: the file.
        finished: keys of the finished images, and where in the file they stand.
        notes: by key, what the user should know of an image, finished or not.
    """

    def __init__(self, output: Path, fingerprint: str, codec: RecordCodec, part: int = 0) -> None:
        """Open the journal of ``output``; ``finished`` then holds what an earlier run did.

        Args:
            output: the file that is being predicted.
            fingerprint: of weights and settings.
            codec: of what is found in an image.
            part: 0 for the journal, which takes in all parts; else a part, begun anew.

        Raises:
            CannotWriteError: another run is at work, or the file cannot be written.
        """
        self._output = output
        self._codec = codec
        self._whole = output.with_name(f".{output.name}.partial")
        self.path = self._whole.with_name(f"{self._whole.name}-{part}") if part else self._whole
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
                # Cut off what a crash left unfinished, so that new lines start on their own line.
                self._file.truncate(end)
                if not end:
                    self._write(self._head)
                self.merge_parts()
            # Until `close`.
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, key: str, found: Any) -> None:
        """Note what was found in an image, under a key of its id and file, as finished."""
        line = json.dumps([key, self._codec.as_json(found)]).encode() + b"\n"
        self.finished[key] = self._write(line)

    def add_notes(self, key: str, notes: Sequence[str]) -> None:
        """Keep what the user should know of an image until the output is complete."""
        line = json.dumps([key, {"notes": notes}]).encode() + b"\n"
        self._take(line, self._write(line))

    def found(self, key: str) -> Any:
        """What was found in an image, read from the file: it takes no memory meanwhile."""
        self._file.seek(self.finished[key])
        return self._codec.from_json(json.loads(self._file.readline())[1])

    def merge_parts(self) -> None:
        """Add what other processes have written into parts, and delete those.

        Raises:
            CannotWriteError: a process is still writing one.
        """
        # A killed process may have left its lock file alone; taking the lock removes it.
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
            if part.readline() != self._head:
                return
            for line in part:
                if _record(line, self._codec):
                    self._take(line, self._write(line))

    def close(self) -> None:
        """Give the file free for other processes."""
        # What a full disk did not take is tried once more, and has been told.
        with contextlib.suppress(OSError):
            self._open.close()

    def remove(self) -> None:
        """Delete the file: the output is complete."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._open.close()

    def _locked(self, path: Path) -> contextlib.AbstractContextManager[None]:
        refusal = (
            f"{self._output} is being written by another run; wait for it or give another name."
        )
        return exclusive_lock(path, CannotWriteError(refusal))

    def _write(self, line: bytes) -> int:
        """Add a line; gives its place in the file."""
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
        """Read what fits; gives the length in bytes of the part that is whole."""
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
        """Know what a line of the file says; False if it is no whole record."""
        record = _record(line, self._codec)
        if record is None:
            return False
        key, notes = record
        if notes is None:
            self.finished[key] = place
        else:
            self.notes[key] = notes
        return True


def _record(line: bytes, codec: RecordCodec) -> tuple[str, list[str] | None] | None:
    """The key of the image of a line, and its notes if it holds these and not what was found.

    None if it is no whole record.
    """
    notes = None
    try:
        key, content = json.loads(line)
        if isinstance(content, dict):
            notes = list(map(str, content["notes"]))
        else:
            codec.from_json(content)
    except (ValueError, TypeError, KeyError, ShapelyError):
        return None
    return (str(key), notes) if line.endswith(b"\n") else None
