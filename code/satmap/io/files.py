"""Writing files so that a crash never leaves half of one behind."""

import contextlib
import errno
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from satmap.errors import CannotWriteError, SatmapError

# A process can read its umask only by changing it, which is not safe once threads run.
_UMASK = os.umask(0)
os.umask(_UMASK)

# No write takes so long: a temporary file of that age was left by a process that was killed.
_LEFT_OVER_S = 3600.0

# The names of temporary files: a path's stem, what tempfile adds, its suffix.
_TEMPORARY = re.compile(r"\.(.*)-[a-z0-9_]{8}(\.[^.-]*|)(?:-journal|-wal|-shm)?")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    Readers see the old file or the whole new one, never a part. When the block raises, the
    temporary file is removed and ``path`` is left as it was.

    Raises:
        CannotWriteError: the directory cannot be made or written to.
    """
    temporary = None
    try:
        # A link stays a link: what it points to is replaced.
        path = _resolved(path)
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix
        )
        os.close(descriptor)
        temporary = Path(name)
        # mkstemp makes private files; the result should follow the user's umask like any other.
        temporary.chmod(0o666 & ~_UMASK)
        yield temporary
        with temporary.open("rb") as file:
            # The content must be on the disk before the name points to it.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error.strerror or error}. "
            "Check that the directory exists, is writable and has space."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _resolved(path: Path) -> Path:
    """What a path's links lead to.

    Raises:
        OSError: to themselves, which Python up to 3.12 calls by another name.
    """
    try:
        return path.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _require_replaceable(path: Path) -> None:
    if path.is_dir():
        raise CannotWriteError(f"{path} is a directory; give the name of a file to write.")
    if path.exists() and not path.is_file():
        raise CannotWriteError(f"{path} is a device or a pipe; give the name of a file to write.")


def refuse_pipe(path: Path) -> None:
    """Fail before a pipe, which may never have a writer, or a device, which may never end, is read.

    Raises:
        SatmapError: the path is one. What is not there, or a directory, opening will tell.
    """
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise SatmapError(
                f"{path} is a pipe or a device; write its content to a file and give that."
            )


def is_temporary(path: Path) -> bool:
    """Whether ``atomic_path`` made the file and it has not been renamed yet."""
    return path.name.startswith(".")


def remove_temporary_files(directory: Path) -> None:
    """Delete the temporary files that killed processes left in a directory of satmap's own."""
    for path in directory.glob(".*-????????.*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_S:
                path.unlink()


def remove_temporary_files_of(paths: Iterable[Path]) -> None:
    """Delete the temporary files that killed processes left beside some paths.

    Nobody else may be writing these paths. The directory may be the user's: only what has the name
    of such a temporary file goes, and what other programs made of it (``...-journal``).
    """
    # As in `atomic_path`, which follows links.
    by_directory: dict[Path, set[tuple[str, str]]] = {}
    for path in map(Path.resolve, paths):
        by_directory.setdefault(path.parent, set()).add((path.stem[:40], path.suffix))
    for directory, names in by_directory.items():
        with contextlib.suppress(OSError):
            for path in directory.glob(".*-????????*"):
                match = _TEMPORARY.fullmatch(path.name)
                if match and match.groups() in names:
                    path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with unchanged line ends, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode())


def require_writable(path: Path) -> None:
    """Fail before hours of work rather than after them when ``path`` cannot be written.

    Raises:
        CannotWriteError: ``path`` is a directory, or its directory cannot be written to.
    """
    try:
        path = _resolved(path)
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error.strerror or error}. "
            "Choose another place for the output or change the directory's permissions."
        ) from error


# Format by suffix -> what stands near the start of every file of it, in small letters.
_MARKS = {
    ".csv": b"imageid",
    ".geojson": b"featurecollection",
    ".gpkg": b"sqlite format 3",
    ".graphml": b"graphml",
    # COCO results, of buildings, are a list.
    ".json": b"[",
}

# So much of a file is looked at.
_START = 512


def require_map_output(path: Path) -> None:
    """Make sure, before the work, that a map can be written and nothing else is lost by it.

    A forgotten last argument must not cost an image or anybody's notes.

    Args:
        path: the file; its suffix names its format, an unknown one that of a CSV.

    Raises:
        CannotWriteError: it cannot be written, or exists and holds something else.
    """
    require_writable(path)
    if not path.is_file() or not path.stat().st_size:
        return
    suffix = path.suffix.lower() if path.suffix.lower() in _MARKS else ".csv"
    with path.open("rb") as file:
        start = file.read(_START)
    if _MARKS[suffix] not in start.lower():
        raise CannotWriteError(
            f"{path} exists and holds no map in the format of {suffix} files, so it is not "
            "replaced. Give another name, or remove it."
        )


# The processes of a killed run end within moments. A lock held for longer belongs to another run.
_GRACE_S = 3.0

# What a file system without locks answers.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def exclusive_lock(path: Path, refusal: SatmapError) -> Iterator[None]:
    """Let one process at a time work on a file, or on the files that share its stem.

    The lock is on a file of its own, ``.NAME.lock`` beside ``path``, which is removed at the end.
    The operating system releases the lock when the process ends, however it ends: the file that a
    killed process leaves is no lock. Forked processes do not inherit it. File systems without locks
    go without.

    Args:
        path: what the lock is for; it need not exist.
        refusal: raised if another process holds the lock and keeps it.

    Raises:
        SatmapError: ``refusal``.
        OSError: the lock file cannot be made.
    """
    file = path.with_name(f".{path.name.removeprefix('.')}.lock")
    # A soft lock, the existence of a file, would outlive a killed process.
    lock = FileLock(file, timeout=_GRACE_S, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise refusal from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        file.unlink(missing_ok=True)
    try:
        yield
    finally:
        if lock.is_locked:
            # Removed before the release: who waits for this file sees that it is gone and makes a
            # new one. Windows keeps open files.
            with contextlib.suppress(OSError):
                file.unlink()
            lock.release()
