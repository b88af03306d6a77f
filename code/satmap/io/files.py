"""Atomic file writes, checks of output paths, and file locks."""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from satmap.errors import CannotWriteError, SatmapError

# A process can read its umask only by changing it, which is not thread-safe, so read it on import.
_UMASK = os.umask(0)
os.umask(_UMASK)

# Age from which a temporary file is regarded as left over by a killed process; no write takes as
# long.
_LEFT_OVER_S = 3600.0

# Names of temporary files: the path's stem, the random part added by tempfile, the path's suffix.
_TEMPORARY = re.compile(r"\.(.*)-[a-z0-9_]{8}(\.[^.-]*|)(?:-journal|-wal|-shm)?")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    Readers see the old file or the complete new one. If the block raises, the temporary file is
    removed and ``path`` is unchanged.

    Raises:
        CannotWriteError: the directory cannot be created or written to.
    """
    temporary = None
    try:
        # Replace the target of a link, not the link itself.
        path = _replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix
        )
        os.close(descriptor)
        temporary = Path(name)
        # mkstemp creates private files, but the result should follow the user's umask.
        temporary.chmod(0o666 & ~_UMASK)
        yield temporary
        with temporary.open("rb") as file:
            # The content must be on disk before the rename.
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


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; rename it to ``path`` when the block succeeds.

    An older directory is then deleted. If the block raises, ``path`` is unchanged.

    Raises:
        CannotWriteError: the directory cannot be created or written to.
    """
    temporary = None
    try:
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem[:40]}-"))
        temporary.chmod(0o777 & ~_UMASK)
        yield temporary
        if path.is_dir():
            # A directory can only replace an empty one.
            older = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem[:40]}-"))
            path.rename(older)
            temporary.rename(path)
            shutil.rmtree(older, ignore_errors=True)
        else:
            temporary.rename(path)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error.strerror or error}. "
            "Check that the directory above it exists, is writable and has space."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _replaceable(path: Path) -> Path:
    """Resolve the links of a path; fail if it is a directory, a device or a pipe."""
    try:
        path = path.resolve()
    # Python up to 3.12 raises this for circular links; later versions raise OSError.
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
    if path.is_dir():
        raise CannotWriteError(f"{path} is a directory; give the name of a file to write.")
    if path.exists() and not path.is_file():
        raise CannotWriteError(f"{path} is a device or a pipe; give the name of a file to write.")
    return path


def refuse_pipe(path: Path) -> None:
    """Raise SatmapError if the path is a pipe or a device, whose reading might never end.

    Missing files and directories are not checked; opening them fails later.
    """
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise SatmapError(
                f"{path} is a pipe or a device; write its content to a file and give that."
            )


def is_temporary(path: Path) -> bool:
    """Return whether the file is a temporary one of ``atomic_path``."""
    return path.name.startswith(".")


def remove_temporary_files(directory: Path) -> None:
    """Delete the temporary files that killed processes left in a directory used only by satmap."""
    for path in directory.glob(".*-????????.*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_S:
                path.unlink()


def remove_temporary_files_of(paths: Iterable[Path]) -> None:
    """Delete the temporary files and directories that killed processes left beside some paths.

    No other process may be writing these paths. The directory may hold files of the user: only
    temporary files and directories of these paths are deleted, and the files that SQLite derives
    from them (``...-journal``).
    """
    # Follow links, as `atomic_path` does.
    by_directory: dict[Path, set[tuple[str, str]]] = {}
    for path in map(Path.resolve, paths):
        by_directory.setdefault(path.parent, set()).add((path.stem[:40], path.suffix))
    for directory, names in by_directory.items():
        with contextlib.suppress(OSError):
            for path in directory.glob(".*-????????*"):
                match = _TEMPORARY.fullmatch(path.name)
                if not match or match.groups() not in names:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with unchanged line endings, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode())


def require_writable(path: Path) -> None:
    """Raise CannotWriteError early, before hours of work, if ``path`` cannot be written."""
    try:
        path = _replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error.strerror or error}. "
            "Choose another place for the output or change the directory's permissions."
        ) from error


# Seconds to wait for a lock. The processes of a killed run end sooner, so a lock held for longer
# belongs to another run.
_GRACE_S = 3.0

# Error numbers of file systems without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def exclusive_lock(path: Path, refusal: SatmapError) -> Iterator[None]:
    """Let one process at a time work on a file, or on the files that share its stem.

    The lock is held on a separate file, ``.NAME.lock`` beside ``path``, which is removed at the
    end. The operating system releases the lock when the process ends, even if it is killed; a lock
    file left behind does not block anyone. Forked processes do not inherit the lock. On file
    systems without locks, nothing is locked. ``path`` need not exist.

    Raises:
        SatmapError: ``refusal``, if another process keeps the lock.
        OSError: the lock file cannot be created.
    """
    file = path.with_name(f".{path.name.removeprefix('.')}.lock")
    # A soft lock is the mere existence of a file and would outlive a killed process.
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
            # Remove the file before the release: a waiting process sees that it is gone and creates
            # a new one. Windows cannot remove open files.
            with contextlib.suppress(OSError):
                file.unlink()
            lock.release()
